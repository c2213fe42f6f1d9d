"""Reports with made-up losses: small ones, and one that has everything a report can have."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

from tasks.evaluation.group_sums import GroupSums
from tasks.evaluation.losses import Losses
from tasks.ranking.rank import MACRO_MEAN, rank_all
from tasks.report.data import ReportData
from tasks.search.result import SearchResult
from tasks.trust.agreement import agreement
from tasks.trust.ladder import Column, Ladder, judge_ladder
from tasks.trust.verdict import Trust


def report_data(names: list[str], sets: list[str], **changes: Any) -> ReportData:
    """All uniform mixtures of ``names``; each first name is good on every set but the last."""
    rng = np.random.default_rng(0)
    chosen = [c for k in range(1, len(names) + 1) for c in itertools.combinations(names, k)]
    tokens = rng.integers(80, 120, 12)
    rows, members = [], []
    for parts in chosen:
        mixture = " + ".join(parts)
        members += [(mixture, part, 1 / len(parts)) for part in parts]
        for name in sets:
            loss = 3 + 0.1 * (names[0] not in parts) + 0.01 * len(parts) + rng.normal(0, 0.01, 12)
            total = int(tokens.sum())
            nats = tokens * loss
            sums = (float(nats.sum()), total, 4 * total, total // 2)
            rows.append((mixture, name, *sums, nats, tokens, 4 * tokens))
    columns = "mixture evaluation_set nll num_tokens num_bytes num_words"
    groups = ["group_nll", "group_tokens", "group_bytes"]
    data = ReportData(
        title="Which data?",
        created="2026-11-21T02:10:00Z",
        losses=Losses.of(pd.DataFrame(rows, columns=[*columns.split(), *groups])),
        members=pd.DataFrame(members, columns=["mixture", "partition", "weight"]),
        rankings={},
        partitions=pd.DataFrame(
            [
                (name, name, 12_345, 16_777_216, 1.5, 725.0, "0a1b2c3d4e", "trained now")
                for name in names
            ],
            columns=[
                "partition",
                "domain",
                "num_documents",
                "num_tokens",
                "repeats",
                "seconds",
                "fingerprint",
                "status",
            ],
        ),
        sets=pd.DataFrame(
            [(name, None if name == sets[-1] else "d", 10, 1000, 4000, 3) for name in sets],
            columns=[
                "evaluation_set",
                "domain",
                "num_documents",
                "num_tokens",
                "num_bytes",
                "removed",
            ],
        ),
        cost=pd.DataFrame(
            [("this run", 4211.0, 5.1e8, 3.2e17, math.nan, None)],
            columns=["item", "seconds", "tokens", "flops", "joules", "estimator"],
        ),
        validation=None,
        notes=[],
        lineage="report\n└─ sweep",
        provenance={"commit": "abc123", "packages": {"torch": "2.13.0"}},
    )
    return changed(data, **changes)


def changed(data: ReportData, **changes: Any) -> ReportData:
    """The report with other fields, ranked anew."""
    data = dataclasses.replace(data, **changes)
    rankings = rank_all(data.losses, data.members, is_screened=data.race is not None)
    return dataclasses.replace(data, rankings=rankings)


def full_report(**changes: Any) -> ReportData:
    """Six partitions, of which two are copies; validated, and searched. Numbers are made up."""
    return changed(_full_report(), **changes)


@functools.cache
def _full_report() -> ReportData:
    names, sets = (
        ["birds", "code", "law", "law copy", "news", "sums"],
        ["birds", "code", "law", "web"],
    )
    losses, members = averaged(names, sets, copies={"law copy": "law"})
    data = report_data(names, sets, losses=losses, members=members, notes=["Nothing was lost."])
    flat = data.partitions.assign(sharpness=0.012, barrier=-0.034)
    return dataclasses.replace(
        data,
        partitions=flat,
        validation=trust_of(data),
        search=found_of(data),
        ladder=ladder_of(data),
    )


def averaged(
    names: list[str], sets: list[str], copies: dict[str, str], seed: int = 0
) -> tuple[Losses, pd.DataFrame]:
    """All uniform mixtures; a model is a point, a merge the mean of its points, and so is a copy.

    The loss of a group of documents is 3 nats per token and the squared distance to what it asks for.
    """
    rng = np.random.default_rng(seed)
    points = {name: rng.normal(0, 0.4, 4) for name in names}
    points |= {copy: points[original] for copy, original in copies.items()}
    asked = {name: rng.normal(0, 0.25, 4) + 0.8 * points.get(name, np.zeros(4)) for name in sets}
    tokens = rng.integers(80, 120, 24)
    spread = {name: rng.normal(0, 0.15, (24, 4)) for name in sets}
    rows, members = [], []
    for k in range(1, len(names) + 1):
        for parts in itertools.combinations(names, k):
            mixture, model = " + ".join(parts), np.mean([points[part] for part in parts], axis=0)
            members += [(mixture, part, 1 / k) for part in parts]
            for name in sets:
                nats = tokens * (3 + ((model - asked[name] - spread[name]) ** 2).sum(axis=1))
                total = int(tokens.sum())
                counts = (float(nats.sum()), total, 4 * total, total // 2)
                rows.append((mixture, name, *counts, nats, tokens, 4 * tokens))
    columns = "mixture evaluation_set nll num_tokens num_bytes num_words"
    groups = ["group_nll", "group_tokens", "group_bytes"]
    frame = pd.DataFrame(rows, columns=[*columns.split(), *groups])
    return Losses.of(frame), pd.DataFrame(members, columns=["mixture", "partition", "weight"])


def trust_of(data: ReportData) -> Trust:
    """References that are their proxies and noise, for 24 mixtures of 2 to 4 partitions."""
    rng = np.random.default_rng(1)
    table = data.rankings[MACRO_MEAN]
    chosen = table[table["k"].between(2, 4)].groupby("k").head(8)
    rows = []
    for name, ranking in data.rankings.items():
        proxies = ranking.set_index("mixture")["loss"]
        for mixture, k in zip(chosen["mixture"], chosen["k"], strict=True):
            parts = mixture.split(" + ")
            own = None if name in (MACRO_MEAN, "web") else "in" if name in parts else "out"
            reference = 0.8 * proxies[mixture] - 0.02 * k + rng.normal(0, 0.01)
            means = [proxies[part] for part in parts]
            bits = reference / 4 / math.log(2)
            others = (np.mean(means), -1000 * k, min(means), reference + rng.normal(0, 0.05))
            rows.append((mixture, k, name, own, proxies[mixture], reference, bits, *others))
    columns = "mixture k evaluation_set own proxy reference reference_bits"
    columns += " singles tokens nearest regression"
    pairs = pd.DataFrame(rows, columns=columns.split())
    members = {mixture: mixture.split(" + ") for mixture in chosen["mixture"]}
    sets = [*data.losses.sets, MACRO_MEAN]
    barriers = [
        (name, *pair, 3.2, 3.3, 3.1 + 0.3 * (n == 4), 3.35, 0.3 * (n == 4) - 0.2, n == 4)
        for n, pair in enumerate(itertools.combinations(sorted(set(data.members["partition"])), 2))
        for name in sets
    ]
    ends = ["evaluation_set", "first", "second", "loss_first", "loss_second"]
    noise = [(name, pairs["mixture"].iloc[0], 3, 0.012, 0.0043, 0.97) for name in sets]
    return Trust(
        words=[
            "Trust the order of mixtures of 2 to 4 partitions for the macro mean.",
            "Within one number of partitions the merged models order the references with a Pearson "
            "correlation of 0.94, the mean of their parts with 0.58.",
        ],
        table=agreement(pairs, members, draws=50),
        pairs=pairs,
        noise=pd.DataFrame(
            noise, columns=["evaluation_set", "mixture", "runs", "sd", "sd_bits", "ceiling"]
        ),
        barriers=pd.DataFrame(barriers, columns=[*ends, "midpoint", "base", "barrier", "broken"]),
        named=named_of(data),
    )


def named_of(data: ReportData) -> pd.DataFrame:
    """Two mixtures with weights, beside the even references of their k where there are any."""
    rows = [
        (label, k, name, 3.21, 3.05, 1.15, 1.1, even, 2, 1, best, *gap)
        for label, k, even, best, gap in [
            ("7 birds + 3 code", 2, 8, "code + law", (-0.0123, -0.0150, -0.0096)),
            ("5 birds + 1 code + 1 law + 3 news + 1 sums", 5, 0, None, (math.nan,) * 3),
        ]
        for name in [MACRO_MEAN, *data.losses.sets]
    ]
    columns = "mixture k evaluation_set proxy reference proxy_bits reference_bits even"
    columns += " proxy_rank reference_rank best_even difference low high"
    return pd.DataFrame(rows, columns=columns.split())


def ladder_of(data: ReportData) -> Ladder:
    """The report's own losses, and those of another draw, as two further rungs."""
    losses = data.losses
    rng = np.random.default_rng(3)
    level = rng.normal(1, 0.005, (len(losses.mixtures), 1))
    sums = GroupSums(len(losses.mixtures))
    for number in range(len(losses.sets)):
        scaled = losses.sums.read(number, 0, len(losses.mixtures)) * level
        sums.write(number, np.arange(len(losses.mixtures)), scaled)
    moved = Losses(losses.mixtures, losses.sets, losses.nll * level, losses.counts, sums)
    columns = [
        Column("the recipe", "proxy", losses),
        Column("train.learning_rate=0.0001", "proxy", losses),
        Column("base.architecture.hidden_size=256, train.steps=2000", "proxy", moved),
        Column("base.architecture.hidden_size=256, train.steps=2000", "reference", moved),
    ]
    return judge_ladder(columns, {label: label.count(" + ") + 1 for label in losses.mixtures})


def found_of(data: ReportData) -> SearchResult:
    """A search of 40 evaluations whose proposals come nearer and nearer."""
    rng = np.random.default_rng(2)
    ranking = data.rankings[MACRO_MEAN].set_index("mixture")["bits_per_byte"]
    order = rng.permutation(len(ranking))[:40]
    order = np.concatenate([order[:16], np.sort(order[16:])[::-1]])
    objective = ranking.to_numpy()[order]
    feasible = rng.random(40) > 0.2
    trace = pd.DataFrame(
        {
            "evaluation": range(1, 41),
            "round": np.repeat([0, 1, 2, 3, 4], 8),
            "mixture": ranking.index.to_numpy()[order],
            "proposed_by": ["start"] * 16 + ["gaussian process", "random", "descent"] * 8,
            "predicted": objective + rng.normal(0, 0.004, 40),
            "objective": objective,
            "best": pd.Series(np.where(feasible, objective, np.nan)).cummin(),
            "feasible": feasible,
        }
    )
    best = trace[trace["feasible"]].nsmallest(10, "objective")
    sets = {name: rng.normal(1, 0.05, len(best)) for name in data.losses.sets}
    names = ["linear", "quadratic", "log-linear", "gaussian process", "lightgbm"]
    surrogates = pd.DataFrame(
        {
            "surrogate": names,
            "target": "objective",
            "spearman": [0.71, 0.86, 0.8, 0.97, 0.62],
            "pearson": [0.7, 0.9, 0.83, 0.98, 0.66],
            "rmse": [0.02, 0.01, 0.013, 0.003, 0.03],
            "rows": 40,
            "chosen": [name == "gaussian process" for name in names],
        }
    )
    return SearchResult(
        words=["The gaussian process found the best mixture after 31 evaluations of 63 mixtures."],
        surrogates=surrogates,
        trace=trace,
        best=best[["mixture", "objective"]].assign(**sets, predicted=best["predicted"]),
    )
