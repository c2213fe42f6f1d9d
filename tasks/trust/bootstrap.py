"""A bootstrap over partitions: random weights of mixtures, and intervals of figures under them.

Two mixtures that share a partition err alike. So mixtures are not independent, and a bootstrap that
draws mixtures gives intervals that are too narrow. Here every partition gets a random weight from
the standard exponential distribution (Rubin 1981: a bootstrap whose draws never lose a case). The
weight of a mixture is the product of its members' weights, that of a pair of mixtures the product
of both. A figure over mixtures of k partitions is a statistic of order k, and such products are its
generalised bootstrap (Huskova and Janssen 1993). They reproduce the variance that comes from
partitions, and overstate the variance that belongs to one mixture alone (Owen and Eckles 2012).
Partitions are few, so ``percentile_interval`` moves percentiles outwards. A test measures how often
such intervals hold the truth, and how much less often those over mixtures do.
"""

import functools
import math
from collections.abc import Collection, Sequence

import numpy as np

from tasks.arrays import Floats


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


def percentile_interval(values: Floats, partitions: int) -> tuple[float, float]:
    """Both ends of a 95 % percentile interval of the finite draws; NaN where there is none.

    The interval is expanded (Hesterberg 2015). With P partitions the quantile of Student's t with P - 1
    degrees of freedom takes the place of the normal one. Exponential weights understate a variance by
    (P - 1) / (P + 1), so the quantile is also multiplied by the root of the inverse. In the test's
    simulation (8 partitions, 24 mixtures) such intervals hold the truth nine times in ten, and
    intervals over mixtures two times in three.
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
