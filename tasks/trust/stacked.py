"""A stacked predictor: what a ridge regression on all other predictions says of a reference.

Predictors err in different ways, and a weighted mean of them may order better than each (Wolpert 1992). The
weights cost references, so it counts among what is fitted to them.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np

from tasks.arrays import Floats, Ints

FEWEST = 12
"""References below which nothing is stacked: half of the others are then fewer than six."""

_PENALTIES = (0.1, 1.0, 10.0, 100.0)  # against slopes of columns with a variance of 1


def stacked(
    predictions: Floats, losses: Floats, k: Ints, members: Sequence[Collection[str]]
) -> Floats | None:
    """Losses of references on one set, each predicted from references that share little with it.

    Two mixtures that share partitions err alike. So a reference is predicted from the half of the others
    that share the fewest partitions with it (with all that share as few as the last of these). Only slopes
    are learnt, each k's mean taken off both sides. The level at each k is that of the first predictor, so
    that nothing is known of a k but what this predictor says.

    Args:
        predictions: of each predictor, shape (n, predictors); those that are not finite for all that is known
            are left out, the first must be finite.
        losses: of the references, shape (n,); those that are not finite teach nothing.
        k: number of partitions of each, shape (n,).
        members: partitions of each.

    Returns:
        Shape (n,); None where fewer than ``FEWEST`` references are known.
    """
    from sklearn.linear_model import RidgeCV

    known = np.isfinite(losses) & np.isfinite(predictions[:, 0])
    if known.sum() < FEWEST:
        return None
    columns = predictions[:, np.isfinite(predictions[known]).all(axis=0)]
    holds = [set(names) for names in members]
    shared = np.array([[len(one & other) for other in holds] for one in holds])
    left = _centred(columns, k, known)
    scale = left[known].std(axis=0)
    left = left / np.where(scale > 0, scale, 1.0)
    found = np.full(len(losses), np.nan)
    for place in np.flatnonzero(known):
        others = known & (np.arange(len(losses)) != place)
        fewest = np.sort(shared[place, others])[math.ceil(others.sum() / 2) - 1]
        chosen = others & (shared[place] <= fewest)
        fit = RidgeCV(_PENALTIES).fit(
            _centred(left, k, chosen)[chosen], _centred(losses[:, None], k, chosen)[chosen, 0]
        )
        level = predictions[known & (k == k[place]), 0].mean()
        found[place] = level + left[place] @ fit.coef_
    return found


def _centred(values: Floats, k: Ints, chosen: np.ndarray) -> Floats:
    """Columns less the mean of the chosen rows of each k."""
    left = values.copy()
    for size in np.unique(k[chosen]):
        left[k == size] -= values[chosen & (k == size)].mean(axis=0)
    return left
