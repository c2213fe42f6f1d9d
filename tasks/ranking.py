"""Which mixtures are best, and which of them cannot be told apart.

Two mixtures are read against the same documents, so what makes a document hard cancels in their
difference: the noise of a difference is far below the noise of either loss. A loss is a ratio of
sums (nats over tokens); its linearised residual per group of documents is
``r_g = nll_g - loss * tokens_g``, and with groups as clusters the variance of a difference is
``G / (G - 1) * sum_g (r_ig - r_jg)^2 / tokens^2`` (delta method). Scaled residuals are therefore
points whose *squared distance is that variance*, and all pairs at once are one Gram matrix.

Intervals are 95 % normal intervals of one pair: they want some 20 groups per set, and they are not
widened for the number of pairs. They hold the noise of the evaluation documents alone, neither that
of training nor the error of the proxy.
"""

import math
from collections import defaultdict
from collections.abc import Collection
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

MACRO_MEAN = "macro mean"
"""Objective: mean over sets of nats per token, the log of the geometric mean of the perplexities."""

MOST_COMPARED = 3000
"""Only this many of the best mixtures are compared pair by pair; the rest get plain positions."""

_Z = NormalDist().inv_cdf(0.975)
_BLOCK = 500  # rows: 12 MB per temporary of 500 x 3,000 float64


def rank(losses: "pd.DataFrame", members: "pd.DataFrame", objective: str) -> "pd.DataFrame":
    """Mixtures from best to worst, with the noise of their distance to the best.

    Args:
        losses: one row per (mixture, evaluation set): ``mixture``, ``evaluation_set``, ``nll``
            (nats), ``num_tokens``, ``num_bytes``, ``num_words``, ``group_nll`` (float64, length G),
            ``group_tokens`` (length G, the same for all mixtures of a set).
        members: ``mixture``, ``partition``, ``weight``.
        objective: ``MACRO_MEAN`` or the name of one evaluation set.

    Returns:
        Sorted by loss, one row per mixture: ``objective``; ``rank`` = 1 + the number of mixtures
        that are better beyond the noise, so that mixtures within the noise share ranks (past the
        best ``MOST_COMPARED``, the plain position; equal losses always share a rank; as the noise
        differs by pair, ranks need not rise with every row); ``mixture``; ``k``, its number of
        partitions; ``loss`` in nats per token (macro mean: mean over sets, the log of the geometric
        mean of the perplexities); ``perplexity`` = exp(loss); ``bits_per_byte`` (macro mean: mean
        over sets); ``word_perplexity`` (macro mean: geometric mean); ``difference`` = loss minus
        the best mixture's, with ``low`` and ``high``, its paired 95 % interval (NaN where a set has
        fewer than 2 groups); ``tied``, whether that interval includes 0.

    Raises:
        ValueError: the objective is unknown, a mixture lacks a set or its members, is there twice,
            has a loss that is not finite, or was evaluated on other text than the others.
    """
    import numpy as np

    sets = _evaluations(losses, objective)
    table = _summary(sets)
    table["k"] = _sizes(members, table.index)
    order = np.lexsort((np.arange(len(table)), table["loss"].to_numpy()))
    table = table.iloc[order].reset_index()
    sets = [frame.iloc[order] for frame in sets]
    table["difference"] = table["loss"] - table["loss"].iloc[0]
    margin = _Z * np.sqrt(_variances_from_best(sets))
    table["low"], table["high"] = table["difference"] - margin, table["difference"] + margin
    table["tied"] = (table["low"] <= 0) | (table["difference"] == 0)
    table["rank"] = _ranks(table["loss"].to_numpy(), [frame.iloc[:MOST_COMPARED] for frame in sets])
    table["objective"] = objective
    values = ["loss", "perplexity", "bits_per_byte", "word_perplexity", "difference", "low", "high"]
    return table[["objective", "rank", "mixture", "k", *values, "tied"]]


def marginal_effects(
    losses: "pd.DataFrame", members: "pd.DataFrame", objective: str
) -> "pd.DataFrame":
    """What adding a partition does to the loss, over all evaluated pairs of uniform mixtures.

    A pair is a uniform mixture S and the uniform mixture of S and one partition more; mixtures
    with uneven weights are left out. Arguments and errors as in ``rank``.

    Returns:
        One row per partition, the most helpful first: ``partition``; ``mean`` of the differences
        loss(S + partition) - loss(S) in nats per token, negative where it helps; ``low`` and
        ``high``, their 10th and 90th percentile (the spread over mixtures, not an error bar);
        ``count`` of pairs; ``values``, the differences in ascending order (float64, length
        ``count``). Without a pair, ``count`` is 0 and the numbers are NaN.
    """
    import numpy as np
    import pandas as pd

    summary = _summary(_evaluations(losses, objective))
    loss = dict(zip(summary.index, summary["loss"], strict=True))
    uniform = _uniform(members, loss)
    values: dict[str, list[float]] = {name: [] for name in sorted(members["partition"].unique())}
    for parts, mixture in uniform.items():
        for partition in parts:
            if (smaller := uniform.get(parts - {partition})) is not None:
                values[partition].append(loss[mixture] - loss[smaller])
    rows = [_effect(name, np.sort(np.array(found))) for name, found in values.items()]
    columns = ["partition", "mean", "low", "high", "count", "values"]
    return pd.DataFrame(rows, columns=columns).sort_values("mean", kind="stable", ignore_index=True)


def _effect(partition: str, values: "Floats") -> tuple[str, float, float, float, int, "Floats"]:
    import numpy as np

    if not len(values):
        return partition, math.nan, math.nan, math.nan, 0, values
    low, high = np.percentile(values, [10, 90])
    return partition, float(values.mean()), float(low), float(high), len(values), values


def best_uniform(ranking: "pd.DataFrame", members: "pd.DataFrame") -> str | None:
    """The best mixture of a ``rank`` table that weighs its partitions alike; None if there is none."""
    uniform = set(_uniform(members, set(ranking["mixture"])).values())
    found = ranking[ranking["mixture"].isin(uniform)].sort_values(["loss", "mixture"])["mixture"]
    return None if found.empty else str(found.iloc[0])


def best_changes(ranking: "pd.DataFrame", members: "pd.DataFrame") -> "pd.DataFrame":
    """Single additions to and removals from the best mixture, with the difference each makes.

    The best mixture here is ``best_uniform``: with uneven weights a change has no single meaning.

    Returns:
        One row per evaluated neighbour, the least loss first: ``change`` ("add" or "remove"),
        ``partition``, ``mixture`` (its label), ``difference`` (its loss minus the best's).
    """
    import pandas as pd

    loss = dict(zip(ranking["mixture"], ranking["loss"], strict=True))
    uniform = _uniform(members, loss)
    best = best_uniform(ranking, members)
    home = next((parts for parts, mixture in uniform.items() if mixture == best), frozenset())
    rows = []
    for parts, mixture in uniform.items():
        if len(changed := parts ^ home) == 1:
            change = "add" if changed < parts else "remove"
            rows.append((change, *changed, mixture, loss[mixture] - loss[str(best)]))
    table = pd.DataFrame(rows, columns=["change", "partition", "mixture", "difference"])
    return table.sort_values(["difference", "partition"], ignore_index=True)


def best_by_size(ranking: "pd.DataFrame") -> "pd.DataFrame":
    """The best row of a ``rank`` table for each number of partitions ``k``, in order of ``k``."""
    return ranking.sort_values(["k", "loss", "mixture"]).groupby("k").head(1).reset_index(drop=True)


def _evaluations(losses: "pd.DataFrame", objective: str) -> "list[pd.DataFrame]":
    """One frame per set of the objective, all indexed by the same sorted mixtures."""
    chosen = losses
    if objective != MACRO_MEAN:
        chosen = losses[losses["evaluation_set"] == objective]
    if chosen.empty:
        known = ", ".join(map(repr, sorted(losses["evaluation_set"].unique())))
        raise ValueError(
            f"no losses for the objective {objective!r}: give {MACRO_MEAN!r} or one of {known}"
        )
    mixtures = set(losses["mixture"])
    return [
        _checked(str(name), frame.set_index("mixture").sort_index(), mixtures)
        for name, frame in chosen.groupby("evaluation_set", sort=True)
    ]


def _checked(name: str, frame: "pd.DataFrame", mixtures: set[str]) -> "pd.DataFrame":
    if missing := sorted(mixtures.difference(frame.index)):
        raise ValueError(
            f"mixture {missing[0]!r} ({len(missing)} in all) has no loss on the evaluation set "
            f"{name!r}: evaluate it there, or leave the mixture or the set out of the ranking"
        )
    if frame.index.has_duplicates:
        twice = frame.index[frame.index.duplicated()][0]
        raise ValueError(f"mixture {twice!r} has two losses on {name!r}: keep the first of them")
    if not (finite := frame["nll"].abs() < math.inf).all():
        raise ValueError(
            f"the loss of mixture {frame.index[~finite][0]!r} on {name!r} is not finite: "
            "one of its partition models diverged; leave the mixture out of the ranking"
        )
    lengths = {len(groups) for column in ("group_nll", "group_tokens") for groups in frame[column]}
    if frame["num_tokens"].nunique() > 1 or len(lengths) > 1 or frame["num_tokens"].iloc[0] <= 0:
        raise ValueError(
            f"mixtures were evaluated on different text, or on none, of the set {name!r}: "
            f"{frame['num_tokens'].min()} to {frame['num_tokens'].max()} tokens in "
            f"{min(lengths)} to {max(lengths)} groups; evaluate all on the same frozen set"
        )
    return frame


def _summary(sets: "list[pd.DataFrame]") -> "pd.DataFrame":
    """Loss and what follows from it by mixture; means over ``sets`` are taken of logarithms."""
    import numpy as np
    import pandas as pd

    def mean(unit: str) -> "Floats":
        total: Floats = np.zeros(len(sets[0]))
        for frame in sets:
            total += frame["nll"].to_numpy(dtype=float) / frame[unit].to_numpy(dtype=float)
        return total / len(sets)

    # A set may have no words, and a word of a thousand letters has no finite perplexity.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        columns = {
            "loss": (loss := mean("num_tokens")),
            "perplexity": np.exp(loss),
            "bits_per_byte": mean("num_bytes") / math.log(2),
            "word_perplexity": np.exp(mean("num_words")),
        }
    return pd.DataFrame(columns, index=sets[0].index)


def _sizes(members: "pd.DataFrame", mixtures: "pd.Index") -> "Ints":
    sizes = members[members["weight"] > 0].groupby("mixture").size().reindex(mixtures)
    if sizes.isna().any():
        raise ValueError(
            f"mixture {sizes.index[sizes.isna()][0]!r} has losses but no partition with a weight "
            "above 0 in the table of members: add its rows there"
        )
    return sizes.to_numpy().astype("int64")


def _uniform(members: "pd.DataFrame", evaluated: Collection[str]) -> dict[frozenset[str], str]:
    """The evaluated mixtures with even weights, by their partitions; of equals, the first label."""
    parts: dict[str, set[str]] = defaultdict(set)
    weights: dict[str, list[float]] = defaultdict(list)
    for mixture, partition, weight in zip(
        members["mixture"], members["partition"], members["weight"], strict=True
    ):
        if weight > 0 and mixture in evaluated:
            parts[mixture].add(partition)
            weights[mixture].append(weight)
    even = [name for name in sorted(parts) if max(weights[name]) - min(weights[name]) < 1e-9]
    return {frozenset(parts[name]): name for name in reversed(even)}


def _scaled_residuals(frame: "pd.DataFrame") -> "Floats":
    """Points [mixtures, G] whose squared distance is the variance of a difference on this set."""
    import numpy as np

    tokens = np.asarray(frame["group_tokens"].iloc[0], dtype=float)
    total, groups = float(frame["num_tokens"].iloc[0]), len(tokens)
    loss = frame["nll"].to_numpy(dtype=float) / total
    residuals: Floats = np.stack(frame["group_nll"].tolist()) - loss[:, None] * tokens
    scale = math.sqrt(groups / (groups - 1)) if groups > 1 else math.nan
    return residuals * (scale / total)


def _variances_from_best(sets: "list[pd.DataFrame]") -> "Floats":
    """Variance of loss minus the first mixture's, [mixtures]; sets are independent."""
    import numpy as np

    variances = np.zeros(len(sets[0]))
    for frame in sets:
        best = _scaled_residuals(frame.iloc[:1])
        for start in range(0, len(frame), _BLOCK):
            rows = slice(start, start + _BLOCK)
            variances[rows] += np.square(_scaled_residuals(frame.iloc[rows]) - best).sum(axis=1)
    return variances / len(sets) ** 2


def _pair_variances(sets: "list[pd.DataFrame]") -> "Floats":
    """Variance of the difference of every pair, [mixtures, mixtures], by Gram matrices."""
    import numpy as np

    variances = np.zeros((len(sets[0]), len(sets[0])))
    for frame in sets:
        points = _scaled_residuals(frame)
        points -= points.mean(axis=0)  # distances stay, and far less cancels in the Gram matrix
        squares = np.square(points).sum(axis=1)
        for start in range(0, len(frame), _BLOCK):
            rows = slice(start, start + _BLOCK)
            variances[rows] += squares[rows, None] + squares - 2 * points[rows] @ points.T
    variances /= len(sets) ** 2
    return variances


def _ranks(loss: "Floats", compared: "list[pd.DataFrame]") -> "Ints":
    """Shared ranks of ascending losses, of which ``compared`` holds the first, set by set."""
    import numpy as np
    import pandas as pd

    ranks: Ints = np.searchsorted(loss, loss, side="left").astype(np.int64) + 1
    variances = _pair_variances(compared)
    first = loss[: len(variances)]
    for start in range(0, len(first), _BLOCK):
        rows = slice(start, start + _BLOCK)
        ahead = first[rows, None] - first
        within = ahead**2 <= _Z**2 * variances[rows]  # false where the variance is NaN
        ranks[rows][: len(ahead)] = 1 + ((ahead > 0) & ~within).sum(axis=1)
    return pd.Series(ranks).groupby(loss).transform("min").to_numpy()
