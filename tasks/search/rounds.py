"""A search, round by round: its state so far, and the mixtures to evaluate next.

A first design covers every unit. Then surrogates propose mixtures, round after round, until the
budget is spent. Proposals depend on the rules, the seed and the losses so far, and on nothing else.
So a search that was ended goes on where it was, and one with a larger budget begins like one with a
smaller. No model is run here: the caller evaluates the proposals and hands their losses to
``learn``.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field, field_validator

from storage.fingerprint import Config
from tasks.arrays import Floats
from tasks.mixtures.constraints import ConstraintsConfig, Feasible
from tasks.mixtures.mixture import Mixture, Unit, Units
from tasks.mixtures.units import spread
from tasks.search.descent import DescentConfig
from tasks.search.first_design import first_design
from tasks.search.objective import Objective, ObjectiveConfig
from tasks.search.proposals import FEWEST_ROWS, propose
from tasks.surrogates.kinds import NAMES, check_surrogates

START, DESCENT = "start", "descent"
"""Who proposes a mixture, where it is no surrogate."""


class SearchConfig(Config):
    """Which mixture is looked for, and how long."""

    objective: ObjectiveConfig = ObjectiveConfig()
    """What is made small, and what may not become worse."""
    constraints: ConstraintsConfig = ConstraintsConfig()
    """Which mixtures may be proposed."""
    unit: Unit = "partition"
    """What is weighed: single partitions, or domains, whose partitions share a weight evenly; limits on
    numbers of partitions then count domains."""
    evaluations: int = Field(default=200, ge=1)
    """Largest number of mixtures that are evaluated, those of the first design included."""
    start: int | None = Field(default=None, ge=1)
    """Number of mixtures in the first design; None takes two for each unit, and eight more."""
    batch: int = Field(default=8, ge=1)
    """Number of mixtures that are proposed and evaluated at once, before surrogates are fitted anew."""
    surrogates: list[str] = Field(
        default=[*NAMES],
        min_length=1,
        json_schema_extra={"items": {"type": "string", "enum": [*NAMES]}},
    )
    """Surrogates that are compared; in each round the one that orders unseen mixtures best proposes."""
    descent: DescentConfig | None = DescentConfig()
    """Descent on the weights through the merged model, whose landings are evaluated too; None leaves
    it out."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random draw of the search."""

    @field_validator("surrogates")
    @classmethod
    def _are_known(cls, names: list[str]) -> list[str]:
        if odd := [name for name in names if name not in NAMES]:
            listed = ", ".join(map(repr, NAMES))
            raise ValueError(f"{odd[0]!r} is no surrogate; they are {listed}")
        check_surrogates(names)
        if len({*names}) < len(names):
            raise ValueError(f"{names} names a surrogate twice: name each once")
        return names


class Tried(NamedTuple):
    """A mixture that was, or is to be, evaluated."""

    mixture: Mixture
    """Over units."""
    judged: Mixture
    """The same over partitions."""
    round: int
    """0 for the first design and descents, then rounds of proposals."""
    proposed_by: str
    """``START``, ``DESCENT`` or the name of a surrogate."""
    predicted: float
    """Its objective as it was expected, in bits per byte; NaN where nothing was."""


class Search:
    """The state of a search: what was tried, with which losses, and what is next.

    Args:
        rules: of the search.
        feasible: what may be proposed, over units.
        objective: over the evaluation sets and the same units.
        units: the partitions of each unit.

    Attributes:
        tried: the evaluated mixtures in order.
        losses: their bits per byte, shape (n, S), columns as in ``objective.sets``.
        base: bits per byte of the base model, shape (S,); set by the caller before the first round.
        notes: sentences of the surrogates for the reader, each once.
    """

    def __init__(
        self, rules: SearchConfig, feasible: Feasible, objective: Objective, units: Units
    ) -> None:
        self.rules, self.feasible, self.objective, self.units = rules, feasible, objective, units
        self.tried: list[Tried] = []
        self.losses: Floats = np.empty((0, len(objective.sets)))
        self.base: Floats | None = None
        self.notes: list[str] = []
        self._round = 0

    @property
    def left(self) -> int:
        """How many more mixtures may be evaluated."""
        return max(0, self.rules.evaluations - len(self.tried))

    @property
    def weights(self) -> Floats:
        """Weights of the units in each evaluated mixture, shape (n, p)."""
        return self.feasible.weights_of([tried.mixture for tried in self.tried])

    def first(self) -> list[Tried]:
        """The first design. Raises ValueError where the constraints allow no mixture."""
        count = self.rules.start or 2 * len(self.feasible.names) + 8
        mixtures = first_design(self.feasible, count, self._generator(0))
        return self._new(mixtures[: self.left], START)

    def landed(self, weights: Sequence[Floats]) -> list[Mixture]:
        """The allowed mixtures of units nearest to where descents ended, each once."""
        nearest = (self.feasible.mixture(self.feasible.round(end)) for end in weights)
        return list(dict.fromkeys(nearest))

    def untried(self, landings: Sequence[Mixture]) -> list[Tried]:
        """Those of the landings of descents that are yet to be evaluated."""
        evaluated = {tried.mixture for tried in self.tried}
        new = [mixture for mixture in landings if mixture not in evaluated]
        return self._new(new[: self.left], DESCENT)

    def next(self) -> list[Tried]:
        """The next round; none where the budget is spent or nothing new is allowed.

        Raises:
            ValueError: no surrogate can be fitted, or a loss is not finite.
        """
        if not self.left or len(self.tried) < FEWEST_ROWS:
            return []
        self._round += 1
        proposed = propose(
            self.weights,
            self.losses,
            self.base,
            self.objective,
            self.feasible,
            self.rules.batch,
            self._generator(self._round),
            self.rules.surrogates,
        )
        self.notes += [note for note in proposed.notes if note not in self.notes]
        return [
            Tried(p.mixture, self.judged(p.mixture), self._round, p.proposed_by, p.predicted)
            for p in proposed.proposals[: self.left]
        ]

    def learn(self, tried: Sequence[Tried], losses: Floats) -> None:
        """Take in what was evaluated: bits per byte, shape (n, S)."""
        self.tried += tried
        self.losses = np.concatenate([self.losses, losses])

    def judged(self, mixture: Mixture) -> Mixture:
        """A mixture of units as one of partitions."""
        return spread(dict(mixture.parts), self.units)

    def _new(self, mixtures: Sequence[Mixture], by: str) -> list[Tried]:
        return [Tried(mixture, self.judged(mixture), 0, by, math.nan) for mixture in mixtures]

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.rules.seed, number])


def num_possible(feasible: Feasible) -> int:
    """How many mixtures there are: exact where they can be listed, else before bounds and sums."""
    if feasible.listed is not None:
        return len(feasible.listed)
    rules, count, steps = feasible.rules, len(feasible.names), feasible.config.resolution
    sizes = range(rules.fewest, rules.most + 1)
    return sum(
        math.comb(count, k) * (1 if feasible.config.even else math.comb(steps - 1, k - 1))
        for k in sizes
    )
