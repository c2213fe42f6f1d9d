"""The losses of mixtures by a predictor: by sweeps of merged models, or from single models alone."""

from collections.abc import Sequence
from functools import cached_property

from flows.chain.runner import Runner, swept_rows
from flows.chain.work import Stage, SweepWork, digests
from storage.step import Call, Handle
from tasks.evaluation.losses import LossRows
from tasks.evaluation.losses_table import EvaluateConfig, identity
from tasks.evaluation.predicted import (
    MERGE,
    PROBABILITY,
    SINGLES,
    GroupPrediction,
    MeanOfSingles,
    predicted_rows,
    scale_of,
)
from tasks.evaluation.probability import TokenProbabilities
from tasks.evaluation.sweep import ScaledConfig
from tasks.evaluation.token_nats import NATS, NatsConfig, load_nats
from tasks.evaluation.window import load_windows
from tasks.mixtures.mixture import Mixture, shares


def scaled_by(name: str, config: EvaluateConfig) -> ScaledConfig | None:
    """How models are evaluated that a predictor scales; None where it scales none."""
    scale = scale_of(name)
    return None if scale is None else ScaledConfig(**config.model_dump(), scaled=scale)


def merged_by(name: str, work: SweepWork) -> SweepWork | None:
    """The sweep of merged models that a predictor asks for; None where it merges nothing."""
    scaled = scaled_by(name, work.config)
    if scaled is not None:
        return work._replace(config=scaled)
    return work if name == MERGE else None


class Predictor:
    """Gives the losses of mixtures by one predictor, as a sweep gives those of merged models.

    Args:
        work: the pool, the sets and how these are evaluated; its mixtures are not looked at.
    """

    def __init__(self, run: Runner, name: str, work: SweepWork) -> None:
        self._run, self._work = run, work
        self._sweep, self._name = merged_by(name, work), name

    def rows(
        self, mixtures: Sequence[Mixture], stage: Stage | None = None, *, again: bool = False
    ) -> LossRows | None:
        """The losses of mixtures on every set; None in a plan that lacks what they are made of.

        Args:
            again: all were asked for before: the ledger counts them once.
        """
        if self._sweep is not None:
            work = self._sweep._replace(mixtures=[*mixtures], stage=stage)
            return swept_rows(self._run, work) if again else self._run.sweep(work)
        if (predictions := self._predictions) is None:
            return None
        labels = [mixture.label for mixture in mixtures]
        return predicted_rows(
            [identity(self._work.resolved(mixture)) for mixture in mixtures],
            labels,
            digests(self._work.sets),
            predictions,
            lambda start, stop: shares(mixtures[start:stop], self._work.pool),
            self._run.runtime.scratch,
        )

    @cached_property
    def _predictions(self) -> list[GroupPrediction] | None:
        """One for each set; they stay in memory."""
        if self._name == SINGLES:
            return self._of_singles()
        assert self._name == PROBABILITY
        return self._of_probabilities()

    def _of_singles(self) -> list[GroupPrediction] | None:
        alone = [Mixture.uniform([name]) for name in self._work.pool]
        rows = self._run.sweep(self._work._replace(mixtures=alone))
        if rows is None:
            return None
        return [MeanOfSingles(rows.sums.read(n, 0, len(alone))) for n in range(len(rows.sets))]

    def _of_probabilities(self) -> list[GroupPrediction] | None:
        config, pool = NatsConfig(precision=self._work.config.precision), self._work.pool
        calls = [
            Call(NATS, config, {"model": model, "windows": windows}, f"{name} on {set_name}")
            for set_name, windows in self._work.sets.items()
            for name, model in pool.items()
        ]
        found = self._run.map(calls)
        if any(handle.artifact is None for handle in found):
            return None
        size = len(pool)
        of_sets = [found[start : start + size] for start in range(0, len(found), size)]
        return [
            self._mixed(windows, of_set)
            for windows, of_set in zip(self._work.sets.values(), of_sets, strict=True)
        ]

    def _mixed(self, windows: Handle, nats: Sequence[Handle]) -> TokenProbabilities:
        fetch = self._run.store.fetch
        tables = [load_nats(fetch(handle.built)) for handle in nats]
        return TokenProbabilities(tables, load_windows(fetch(windows.built)))
