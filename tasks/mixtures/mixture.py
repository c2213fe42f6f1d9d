"""A mixture: which members in which proportion, as integer parts.

Weights as floats have no exact identity (0.1 + 0.2 is not 0.3), and a mixture that was evaluated
once must be recognised for ever. So a mixture holds positive integers, reduced by their greatest
common divisor; weights are fractions made from them. Everything here is arithmetic on names: no
model, no file.
"""

import functools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Self, TypeAlias, TypeVar

import numpy as np

from tasks.arrays import Floats

Unit: TypeAlias = Literal["partition", "domain"]

Merge: TypeAlias = Literal["micro", "macro"]

K = TypeVar("K", int, str)

Units: TypeAlias = dict[str, tuple[str, ...]]
"""What a space puts together: the name of each unit and its partitions."""


@dataclass(frozen=True, order=True, slots=True)
class Mixture:
    """Which members in which proportion; equal proportions make equal (and equally hashed) mixtures.

    Attributes:
        parts: members (names of partitions, or digests of their models) with positive integer
            parts; sorted by member and reduced by their greatest common divisor on construction.

    Raises:
        ValueError: no member, a member named twice, or parts that are not positive integers.
    """

    parts: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a mixture has no members: give at least one part above zero")
        for member, part in self.parts:
            if not isinstance(part, int) or isinstance(part, bool) or part < 1:
                raise ValueError(f"the part of {member!r} is {part!r}: give a positive integer")
        times = Counter(member for member, _ in self.parts)
        if repeated := sorted(member for member, count in times.items() if count > 1):
            raise ValueError(f"a mixture names {repeated} more than once: name each once")
        divisor = math.gcd(*(part for _, part in self.parts))
        reduced = tuple(sorted(_pair(member, part // divisor) for member, part in self.parts))
        object.__setattr__(self, "parts", reduced)

    @classmethod
    def of(cls, parts: Mapping[str, int]) -> Self:
        """The mixture with these parts; members with zero parts are dropped."""
        return cls(tuple((member, part) for member, part in parts.items() if part != 0))

    @classmethod
    def uniform(cls, members: Iterable[str]) -> Self:
        """The mixture in which all ``members`` weigh alike; a member named twice is refused."""
        return cls(tuple((member, 1) for member in members))

    @classmethod
    def from_weights(cls, weights: Mapping[str, float], resolution: int) -> Self:
        """Round ``weights`` (any positive sum) to multiples of 1/``resolution``.

        By largest remainder, ties by name: the parts sum to ``resolution`` before reduction, and
        each is less than one part from its exact share. Members that round to zero are dropped.

        Raises:
            ValueError: a weight is negative or not finite, all are zero, or resolution is below 1.
        """
        if resolution < 1:
            raise ValueError(f"resolution is {resolution}: give 1 or more")
        for member, weight in weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"the weight of {member!r} is {weight}: give a finite number >= 0")
        if not any(weights.values()):
            raise ValueError(f"the weights {dict(weights)} sum to zero: give one above zero")
        return cls.of(apportioned(weights, resolution))

    @property
    def members(self) -> tuple[str, ...]:
        """The members in the order of their names."""
        return tuple(member for member, _ in self.parts)

    @property
    def size(self) -> int:
        """Number of members; called k."""
        return len(self.parts)

    @property
    def total(self) -> int:
        """Sum of the parts: the common denominator of the weights."""
        return sum(part for _, part in self.parts)

    @property
    def weights(self) -> dict[str, Fraction]:
        """Exact weight of each member; they sum to 1."""
        return {member: Fraction(part, self.total) for member, part in self.parts}

    @property
    def is_uniform(self) -> bool:
        """Whether all members weigh alike."""
        return self.total == self.size

    @property
    def label(self) -> str:
        """For people: ``code + prose``, or ``3 code + 1 prose`` where the members weigh unlike."""
        names = self.members if self.is_uniform else (f"{part} {name}" for name, part in self.parts)
        return sys.intern(" + ".join(names))  # tables of 100,000s of mixtures share one text

    def renamed(self, names: Mapping[str, str]) -> "Mixture":
        """The mixture under other names; members that get the same name add up their weights.

        Raises:
            ValueError: ``names`` lacks a member.
        """
        if missing := [member for member in self.members if member not in names]:
            raise ValueError(f"no new name is given for {missing}: name every member")
        parts: Counter[str] = Counter()
        for member, part in self.parts:
            parts[names[member]] += part
        return Mixture.of(parts)

    def config(self) -> list[list[str | int]]:
        """The canonical value for fingerprints: a list of [member, parts]."""
        return [[member, part] for member, part in self.parts]


def apportioned(weights: Mapping[K, float], whole: int) -> dict[K, int]:
    """``whole`` things in proportion to ``weights``, by largest remainder; ties go by key.

    The numbers sum to ``whole``, and each is less than one from its exact share. Weights are finite and
    not negative, and their sum is above zero.
    """
    total = sum(map(Fraction, weights.values()))
    shares = {key: Fraction(weight) * whole / total for key, weight in weights.items()}
    parts = {key: math.floor(share) for key, share in shares.items()}
    largest_remainder_first = sorted(shares, key=lambda key: (parts[key] - shares[key], key))
    for key in largest_remainder_first[: whole - sum(parts.values())]:
        parts[key] += 1
    return parts


@functools.lru_cache(maxsize=100_000)
def _pair(member: str, part: int) -> tuple[str, int]:
    """One object for all mixtures that hold a member in that proportion: there may be 100,000s."""
    return member, part


def shares(mixtures: Sequence[Mixture], names: Iterable[str]) -> Floats:
    """Weight of each of ``names`` in each mixture, shape (mixtures, names)."""
    columns = {name: number for number, name in enumerate(names)}
    table = np.zeros((len(mixtures), len(columns)))
    for row, mixture in enumerate(mixtures):
        for name, part in mixture.parts:
            table[row, columns[name]] = part / mixture.total
    return table
