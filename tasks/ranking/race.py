"""A race: find the best few of many mixtures at little more than the price of these few.

All mixtures are evaluated on a small part of every set, the first *look*. Those that can no longer
be among the best ``top`` are dropped. The others go on to the next look, as large as all before it
together; the last few are evaluated in full.

After each look the best by estimate are evaluated in full at once. They would be anyway, and their
losses sharpen the estimates of the others (``tasks.ranking.calibration``). The worst of the best
``top`` of them is a *known* loss, which the true top-th cannot exceed: the bound. A mixture is
dropped when its loss lies above the bound with confidence. So no two estimates are compared, and
only errors about the true best ``top`` matter. A Bonferroni correction over these and over the
looks covers them all, however many mixtures there are.

Losses come from a ``LossSource``; nothing here knows of models, files or stores.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from pydantic import Field

from storage.fingerprint import Config
from tasks.arrays import Bools, Floats, Ints
from tasks.ranking.calibration import Groups, estimate, student_quantile
from tasks.ranking.race_result import Exit, RaceLook, RaceResult

T = TypeVar("T")

FEW = 2
"""Up to so many times ``top`` mixtures are evaluated in full without another look."""

MOST_MEMBERS = 0.1
"""Partition models are evaluated in full first if they are at most this share of the mixtures."""

SEARCHES = 2
"""Times that the best by estimate are sought after each look: new controls change estimates."""


class RaceConfig(Config):
    """How the best mixtures are found without evaluating every mixture in full."""

    top: int = Field(default=10, ge=1)
    """Number of best mixtures that are to be found; they end up evaluated in full."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """Probability, at least, with which none of the best is dropped, over all mixtures and looks
    together."""
    share: float = Field(default=0.03125, gt=0, le=0.25)
    """Share of each set's groups of documents that all mixtures are evaluated on at least."""
    fewest: int = Field(default=4, ge=2)
    """Groups of documents of each set that all mixtures are evaluated on at least."""
    groups: int = Field(default=36, ge=16)
    """Groups of documents of all sets together that all mixtures are evaluated on at least: with few
    sets the first look takes several parts of each."""


class RaceSets(NamedTuple):
    """The evaluation sets as a race sees them."""

    groups: Groups
    look: Ints
    """Look at which each group is seen, counted from 0; -1 where at none, shape (G,)."""
    look_tokens: list[int]
    """Tokens that a model is run on at each look."""
    tokens: int
    """Tokens that a model is run on for everything."""


class LossSource(Protocol):
    """A source of losses: nats over (tokens of the set x number of sets), summed by group.

    None stands for losses that are not known yet: the race ends there.
    """

    def opening(
        self, mixtures: Sequence[int], *, with_members: bool
    ) -> tuple[Floats, Floats] | None:
        """What is needed in any case: ``look(mixtures, 0)``, and the partition models' losses.

        The latter are of shape (K, G), or (0, G) where they are not wanted.
        """

    def look(self, mixtures: Sequence[int], number: int) -> Floats | None:
        """Losses on the groups of one look, shape (mixtures, groups of the look)."""

    def whole(self, mixtures: Sequence[int]) -> Floats | None:
        """Losses on all groups, shape (mixtures, G)."""


class UnknownLossesError(Exception):
    """A race cannot go on."""


def require(losses: T | None) -> T:
    """The losses. Raises UnknownLossesError where there are none."""
    if losses is None:
        raise UnknownLossesError
    return losses


def race(config: RaceConfig, sets: RaceSets, shares: Floats, source: LossSource) -> RaceResult:
    """Find the best mixtures.

    Args:
        shares: weight of each partition model in each mixture, shape (M, K).
    """
    running = _Race(config, sets, shares, source)
    try:
        running.run()
    except UnknownLossesError:
        return running.result
    running.result.is_complete = True
    return running.result


class _Race:
    """The mixtures of a race: their losses and estimates so far, and which are still in it."""

    def __init__(
        self, config: RaceConfig, sets: RaceSets, shares: Floats, source: LossSource
    ) -> None:
        self._config, self._sets, self._shares, self._source = config, sets, shares, source
        self.result = RaceResult(len(shares), full_tokens=len(shares) * sets.tokens)
        self._known: dict[int, Floats] = {}
        """Losses on all groups of mixtures that were evaluated in full, but for single models."""
        self._single: dict[int, Floats] = {}
        """The same for mixtures that are one partition model."""
        self._members: Floats = np.zeros((0, len(sets.look)))
        self._open: Ints = np.arange(len(shares))
        """Mixtures that are neither dropped nor evaluated in full, ascending."""
        self._seen: Floats = np.zeros((len(shares), 0))
        """Losses of the open ones on the groups of the looks so far, in the order of the groups."""

    def run(self) -> None:
        """From the first look to the finalists."""
        for number in range(len(self._sets.look_tokens)):
            if len(self._open) <= FEW * self._config.top:
                break
            evaluated = self._evaluate_look(number) if number else self._open_race()
            self._evaluate_leaders(number)
            self._drop(number)
            self._note_look(number, evaluated)
        self._evaluate_whole(self._open)
        self._drop_singles()
        self.result.finalists = sorted(self._known)

    def _open_race(self) -> int:
        """Evaluate everybody on part 0, and the partition models, unless they are too many."""
        num_mixtures, num_members = self._shares.shape
        with_members = num_members <= MOST_MEMBERS * num_mixtures
        alone = (self._shares > 0).sum(axis=1) == 1
        if with_members:
            self._open = np.flatnonzero(~alone)
        self._count(len(self._open) * self._sets.look_tokens[0])
        self._count(num_members * self._sets.tokens if with_members else 0)
        losses = self._source.opening(self._open.tolist(), with_members=with_members)
        self._seen, self._members = require(losses)
        for mixture in np.flatnonzero(alone & with_members).tolist():
            self._single[mixture] = self._members[int(self._shares[mixture].argmax())]
        return len(self._open)

    def _evaluate_look(self, number: int) -> int:
        self._count(len(self._open) * self._sets.look_tokens[number])
        new = require(self._source.look(self._open.tolist(), number))
        look = self._sets.look[(self._sets.look >= 0) & (self._sets.look <= number)]
        seen = np.empty((len(new), len(look)))
        seen[:, look < number], seen[:, look == number] = self._seen, new
        self._seen = seen
        return len(self._open)

    def _evaluate_whole(self, mixtures: Ints) -> None:
        if len(mixtures):
            self._count(len(mixtures) * self._sets.tokens)
            losses = require(self._source.whole(mixtures.tolist()))
            self._known |= dict(zip(mixtures.tolist(), losses, strict=True))
            self._keep(~np.isin(self._open, mixtures))

    def _count(self, tokens: int) -> None:
        self.result.evaluated_tokens += tokens

    def _keep(self, mask: Bools) -> None:
        self._open, self._seen = self._open[mask], self._seen[mask]

    def _judge(self, number: int) -> tuple[Floats, Floats]:
        """Estimates of the open mixtures, and how far each may be from the truth."""
        sampled = (self._sets.look >= 0) & (self._sets.look <= number)
        shares = self._shares[self._open] if len(self._members) else self._shares[:0, :0]
        mean = shares @ self._members if len(self._members) else np.zeros((1, len(sampled)))
        gains = estimate(
            self._sets.groups, sampled, mean[:, sampled] - self._seen, self._controls()
        )
        # Either of the top mixtures may be lost after either of the looks.
        chances = self._config.top * len(self._sets.look_tokens)
        quantile = student_quantile(1 - (1 - self._config.confidence) / chances, gains.freedom)
        # An error of zero says nothing where nothing is left to judge it by.
        reach = (
            np.full_like(gains.error, math.inf) if math.isinf(quantile) else quantile * gains.error
        )
        return mean.sum(axis=1) - gains.value, reach

    def _controls(self) -> Floats:
        """Mean gain by merging of the best mixtures evaluated in full; shape (0 or 1, G)."""
        if len(self._known) < 2:
            return np.zeros((0, len(self._sets.look)))
        best = sorted(self._known, key=lambda mixture: float(self._known[mixture].sum()))
        best = best[: self._config.top]
        rows = np.stack([self._known[mixture] for mixture in best])
        mean = self._shares[best] @ self._members if len(self._members) else 0.0
        gain: Floats = (mean - rows).mean(axis=0, keepdims=True)
        return gain

    def _evaluate_leaders(self, number: int) -> None:
        for _ in range(SEARCHES):
            if len(self._open):
                self._evaluate_whole(self._leaders(self._judge(number)[0]))

    def _drop(self, number: int) -> None:
        if not len(self._open):
            return
        values, margins = self._judge(number)
        bound = self._bound()
        out = values - margins > bound
        columns = (self._open[out], values[out], margins[out])
        for mixture, value, margin in zip(*(c.tolist() for c in columns), strict=True):
            self.result.exits.append(
                Exit(mixture, number, value, value - margin, value + margin, bound)
            )
        self._keep(~out)

    def _drop_singles(self) -> None:
        """A single model was evaluated in full for the others' sake, so it is judged exactly."""
        bound = self._bound() if self._single else 0.0
        for mixture, row in self._single.items():
            if (loss := float(row.sum())) > bound:
                self.result.exits.append(Exit(mixture, None, loss, loss, loss, bound))
            else:
                self._known[mixture] = row

    def _note_look(self, number: int, evaluated: int) -> None:
        seen = (self._sets.look >= 0) & (self._sets.look <= number)
        dropped = sum(out.look == number for out in self.result.exits)
        left = len(self._open) + len(self._known)
        self.result.rounds.append(RaceLook(number, float(seen.mean()), evaluated, dropped, left))

    def _leaders(self, values: Floats) -> Ints:
        """The open ones among the best ``top`` of all, by known losses and by estimates for the rest."""
        known_losses = np.array(list(self._losses().values()))
        order = np.argsort(np.concatenate([known_losses, values]), kind="stable")[
            : self._config.top
        ]
        return self._open[np.sort(order[order >= len(known_losses)] - len(known_losses))]

    def _losses(self) -> dict[int, float]:
        return {i: float(row.sum()) for i, row in (self._known | self._single).items()}

    def _bound(self) -> float:
        return sorted(self._losses().values())[self._config.top - 1]
