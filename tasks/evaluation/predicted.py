"""Predictors: what says how good a mixture is, by name; losses of those that follow from single models.

``merge`` is the method: the loss of the merged model. ``scaled S`` is that of the base model plus S times
what merging adds to it: a model trained on a mixture moves further than the average of its parts.
``probability`` averages probabilities (``tasks.evaluation.probability``), ``singles`` the members' own
losses.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Protocol

import numpy as np
from pydantic import AfterValidator

from tasks.arrays import Floats
from tasks.evaluation.group_sums import BLOCK, GroupSums
from tasks.evaluation.losses import LossRows

MERGE, PROBABILITY, SINGLES, SCALED = "merge", "probability", "singles", "scaled"


def predictor_name(text: str) -> str:
    """The one form of a predictor's name. Raises ValueError where there is none of that name."""
    if text in {MERGE, PROBABILITY, SINGLES}:
        return text
    scale = scale_of(text)
    if scale is None or not math.isfinite(scale) or scale <= 0 or scale == 1:
        raise ValueError(
            f"{text!r} is no predictor: allowed are {MERGE}, {PROBABILITY}, {SINGLES}, and {SCALED} with a "
            f"positive number other than 1 behind it, such as {SCALED} 1.5"
        )
    return f"{SCALED} {scale:.15g}"


def is_predictor(text: str) -> bool:
    """Whether ``predictor_name`` takes a text."""
    try:
        return bool(predictor_name(text))
    except ValueError:
        return False


def scale_of(name: str) -> float | None:
    """How far ``scaled S`` goes, in distances between base model and merge; None for other predictors."""
    kind, _, number = name.partition(" ")
    try:
        return float(number) if kind == SCALED else None
    except ValueError:
        return None


PredictorName = Annotated[str, AfterValidator(predictor_name)]


class GroupPrediction(Protocol):
    """Predicts the losses of mixtures on one set from those of single models."""

    def sums(self, weights: Floats) -> Floats:
        """Nats of m mixtures, given as weights of shape (m, n), per group of documents: shape (m, G)."""


class MeanOfSingles:
    """The members' own losses, averaged by their weights.

    Args:
        sums: nats of each of n models per group of documents, shape (n, G).
    """

    def __init__(self, sums: Floats) -> None:
        self._sums = sums

    def sums(self, weights: Floats) -> Floats:
        """Nats of m mixtures per group of documents, shape (m, G)."""
        found: Floats = weights @ self._sums
        return found


def predicted_rows(
    names: Sequence[str],
    labels: Sequence[str],
    sets: Mapping[str, str],
    predictions: Sequence[GroupPrediction],
    weights: Callable[[int, int], Floats],
    scratch: str | None = None,
) -> LossRows:
    """Predicted losses of mixtures on every set; memory holds one number for each pair.

    Args:
        names: identity of each mixture.
        labels: each mixture as people call it.
        sets: digest of the windows by name of the set.
        predictions: of each set.
        weights: of mixtures ``start`` to ``stop``, shape (stop - start, n).
        scratch: folder for the sums per group; None is the system's temporary folder.
    """
    nll, sums = np.empty((len(names), len(sets))), GroupSums(len(names), scratch)
    for start in range(0, len(names), BLOCK):
        stop = min(start + BLOCK, len(names))
        shares, numbers = weights(start, stop), np.arange(start, stop)
        for number, prediction in enumerate(predictions):
            of_groups = prediction.sums(shares)
            nll[start:stop, number] = of_groups.sum(axis=1)
            sums.write(number, numbers, of_groups)
    return LossRows([*names], [*labels], dict(sets), nll, sums)
