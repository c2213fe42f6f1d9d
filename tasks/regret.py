"""What it costs to follow a predictor: how far the best of its first few is from the best of all.

A correlation speaks of all mixtures, and what is taken is one of the first. Predictors may tie (mixtures
of equal size have equally many tokens); then lots decide, and what is told is the expected value.
"""

import math

import numpy as np

from tasks.arrays import Floats, Ints


def regret(predicted: Floats, bits: Floats, groups: Ints, first: int) -> float:
    """By how much the best of a predictor's ``first`` misses the best of all, in bits per byte.

    All arguments have shape (n,); mixtures are chosen in each group apart, and groups count by their
    size. Where the predictor ties, lots decide, and this is the expected value.
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
