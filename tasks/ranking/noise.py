"""The noise of the evaluation documents in the difference between two mixtures.

Two mixtures are evaluated on the same documents. So what makes a document hard cancels in their
difference, whose noise is far below that of either loss. A loss is a ratio of sums (nats over
tokens). Its linearised residual per group of documents is ``r_g = nll_g - loss * tokens_g``. With
groups as clusters, the variance of a difference is ``G / (G - 1) * sum_g (r_ig - r_jg)^2 /
tokens^2`` (delta method). Scaled residuals are therefore points whose *squared distance is that
variance*, and one product of matrices gives the pairs of a block.
"""

import math

import numpy as np

from tasks.arrays import Floats, Ints
from tasks.evaluation.group_sums import BLOCK
from tasks.evaluation.losses import Losses


def _points(losses: Losses, number: int, nll: Floats, sums: Floats) -> Floats:
    """Scaled residuals [mixtures, G]: their squared distance is the variance of a difference.

    Args:
        nll: of some mixtures on set ``number``, shape (mixtures,).
        sums: the same per group, shape (mixtures, G); overwritten with what is returned.
    """
    counts = losses.counts[number]
    total, groups = float(counts.num_tokens), len(counts.group_tokens)
    sums -= (nll / total)[:, None] * counts.group_tokens.astype(float)
    scale = math.sqrt(groups / (groups - 1)) if groups > 1 else math.nan
    sums *= scale / total
    return sums


def variances_from(losses: Losses, sets: list[int], best: int) -> Floats:
    """Variance of each loss minus that of mixture ``best``, [mixtures]; sets are independent."""
    variances = np.zeros(len(losses.mixtures))
    for number in sets:
        nll = losses.nll[:, number]
        only_best = slice(best, best + 1)
        origin = _points(losses, number, nll[only_best], losses.sums.read(number, best, best + 1))
        for block, sums in losses.sums.blocks(number):
            points = _points(losses, number, nll[block], sums)
            points -= origin
            variances[block] += np.square(points, out=points).sum(axis=1)
    return variances / len(sets) ** 2


def pair_variances(losses: Losses, sets: list[int], chosen: Ints) -> Floats:
    """Variance of the difference of each of the chosen to those before it, [chosen, chosen].

    Entries right of the diagonal's block are not filled in.
    """
    variances = np.zeros((len(chosen), len(chosen)))
    for number in sets:
        nll = losses.nll[chosen, number]
        points = _points(losses, number, nll, losses.sums.take(number, chosen)) / len(sets)
        points -= points.mean(axis=0)  # distances stay, and far less cancels in the product
        squares, ones = np.square(points).sum(axis=1)[:, None], np.ones((len(chosen), 1))
        # |p - q|^2 = |p|^2 - 2 p q + |q|^2 as a single product.
        left, right = np.hstack([-2 * points, squares, ones]), np.hstack([points, ones, squares])
        for start in range(0, len(chosen), BLOCK):
            stop = min(start + BLOCK, len(chosen))
            variances[start:stop, :stop] += left[start:stop] @ right[:stop].T
    return variances


def paired_variances(losses: Losses, sets: list[int], first: Ints, second: Ints) -> Floats:
    """Variance of the loss of each of ``first`` minus that of its partner in ``second``, [pairs]."""
    variances = np.zeros(len(first))
    for number in sets:
        for start in range(0, len(first), BLOCK):
            block = slice(start, start + BLOCK)
            points, partners = (
                _points(losses, number, losses.nll[side, number], losses.sums.take(number, side))
                for side in (first[block], second[block])
            )
            points -= partners
            variances[block] += np.square(points, out=points).sum(axis=1)
    return variances / len(sets) ** 2
