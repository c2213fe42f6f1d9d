"""The objective of a search: a weighted mean of bits per byte, with caps and a pull to a prior.

Bits per byte is the one unit in which evaluation sets and tokenizers can be compared. A cap limits
how much worse than the base model a set may become; a mixture that breaks one is not an answer,
however good its mean is. The pull adds a known cost for weights far from a prior, so that a
difference within the noise does not lead to an odd mixture. Arithmetic on numbers: no model, no
file.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from storage.fingerprint import Config
from tasks.arrays import Bools, Floats
from tasks.mixtures.units import unknown_name_error

EVERY_SET = "*"
"""In ``caps``: the cap of every set that has none of its own."""


class ObjectiveConfig(Config):
    """What is to be made small, and what may not become worse."""

    weights: dict[str, float] = {}
    """How much each evaluation set counts (any positive sum); sets that are not named count nothing.
    Empty: all sets count alike. The objective is the weighted mean of their bits per byte."""

    caps: dict[str, float] = {}
    """By how many percent a set's bits per byte may lie above the base model's; "*" stands for every
    set that is not named, 0 for no worse than the base model, a negative number for better."""

    pull: float = 0.0
    """Bits per byte added for each nat of KL(weights || prior); 0 leaves the prior out."""

    prior: dict[str, float] = {}
    """Weight of each partition in the prior (any positive sum), every one of them above zero.
    Empty: all partitions alike."""


class Objective:
    """An ``ObjectiveConfig`` applied to the evaluation sets and the units of one pool.

    Attributes:
        sets: names of the evaluation sets, in the order of the columns of losses.
        units: names of what is weighed, in the order of the columns of weights.
        shares: weight of each set in the mean; they sum to 1. Shape (S,).
        has_caps: whether any set has a cap.

    Raises:
        ValueError: a set or a unit that is unknown, a weight that is negative or not finite, weights
            that sum to zero, a cap of -100 % or less, a negative pull, a prior that leaves a unit out.
    """

    def __init__(self, config: ObjectiveConfig, sets: Sequence[str], units: Sequence[str]) -> None:
        self.config, self.sets, self.units = config, tuple(sets), tuple(units)
        weights = config.weights or dict.fromkeys(self.sets, 1.0)
        prior = config.prior or dict.fromkeys(self.units, 1.0)
        self.shares = _normalised(weights, self.sets, "the weights of the objective")
        self._prior = _normalised(prior, self.units, "the prior")
        if not self._prior.all():
            without = self.units[int(np.argmin(self._prior))]
            raise ValueError(
                f"the prior gives no weight to {without!r}: give every partition one above zero, for "
                "the distance to a prior without it has no bound"
            )
        if not (math.isfinite(config.pull) and config.pull >= 0):
            raise ValueError(f"the pull of the objective is {config.pull}: give 0 or more")
        self._factors = _factors(config.caps, self.sets)
        self.has_caps = bool(config.caps)

    @property
    def shares_by_set(self) -> dict[str, float]:
        """Weight of each set in the mean, by name."""
        return dict(zip(self.sets, self.shares.tolist(), strict=True))

    def values(self, losses: Floats, weights: Floats) -> Floats:
        """The objective in bits per byte, lower is better; shape (n,).

        Args:
            losses: bits per byte, shape (n, S).
            weights: of the units, each row sums to 1, shape (n, p).
        """
        from scipy.special import rel_entr

        values: Floats = losses @ self.shares
        if self.config.pull:
            values = values + self.config.pull * rel_entr(weights, self._prior).sum(axis=1)
        return values

    def excess(self, losses: Floats, base: Floats | None) -> Floats:
        """By how many bits per byte the worst set lies above its cap; at most 0 where all hold.

        Args:
            losses: bits per byte, shape (n, S).
            base: the base model's bits per byte, shape (S,); None only where there are no caps.

        Returns:
            Shape (n,); -inf where there are no caps.

        Raises:
            ValueError: there are caps and no losses of the base model.
        """
        if not self.has_caps:
            return np.full(len(losses), -np.inf)
        if base is None:
            raise ValueError(
                "the objective has caps, which are measured from the base model, and there are no "
                "losses of a base model: evaluate it, or leave the caps out"
            )
        capped = np.isfinite(self._factors)
        limits = (base * self._factors)[capped]
        above: Floats = (losses[:, capped] - limits).max(axis=1)
        return above

    def holds(self, losses: Floats, base: Floats | None) -> Bools:
        """Whether all caps hold; shape (n,). Arguments and errors as in ``excess``."""
        return self.excess(losses, base) <= 0


def _normalised(weights: Mapping[str, float], names: Sequence[str], where: str) -> Floats:
    """``weights`` by name as an array in the order of ``names`` that sums to 1."""
    for name, weight in weights.items():
        if name not in names:
            raise unknown_name_error(name, where, names)
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{where}: {name!r} has {weight}; give a finite number >= 0")
    array = np.array([weights.get(name, 0.0) for name in names])
    if not array.sum():
        raise ValueError(f"{where} sum to zero: give one of {list(names)} more than that")
    shares: Floats = array / array.sum()
    return shares


def _factors(caps: Mapping[str, float], sets: Sequence[str]) -> Floats:
    """How many times the base model's bits per byte each set may have; inf without a cap."""
    for name, percent in caps.items():
        if name not in (*sets, EVERY_SET):
            raise unknown_name_error(name, "the caps of the objective", [*sets, EVERY_SET])
        if not (math.isfinite(percent) and percent > -100):
            raise ValueError(
                f"the cap of {name!r} is {percent} %: give a finite number above -100 (1 allows one "
                "percent more bits per byte than the base model has)"
            )
    rest = caps.get(EVERY_SET, math.inf)
    return np.array([1 + caps.get(name, rest) / 100 for name in sets])
