"""Evaluate many mixtures against one pool in memory: average each, run it on every set, sum its nats.

A mixture's losses depend on its members, its parts and the windows alone: not on its chunk, nor on
earlier mixtures. Rows that the losses table has are never evaluated again, and every chunk is
written when it is done, so a killed sweep loses one chunk. Where memory runs out, batches are
halved and the sweep goes on.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from storage.step import Meter, Progress, Runtime
from tasks.evaluation.forward import Scorer, TokenBatch, default_batch, token_batches, token_losses
from tasks.evaluation.losses import LossRow
from tasks.evaluation.losses_table import EvaluateConfig, LossesTable, identity
from tasks.evaluation.onednn import NO_CODE, has_onednn
from tasks.evaluation.window import Windows, load_windows
from tasks.machine.device import choose_device
from tasks.machine.flops import Attention, forward_flops
from tasks.machine.memory import free_memory, is_out_of_memory, kept_heap
from tasks.merging.average import MergeError
from tasks.merging.pool import MergedModel, Pool
from tasks.mixtures.mixture import Mixture
from tasks.models.folder import check_context, turning_lengths

LOG = logging.getLogger("mixpool.sweep")


class ScaledConfig(EvaluateConfig):
    """How models are evaluated that lie further from the base model than the average does, or nearer."""

    scaled: float
    """Distance from the base model, in distances of the average."""


class Job(NamedTuple):
    """One mixture and the sets it still lacks."""

    mixture: Mixture
    """Members are digests of models."""
    label: str
    """The mixture by the names of its partitions."""
    sets: tuple[str, ...]
    """Names of the evaluation sets to run."""


class PreparedSet(NamedTuple):
    """An evaluation set as the sweep needs it."""

    name: str
    """The set as people call it."""
    digest: str
    """Digest of its windows."""
    folder: Path
    """Where its windows are."""


class LoadedSet(NamedTuple):
    """An evaluation set in memory, its windows in batches."""

    entry: PreparedSet
    windows: Windows
    batches: list[TokenBatch]
    tokens: int
    """Positions that a model is run on."""


class Sweeper:
    """A resident pool and the evaluation sets in batches: what every chunk of a sweep shares.

    Args:
        base: digest and folder of the model that all others started from; only a ``ScaledConfig`` needs it.

    Raises:
        MergeError: the models have other tensors, shapes, types or integer tensors, or another base model.
        ValueError: a set's windows are longer than the models' context.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        sets: Sequence[PreparedSet],
        config: EvaluateConfig,
        runtime: Runtime,
        base: tuple[str, Path] | None = None,
    ) -> None:
        self.device = choose_device(runtime)
        self._config = config
        self._pool = Pool(models, self.device, runtime.pool_gigabytes, compiled=runtime.compile)
        self._model = MergedModel(self._pool)
        self._base = None
        if isinstance(config, ScaledConfig):
            assert base is not None, "what is scaled is scaled from a base model"
            self._base = self._pool.outside(*base)
        plain = self.device == "cpu" and config.precision == "float32" and not runtime.compile
        self._score = Scorer(
            self._model.model, compiled=runtime.compile, onednn=plain and has_onednn()
        )
        self._batch_tokens = runtime.batch_tokens or default_batch(self.device)
        self.load(sets)

    def load(self, sets: Sequence[PreparedSet]) -> None:
        """Evaluate on these sets from now on. Raises ValueError as the class does."""
        self._sets = {s.name: self._load(s, load_windows(s.folder)) for s in sets}
        for loaded in self._sets.values():
            length = loaded.windows.inputs.shape[1]
            check_context(self._model.model, length, "evaluation.windows.context_length")

    def _load(self, entry: PreparedSet, windows: Windows) -> LoadedSet:
        turns = turning_lengths(self._model.model)
        ready = token_batches(windows, self._batch_tokens, self.device, turns)
        return LoadedSet(entry, windows, ready, int(windows.length.sum()))

    def lacks(self, table: LossesTable, job: Job) -> bool:
        """Whether the table still lacks a row of the job."""
        name = identity(job.mixture)
        return any((name, self._sets[s].entry.digest) not in table for s in job.sets)

    def evaluate(self, jobs: Sequence[Job], meter: Meter, progress: Progress) -> list[LossRow]:
        """Rows of all jobs.

        Raises:
            MergeError: members of a mixture do not agree.
            ValueError: a loss is not finite.
        """
        rows = []
        with kept_heap(self.device):
            for done, job in enumerate(jobs):
                self._merge(job)
                for name in job.sets:
                    rows.append(self._row(job, name, meter))
                progress(done + 1, len(jobs), "mixtures")
        return rows

    def nats(self, job: Job, meter: Meter) -> np.ndarray:
        """Nats of each scored token of the job's first set, float32, windows in order of length (stable).

        Errors as of ``evaluate``.
        """
        with kept_heap(self.device):
            self._merge(job)
            return self._nats(job, job.sets[0], meter)

    def _merge(self, job: Job) -> None:
        import torch

        dtype = torch.float64 if self._config.average == "float64" else torch.float32
        try:
            self._pool.merge_into(self._model.flat, job.mixture, dtype)
        except MergeError as error:
            raise MergeError(f"mixture {job.label!r}: {error}") from error
        if self._base is not None:
            assert isinstance(self._config, ScaledConfig)
            torch.lerp(self._base, self._model.flat, self._config.scaled, out=self._model.flat)

    def _nats(self, job: Job, name: str, meter: Meter) -> np.ndarray:
        nats = self._run(name)
        loaded = self._sets[name]
        shape = Attention.of(self._model.model, loaded.windows.inputs.shape[1])
        flops = forward_flops(self._model.num_parameters, loaded.tokens, shape)
        meter.add(tokens=loaded.tokens, flops=flops)
        if not np.isfinite(nats).all():
            raise ValueError(
                f"mixture {job.label!r} has a loss of {nats.sum()} on {name!r}: a model "
                "of it has weights that are not finite, or outputs beyond the range of the precision"
            )
        return nats

    def _run(self, name: str) -> np.ndarray:
        while True:
            loaded = self._sets[name]
            self._score.expect(loaded.batches)
            try:
                return token_losses(
                    self._score, loaded.batches, self.device, self._config.precision
                )
            except (RuntimeError, MemoryError) as error:
                # No smaller batch would give oneDNN room for its code.
                if NO_CODE in str(error) and self._score.leave_onednn():
                    continue
                if not is_out_of_memory(error) or max(len(b.inputs) for b in loaded.batches) == 1:
                    raise
            # Outside of the handler, whose traceback holds what is to be given back.
            self._halve(loaded)

    def _halve(self, failed: LoadedSet) -> None:
        """Smaller batches of every set from now on, until those of the one that failed are smaller."""
        largest = max(len(batch.inputs) for batch in failed.batches)
        sets = [(loaded.entry, loaded.windows) for loaded in self._sets.values()]
        failed.batches.clear()
        self._sets = {}
        free_memory()
        while not failed.batches or max(len(b.inputs) for b in failed.batches) == largest:
            self._batch_tokens //= 2
            failed = self._load(failed.entry, failed.windows)
        self._sets = {entry.name: self._load(entry, windows) for entry, windows in sets}
        LOG.warning(
            "out of memory: the sweep goes on with batches of %d tokens; set runtime.batch_tokens "
            "to that from the start",
            self._batch_tokens,
        )

    def _row(self, job: Job, name: str, meter: Meter) -> LossRow:
        nats, loaded = self._nats(job, name, meter), self._sets[name]
        groups = np.concatenate([batch.group for batch in loaded.batches])
        sums = np.bincount(groups, weights=nats, minlength=len(loaded.windows.num_tokens))
        return LossRow(
            mixture=identity(job.mixture),
            windows=loaded.entry.digest,
            label=job.label,
            evaluation_set=name,
            nll=float(sums.sum()),
            group_nll=sums.tolist(),
        )
