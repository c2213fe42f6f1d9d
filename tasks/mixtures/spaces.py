"""Spaces, the rules that list the mixtures of a sweep: subsets, a grid, a sample, an explicit list.

Each space counts its mixtures by a formula before it lists them, so that a space that is too large
is refused at once.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, combinations, pairwise
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field, field_validator

from storage.fingerprint import Config
from tasks.mixtures.mixture import Merge, Mixture, Unit, Units
from tasks.mixtures.units import Catalogue, by_domain, spread
from tasks.readable import whole


def with_members(mixtures: list[dict[str, float]]) -> list[dict[str, float]]:
    """The mixtures of a config's field; ValueError where one has no weight above zero."""
    for index, weights in enumerate(mixtures):
        if not any(weights.values()):
            raise ValueError(f"mixtures[{index}] is {weights}: give one weight above zero")
    return mixtures


class _Space(Config):
    unit: Unit = "partition"
    """What is put in or left out as a whole: single partitions, or domains with all of theirs."""


class _Filtered(_Space):
    only: list[str] | None = None
    """Partitions or domains from which mixtures are made; None stands for all of them."""


class Subsets(_Filtered):
    """Every set of units, each once."""

    kind: Literal["subsets"] = "subsets"
    """This space holds the subsets of the units."""

    sizes: list[Annotated[int, Field(ge=1)]] | None = None
    """Numbers of units in a mixture, those in `always` included; None stands for all sizes."""

    merge: Merge = "micro"
    """With micro all partitions of a mixture weigh alike, with macro all of its domains do."""

    always: list[str] = Field(default=[])
    """Partitions or domains that are in every mixture."""

    def number(self, catalogue: Catalogue) -> int:
        """How many mixtures there are, by binomials."""
        units, held, sizes = self._plan(catalogue)
        return sum(math.comb(len(units) - len(held), size - len(held)) for size in sizes)

    def listed(self, catalogue: Catalogue) -> Iterator[Mixture]:
        """The mixtures, each once."""
        units, held, sizes = self._plan(catalogue)
        free = [unit for unit in units if unit not in held]
        for size in sizes:
            for added in combinations(free, size - len(held)):
                chosen = chain.from_iterable(units[unit] for unit in (*held, *added))
                if self.merge == "micro":
                    yield Mixture.uniform(chosen)
                else:
                    domains = by_domain({name: catalogue.partitions[name] for name in chosen})
                    yield spread(dict.fromkeys(domains, 1), domains)

    def _plan(self, catalogue: Catalogue) -> tuple[Units, set[str], list[int]]:
        units = catalogue.units(self.unit, self.only)
        held = catalogue.held(self.always, "always", self.unit, units)
        possible = range(max(1, len(held)), len(units) + 1)
        return units, held, [n for n in possible if self.sizes is None or n in self.sizes]


class Grid(_Filtered):
    """Every mixture of units whose weights are multiples of 1/``steps``."""

    kind: Literal["grid"] = "grid"
    """This space holds the points of a regular grid of weights."""

    steps: int = Field(ge=1)
    """The weights of units are multiples of one divided by this number."""

    merge: Merge = "macro"
    """With macro a weight is that of the whole domain, with micro that of each of its partitions
    (before all are scaled to sum to 1); it has no effect where the unit is a partition."""

    fewest: int = Field(default=1, ge=1)
    """Smallest number of units with a weight above zero."""

    most: int | None = Field(default=None, ge=1)
    """Largest number of units with a weight above zero; None sets no bound."""

    def number(self, catalogue: Catalogue) -> int:
        """How many mixtures there are, by stars and bars for each number of units."""
        count = len(catalogue.units(self.unit, self.only))
        return sum(
            math.comb(count, k) * math.comb(self.steps - 1, k - 1) for k in self._sizes(count)
        )

    def listed(self, catalogue: Catalogue) -> Iterator[Mixture]:
        """The mixtures, each once."""
        units = catalogue.units(self.unit, self.only)
        for k in self._sizes(len(units)):
            for chosen in combinations(units, k):
                for cuts in combinations(range(1, self.steps), k - 1):
                    steps = (after - before for before, after in pairwise((0, *cuts, self.steps)))
                    yield spread(dict(zip(chosen, steps, strict=True)), units, self.merge)

    def _sizes(self, count: int) -> range:
        most = count if self.most is None else self.most
        return range(self.fewest, min(count, self.steps, most) + 1)


class Dirichlet(_Filtered):
    """A random sample of weights of units; the weight of a domain is shared by its partitions.

    The sample depends on the names of the units, so it changes when a unit is added: name the
    units in ``only`` to keep it. A larger ``count`` keeps the mixtures of a smaller one.
    """

    kind: Literal["dirichlet"] = "dirichlet"
    """This space holds a sample from a symmetric Dirichlet distribution."""

    count: int = Field(ge=1)
    """Number of mixtures drawn; those that are equal after rounding count as one."""

    concentration: float = Field(default=1.0, gt=0, le=1e6)
    """Parameter of the distribution: 1 is even over all weights, less favours few units."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random numbers."""

    resolution: int = Field(default=100, ge=1)
    """The weights of units are rounded to multiples of one divided by this number."""

    def number(self, catalogue: Catalogue) -> int:
        """How many mixtures are drawn."""
        return self.count if catalogue.units(self.unit, self.only) else 0

    def listed(self, catalogue: Catalogue) -> Iterator[Mixture]:
        """The mixtures in the order in which they are drawn, some perhaps twice."""
        units = catalogue.units(self.unit, self.only)
        if not units:
            return
        generator = np.random.Generator(np.random.PCG64(self.seed))
        for row in generator.dirichlet([self.concentration] * len(units), size=self.count):
            weights = dict(zip(units, row.tolist(), strict=True))
            yield spread(dict(Mixture.from_weights(weights, self.resolution).parts), units)


class Explicit(Config):
    """The mixtures that the recipe names."""

    kind: Literal["explicit"] = "explicit"
    """This space holds the mixtures that are written out."""

    mixtures: list[dict[str, Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]]]
    """Weights by partition or domain, in any scale; whole numbers are taken as exact parts, and
    the weight of a domain is shared evenly by its partitions."""

    resolution: int = Field(default=1000, ge=1)
    """Weights that are not whole are rounded to multiples of one divided by this number."""

    unit: Unit | None = None
    """What a name stands for that is both a partition's and a domain's; without it such a name is
    refused."""

    _have_members = field_validator("mixtures")(with_members)

    def number(self, _: Catalogue) -> int:
        """How many mixtures are written out."""
        return len(self.mixtures)

    def listed(self, catalogue: Catalogue) -> Iterator[Mixture]:
        """The mixtures as written; a partition named twice, also by its domain, adds up."""
        for index, weights in enumerate(self.mixtures):
            groups = {
                name: catalogue.group(name, f"mixtures[{index}]", self.unit) for name in weights
            }
            if all(weight.is_integer() for weight in weights.values()):
                mixture = Mixture.of({name: int(weight) for name, weight in weights.items()})
            else:
                mixture = Mixture.from_weights(weights, self.resolution)
            yield spread(dict(mixture.parts), groups)


class _Around(_Space):
    around: Annotated[list[str], Field(min_length=1)]
    """Partitions or domains that make the uniform mixture from which the others differ."""

    def _split(self, catalogue: Catalogue) -> tuple[Units, list[str], list[str]]:
        units = catalogue.units(self.unit)
        held = catalogue.held(self.around, "around", self.unit, units)
        return units, sorted(held), [unit for unit in units if unit not in held]


class LeaveOneOut(_Around):
    """A uniform mixture, and the same without each of its units."""

    kind: Literal["leave-one-out"] = "leave-one-out"
    """This space holds a mixture and all mixtures with one unit less."""

    def number(self, catalogue: Catalogue) -> int:
        """One, and one for each unit in it where there are several."""
        _, held, _ = self._split(catalogue)
        return 1 + len(held) if len(held) > 1 else 1

    def listed(self, catalogue: Catalogue) -> Iterator[Mixture]:
        """The mixture itself first."""
        units, held, _ = self._split(catalogue)
        for size in range(len(held), max(0, len(held) - 2), -1):
            yield from (_joined(units, kept) for kept in combinations(held, size))


class AddOneIn(_Around):
    """A uniform mixture, and the same with each unit that is not in it."""

    kind: Literal["add-one-in"] = "add-one-in"
    """This space holds a mixture and all mixtures with one unit more."""

    def number(self, catalogue: Catalogue) -> int:
        """One, and one for each unit that is not in it."""
        return 1 + len(self._split(catalogue)[2])

    def listed(self, catalogue: Catalogue) -> Iterator[Mixture]:
        """The mixture itself first."""
        units, held, others = self._split(catalogue)
        yield _joined(units, held)
        yield from (_joined(units, [*held, other]) for other in others)


def _joined(units: Units, names: Iterable[str]) -> Mixture:
    return Mixture.uniform(chain.from_iterable(units[name] for name in names))


MixtureSpace: TypeAlias = Annotated[
    Subsets | Grid | Dirichlet | Explicit | LeaveOneOut | AddOneIn, Field(discriminator="kind")
]


class MixturesConfig(Config):
    """Which mixtures a sweep looks at: the union of some spaces."""

    spaces: list[MixtureSpace] = Field(default=[Subsets()])
    """Spaces whose mixtures are looked at; a mixture that is in several is looked at once."""

    limit: int = Field(default=20_000, ge=1)
    """Largest number of mixtures, summed over the spaces; a larger number is refused."""


def enumerate_mixtures(config: MixturesConfig, partitions: Mapping[str, str]) -> list[Mixture]:
    """All mixtures of ``config``, each once, by size, then members, then parts.

    Args:
        config: the spaces and the limit on their number.
        partitions: the domain of each partition.

    Raises:
        ValueError: a name is unknown, there are more mixtures than the limit, or there are none.
    """
    spaces = [
        (space, Catalogue(partitions, f"mixtures.spaces[{index}]"))
        for index, space in enumerate(config.spaces)
    ]
    count = sum(space.number(catalogue) for space, catalogue in spaces)
    if count > config.limit:
        raise ValueError(
            f"the spaces hold {whole(count)} mixtures, more than limit = {config.limit:,}: "
            "give `sizes` to subsets, take fewer `steps` or a smaller `count`, name fewer "
            "partitions in `only`, or raise `limit`"
        )
    mixtures = {mixture for space, catalogue in spaces for mixture in space.listed(catalogue)}
    if not mixtures:
        raise ValueError(
            f"the {len(spaces)} spaces hold no mixture of {len(partitions)} partitions: "
            "check `sizes`, `fewest`, `most` and `only`, and that the corpus has partitions"
        )
    return sorted(mixtures, key=lambda mixture: (mixture.size, mixture.members, mixture.parts))
