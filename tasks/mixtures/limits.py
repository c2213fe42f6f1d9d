"""Limits on summed weights, read exactly from a config and given in whole parts.

0.1 in a config means one tenth, not the float nearest to it: numbers are read from their decimal
text as fractions. For a whole of a given number of parts a limit is two integers, so it holds or it
does not. Limits on a partition, a domain, a group and a repetition all have this one form.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from storage.fingerprint import Config
from tasks.arrays import Ints
from tasks.mixtures.rounding import Sums, cheapest_subset, nearest
from tasks.mixtures.units import unknown_name_error


class Sum(Config):
    """A limit on the summed weight of a group."""

    name: str = ""
    """What messages call the group; empty: its members are named."""

    of: list[str]
    """Partitions and domains in the group; a domain stands for all of its partitions."""

    least: float = 0.0
    """The least summed weight, 0 to 1."""

    most: float = 1.0
    """The largest summed weight, 0 to 1."""


class Repetition(Config):
    """How often a domain's tokens may be repeated in a training run of a given length."""

    tokens: int
    """Tokens of the training run in which the mixture is to be used."""

    most: float = 4.0
    """How often the tokens of one domain may be seen. Up to about four repetitions are nearly as good
    as new text (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models")."""


class Limit(NamedTuple):
    """``least`` <= summed weight of ``units`` <= ``most``."""

    what: str
    """What messages call it."""
    units: frozenset[int]
    """Numbers of the units that are summed."""
    least: Fraction
    most: Fraction

    def parts(self, whole: int) -> tuple[int, int]:
        """The least and largest number of parts of ``whole`` that the limit allows."""
        return math.ceil(self.least * whole), math.floor(self.most * whole)


def bound_limits(
    bounds: Mapping[str, tuple[float, float]], domains: Mapping[str, str]
) -> Iterator[Limit]:
    """The limits that ``bounds`` set on partitions and domains; ``domains`` in order of the units.

    Raises:
        ValueError: an unknown name, a name of both a partition and another domain, or bounds that
            are not 0 <= least <= most <= 1.
    """
    for name, (least, most) in bounds.items():
        units = _members(name, "the bounds", domains)
        yield _limit(f"bounds of {name!r}", units, least, most)


def sum_limits(sums: Iterable[Sum], domains: Mapping[str, str]) -> Iterator[Limit]:
    """The limits on groups; arguments and errors as in ``bound_limits``, and an empty group."""
    for group in sums:
        what = f"sum of {group.name or ' + '.join(group.of)!r}"
        if not group.of:
            raise ValueError(f"the {what} has no members: name partitions or domains under 'of'")
        units = frozenset[int]().union(*(_members(name, what, domains) for name in group.of))
        yield _limit(what, units, group.least, group.most)


def repetition_limits(
    repetition: Repetition, domains: Mapping[str, str], tokens: Mapping[str, int] | None
) -> Iterator[Limit]:
    """No domain above ``most`` times its tokens over the tokens of the training run.

    Raises:
        ValueError: the run or ``most`` is not above zero, or a unit has no number of tokens.
    """
    if repetition.tokens < 1 or not (math.isfinite(repetition.most) and repetition.most > 0):
        raise ValueError(
            f"repetition is {repetition.most} times in {repetition.tokens} tokens: give a run of 1 "
            "token or more and a number of repetitions above 0"
        )
    if lacking := [name for name in domains if (tokens or {}).get(name, 0) < 1]:
        raise ValueError(
            f"repetition needs the number of tokens behind each weight, and {lacking} have none: "
            "give their tokens, or leave the limit out"
        )
    for domain in sorted(set(domains.values())):
        inside = [name for name in domains if domains[name] == domain]
        held = sum((tokens or {})[name] for name in inside)
        share = exact(repetition.most) / epochs(Fraction(1), held, repetition.tokens)
        if share < 1:
            units = frozenset(number for number, name in enumerate(domains) if name in inside)
            what = f"repetition of {domain!r} ({repetition.most:g} times {held} tokens)"
            yield Limit(what, units, Fraction(0), share)


def epochs(share: Fraction, held: int, tokens: int) -> Fraction:
    """How often ``held`` tokens are seen where theirs is a ``share`` of a training's ``tokens``."""
    return share * tokens / held


def exact(number: float) -> Fraction:
    """The fraction that a number's shortest decimal text says."""
    return Fraction(str(number))


def _members(name: str, where: str, domains: Mapping[str, str]) -> frozenset[int]:
    names: Sequence[str] = list(domains)
    inside = frozenset(n for n, unit in enumerate(names) if domains[unit] == name)
    if name not in domains:
        if not inside:
            raise unknown_name_error(name, where, [*names, *domains.values()])
        return inside
    alone = frozenset({names.index(name)})
    if inside not in (frozenset(), alone):
        raise ValueError(
            f"{where} names {name!r}, which is a partition and also a domain of other partitions: "
            "name the partitions one by one under 'sums'"
        )
    return alone


def _limit(what: str, units: frozenset[int], least: float, most: float) -> Limit:
    if not (math.isfinite(least) and math.isfinite(most) and 0 <= least <= most <= 1):
        raise ValueError(
            f"the {what} are {least:g} to {most:g}: give 0 <= least <= most <= 1, as shares of 1"
        )
    return Limit(f"{what} ({least:g} to {most:g})", units, exact(least), exact(most))


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
        by_count = [self.sums(whole) for whole in wholes]
        return np.array([sums.low for sums in by_count]), np.array([sums.high for sums in by_count])

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
        alike = self.whole is None
        grain = "all members weigh alike" if alike else f"weights are multiples of 1/{self.whole}"
        raise ValueError(
            f"no mixture keeps these constraints together: {'; '.join(least._said())} "
            f"({grain}): loosen one of them"
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
