"""What a sweep has to do, and doing it chunk by chunk: what every runner's sweep is made of.

A plan compares the work with the losses table; a chunk is evaluated under a lease by a sweeper that
stays loaded from chunk to chunk and, in a race, from stage to stage.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from storage.artifact import Artifact
from storage.cache import Handle, Progress, Runtime
from storage.fingerprint import fingerprint
from storage.store import Store
from tasks.energy import Meter, energy_source
from tasks.losses import EvaluateConfig, LossesTable, identity
from tasks.mixture import Mixture
from tasks.rows import Rows
from tasks.sweep import Job, PreparedSet, Sweeper

if TYPE_CHECKING:
    from flows.runners import Ledger


class Stage(NamedTuple):
    """A stage of a race; a plan gives its rows too where all are stored, to play the race again."""

    name: str
    """What is evaluated, in a few words."""
    share: float = 1.0
    """Share of the evaluation sets' tokens that each mixture is evaluated on."""


class SweepWork(NamedTuple):
    """What a sweep is to fill the losses table with."""

    mixtures: list[Mixture]
    """Over names of partitions."""
    pool: Mapping[str, Handle]
    """Model of each partition, by name."""
    sets: Mapping[str, Handle]
    """Windows of each evaluation set, by name."""
    config: EvaluateConfig
    stage: Stage | None = None
    """The stage of a race that goes by these rows; None outside races."""

    @property
    def title(self) -> str:
        """What a person is told is going on."""
        return "sweep" if self.stage is None else f"sweep ({self.stage.name})"

    def resolved(self, mixture: Mixture) -> Mixture:
        """A mixture over model digests; all models of its partitions must be built."""
        return mixture.renamed({n: artifact_of(self.pool[n]).digest for n in mixture.members})


class SweepPlan(NamedTuple):
    """What a sweep has to do, and where its rows are."""

    work: SweepWork
    table: LossesTable
    names: list[str]
    """Identity of each mixture."""
    jobs: list[Job]
    num_known: int

    @classmethod
    def of(cls, store: Store, work: SweepWork, scratch: str | None = None) -> "SweepPlan":
        """Compare the work with the losses table; all models and windows must be built."""
        table, sets = LossesTable(store, work.config, scratch), digests(work.sets)
        names = [identity(work.resolved(mixture)) for mixture in work.mixtures]
        jobs = []
        for place in table.lacking(names, sets.values()):
            mixture, name = work.mixtures[place], names[place]
            lacking = tuple(s for s, digest in sets.items() if (name, digest) not in table)
            jobs.append(Job(work.resolved(mixture), mixture.label, lacking))
        pairs = sum(len(job.sets) for job in jobs)
        return cls(work, table, names, jobs, len(names) * len(sets) - pairs)

    def chunks(self, size: int) -> list[list[Job]]:
        """The jobs in chunks of at most ``size`` mixtures."""
        return [self.jobs[start : start + size] for start in range(0, len(self.jobs), size)]

    def rows(self, scratch: str | None = None) -> Rows:
        """Every row, under the names that mixtures and sets have in this run."""
        self.table.refresh()
        labels = [mixture.label for mixture in self.work.mixtures]
        return self.table.rows(self.names, labels, digests(self.work.sets), scratch)


def digests(handles: Mapping[str, Handle]) -> dict[str, str]:
    """Digests of handles that are all built."""
    return {name: artifact_of(handle).digest for name, handle in handles.items()}


def artifact_of(handle: Handle) -> Artifact:
    """The artifact of a handle that is built."""
    assert handle.artifact is not None, f"{handle.label} is not built"
    return handle.artifact


class ResidentSweeper:
    """A sweeper that is loaded when first needed and stays for all chunks, and for other sets."""

    def __init__(self, store: Store, work: SweepWork, runtime: Runtime) -> None:
        self._store, self._work, self.runtime = store, work, runtime
        self._sweeper: Sweeper | None = None

    def get(self) -> Sweeper:
        """The sweeper, with the whole pool and all sets."""
        if self._sweeper is None:
            models = {artifact_of(h).digest: self._fetch(h) for h in self._work.pool.values()}
            self._sweeper = Sweeper(models, self._sets(), self._work.config, self.runtime)
        return self._sweeper

    def turn_to(self, work: SweepWork) -> None:
        """Serve other work from now on; a pool that is the same stays where it is."""
        # None while its sets are uncertain: one that could not be read must not leave others behind.
        sweeper, self._sweeper = self._sweeper, None
        if (work.pool, work.config) != (self._work.pool, self._work.config):
            sweeper = None  # there may be no room for two pools
        is_other, self._work = work.sets != self._work.sets, work
        if sweeper is not None and is_other:
            sweeper.load(self._sets())
        self._sweeper = sweeper

    def _sets(self) -> list[PreparedSet]:
        return [
            PreparedSet(name, artifact_of(handle).digest, self._fetch(handle))
            for name, handle in self._work.sets.items()
        ]

    def _fetch(self, handle: Handle) -> Path:
        return self._store.fetch(artifact_of(handle))


def run_chunk(
    store: Store,
    table: LossesTable,
    chunk: list[Job],
    sweeper: ResidentSweeper,
    ledger: "Ledger",
    progress: Progress,
) -> None:
    """Evaluate one chunk under a lease, unless another run has done it meanwhile. Raises Busy."""
    names = [[identity(job.mixture), list(job.sets)] for job in chunk]
    with store.lease(f"sweep/{fingerprint('chunk', [table.key, names])[:32]}"):
        table.refresh()
        resident = sweeper.get()
        left = [job for job in chunk if resident.lacks(table, job)]
        source = energy_source(str(resident.device), how=sweeper.runtime.energy)
        with Meter(resident.device, source) as meter:
            rows = resident.evaluate(left, meter, progress)
        cost = meter.cost.model_dump()
        if rows:
            table.append(rows, cost)
            ledger.sweep_costs.append(cost)
        ledger.num_evaluated += len(rows)
        ledger.num_known += sum(len(job.sets) for job in chunk) - len(rows)
