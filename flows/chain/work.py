"""The work of a sweep: the pairs of mixture and evaluation set that the losses table lacks."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from storage.step import Handle
from storage.store import Store
from tasks.evaluation.losses import Counts, Losses, LossRows
from tasks.evaluation.losses_table import EvaluateConfig, LossesTable, identity
from tasks.evaluation.sweep import Job
from tasks.evaluation.window import load_windows
from tasks.mixtures.mixture import Mixture


class Stage(NamedTuple):
    """A stage of a race or search. A plan gives its rows where all are stored, to replay the stage."""

    name: str
    """A few words for progress bars."""
    share: float = 1.0
    """Share of the evaluation sets' tokens that each mixture is evaluated on."""


class SweepWork(NamedTuple):
    """Mixtures, models and sets whose losses a sweep is to bring into the losses table."""

    mixtures: list[Mixture]
    """Over names of partitions."""
    pool: Mapping[str, Handle]
    """Model of each partition, by name."""
    sets: Mapping[str, Handle]
    """Windows of each evaluation set, by name."""
    config: EvaluateConfig
    stage: Stage | None = None
    """The stage of a race or search that needs these rows; None elsewhere."""
    base: Handle | None = None
    """The model that all of the pool started from; needed where merges are scaled."""

    @property
    def title(self) -> str:
        """The name of the work for progress bars."""
        return "sweep" if self.stage is None else f"sweep ({self.stage.name})"

    def resolved(self, mixture: Mixture) -> Mixture:
        """A mixture over model digests; all models of its partitions must be built."""
        return mixture.renamed({n: self.pool[n].built.digest for n in mixture.members})


class SweepPlan(NamedTuple):
    """The jobs that are left of a sweep, and the table with its rows."""

    work: SweepWork
    table: LossesTable
    names: list[str]
    """Identity of each mixture."""
    jobs: list[Job]
    num_known: int
    scratch: str | None
    """Folder for the sums of many rows; None is the system's temporary folder."""

    @classmethod
    def of(cls, store: Store, work: SweepWork, scratch: str | None = None) -> "SweepPlan":
        """Compare the work with the losses table; all models and windows must be built."""
        table, sets = LossesTable(store, work.config, scratch), digests(work.sets)
        names = [identity(work.resolved(mixture)) for mixture in work.mixtures]
        jobs = []
        for index in table.lacking(names, sets.values()):
            mixture, name = work.mixtures[index], names[index]
            lacking = tuple(s for s, digest in sets.items() if (name, digest) not in table)
            jobs.append(Job(work.resolved(mixture), mixture.label, lacking))
        pairs = sum(len(job.sets) for job in jobs)
        return cls(work, table, names, jobs, len(names) * len(sets) - pairs, scratch)

    def chunks(self, size: int) -> list[list[Job]]:
        """The jobs in chunks of at most ``size`` mixtures."""
        return [self.jobs[start : start + size] for start in range(0, len(self.jobs), size)]

    def rows(self) -> LossRows:
        """Every row, under the names that mixtures and sets have in this run."""
        self.table.refresh()
        labels = [mixture.label for mixture in self.work.mixtures]
        return self.table.rows(self.names, labels, digests(self.work.sets), self.scratch)


def digests(handles: Mapping[str, Handle]) -> dict[str, str]:
    """Digests of handles that are all built."""
    return {name: handle.built.digest for name, handle in handles.items()}


def losses_of(store: Store, rows: LossRows, windows: Mapping[str, Handle]) -> Losses:
    """Rows with the counts of their sets."""
    artifacts = [handle.built for handle in windows.values()]
    return rows.counted({a.digest: _counts(store.fetch(a)) for a in artifacts})


def _counts(folder: Path) -> Counts:
    windows = load_windows(folder)
    return Counts(
        num_tokens=int(windows.num_tokens.sum()),
        num_bytes=int(windows.num_bytes.sum()),
        num_words=int(windows.num_words.sum()),
        group_tokens=windows.num_tokens,
        group_bytes=windows.num_bytes,
    )
