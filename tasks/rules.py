"""All limits on a mixture together: are they possible, and if not, which of them contradict?

Constraints come from several people and several fields of a config, and "infeasible" helps none of
them. So where nothing keeps all of them, they are dropped one at a time as long as the rest is still
impossible: what is left is a smallest set to talk about, since without any one of it there is a mixture.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tasks.arrays import Ints
from tasks.limits import Limit
from tasks.nearest import Sums, cheapest_subset, nearest


class Rules(NamedTuple):
    """What a mixture of ``size`` units must keep."""

    size: int
    whole: int | None
    """What the parts sum to; None where all members have one part."""
    limits: tuple[Limit, ...]
    fewest: int
    """The least number of members."""
    most: int
    """The largest number of members."""

    def sums(self, whole: int) -> Sums:
        """The limits in parts of a ``whole``."""
        matrix = np.zeros((len(self.limits), self.size), dtype=np.int64)
        for row, limit in enumerate(self.limits):
            matrix[row, sorted(limit.units)] = 1
        bounds = [limit.parts(whole) for limit in self.limits]
        low, high = np.array(bounds, dtype=np.int64).reshape(-1, 2).T
        return Sums(matrix, low, high)

    def tables(self) -> tuple[Ints, Ints]:
        """The least and largest parts of each limit by the number of members; two (size + 1, r)."""
        wholes = [self.whole or members for members in range(self.size + 1)]
        found = [self.sums(whole) for whole in wholes]
        return np.array([one.low for one in found]), np.array([one.high for one in found])

    def sizes(self) -> Iterator[int]:
        """The numbers of members that a mixture of equal weights may have."""
        for members in range(self.fewest, min(self.most, self.size) + 1):
            if cheapest_subset(np.zeros(self.size), members, self.sums(members)) is not None:
                yield members

    def possible(self) -> bool:
        """Whether any mixture keeps them all."""
        if self.whole is None:
            return next(self.sizes(), None) is not None
        anywhere, sums = np.zeros(self.size), self.sums(self.whole)
        return nearest(anywhere, self.whole, sums, self.fewest, self.most) is not None

    def refuse_contradiction(self) -> None:
        """Raise a ValueError that names a smallest set of limits that contradict, if any do."""
        if self.possible():
            return
        least = self
        for limit in self.limits:
            least = least._unless_possible(limits=tuple(x for x in least.limits if x is not limit))
        least = least._unless_possible(fewest=1)._unless_possible(most=self.size)
        raise ValueError(
            f"no mixture keeps these constraints together: {'; '.join(least._said())} "
            f"({self._grain()}): loosen one of them"
        )

    def _unless_possible(self, **looser: Any) -> "Rules":
        trial = self._replace(**looser)
        return self if trial.possible() else trial

    def _said(self) -> Iterator[str]:
        yield from (limit.what for limit in self.limits)
        if self.fewest > 1:
            yield f"at least {self.fewest} of {self.size} partitions"
        if self.most < self.size:
            yield f"at most {self.most} of {self.size} partitions"

    def _grain(self) -> str:
        if self.whole is None:
            return "all members weigh alike"
        return f"weights are multiples of 1/{self.whole}"
