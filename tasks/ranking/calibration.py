"""Estimate losses on all documents of the evaluation sets from a sample of the documents.

The macro mean of mixture i is a sum ``L_i = sum_g u_ig`` over groups of documents (nats over the
tokens of the set and the number of sets). On the sampled groups u is known for every mixture. On
all groups it is known for the partition models and for some mixtures; the gains of these mixtures
are the *controls*.

A mixture gains ``d_ig = sum_k w_ik x_kg - u_ig`` by merging: the mean loss of its members less its
own. This gain hardly varies from document to document, so a few documents are enough to estimate
it.

Calibrated weights c (Deville and Sarndal 1992) turn sums over the sample into sums over all groups.
For the tokens of each set and for the controls they are exact. The remaining error is ``sum_sampled
(c_g - 1) e_g - sum_others e_g``, with a variance that follows from the residuals e. It vanishes as
the sample becomes the whole. It is that of a *paired* difference: what makes a document hard
cancels.
"""

import math
from typing import NamedTuple

import numpy as np

from tasks.arrays import Bools, Floats, Ints

_MOST_LEVERAGE = 0.9


class Groups(NamedTuple):
    """The groups of documents of all S evaluation sets, one set behind the other: G with text."""

    stratum: Ints
    """Set of each group, counted from 0, shape (G,)."""
    weight: Floats
    """Tokens of each group over S times those of its set, shape (G,); they sum to 1."""


class Estimate(NamedTuple):
    """Sums over all groups for m rows, with what the choice of the sample may do to them."""

    value: Floats
    """Shape (m,)."""
    error: Floats
    """Standard error of each, shape (m,)."""
    freedom: int
    """Degrees of freedom of the standard errors."""


def estimate(groups: Groups, sampled: Bools, rows: Floats, controls: Floats) -> Estimate:
    """Estimate sums over all groups of documents from values on a sample of the groups.

    Within each set the sample must be random, with 2 groups at least or all of them.

    Args:
        sampled: which groups are in the sample, shape (G,); n of them.
        rows: values on the sample, shape (m, n), about proportional to tokens and controls.
        controls: values on all groups, shape (K, G); K well below n - S.
    """
    by_set = groups.stratum == np.arange(groups.stratum.max() + 1)[:, None]
    auxiliary = np.concatenate([np.where(by_set, groups.weight, 0.0), controls])
    inside = auxiliary[:, sampled]
    # For each sampled group: how many it stands for.
    expansion = (by_set.sum(axis=1) / np.maximum(by_set[:, sampled].sum(axis=1), 1))[
        groups.stratum[sampled]
    ]
    # Residuals grow with the tokens of a group, so its weight in the fit falls with them.
    weighted = inside * (expansion / groups.weight[sampled])
    slopes = np.linalg.pinv(weighted @ inside.T, rcond=1e-12, hermitian=True) @ weighted
    calibrated = expansion + (auxiliary.sum(axis=1) - inside @ expansion) @ slopes
    residuals = rows - (rows @ slopes.T) @ inside
    # A group that pulls the fit towards itself leaves too small a residual (HC3, the jackknife).
    leverage = np.minimum((inside * slopes).sum(axis=0), _MOST_LEVERAGE)
    spread = (np.square(calibrated - 1) + (expansion - 1)) / np.square(1 - leverage)
    return Estimate(
        rows @ calibrated,
        np.sqrt(np.square(residuals) @ spread),
        int(sampled.sum()) - len(auxiliary),
    )


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t; infinite where there is no degree of freedom."""
    # Not scipy.stats: it takes three times as long to import.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability)) if freedom > 0 else math.inf
