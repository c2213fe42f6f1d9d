"""What is known of a mixture is paired with what training found, and figures are scipy's."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.evaluation.group_sums import GroupSums
from tasks.evaluation.losses import Counts, Losses
from tasks.mixtures.mixture import Mixture
from tasks.ranking.rank import MACRO_MEAN
from tasks.trust.agreement import FIGURES, POOLED, WITHIN, agreement, gains
from tasks.trust.bootstrap import mixture_weights, percentile_interval
from tasks.trust.measures import pearson
from tasks.trust.predictors import pair_up

NAMES = "abcdefgh"
PREDICTORS = ("proxy", "singles", "tokens", "nearest", "regression")
DOMAINS = {"a": "code", "b": "code", "c": "prose"}
SETS = {"x": "code", "y": "law"}
TOKENS = {"a": 100, "b": 30, "c": 7}
SINGLES = {"a": [1.0, 5.0], "b": [2.0, 1.0], "c": [4.0, 3.0]}
MERGED = {**SINGLES, "a + b": [1.25, 2.0], "a + c": [2.0, 3.0], "3 a + 1 c": [1.5, 3.5]}


def losses_of(per_token: dict[str, list[float]], tokens: list[int], size: int = 4) -> Losses:
    """Losses on the sets x and y, given in nats per token; ``size`` bytes to a token."""
    nll = np.array(list(per_token.values())) * tokens
    counts = [
        Counts(n, n * size, n // 2, np.array([n], np.int64), np.array([n * size], np.int64))
        for n in tokens
    ]
    return Losses(list(per_token), ["x", "y"], nll, counts, GroupSums(len(per_token)))


def paired(chosen: list[Mixture]) -> pd.DataFrame:
    trained = {mixture.label: [1.0 + n, 1.5 * n] for n, mixture in enumerate(chosen)}
    proxies, references = losses_of(MERGED, [10, 20]), losses_of(trained, [10, 20])
    return pair_up(proxies, references, chosen, DOMAINS, SETS, TOKENS)


def test_pairs_by_hand() -> None:
    found = paired([Mixture.uniform("ab"), Mixture.uniform("ac"), Mixture.of({"a": 3, "c": 1})])
    assert found["evaluation_set"].tolist() == ["x", "y", MACRO_MEAN] * 3
    assert found["k"].tolist() == [2] * 9
    assert found["mixture"].tolist()[::3] == ["a + b", "a + c", "3 a + 1 c"]
    first = found.head(3)
    assert first["proxy"].tolist() == pytest.approx([1.25, 2.0, 1.625])
    assert first["reference"].tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert first["singles"].tolist() == pytest.approx([1.5, 3.0, 2.25])
    assert first["nearest"].tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert first["tokens"].tolist() == [-130] * 3
    bits = found[["proxy_bits", "reference_bits"]] * 4 * math.log(2)
    np.testing.assert_allclose(bits, found[["proxy", "reference"]])
    uneven = found.tail(3)
    assert uneven["singles"].tolist() == pytest.approx([1.75, 4.5, 3.125])
    assert uneven["tokens"].tolist() == [-107] * 3


def test_own_is_the_domain_of_the_set() -> None:
    chosen = [Mixture.uniform("ab"), Mixture.uniform("c")]
    losses, sets = losses_of(MERGED, [10, 20]), {"x": "prose", "y": "law"}
    found = pair_up(losses, losses, chosen, DOMAINS, sets, TOKENS)
    assert found["own"].tolist() == ["out", None, None, "in", None, None]
    without = pair_up(losses, losses, chosen, DOMAINS, {}, TOKENS)
    assert without["own"].isna().all()


def test_sets_may_come_in_another_order() -> None:
    chosen = [Mixture.uniform("ab"), Mixture.uniform("ac")]
    trained = losses_of({m.label: [1.0, 2.0 + n] for n, m in enumerate(chosen)}, [10, 20])
    turned = Losses(
        trained.mixtures, ["y", "x"], trained.nll[:, ::-1], trained.counts[::-1], trained.sums
    )
    proxies = losses_of(MERGED, [10, 20])
    one, other = (
        pair_up(proxies, them, chosen, DOMAINS, SETS, TOKENS) for them in (trained, turned)
    )
    pd.testing.assert_frame_equal(one, other)


def test_a_model_that_diverged_spoils_its_own_mixtures_alone() -> None:
    broken = {**MERGED, "c": [math.nan, math.inf]}
    chosen = [Mixture.uniform("ab"), Mixture.uniform("ac")]
    trained = losses_of({m.label: [1.0, 2.0] for m in chosen}, [10, 20])
    found = pair_up(losses_of(broken, [10, 20]), trained, chosen, DOMAINS, SETS, TOKENS)
    assert np.isfinite(found["singles"]).tolist() == [True] * 3 + [False] * 3


def test_what_lacks_is_named() -> None:
    chosen, losses = [Mixture.uniform("ab")], losses_of(MERGED, [1, 1])
    few = losses_of({"a": [1.0, 1.0], "a + b": [1.0, 1.0]}, [1, 1])
    with pytest.raises(ValueError, match=r"proxies lack losses of 'b' \(1 in all\)"):
        pair_up(few, losses, chosen, DOMAINS, SETS, TOKENS)
    with pytest.raises(ValueError, match=r"references lack losses of 'a \+ b'"):
        pair_up(losses, losses_of(SINGLES, [1, 1]), chosen, DOMAINS, SETS, TOKENS)
    with pytest.raises(ValueError, match="domain of partition 'b' is not given"):
        pair_up(losses, losses, chosen, {"a": "code"}, SETS, TOKENS)
    with pytest.raises(ValueError, match="number of distinct tokens of partition 'a' is not given"):
        pair_up(losses, losses, chosen, DOMAINS, SETS, {"b": 1})
    with pytest.raises(ValueError, match="partitions of mixture 'a ' are not given"):
        agreement(pd.DataFrame({"mixture": ["a "]}), {})


Members = dict[str, tuple[str, ...]]


def random_pairs(
    seed: int, counts: dict[int, int], ties: bool = False
) -> tuple[pd.DataFrame, Members]:
    """Random losses of so many mixtures of each size on two sets; x has a domain, y has none."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    members: Members = {}
    for k, count in counts.items():
        combinations = list(itertools.combinations(NAMES, k))
        for number in random.choice(len(combinations), count, replace=False):
            label = " + ".join(combinations[number])
            members[label] = combinations[number]
            for name in ("x", "y"):
                size = len(PREDICTORS) + 1
                values = random.integers(0, 3, size) / 4 if ties else random.normal(size=size)
                found = dict(zip((*PREDICTORS, "reference"), values.tolist(), strict=True))
                own = ("in" if "a" in members[label] else "out") if name == "x" else None
                rows.append(
                    {"mixture": label, "k": k, "evaluation_set": name, "own": own, **found}
                    | {"reference_bits": found["reference"] / 2, "proxy_bits": found["proxy"] / 2}
                )
    return pd.DataFrame(rows), members


def lines(table: pd.DataFrame, *keys: str) -> dict[Any, dict[Any, Any]]:
    """Rows by their keys: one alone, or several as a tuple."""
    assert not table.duplicated([*keys]).any()
    return {
        tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]: row
        for row in table.to_dict("records")
    }


CELL = ("evaluation_set", "scope", "k", "predictor")


def reference_figures(x: "pd.Series[float]", y: "pd.Series[float]") -> list[float]:
    """Pearson, Spearman and Kendall, by scipy."""
    if len(x) < 3 or x.nunique() < 2 or y.nunique() < 2:
        return [math.nan] * 3
    return [stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0], stats.kendalltau(x, y)[0]]


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(3, 12), st.booleans())
def test_figures_are_scipys(seed: int, few: int, many: int, ties: bool) -> None:
    data, members = random_pairs(seed, {2: few, 3: many}, ties)
    data = data.drop(columns=["tokens", "nearest", "regression"])
    found = agreement(data, members, draws=5)
    assert len(lines(found, *CELL)) == len(found)
    assert set(found["scope"][found["evaluation_set"] == "y"]) == {"all"}
    for line in found.to_dict("records"):
        part = data[data["evaluation_set"] == line["evaluation_set"]]
        part = part if line["scope"] == "all" else part[part["own"] == line["scope"]]
        if line["k"] not in {WITHIN, POOLED}:
            part = part[part["k"] == int(line["k"])]
        x, y = part[line["predictor"]], part["reference"]
        if line["k"] == WITHIN:
            part = part[part.groupby("k")["k"].transform("size") > 1]
            means = part.groupby("k")[[line["predictor"], "reference"]].transform("mean")
            # Values that differ by rounding alone are equal.
            x, y = ((part[name] - means[name]).round(9) for name in means)
        assert line["references"] == len(x)
        right = reference_figures(x, y)
        compared = 2 if line["k"] == WITHIN else 3
        figures = [line[name] for name in FIGURES[:compared]]
        assert figures == pytest.approx(right[:compared], abs=1e-8, nan_ok=True)


def test_every_cell_is_there() -> None:
    data, members = random_pairs(0, {2: 4, 3: 5})
    found = agreement(data, members, draws=2)
    of_y = found[found["evaluation_set"] == "y"]
    assert list(zip(of_y["k"], of_y["predictor"], strict=True)) == list(
        itertools.product(("2", "3", WITHIN, POOLED), PREDICTORS)
    )
    suffixed = [f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")]
    assert [*found.columns] == [
        *("evaluation_set", "scope", "k", "predictor", "references"),
        *(*suffixed, "regret_1", "regret_3"),
    ]
    fewer = agreement(data.drop(columns=["tokens", "nearest"]), members, draws=2)
    assert set(fewer["predictor"]) == {"proxy", "singles", "regression"}


def test_pairs_within_are_of_one_size() -> None:
    """Every pair of one k is ordered right, every other one wrong."""
    labels = ["a + b", "a + c", "b + c", "a + b + c", "a + b + d", "a + c + d"]
    data = pd.DataFrame(
        {
            "mixture": labels,
            "k": [2, 2, 2, 3, 3, 3],
            "evaluation_set": "x",
            "own": None,
            "proxy": [1.0, 2.0, 3.0, 11.0, 12.0, 13.0],
            "reference": [11.0, 12.0, 13.0, 1.0, 2.0, 3.0],
            "reference_bits": [11.0, 12.0, 13.0, 1.0, 2.0, 3.0],
        }
    )
    members = {label: tuple(label.split(" + ")) for label in labels}
    found = lines(agreement(data, members), "k")
    for k in (WITHIN, "2", "3"):
        figures = [found[k][name] for name in ("pairs_right", "kendall", "pearson")]
        assert figures == pytest.approx([1, 1, 1])
    assert found[POOLED]["pairs_right"] == pytest.approx(6 / 15)
    assert found[POOLED]["pearson"] < 0
    assert [found[k]["regret_1"] for k in ("2", "3", WITHIN, POOLED)] == [0, 0, 0, 10]


def test_intervals_are_of_draws_over_partitions() -> None:
    data, members = random_pairs(3, {2: 8, 3: 8})
    found = agreement(data, members, draws=200, seed=7)
    part = data[data["evaluation_set"] == "y"]
    weights = mixture_weights([members[label] for label in part["mixture"]], 200, 7)
    x, y, k = (part[name].to_numpy() for name in ("nearest", "reference", "k"))
    right = percentile_interval(pearson(x, y, k, weights)[1:], len(NAMES))
    line = lines(found, *CELL)["y", "all", WITHIN, "nearest"]
    assert (line["pearson_low"], line["pearson_high"]) == pytest.approx(right)
    bounded = found[["pearson_low", "pearson", "pearson_high"]].dropna()
    assert (bounded["pearson_low"] <= bounded["pearson_high"]).all()
    pd.testing.assert_frame_equal(
        agreement(data, members, draws=20, seed=7), agreement(data, members, draws=20, seed=7)
    )


def test_two_references_say_nothing() -> None:
    data, members = random_pairs(0, {2: 2, 3: 3, 4: 1})
    found = agreement(data, members, draws=20)
    found = found[(found["evaluation_set"] == "y") & (found["predictor"] == "proxy")]
    found = found.set_index("k")
    figures = [*FIGURES, "regret_1", "regret_3"]
    assert found.loc[["2", "4"], figures].isna().to_numpy().all()
    assert found.loc[["3", WITHIN, POOLED], figures].notna().to_numpy().all()
    assert found["references"].tolist() == [2, 3, 1, 5, 6]


def test_what_is_constant_or_not_finite() -> None:
    data, members = random_pairs(1, {2: 6, 3: 6})
    data["tokens"] = -0.1 * data["k"]
    data["nearest"] = math.nan
    lost = data["mixture"] == data["mixture"].iloc[0]
    data.loc[lost, ["reference", "reference_bits"]] = math.inf
    found = lines(agreement(data, members, draws=50), *CELL)
    known = {name: found["y", "all", WITHIN, name]["references"] for name in PREDICTORS}
    assert known == {**dict.fromkeys(PREDICTORS, 11), "nearest": 0}
    tokens = found["y", "all", WITHIN, "tokens"]
    assert all(
        math.isnan(tokens[name]) for name in ("pearson", "spearman", "kendall", "pearson_low")
    )
    assert {tokens[f"pairs_right{end}"] for end in ("", "_low", "_high")} == {0.5}
    assert tokens["regret_1"] > tokens["regret_3"] > 0
    assert math.isfinite(found["y", "all", POOLED, "tokens"]["pearson"])
    added = lines(gains(data, members, draws=50), "evaluation_set", "baseline")
    figures = ("difference", "low", "high")
    assert all(math.isnan(added["y", "tokens"][name]) for name in figures)
    assert added["y", "nearest"]["references"] == 0
    assert all(math.isfinite(added["y", "singles"][name]) for name in figures)


def test_gains_are_paired() -> None:
    """What orders as the proxy does adds nothing in any draw; noise is clearly worse."""
    data, members = random_pairs(2, {2: 12, 3: 12})
    random = np.random.default_rng(0)
    data["proxy"] = data["reference"] + random.normal(0, 0.3, len(data))
    data["singles"] = 2 * data["proxy"] + data["k"]
    found = lines(gains(data, members, draws=300), "evaluation_set", "baseline")
    table = lines(agreement(data, members, draws=2), *CELL)
    for name in ("x", "y"):
        same = [found[name, "singles"][end] for end in ("difference", "low", "high")]
        assert same == pytest.approx([0, 0, 0], abs=1e-9)
        proxy, other = (table[name, "all", WITHIN, by]["pearson"] for by in ("proxy", "nearest"))
        line = found[name, "nearest"]
        assert line["difference"] == pytest.approx(proxy - other)
        assert 0 < line["low"] < line["difference"] < line["high"]
        assert line["references"] == 24
