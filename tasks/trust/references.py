"""Which mixtures are really trained, as references, to judge the proxies by.

Figures mean something only at a fixed number of partitions k, so every size gets an equal share.
Within a size the first reference is the best by proxy, since the choice is made at the top. What other
predictors hold to be best comes next, where they disagree. The others spread over the ranking by a
low-discrepancy sequence (van der Corput, base 2, turned by the seed): a few cover it evenly, and one more
falls into the widest gap. So a larger sample keeps a smaller one, and one more reference costs one
training.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice, zip_longest
from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import Field, field_validator

from storage.fingerprint import Config
from tasks.mixtures.mixture import Mixture
from tasks.mixtures.spaces import with_members

BudgetUnit: TypeAlias = Literal["trainings", "tokens", "joules"]
Value: TypeAlias = bool | int | float | str | None
"""Of a single field."""


class ValidationConfig(Config):
    """Which mixtures are really trained, to see whether the ranking can be trusted."""

    references: int = Field(default=12, ge=2)
    """Number of mixtures that are really trained."""
    budget: str | None = None
    """What they may cost in all, in place of their number: 12 trainings, 5e6 tokens, 40 kJ."""
    sizes: list[Annotated[int, Field(ge=2)]] = Field(default=[2, 3, 4], min_length=1)
    """Numbers of partitions, 2 or more, from which the sample is drawn, in equal shares."""
    repeats: int = Field(default=2, ge=0)
    """Further seeds with which the first of them is trained, to see how far references agree."""
    repeats_of: Literal["best", "both"] = "best"
    """Which is trained again: the best by proxy, or also the worst of as many partitions."""
    mixtures: list[dict[str, Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]]] = []
    """Further mixtures that are really trained, however they weigh: weights by partition or domain, in
    any scale. Each is trained as long as an even reference of as many partitions."""
    proportional: bool = False
    """Whether the mixture of all partitions in proportion to their tokens is really trained, too."""
    ladder: list[Annotated[dict[str, Value], Field(min_length=1)]] = []
    """Rungs: fields of the recipe and other values (of train and base), with which the same mixtures are
    judged again. One that gives validation.references trains as many of the references, too."""
    pairs: int = Field(default=300, ge=0)
    """Largest number of pairs of partition models whose midpoint is evaluated, for barriers."""
    seed: int = 0
    """Seed of the sample."""

    _have_members = field_validator("mixtures")(with_members)

    @field_validator("budget", mode="before")
    @classmethod
    def _can_be_read(cls, budget: object) -> str | None:
        if budget is not None:
            parse_budget(str(budget))  # YAML reads 12 as a number
        return None if budget is None else str(budget)


def choose_references(
    mixtures: Iterable[Mixture],
    count: int,
    sizes: Sequence[int],
    seed: int,
    losses: Mapping[str, float] | None = None,
    others: Sequence[Mapping[str, float]] = (),
) -> list[Mixture]:
    """A seeded sample of uniform mixtures, in equal shares over ``sizes``.

    A larger ``count`` keeps what a smaller one chose.

    Args:
        losses: of the proxies, by label; mixtures without one come last. None, where no loss is known
            yet, takes them in random order.
        others: the same of other predictors, whose best mixtures come next.

    Raises:
        ValueError: there are fewer such mixtures than ``count``.
    """
    chosen = list(islice(_in_turn(mixtures, sizes, seed, losses, others), count))
    if len(chosen) < count:
        raise ValueError(
            f"validation.references asks for {count} mixtures, and the recipe has {len(chosen)} "
            f"uniform ones of sizes {sorted(set(sizes))}: "
            + ("ask for fewer, or " if len(chosen) > 1 else "")
            + "add to validation.sizes or to mixtures.spaces"
        )
    return chosen


def _in_turn(
    mixtures: Iterable[Mixture],
    sizes: Sequence[int],
    seed: int,
    losses: Mapping[str, float] | None,
    others: Sequence[Mapping[str, float]],
) -> Iterator[Mixture]:
    """All uniform mixtures of ``sizes`` in the order in which a sample takes them."""
    by_size: dict[int, list[Mixture]] = {size: [] for size in dict.fromkeys(sizes)}
    for mixture in dict.fromkeys(mixtures):
        if mixture.is_uniform and mixture.size in by_size:
            by_size[mixture.size].append(mixture)
    by_label = losses or {}
    for same_size in by_size.values():
        same_size.sort(
            key=lambda m: (by_label.get(m.label, math.inf), _lot(m.label, seed), m.label)
        )
    strata = [
        _evenly_spread(same, _lot(f"{size}", seed), _best_by(others, same))
        for size, same in by_size.items()
    ]
    for round_of_sizes in zip_longest(*strata):
        yield from filter(None, round_of_sizes)


def _best_by(others: Sequence[Mapping[str, float]], ordered: list[Mixture]) -> list[int]:
    """Places of the mixtures that other predictors hold to be best, each once; not the first of all."""
    best = [
        min(range(len(ordered)), key=lambda n: losses.get(ordered[n].label, math.inf))
        for losses in others
        if ordered
    ]
    return [place for place in dict.fromkeys(best) if place]


def _evenly_spread(ordered: list[Mixture], shift: float, second: list[int]) -> Iterator[Mixture]:
    """The first and the second, then what is nearest to the next point of the sequence and not yet taken."""
    left = list(range(len(ordered)))
    for number in range(len(ordered)):
        if number == 1:
            for place in second:
                left.remove(place)
                yield ordered[place]
        if not left:
            return
        share = (_van_der_corput(number) + shift) % 1 if number else 0.0
        target = share * (len(ordered) - 1)
        place = min(left, key=lambda place: (abs(place - target), place))
        left.remove(place)
        yield ordered[place]


def _van_der_corput(number: int) -> float:
    """The binary digits of ``number``, mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8 ..."""
    return int(f"{number:b}"[::-1], 2) / (1 << number.bit_length()) if number else 0.0


def _lot(text: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:8]) / 2**64


class Budget(NamedTuple):
    """What a validation may cost in all, what the store has already included."""

    amount: float
    unit: BudgetUnit

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


_UNITS: dict[str, BudgetUnit] = {
    **dict.fromkeys(("", "training", "trainings"), "trainings"),
    **dict.fromkeys(("token", "tokens"), "tokens"),
    **dict.fromkeys(("j", "joule", "joules"), "joules"),
}
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_BUDGET = re.compile(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgbt]?)\s*([a-z]*)", re.IGNORECASE)


def parse_budget(text: str) -> Budget:
    """A budget as people write it: ``12``, ``12 trainings``, ``5e6 tokens``, ``3 Mtokens``, ``40 kJ``.

    Raises:
        ValueError: it is none.
    """
    match = _BUDGET.fullmatch(text.strip())
    if match is not None:
        amount, prefix, word = match.groups()
        for head, tail in ((prefix, word), ("", prefix + word)):
            unit = _UNITS.get(tail.lower())
            if unit is not None and not (unit == "trainings" and head):
                try:
                    return Budget(float(amount) * _PREFIXES[head.lower()], unit)
                except ValueError:
                    break
    raise ValueError(
        f"the budget {text!r} is none: write 12 (trainings), 5e6 tokens, 3 Mtokens or 40 kJ"
    )


def affordable(costs: Iterable[float], budget: Budget) -> int:
    """How many of the things that cost so much, taken in order, the budget pays for."""
    return sum(total <= budget.amount for total in accumulate(costs))
