"""Units of a mixture, which are partitions or whole domains, and the names that stand for them."""

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tasks.mixtures.mixture import Merge, Mixture, Unit, Units


def by_domain(partitions: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The partitions of each domain, both sorted by name, from the domain of each partition."""
    names: dict[str, list[str]] = {}
    for name in sorted(partitions):
        names.setdefault(partitions[name], []).append(name)
    return {domain: tuple(names[domain]) for domain in sorted(names)}


def unknown_name_error(name: str, where: str, known: Iterable[str]) -> ValueError:
    """An error to raise for a name that is not among ``known``, with those that look like it."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    return ValueError(f"{where} names {name!r}, which is unknown: did you mean one of {near}?")


def spread(parts: Mapping[str, int], units: Units, merge: Merge = "macro") -> Mixture:
    """Parts of units as parts of partitions: shared evenly and exactly (macro), or given to each."""
    common = math.lcm(*(len(units[unit]) for unit in parts))
    shares: Counter[str] = Counter()
    for unit, part in parts.items():
        for partition in units[unit]:
            shares[partition] += part * (common // len(units[unit]) if merge == "macro" else 1)
    return Mixture.of(shares)


class Catalogue(NamedTuple):
    """What the names in one space may stand for; ``where`` is the place of the space in a recipe."""

    partitions: Mapping[str, str]
    where: str

    def group(self, name: str, field: str, unit: Unit | None) -> tuple[str, ...]:
        """The partitions that ``name`` stands for; ``unit`` decides where it stands for two things.

        Raises:
            ValueError: the name is unknown, or both partition and domain, and ``unit`` is None.
        """
        domains = by_domain(self.partitions)
        if unit is None and name in self.partitions and domains.get(name, (name,)) != (name,):
            raise ValueError(
                f"{self.where}.{field} names {name!r}, which is a partition of {self.partitions[name]!r} and "
                f"a domain of its own: set {self.where}.unit to 'partition' or to 'domain'"
            )
        if name in self.partitions and not (unit == "domain" and name in domains):
            return (name,)
        if name in domains:
            return domains[name]
        raise unknown_name_error(name, f"{self.where}.{field}", [*self.partitions, *domains])

    def units(self, unit: Unit, only: list[str] | None = None) -> Units:
        """The units, sorted by name; made of the partitions that ``only`` stands for, if given."""
        kept = set(self.partitions)
        if only is not None:
            kept = {partition for name in only for partition in self.group(name, "only", unit)}
        if unit == "partition":
            return {name: (name,) for name in sorted(kept)}
        return by_domain({name: self.partitions[name] for name in kept})

    def held(self, names: list[str], field: str, unit: Unit, units: Units) -> set[str]:
        """Which ``units`` the ``names`` stand for; ValueError if these are not whole units."""
        held = set()
        for name in names:
            group = set(self.group(name, field, unit))
            inside = {key for key, partitions in units.items() if group.issuperset(partitions)}
            if group != {partition for key in inside for partition in units[key]}:
                raise ValueError(
                    f"{self.where}.{field} names {name!r}, which is not made of whole units of "
                    f"this space: set unit to 'partition', or name some of {sorted(units)[:20]}"
                )
            held |= inside
        return held
