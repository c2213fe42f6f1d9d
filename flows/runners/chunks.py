"""Chunks of a sweep: each is evaluated under a lease, by a sweeper that keeps the pool in memory."""

from flows.chain.runner import Ledger
from flows.chain.work import SweepWork
from storage.fingerprint import fingerprint
from storage.step import Progress, Runtime
from storage.store import Store
from tasks.evaluation.losses_table import LossesTable, identity
from tasks.evaluation.sweep import Job, PreparedSet, Sweeper
from tasks.machine.meter import Meter, energy_source


class ResidentSweeper:
    """A sweeper that is loaded at its first use and kept for further chunks and other sets."""

    def __init__(self, store: Store, work: SweepWork, runtime: Runtime) -> None:
        self._store, self._work, self.runtime = store, work, runtime
        self._sweeper: Sweeper | None = None

    def get(self) -> Sweeper:
        """The sweeper, with the whole pool and all sets."""
        if self._sweeper is None:
            models = {h.built.digest: self._store.fetch(h.built) for h in self._work.pool.values()}
            base = self._work.base
            self._sweeper = Sweeper(
                models,
                self._sets(),
                self._work.config,
                self.runtime,
                None if base is None else (base.built.digest, self._store.fetch(base.built)),
            )
        return self._sweeper

    def turn_to(self, work: SweepWork) -> None:
        """Serve other work from now on; the pool stays in memory where it is the same."""
        # None while sets are loaded: after a set that cannot be read, the old ones must not stay.
        sweeper, self._sweeper = self._sweeper, None
        if any(getattr(work, n) != getattr(self._work, n) for n in ("pool", "config", "base")):
            sweeper = None  # there may be no room for two pools
        is_other, self._work = work.sets != self._work.sets, work
        if sweeper is not None and is_other:
            sweeper.load(self._sets())
        self._sweeper = sweeper

    def _sets(self) -> list[PreparedSet]:
        return [
            PreparedSet(name, handle.built.digest, self._store.fetch(handle.built))
            for name, handle in self._work.sets.items()
        ]


def run_chunk(
    store: Store, table: LossesTable, chunk: list[Job], sweeper: ResidentSweeper, progress: Progress
) -> Ledger:
    """Evaluate one chunk under a lease, unless another run has done it meanwhile. Raises Busy."""
    names = [[identity(job.mixture), list(job.sets)] for job in chunk]
    with store.lease(f"sweep/{fingerprint('chunk', [table.key, names])[:32]}"):
        table.refresh()
        resident = sweeper.get()
        todo = [job for job in chunk if resident.lacks(table, job)]
        source = energy_source(str(resident.device), how=sweeper.runtime.energy)
        with Meter(resident.device, source) as meter:
            rows = resident.evaluate(todo, meter, progress)
        cost = meter.cost.model_dump()
        if rows:
            table.append(rows, cost)
        num_known = sum(len(job.sets) for job in chunk) - len(rows)
        return Ledger([], len(rows), num_known, [cost] if rows else [])
