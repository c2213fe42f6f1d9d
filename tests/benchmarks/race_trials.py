"""Many races on the stored losses of one full evaluation: what they cost, and how often they go wrong.

No model is run: the documents are put in another order (which decides what the looks see), drawn with
replacement, or halved; each time the best of *these* documents are known, and a race must keep them.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.set_part import PartConfig, part_groups
from tasks.ranking import race as racing
from tasks.ranking.calibration import Groups
from tasks.ranking.race import RaceConfig, RaceSets, race

Floats = NDArray[np.float64]

CONFIDENCES = (0.5, 0.8, 0.95)


class Losses(NamedTuple):
    """What evaluating everything has found."""

    shares: Floats
    """Weight of each partition in each mixture, shape (M, K)."""
    nats: list[Floats]
    """Per set: shape (M, documents)."""
    tokens: list[Floats]
    """Per set: tokens of each document."""

    def best(self, documents: list[NDArray[np.int64]], top: int) -> list[int]:
        """The best mixtures on some documents of each set."""
        loss = sum(
            nats[:, chosen].sum(axis=1) / tokens[chosen].sum()
            for nats, tokens, chosen in zip(self.nats, self.tokens, documents, strict=True)
        )
        return [int(place) for place in np.argsort(loss, kind="stable")[:top]]


class Stored:
    """A course of losses that are all known (see ``tasks.ranking.race.LossSource``)."""

    def __init__(self, losses: Floats, members: Floats, text: RaceSets) -> None:
        self._losses, self._members, self._text = losses, members, text

    def opening(self, mixtures: Sequence[int], *, with_members: bool) -> tuple[Floats, Floats]:
        """Losses at the first look, and of the partition models."""
        return self.look(mixtures, 0), self._members if with_members else self._members[:0]

    def look(self, mixtures: Sequence[int], number: int) -> Floats:
        """Losses at one look."""
        return self._losses[list(mixtures)][:, self._text.look == number]

    def whole(self, mixtures: Sequence[int]) -> Floats:
        """Losses on everything."""
        return self._losses[list(mixtures)]


class Trial(NamedTuple):
    """One race on stored sums."""

    share: float
    """Token evaluations over those of evaluating everything."""
    is_same: bool
    """Whether the best ten are those of evaluating everything; then their order is too."""
    lost: int
    """How many of the best ten were dropped."""


def trial(losses: Losses, rules: RaceConfig, documents: list[NDArray[np.int64]]) -> Trial:
    """Race on the given documents of each set, in the given order."""
    rows, weights, strata, looks = [], [], [], []
    for place, chosen in enumerate(documents):
        tokens = losses.tokens[place][chosen]
        scale = 1 / (tokens.sum() * len(documents))
        rows.append(losses.nats[place][:, chosen] * scale)
        weights.append(tokens * scale)
        strata.append(np.full(len(chosen), place))
        looks.append(look_of_each(rules, len(chosen)))
    look = np.concatenate(looks)
    tokens_of = [int(np.concatenate(weights)[look == n].sum() * 1e9) for n in range(look.max() + 1)]
    text = RaceSets(Groups(np.concatenate(strata), np.concatenate(weights)), look, tokens_of, 10**9)
    everything = np.concatenate(rows, axis=1)
    alone = [int(np.flatnonzero(row == 1)[0]) for row in losses.shares.T]
    result = race(rules, text, losses.shares, Stored(everything, everything[alone], text))
    best = losses.best(documents, rules.top)
    lost = len(set(best) - set(result.finalists))
    return Trial(result.evaluated_tokens / result.full_tokens, lost == 0, lost)


def look_of_each(rules: RaceConfig, num_documents: int) -> NDArray[np.int64]:
    """Look at which each document of a set is seen; nine sets make the first look of one part."""
    look = np.full(num_documents, -1)
    for number in range(10):
        part = PartConfig(number=number, share=rules.share, fewest=rules.fewest)
        groups = part_groups(part, num_documents)
        if groups.stop > num_documents / 2:
            break
        look[groups.start : groups.stop] = number
    return look


Draw = Callable[[np.random.Generator, int], NDArray[np.int64]]

DRAWS: dict[str, Draw] = {
    "in another order": lambda chance, size: chance.permutation(size),
    "drawn with replacement": lambda chance, size: chance.integers(0, size, size),
    "half of them": lambda chance, size: chance.permutation(size)[: size // 2],
}


def trials(losses: Losses, rules: RaceConfig, draw: Draw, times: int) -> list[Trial]:
    """Races on documents drawn anew each time."""
    sizes = [len(tokens) for tokens in losses.tokens]
    found = []
    for seed in range(times):
        chance = np.random.default_rng(seed)
        found.append(trial(losses, rules, [draw(chance, size) for size in sizes]))
    return found


def repeated(losses: Losses, times: int) -> str:
    """A table of many races, by how documents are drawn and by confidence."""
    lines = [
        f"{times} races of each kind on stored sums:",
        "",
        "| documents | confidence | share of token evaluations | highest | same best ten "
        "| races that lost one of them |",
        "|---|---|---|---|---|---|",
    ]
    for name, draw in DRAWS.items():
        for confidence in CONFIDENCES:
            found = trials(losses, RaceConfig(confidence=confidence), draw, times)
            lines.append(f"| {name} | {100 * confidence:g} % | {line(found)} |")
    with mock.patch.object(racing, "MOST_MEMBERS", 0):
        found = trials(losses, RaceConfig(), DRAWS["in another order"], times)
        lines.append(
            f"| in another order, without the partition models as controls | 95 % | {line(found)} |"
        )
    return "\n".join(lines)


def line(found: list[Trial]) -> str:
    """Mean and highest share, how often the best are the same, how often one is lost."""
    mean = statistics.mean(one.share for one in found)
    highest = max(one.share for one in found)
    lost = sum(one.lost > 0 for one in found)
    same = sum(one.is_same for one in found)
    return (
        f"{100 * mean:.1f} % | {100 * highest:.1f} % | {same} of {len(found)} "
        f"| {100 * lost / len(found):.1f} % |"
    ).removesuffix(" |")
