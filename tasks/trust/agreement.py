"""How well proxies (merged models) agree with references (models really trained on the mixtures).

Figures are given at each number of partitions k, over all k with each k's mean taken off (within),
and over all k as they are (pooled). Pooled ones are too high, because k itself moves proxy and
reference alike. So does the presence of a set's own domain in the mixture, and mixtures with and
without it are also judged apart. Beside the merged models stand predictors that need no merging.
Where one of them does as well, merging adds nothing.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.arrays import Bools, Floats, Ints
from tasks.trust import bootstrap, measures
from tasks.trust.measures import regret

if TYPE_CHECKING:
    import pandas as pd


POOLED = "pooled"
WITHIN = "within"
PROXY = "proxy"
NO_PREDICTORS = {
    *("mixture", "k", "evaluation_set", "own", "reference", "reference_bits", "proxy_bits"),
}
"""Columns of pairs that predict nothing; every other one is a predictor."""
SCOPES = ("all", "in", "out")
FIGURES = ("pearson", "spearman", "kendall", "pairs_right")
FEWEST = 3
"""Of two references every correlation is 1 or -1."""


def predictors_of(pairs: "pd.DataFrame") -> list[str]:
    """The predictors that pairs have columns of, the proxy first."""
    return sorted((str(n) for n in pairs if n not in NO_PREDICTORS), key=lambda name: name != PROXY)


def agreement(
    pairs: "pd.DataFrame", members: Mapping[str, Sequence[str]], draws: int = 1000, seed: int = 0
) -> "pd.DataFrame":
    """How well each predictor orders the references of each set.

    Args:
        pairs: as ``pair_up`` gives them.
        members: partitions of each mixture, by label.
        draws: number of bootstrap draws over partitions (see ``tasks.trust.bootstrap``).

    Returns:
        ``evaluation_set``; ``scope``, "all" mixtures, or those with the set's own domain "in" or "out",
        where there are any; ``k`` as text, or "within" (each k's mean taken off, and only pairs of the
        same k counted), or "pooled"; ``predictor``; ``references``, the number of finite ones;
        ``pearson``, ``spearman``, ``kendall`` (tau-b) and ``pairs_right`` (share of pairs ordered right;
        one that the predictor ties counts half), each with ``_low`` and ``_high``, its 95 % interval;
        ``regret_1`` and ``regret_3`` (see ``tasks.trust.measures``; within: mean over k, weighted
        by references). Fewer than three references give NaN, and so do correlations of what is
        constant.

    Raises:
        ValueError: ``members`` lacks a mixture.
    """
    import pandas as pd

    weights = _draw_weights(pairs, members, draws, seed)
    rows = [
        {
            "evaluation_set": cell.evaluation_set,
            "scope": cell.scope,
            "k": cell.k,
            "predictor": predictor,
            **_figures(cell, predictor, weights),
        }
        for cell in _cells(pairs)
        for predictor in predictors_of(pairs)
    ]
    return pd.DataFrame(rows)


def gains(
    pairs: "pd.DataFrame", members: Mapping[str, Sequence[str]], draws: int = 1000, seed: int = 0
) -> "pd.DataFrame":
    """What merging adds to the Pearson correlation within k over each other predictor.

    Arguments and errors as in ``agreement``. Both correlations use the same draws, so what makes the
    references easy or hard to order cancels in their difference.

    Returns:
        ``evaluation_set``; ``baseline``; ``references`` for which both are known; ``difference``, the
        proxy's correlation less the baseline's, with ``low`` and ``high``, its 95 % interval; NaN where
        one of them has none.
    """
    import pandas as pd

    weights, rows = _draw_weights(pairs, members, draws, seed), []
    cells = [cell for cell in _cells(pairs) if (cell.scope, cell.k) == ("all", WITHIN)]
    for cell, baseline in itertools.product(cells, predictors_of(pairs)[1:]):
        names = [PROXY, baseline, "reference"]
        values, groups, chosen = _finite_rows(cell, names, weights)
        gain = np.full(1, np.nan)
        if len(groups) >= FEWEST:
            proxy, other, reference = values
            gain = measures.pearson(proxy, reference, groups, chosen)
            gain = gain - measures.pearson(other, reference, groups, chosen)
        low, high = bootstrap.percentile_interval(gain[1:], weights.partitions)
        rows.append((cell.evaluation_set, baseline, len(groups), float(gain[0]), low, high))
    columns = ["evaluation_set", "baseline", "references", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


class _Cell(NamedTuple):
    """Rows that are judged together."""

    evaluation_set: str
    scope: str
    k: str
    values: Mapping[str, Floats]
    """Columns of numbers, each of shape (rows,)."""
    mixtures: list[str]
    """Label of each row."""
    groups: Ints
    """Rows of one number are compared with one another, shape (rows,)."""


def _cells(pairs: "pd.DataFrame") -> Iterator[_Cell]:
    names = [*predictors_of(pairs), "reference", "reference_bits"]
    for name, of_set in pairs.groupby("evaluation_set", sort=False):
        columns = {column: of_set[column].to_numpy(dtype=float) for column in names}
        labels, k = of_set["mixture"].to_numpy(), of_set["k"].to_numpy()
        for scope in SCOPES:
            inside = (
                np.full(len(k), True) if scope == "all" else (of_set["own"] == scope).to_numpy()
            )
            for text, chosen, groups in _groupings(k, inside):
                values = {column: numbers[chosen] for column, numbers in columns.items()}
                yield _Cell(str(name), scope, text, values, labels[chosen].tolist(), groups)


def _groupings(k: Ints, inside: Bools) -> Iterator[tuple[str, Bools, Ints]]:
    """Every k, all k apart, and all k together: its name, which rows, and the group of each of them."""
    sizes, counts = np.unique(k[inside], return_counts=True)
    if not len(sizes):
        return
    for size in sizes:
        chosen = inside & (k == size)
        yield str(size), chosen, k[chosen]
    # The only mixture of its size is like no other.
    alike = inside & np.isin(k, sizes[counts > 1])
    yield WITHIN, alike, k[alike]
    yield POOLED, inside, np.zeros(inside.sum(), dtype=np.int64)


class _Weights(NamedTuple):
    places: dict[str, int]
    """Column of each mixture."""
    values: Floats
    """Shape (1 + draws, mixtures); the first row is all ones."""
    partitions: int
    """Number of partitions of all mixtures."""


def _draw_weights(
    pairs: "pd.DataFrame", members: Mapping[str, Sequence[str]], draws: int, seed: int
) -> _Weights:
    labels = list(dict.fromkeys(pairs["mixture"].tolist()))
    if lacking := [label for label in labels if label not in members]:
        raise ValueError(f"the partitions of mixture {lacking[0]!r} are not given: add them")
    chosen = [members[label] for label in labels]
    values = bootstrap.mixture_weights(chosen, draws, seed)
    places = {label: place for place, label in enumerate(labels)}
    return _Weights(places, values, len(set(itertools.chain.from_iterable(chosen))))


def _finite_rows(cell: _Cell, names: list[str], weights: _Weights) -> tuple[Floats, Ints, Floats]:
    """Columns, groups and weights of the rows where all columns are finite."""
    values = np.array([cell.values[name] for name in names])
    finite = np.isfinite(values).all(axis=0)
    columns = [weights.places[label] for label in cell.mixtures]
    return values[:, finite], cell.groups[finite], weights.values[:, np.array(columns, int)[finite]]


def _figures(cell: _Cell, predictor: str, weights: _Weights) -> dict[str, float]:
    names = [predictor, "reference", "reference_bits"]
    (x, y, bits), groups, chosen = _finite_rows(cell, names, weights)
    enough = len(groups) >= FEWEST
    figures = [np.full(1, np.nan)] * len(FIGURES)
    if enough:
        correlations = [how(x, y, groups, chosen) for how in (measures.pearson, measures.spearman)]
        figures = [*correlations, *measures.kendall(x, y, groups, chosen)]
    row: dict[str, float] = {"references": len(groups)}
    for name, draws in zip(FIGURES, figures, strict=True):
        low, high = bootstrap.percentile_interval(draws[1:], weights.partitions)
        row |= {name: float(draws[0]), f"{name}_low": low, f"{name}_high": high}
    for first in (1, 3):
        row[f"regret_{first}"] = regret(x, bits, groups, first) if enough else math.nan
    return row
