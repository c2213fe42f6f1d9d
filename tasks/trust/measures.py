"""Measures of proxies against references: correlations, regret, and the margin.

The margin is the answer to one question: how large must the difference between two proxy losses be
before the better mixture is named correctly 95 % of the time?

``pearson``, ``spearman`` and ``kendall`` take ``weights`` of shape (draws, n), as
``tasks.trust.bootstrap`` makes them, and give shape (draws,): NaN where a figure is undefined.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.arrays import Floats, Ints

if TYPE_CHECKING:
    import pandas as pd


def pearson(x: Floats, y: Floats, groups: Ints, weights: Floats) -> Floats:
    """Weighted Pearson correlation of x and y after the mean of each group is taken off.

    Args:
        x, y: finite values, shape (n,).
        groups: number of each one's group, shape (n,); with a single group the common coefficient.
    """
    x, y = _centred(x, groups), _centred(y, groups)
    if not (x.any() and y.any()):
        return np.full(len(weights), np.nan)
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    shares = (groups[:, None] == np.unique(groups)).astype(float)
    totals = weights @ shares

    def moment(a: Floats, b: Floats) -> Floats:
        sums = (weights @ (shares * a[:, None])) * (weights @ (shares * b[:, None]))
        value: Floats = weights @ (a * b) - (sums / totals).sum(axis=1)
        return value

    # A draw may put all of its weight on one mixture.
    with np.errstate(divide="ignore", invalid="ignore"):
        value: Floats = moment(x, y) / np.sqrt(moment(x, x) * moment(y, y))
    return np.clip(value, -1, 1)


def spearman(x: Floats, y: Floats, groups: Ints, weights: Floats) -> Floats:
    """Weighted Pearson correlation of ranks; the ranks are taken once, without weights."""
    ranks = [_ranks(values, groups) for values in (x, y)]
    return pearson(ranks[0], ranks[1], np.zeros_like(groups), weights)


def kendall(x: Floats, y: Floats, groups: Ints, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted Kendall's tau-b, and the weighted share of pairs of y that x orders right.

    Only pairs of one group count, each by the product of its weights. Pairs that y ties have no right
    order; one that x alone ties counts half, as a coin would order it.
    """
    alike = groups[:, None] == groups
    x_signs, y_signs = (np.sign(values[:, None] - values) * alike for values in (x, y))
    agreeing, ordered, decided = (
        np.einsum("dn,dn->d", weights @ signs, weights)
        for signs in (x_signs * y_signs, x_signs**2, y_signs**2)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return agreeing / np.sqrt(ordered * decided), (1 + agreeing / decided) / 2


def _centred(values: Floats, groups: Ints) -> Floats:
    """Values less the mean of their group: exactly 0 where a group is constant."""
    left = np.array(values, dtype=float)
    for group in np.unique(groups):
        chosen = groups == group
        shifted = left[chosen] - left[chosen][0]
        left[chosen] = shifted - shifted.mean()
    return left


def _ranks(values: Floats, groups: Ints) -> Floats:
    """Ranks from 1 over all groups, each group's mean taken off first; ties share theirs."""
    from scipy.stats import rankdata

    if len(np.unique(groups)) == 1:
        return np.asarray(rankdata(values), dtype=float)
    left = _centred(values, groups)
    scale = np.abs(left).max()
    # Means are not exact, and values that are equal without them should stay so.
    return np.asarray(rankdata(np.round(left / scale, 12) if scale else left), dtype=float)


def regret(predicted: Floats, bits: Floats, groups: Ints, first: int) -> float:
    """By how much the best of a predictor's ``first`` misses the best of all, in bits per byte.

    All arguments have shape (n,). Mixtures are chosen in each group separately, and groups count by
    their size. Where the predictor ties, the choice is random, and this is the expected value.
    """
    total = 0.0
    for group in np.unique(groups):
        chosen = groups == group
        missed = _best_of(predicted[chosen], bits[chosen], first) - bits[chosen].min()
        total += missed * chosen.sum() / len(groups)
    return float(total)


def _best_of(predicted: Floats, bits: Floats, first: int) -> float:
    first = min(first, len(bits))
    last = np.sort(predicted)[first - 1]
    surely, tied = bits[predicted < last], np.sort(bits[predicted == last])
    drawn = first - len(surely)
    ways = [math.comb(len(tied) - place - 1, drawn - 1) for place in range(len(tied))]
    best = np.minimum(tied, surely.min(initial=np.inf))
    return float(np.average(best, weights=ways))


SURE = 0.95
"""A difference of proxies is called sure where at least this share of pairs is ordered right."""

FEWEST_PAIRS = 10
"""A coin orders ten pairs right once in a thousand times; as pairs share mixtures, somewhat more often."""


class Margin(NamedTuple):
    """The difference between two proxy losses from which the better mixture is named correctly."""

    difference: float
    """Of two proxies, in bits per byte."""
    right: int
    """Pairs of the same k that differ by as much or more and were ordered right."""
    pairs: int
    """All such pairs."""


def margin(pairs: "pd.DataFrame") -> Margin | None:
    """The least difference above which ``SURE`` of the pairs of the same k were ordered right.

    Args:
        pairs: the rows of one evaluation set, as ``tasks.trust.predictors.pair_up`` gives them. Pairs whose
            references tie have no right order and do not count; fewer than 20 must all be right.

    Returns:
        None where no difference has ``FEWEST_PAIRS`` pairs above it and enough of them right.
    """
    values = pairs[["k", "proxy_bits", "reference_bits"]].to_numpy(dtype=float)
    k, proxy, reference = values[np.isfinite(values).all(axis=1)].T
    first, second = np.triu_indices(len(k), 1)
    counted = (k[first] == k[second]) & (reference[first] != reference[second])
    first, second = first[counted], second[counted]
    ahead = proxy[first] - proxy[second]
    order = np.argsort(-np.abs(ahead), kind="stable")
    gaps = np.abs(ahead)[order]
    right = np.cumsum((ahead * (reference[first] - reference[second]) > 0)[order])
    number_of_pairs = np.arange(1, len(gaps) + 1)
    # Pairs of one gap stand or fall together.
    complete = np.append(gaps[1:] != gaps[:-1], True)[: len(gaps)]
    sure = complete & (right >= SURE * number_of_pairs) & (number_of_pairs >= FEWEST_PAIRS)
    if not sure.any():
        return None
    last = int(np.flatnonzero(sure)[-1])
    return Margin(float(gaps[last]), int(right[last]), last + 1)
