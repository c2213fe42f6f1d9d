"""Which mixtures are allowed, decided on integers, so that every constraint holds exactly.

Weights are integer parts of a whole: of ``resolution`` parts, or of as many as there are members
where all weigh alike. Every limit is a whole number of those parts, so no rounding error lets a
mixture slip past it. Constraints that contradict one another are refused at once, by name.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from storage.fingerprint import Config
from tasks.arrays import Bools, Floats, Ints
from tasks.mixtures import limits
from tasks.mixtures.limits import Repetition, Rules, Sum
from tasks.mixtures.mixture import Mixture
from tasks.mixtures.rounding import cheapest_subset, largest_remainders, nearest
from tasks.mixtures.units import unknown_name_error

MOST_LISTED = 200_000
"""Even mixtures are listed one by one up to this many; beyond it they are drawn at random."""


class ConstraintsConfig(Config):
    """Which mixtures may be proposed."""

    bounds: dict[str, tuple[float, float]] = {}
    """The least and largest weight of a partition, or of a domain (all of its partitions), 0 to 1."""

    sums: list[Sum] = []
    """Limits on the summed weight of groups."""

    repetition: Repetition | None = None
    """Limit on how often a domain's tokens are repeated in a training run; None for no limit."""

    most_partitions: int | None = None
    """The largest number of partitions with a weight above zero; None for no limit."""

    fewest_partitions: int = 1
    """The least number of partitions with a weight above zero."""

    even: bool = False
    """Only mixtures whose members all weigh alike: subsets of the partitions."""

    resolution: int = 100
    """Weights are multiples of 1/resolution; where ``even`` is set, it is not used."""


class Feasible:
    """The mixtures that keep all constraints, over the units of one pool.

    Parts are arrays of integers, one column per unit in the order of ``names``. They sum to
    ``resolution``; in even mode they are 0 or 1 and sum to the number of members.

    Args:
        config: the constraints.
        domains: the domain of each unit (a partition); the columns are its keys, sorted.
        tokens: the number of distinct tokens of each unit; needed for ``repetition`` only.

    Attributes:
        config, domains: as given, domains by unit in order.
        names: the units, sorted.
        rules: the constraints as limits on parts.

    Raises:
        ValueError: a name is unknown, a number is out of range, tokens are missing, or the
            constraints contradict one another; the message names a smallest set that does.
    """

    def __init__(
        self,
        config: ConstraintsConfig,
        domains: Mapping[str, str],
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        if not domains:
            raise ValueError("there is no partition to weigh: give at least one")
        self.config = config
        self.domains = {name: domains[name] for name in sorted(domains)}
        self.names = tuple(self.domains)
        self.rules = _rules(config, self.domains, tokens)
        self.rules.refuse_contradiction()
        self._low, self._high = self.rules.tables()
        self._matrix = self.rules.sums(1).matrix

    def holds(self, parts: Ints) -> Bools:
        """Which rows of ``parts`` (n, p) keep every constraint exactly; shape (n,)."""
        counts = (parts > 0).sum(axis=1)
        held: Bools = (counts >= self.rules.fewest) & (counts <= self.rules.most)
        held &= (parts >= 0).all(axis=1)
        if self.rules.whole is None:
            held &= (parts <= 1).all(axis=1)
        else:
            held &= parts.sum(axis=1) == self.rules.whole
        sums = parts @ self._matrix.T
        held &= (sums >= self._low[counts]).all(axis=1)
        held &= (sums <= self._high[counts]).all(axis=1)
        return held

    def allows(self, mixture: Mixture) -> bool:
        """Whether a mixture keeps every constraint exactly, its resolution included.

        Raises:
            ValueError: the mixture has a member that is no unit.
        """
        factor = max((self.rules.whole or 0) // mixture.total, 1)
        held = self._parts(mixture)
        parts = np.array([[factor * held.get(name, 0) for name in self.names]])
        return bool(self.holds(parts)[0])

    def round(self, weights: Floats) -> Ints:
        """The allowed parts nearest to ``weights`` (p,) in summed absolute distance; shape (p,).

        Raises:
            ValueError: the shape is wrong, a weight is negative or not finite, or all are zero.
        """
        weights = np.asarray(weights, dtype=np.float64)
        fit = weights.shape == (len(self.names),) and np.isfinite(weights).all()
        if not (fit and (weights >= 0).all() and weights.sum() > 0):
            raise ValueError(
                f"the weights {weights} cannot be rounded: give {len(self.names)} finite numbers >= 0 "
                "with a sum above zero"
            )
        weights = weights / weights.sum()
        return self._nearest_even(weights) if self.config.even else self._nearest(weights)

    def _nearest(self, weights: Floats) -> Ints:
        target = weights * self.config.resolution
        rounded = largest_remainders(target[None])
        if self.holds(rounded)[0]:
            parts: Ints = rounded[0]
            return parts  # nothing of that sum is nearer
        whole, rules = self.config.resolution, self.rules
        return self._verified(
            nearest(target, whole, rules.sums(whole), rules.fewest, rules.most), "weights"
        )

    def _nearest_even(self, weights: Floats) -> Ints:
        # Over members i of a subset of size k, |1/k - w_i| - w_i; what is left is the same for all.
        costs = {size: np.abs(1 / size - weights) - weights for size in self.sizes}
        ideal = {size: float(np.sort(cost)[:size].sum()) for size, cost in costs.items()}
        improving: list[tuple[float, Ints]] = []
        for size in sorted(ideal, key=ideal.__getitem__):
            if improving and ideal[size] >= improving[-1][0]:
                break
            parts = self.subset(costs[size], size)
            if not improving or float(costs[size] @ parts) < improving[-1][0]:
                improving.append((float(costs[size] @ parts), parts))
        return improving[-1][1]

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """In even mode: the numbers of members that an allowed mixture may have."""
        return tuple(self.rules.sizes())

    def subset(self, cost: Floats, size: int) -> Ints:
        """In even mode: the allowed parts (p,) of ``size`` (one of ``sizes``) of least summed cost."""
        parts = np.zeros(len(self.names), dtype=np.int64)
        parts[np.argsort(cost, kind="stable")[:size]] = 1
        if self.holds(parts[None])[0]:
            return parts
        return self._verified(cheapest_subset(cost, size, self.rules.sums(size)), f"{size} members")

    def _verified(self, parts: Ints | None, what: str) -> Ints:
        assert parts is not None, f"no {what} found where some exist"
        assert self.holds(parts[None])[0], f"the solver broke a constraint: {parts}"
        return parts

    @functools.cached_property
    def listed(self) -> Ints | None:
        """All allowed parts (n, p), the smallest mixtures first; None where they cannot be listed.

        They can in even mode, up to ``MOST_LISTED`` subsets. Not to be written to.
        """
        free = np.flatnonzero(self.bounds[1] > 0)
        sizes = range(self.rules.fewest, min(self.rules.most, len(free)) + 1)
        count = sum(math.comb(len(free), size) for size in sizes)
        if not self.config.even or count > MOST_LISTED:
            return None
        parts, row = np.zeros((count, len(self.names)), dtype=np.int64), 0
        for size in sizes:
            chosen = np.array(list(combinations(free.tolist(), size)))
            np.put_along_axis(parts[row : row + len(chosen)], chosen, 1, axis=1)
            row += len(chosen)
        return parts[self.holds(parts)]

    def weights(self, parts: Ints) -> Floats:
        """``parts`` (n, p) as weights whose rows sum to 1."""
        shares: Floats = parts / parts.sum(axis=1, keepdims=True)
        return shares

    def mixture(self, parts: Ints) -> Mixture:
        """The mixture of the ``parts`` (p,)."""
        return Mixture.of(dict(zip(self.names, parts.tolist(), strict=True)))

    def weights_of(self, mixtures: Sequence[Mixture]) -> Floats:
        """Weights (n, p) of any mixtures of the units, allowed or not.

        Raises:
            ValueError: a mixture has a member that is no unit.
        """
        rows = [[self._parts(mixture).get(name, 0) for name in self.names] for mixture in mixtures]
        return self.weights(np.array(rows, dtype=np.int64).reshape(-1, len(self.names)))

    def _parts(self, mixture: Mixture) -> dict[str, int]:
        for name in mixture.members:
            if name not in self.domains:
                raise unknown_name_error(name, f"the mixture {mixture.label}", self.names)
        return dict(mixture.parts)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """The least and largest weight of each unit, for an optimiser; two arrays (p,)."""
        low, high = np.zeros(len(self.names)), np.ones(len(self.names))
        for limit in self.rules.limits:
            if len(limit.units) == 1:
                (unit,) = limit.units
                low[unit] = max(low[unit], float(limit.least))
                high[unit] = min(high[unit], float(limit.most))
        return low, high

    @property
    def rows(self) -> tuple[Floats, Floats, Floats]:
        """Limits on sums, for an optimiser: least <= matrix @ weights <= most; (r, p), (r,), (r,).

        In even mode and with limits on the number of partitions these are necessary, not sufficient.
        """
        least = np.array([float(limit.least) for limit in self.rules.limits])
        most = np.array([float(limit.most) for limit in self.rules.limits])
        return self._matrix.astype(np.float64), least, most


def _rules(
    config: ConstraintsConfig, domains: Mapping[str, str], tokens: Mapping[str, int] | None
) -> Rules:
    for what, number in (
        ("resolution", config.resolution),
        ("fewest_partitions", config.fewest_partitions),
        ("most_partitions", config.most_partitions),
    ):
        if number is not None and number < 1:
            raise ValueError(f"the constraint {what} is {number}: give 1 or more")
    found = [*limits.bound_limits(config.bounds, domains), *limits.sum_limits(config.sums, domains)]
    if config.repetition is not None:
        found += limits.repetition_limits(config.repetition, domains, tokens)
    most = min(config.most_partitions or len(domains), len(domains))
    whole = None if config.even else config.resolution
    return Rules(len(domains), whole, tuple(found), config.fewest_partitions, most)
