"""Weighted correlations, and the weights of a bootstrap over partitions.

Two mixtures that share a partition err alike, so mixtures are not independent and a bootstrap that
draws mixtures promises too much. Here every partition gets a random weight from the standard
exponential distribution (Rubin 1981: a bootstrap whose draws never lose a case), a mixture the product
of its members' weights, a pair of mixtures the product of theirs: a figure over mixtures of k partitions
is a statistic of order k, and such products are its generalised bootstrap (Huskova and Janssen 1993).
Products reproduce the variance that comes from partitions and overstate what belongs to one mixture
alone (Owen and Eckles 2012). Partitions are few, so percentiles are moved outwards (see ``interval``).
A test measures how often such intervals hold the truth, and how much less often those over mixtures do.

Every figure takes ``weights`` of shape (draws, n) and gives shape (draws,): NaN where it is undefined.
"""

import functools
import math
from collections.abc import Collection, Sequence

import numpy as np

from tasks.arrays import Floats, Ints

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # against weights whose squares sum to a few


def mixture_weights(mixtures: Sequence[Collection[str]], draws: int, seed: int) -> Floats:
    """Random weights of mixtures, given as their partitions, shape (1 + draws, mixtures).

    The first row is all ones, for the figure itself. Each draw is scaled so that its greatest is 1.
    """
    partitions = sorted({name for members in mixtures for name in members})
    holds = np.array(
        [[name in members for name in partitions] for members in mixtures], dtype=float
    )
    lots = np.log(np.random.default_rng(seed).exponential(size=(draws, len(partitions))))
    products = lots @ holds.T
    scaled = np.exp(products - products.max(axis=1, keepdims=True, initial=-np.inf))
    return np.vstack([np.ones((1, len(mixtures))), scaled])


def interval(values: Floats, partitions: int) -> tuple[float, float]:
    """Both ends of a 95 % percentile interval of the finite draws; NaN where there is none.

    Percentiles are those of an expanded interval (Hesterberg 2015): with P partitions the quantile of
    Student's t with P - 1 degrees of freedom takes the place of the normal one, and as exponential weights
    understate a variance by (P - 1) / (P + 1), it is stretched by the root of the inverse. In the test's
    simulation (8 partitions, 24 mixtures) such intervals hold the truth nine times in ten, and intervals over
    mixtures two times in three.
    """
    finite = values[np.isfinite(values)]
    if not len(finite) or partitions < 2:
        return math.nan, math.nan
    tail = _tail(partitions)
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


@functools.cache
def _tail(partitions: int) -> float:
    """Share of the draws that is below an interval, and above it."""
    from scipy.stats import norm, t

    stretch = math.sqrt((partitions + 1) / (partitions - 1))
    return float(norm.cdf(stretch * t.ppf(0.025, partitions - 1)))


def pearson(x: Floats, y: Floats, groups: Ints, weights: Floats) -> Floats:
    """Weighted Pearson correlation of what is left of x and y without the means of their groups.

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
        found: Floats = weights @ (a * b) - (sums / totals).sum(axis=1)
        return found

    # A draw may put all of its weight on one mixture.
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = moment(x, y) / np.sqrt(moment(x, x) * moment(y, y))
    return np.clip(found, -1, 1)


def spearman(x: Floats, y: Floats, groups: Ints, weights: Floats) -> Floats:
    """Weighted Pearson correlation of ranks, that are taken once, without weights."""
    ranks = [_ranks(values, groups) for values in (x, y)]
    return pearson(ranks[0], ranks[1], np.zeros_like(groups), weights)


def kendall(x: Floats, y: Floats, groups: Ints, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted Kendall's tau-b, and the weighted share of pairs of y that x orders right.

    Only pairs of one group count, each by the product of its weights. Pairs that y ties have no right
    order; one that x alone ties counts half, as a coin would order it.
    """
    alike = groups[:, None] == groups
    one, other = (np.sign(values[:, None] - values) * alike for values in (x, y))
    agreeing, ordered, known = (
        np.einsum("dn,dn->d", weights @ signs, weights) for signs in (one * other, one**2, other**2)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return agreeing / np.sqrt(ordered * known), (1 + agreeing / known) / 2


def left_out(weights: Floats, losses: Floats) -> Floats:
    """Each mixture's losses as a ridge regression on mixture weights of the other mixtures tells them.

    The mean of the others falls where the one left out is high, so with it even a regression on nothing
    would predict, the wrong way round. Slopes are therefore learnt from the others alone, and the mean is
    that of all, which orders nothing. The penalty is chosen anew for each mixture left out.

    Args:
        weights: shape (n, partitions).
        losses: shape (n, sets); rows that are not finite teach nothing.

    Returns:
        Shape (n, sets); NaN where fewer than three others are known.
    """
    from sklearn.linear_model import RidgeCV

    found = np.full_like(losses, np.nan)
    known = np.isfinite(losses).all(axis=1)
    for place in range(len(losses)):
        others = known & (np.arange(len(losses)) != place)
        if others.sum() < 3:
            continue
        model = RidgeCV(_PENALTIES, alpha_per_target=True).fit(weights[others], losses[others])
        shift = weights[place] - weights[others].mean(axis=0)
        found[place] = losses[known].mean(axis=0) + shift @ model.coef_.T
    return found


def _centred(values: Floats, groups: Ints) -> Floats:
    """Values less the mean of their group: exactly 0 where a group is constant."""
    found = np.array(values, dtype=float)
    for group in np.unique(groups):
        chosen = groups == group
        shifted = found[chosen] - found[chosen][0]
        found[chosen] = shifted - shifted.mean()
    return found


def _ranks(values: Floats, groups: Ints) -> Floats:
    """Ranks from 1 over all groups, each group's mean taken off first; ties share theirs."""
    from scipy.stats import rankdata

    if len(np.unique(groups)) == 1:
        return np.asarray(rankdata(values), dtype=float)
    left = _centred(values, groups)
    scale = np.abs(left).max()
    # Means are not exact, and values that are equal without them should stay so.
    return np.asarray(rankdata(np.round(left / scale, 12) if scale else left), dtype=float)
