"""Carry out a race: evaluate mixtures on parts of the sets, and only the finalists in full.

``tasks.ranking.race`` decides which mixtures are evaluated on which parts. Here each part of a set
becomes an artifact, and each evaluation a sweep. So a race's losses are in the losses table under the
digest of the part: a killed race goes on, later runs use its rows, and finalists' losses are those of a
full sweep. A plan replays a race from stored losses as far as they go.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flows.chain.runner import Runner, swept_rows
from flows.chain.work import Stage, SweepWork
from storage.step import Call, Handle
from tasks.arrays import Floats, Ints
from tasks.evaluation.losses import LossRows
from tasks.evaluation.set_part import PART, PartConfig, part_groups
from tasks.evaluation.window import Windows, load_windows
from tasks.mixtures.mixture import Mixture, shares
from tasks.ranking.calibration import Groups
from tasks.ranking.race import RaceConfig, RaceSets, race
from tasks.ranking.race_result import RaceResult, Screening, exits_frame, in_words

LARGEST = 0.5
"""Share of the documents that all parts together may hold; above it, evaluating in full is cheaper."""


@dataclass(frozen=True)
class RaceOutcome:
    """The result of a race: its finalists, with their losses."""

    config: RaceConfig
    result: RaceResult
    finalists: list[Mixture] | None
    """Over names of partitions; None in a plan that cannot know them yet."""
    rows: LossRows | None
    """Losses of every finalist on every set; None where the finalists are not known."""

    @property
    def words(self) -> list[str]:
        """A complete race in sentences."""
        return list(in_words(self.result, self.config.top, self.config.confidence))

    def to_json(self) -> dict[str, Any]:
        """The rules and the result of a complete race, as plain JSON."""
        return {
            "words": self.words,
            **self.config.model_dump(mode="json"),
            "screened_out": len(self.result.exits),
            "finalists": len(self.result.finalists),
            "evaluated_tokens": self.result.evaluated_tokens,
            "full_tokens": self.result.full_tokens,
            "looks": [look._asdict() for look in self.result.rounds],
        }

    def screening(self, mixtures: Sequence[Mixture]) -> Screening | None:
        """The report's part on a complete race of ``mixtures``; None where none was dropped."""
        if not self.result.exits:
            return None
        exits = exits_frame(self.result, [mixture.label for mixture in mixtures])
        return Screening(self.words, len(mixtures), exits)


def run_race(run: Runner, config: RaceConfig, work: SweepWork) -> RaceOutcome:
    """Find the best of the work's mixtures, and evaluate these on every set."""
    used = {name for mixture in work.mixtures for name in mixture.members}
    work = work._replace(pool={n: model for n, model in work.pool.items() if n in used})
    if any(handle.artifact is None for handle in work.sets.values()):
        _look_at_opening(run, config, work)
        return RaceOutcome(config, RaceResult(len(work.mixtures)), None, None)
    sweeps = RaceSweeps(run, config, work)
    try:
        result = race(config, sweeps.text, shares(work.mixtures, work.pool), sweeps)
    finally:
        run.rest()
    if not result.is_complete:
        return RaceOutcome(config, result, None, None)
    finalists = [work.mixtures[number] for number in result.finalists]
    rows = swept_rows(run, work._replace(mixtures=finalists))
    return RaceOutcome(config, result, finalists, rows)


def _look_at_opening(run: Runner, config: RaceConfig, work: SweepWork) -> None:
    """Plan the first look only: no set is built yet, so the sizes of later looks are unknown."""
    run.sweep(work._replace(mixtures=_members(work)))
    parts = run.map([_part_call(config, name, handle, 0) for name, handle in work.sets.items()])
    sets = {handle.label: handle for handle in parts}
    run.sweep(work._replace(sets=sets, stage=Stage("look 1", config.share)))


def _members(work: SweepWork) -> list[Mixture]:
    return [Mixture.uniform([name]) for name in work.pool]


def _part_config(config: RaceConfig, number: int) -> PartConfig:
    # It names no other set: the parts of a set stay when another set joins.
    return PartConfig(number=number, share=config.share, fewest=config.fewest)


def _part_call(config: RaceConfig, name: str, windows: Handle, number: int) -> Call[Any]:
    return Call(
        PART, _part_config(config, number), {"windows": windows}, f"{name} part {number + 1}"
    )


class RaceSweeps:
    """Gives a race its losses, by sweeps (see ``tasks.ranking.race.LossSource``)."""

    def __init__(self, run: Runner, config: RaceConfig, work: SweepWork) -> None:
        self._run, self._config, self._work = run, config, work
        folders = [run.store.fetch(handle.built) for handle in work.sets.values()]
        self._sets = [_SetGroups(load_windows(folder)) for folder in folders]
        self._looks = self._cut()
        self.text = self._text()

    def _cut(self) -> list[list[int]]:
        """Numbers of the parts of each look, for as many looks as are worth while."""
        whole = sum(len(each_set.tokens) for each_set in self._sets)
        looks: list[list[int]] = [[]]
        for number in itertools.count():
            seen = sum(self._groups(number, each_set).stop for each_set in self._sets)
            if seen > LARGEST * whole:
                return looks[:-1]  # without the one that is not complete
            looks[-1].append(number)
            if seen >= self._config.groups:
                looks.append([])
        raise AssertionError("parts grow until they hold everything")

    def _groups(self, number: int, each_set: "_SetGroups") -> range:
        return part_groups(_part_config(self._config, number), len(each_set.tokens))

    def _text(self) -> RaceSets:
        number = [np.full(len(each_set.tokens), -1) for each_set in self._sets]
        tokens = [0] * len(self._looks)
        for look, parts in enumerate(self._looks):
            for part, (index, each_set) in itertools.product(parts, enumerate(self._sets)):
                groups = self._groups(part, each_set)
                number[index][groups.start : groups.stop] = look
                tokens[look] += int(each_set.forward[groups.start : groups.stop].sum())
        stratum = np.repeat(
            np.arange(len(self._sets)), [len(each_set.tokens) for each_set in self._sets]
        )
        weight = np.concatenate(
            [each_set.tokens * self._scale(each_set) for each_set in self._sets]
        )
        everything = sum(int(each_set.forward.sum()) for each_set in self._sets)
        return RaceSets(Groups(stratum, weight), np.concatenate(number), tokens, everything)

    def _scale(self, each_set: "_SetGroups") -> float:
        return 1 / (float(each_set.tokens.sum()) * len(self._sets))

    def opening(
        self, mixtures: Sequence[int], *, with_members: bool
    ) -> tuple[Floats, Floats] | None:
        """Losses on the first look's groups, and of the partition models."""
        members = self._whole(_members(self._work) if with_members else [], "partition models")
        first = self.look(mixtures, 0)
        return None if first is None or members is None else (first, members)

    def look(self, mixtures: Sequence[int], number: int) -> Floats | None:
        """Losses on the groups of one look."""
        calls, scales = [], []
        for (name, handle), each_set in zip(self._work.sets.items(), self._sets, strict=True):
            parts = [part for part in self._looks[number] if self._groups(part, each_set)]
            calls += [_part_call(self._config, name, handle, part) for part in parts]
            scales += [self._scale(each_set)] * len(parts)
        sets = {handle.label: handle for handle in self._run.map(calls)}
        chosen = [self._work.mixtures[index] for index in mixtures]
        stage = Stage(f"look {number + 1}", self.text.look_tokens[number] / self.text.tokens)
        rows = self._run.sweep(self._work._replace(mixtures=chosen, sets=sets, stage=stage))
        if rows is None:
            return None
        losses = [rows.sums.read(n, 0, len(chosen)) * scale for n, scale in enumerate(scales)]
        return np.concatenate(losses, axis=1)

    def whole(self, mixtures: Sequence[int]) -> Floats | None:
        """Losses on all groups."""
        return self._whole([self._work.mixtures[index] for index in mixtures], "in full")

    def _whole(self, mixtures: list[Mixture], name: str) -> Floats | None:
        if not mixtures:
            return np.zeros((0, len(self.text.look)))
        rows = self._run.sweep(self._work._replace(mixtures=mixtures, stage=Stage(name)))
        if rows is None:
            return None
        losses = [
            rows.sums.read(number, 0, len(mixtures))[:, each_set.with_text] * self._scale(each_set)
            for number, each_set in enumerate(self._sets)
        ]
        return np.concatenate(losses, axis=1)


class _SetGroups:
    """The groups of documents of one set that have text."""

    def __init__(self, windows: Windows) -> None:
        self.with_text: Ints = np.flatnonzero(windows.num_tokens)
        self.tokens = windows.num_tokens[self.with_text]
        """Scored tokens of each."""
        forward = np.bincount(windows.group, windows.length, len(windows.num_tokens))
        self.forward = forward[self.with_text].astype(np.int64)
        """Tokens of each that a model is run on."""
