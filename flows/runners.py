"""How the chain is carried out: now and in this process, or only counted.

The chain (``flows.ablation``) says what is needed; a runner looks it up, builds it or counts it, and
keeps a ledger of what happened. A third runner, in ``flows.prefect_runner``, makes each use of a step
a task run.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from storage.artifact import Artifact, Record
from storage.cache import Call, Handle, Progress, Runtime, build, look_ahead, lookup
from storage.fingerprint import fingerprint
from storage.lease import Busy
from storage.store import Store
from tasks.energy import Meter
from tasks.losses import EvaluateConfig, LossesTable, Row, identity
from tasks.mixture import Mixture
from tasks.sweep import Job, PreparedSet, Sweeper, missing_jobs

LOG = logging.getLogger("mixpool.run")

POLL_SECONDS = 1.0


class Reporter(Protocol):
    """Shows a person what goes on."""

    def task(self, name: str) -> Progress:
        """A function that is told how far the named piece of work is."""

    def say(self, message: str) -> None:
        """One line that stays."""


class Quiet:
    """Shows nothing."""

    def task(self, name: str) -> Progress:
        """A function that ignores what it is told."""
        del name
        return lambda done, total, unit: None

    def say(self, message: str) -> None:
        """Log the line."""
        LOG.info(message)


@dataclass(frozen=True)
class Entry:
    """What became of one piece of work."""

    step: str
    label: str
    built: bool
    cost: Mapping[str, Any]
    """Its recorded cost: spent now if it was built, saved by the store if not."""
    record: Record | None = None
    """Its record; None in a plan."""


@dataclass
class Ledger:
    """Everything a run asked for: what was built now and what the store had."""

    entries: list[Entry] = field(default_factory=list)
    num_evaluated: int = 0
    """(mixture, evaluation set) pairs evaluated now."""
    num_known: int = 0
    """Pairs that the losses table had."""
    sweep_costs: list[Mapping[str, Any]] = field(default_factory=list)

    def built(self, step: str) -> list[Entry]:
        """What was built now of one step."""
        return [entry for entry in self.entries if entry.step == step and entry.built]

    def cached(self, step: str) -> list[Entry]:
        """What the store had of one step."""
        return [entry for entry in self.entries if entry.step == step and not entry.built]


class SweepWork(NamedTuple):
    """What a sweep is to fill the losses table with."""

    mixtures: list[Mixture]
    """Over names of partitions."""
    pool: Mapping[str, Handle]
    """Model of each partition, by name."""
    sets: Mapping[str, Handle]
    """Windows of each evaluation set, by name."""
    config: EvaluateConfig

    def resolved(self) -> list[tuple[Mixture, str]] | None:
        """Mixtures over model digests with their labels; None while a model is not built."""
        digests = {name: handle.digest for name, handle in self.pool.items()}
        known = {name: digest for name, digest in digests.items() if digest is not None}
        if len(known) < len(digests):
            return None
        return [(mixture.renamed(known), mixture.label) for mixture in self.mixtures]


class Runner(Protocol):
    """Carries out what the chain asks for."""

    store: Store
    runtime: Runtime
    reporter: Reporter
    ledger: Ledger

    def map(self, calls: Sequence[Call[Any]]) -> list[Handle]:
        """The results of calls that do not need one another, in order."""

    def sweep(self, work: SweepWork) -> list[Row] | None:
        """Every row of the work, or None in a plan."""


def note(ledger: Ledger, call: Call[Any], handle: Handle) -> Handle:
    """Enter a result into the ledger."""
    record = handle.record
    cost = record.cost if record is not None else {}
    ledger.entries.append(Entry(call.step.name, call.label, not handle.hit, cost, record))
    return handle


class InlineRunner:
    """Does everything now, in this process; waits where another run is at the same work."""

    def __init__(
        self, store: Store, runtime: Runtime | None = None, reporter: Reporter | None = None
    ) -> None:
        self.store = store
        self.runtime = runtime or Runtime()
        self.reporter: Reporter = reporter or Quiet()
        self.ledger = Ledger()

    def map(self, calls: Sequence[Call[Any]]) -> list[Handle]:
        """Look up or build every call; work that another run holds is left for last."""
        look_ahead(self.store, calls)
        results: dict[int, Handle] = {}
        waiting = dict(enumerate(calls))
        told: set[str] = set()
        while waiting:
            for number, call in list(waiting.items()):
                try:
                    handle = self.obtain(call)
                except Busy as busy:
                    tell_once(self.reporter, told, f"{call.name}: {busy.holder} is at it; waiting")
                    continue
                results[number] = note(self.ledger, call, handle)
                del waiting[number]
            if waiting:
                time.sleep(POLL_SECONDS)
        return [results[number] for number in range(len(calls))]

    def obtain(self, call: Call[Any]) -> Handle:
        """One result, from the store or built now. Raises Busy."""
        found = lookup(self.store, call)
        if found is not None:
            return found
        progress = self.reporter.task(call.name)
        return build(self.store, call, self.runtime, step_meter(call, self.runtime), progress)

    def sweep(self, work: SweepWork) -> list[Row]:
        """Evaluate what the losses table lacks, chunk by chunk."""
        plan = SweepPlan.of(self.store, work)
        self.ledger.num_known += plan.num_known
        progress = self.reporter.task("sweep") if plan.jobs else _ignore
        waiting = plan.chunks(self.runtime.chunk)
        sweeper = ResidentSweeper(self.store, work, self.runtime)
        done, told = 0, set[str]()
        while waiting:
            left = []
            for chunk in waiting:
                try:
                    shown = offset(progress, done, len(plan.jobs))
                    run_chunk(self.store, plan.table, chunk, sweeper, self.ledger, shown)
                    done += len(chunk)
                except Busy as busy:
                    tell_once(self.reporter, told, f"sweep: {busy.holder} is at it; waiting")
                    left.append(chunk)
            waiting = left
            if waiting:
                time.sleep(POLL_SECONDS)
        return plan.rows()


def _ignore(done: int, total: int, unit: str) -> None:
    """No progress to show."""


def tell_once(reporter: Reporter, told: set[str], message: str) -> None:
    """Say a line that was not said yet."""
    if message not in told:
        told.add(message)
        reporter.say(message)


def offset(progress: Progress, before: int, whole: int) -> Progress:
    """Progress of a part, shown as progress of the whole."""
    return lambda done, total, unit: progress(before + done, whole, unit)


def step_meter(call: Call[Any], runtime: Runtime) -> Meter:
    """A meter for the device that the step computes on; only training uses a GPU."""
    if call.step.name != "train":
        return Meter("cpu")
    from tasks.device import choose_device

    return Meter(choose_device(runtime))


class SweepPlan(NamedTuple):
    """What a sweep has to do, and where its rows are."""

    work: SweepWork
    table: LossesTable
    resolved: list[tuple[Mixture, str]]
    jobs: list[Job]
    num_known: int

    @classmethod
    def of(cls, store: Store, work: SweepWork) -> "SweepPlan":
        """Compare the work with the losses table; all models and windows must be built."""
        resolved = work.resolved()
        assert resolved is not None, "a model of the pool is not built"
        table = LossesTable(store, work.config)
        jobs = missing_jobs(table, resolved, digests(work.sets))
        pairs = sum(len(job.sets) for job in jobs)
        return cls(work, table, resolved, jobs, len(resolved) * len(work.sets) - pairs)

    def chunks(self, size: int) -> list[list[Job]]:
        """The jobs in chunks of at most ``size`` mixtures."""
        return [self.jobs[start : start + size] for start in range(0, len(self.jobs), size)]

    def rows(self) -> list[Row]:
        """Every row, under the names that mixtures and sets have in this run."""
        self.table.refresh()
        return [
            self.table[identity(mixture), digest]._replace(label=label, evaluation_set=name)
            for mixture, label in self.resolved
            for name, digest in digests(self.work.sets).items()
        ]


def digests(handles: Mapping[str, Handle]) -> dict[str, str]:
    """Digests of handles that are all built."""
    return {name: artifact_of(handle).digest for name, handle in handles.items()}


def artifact_of(handle: Handle) -> Artifact:
    """The artifact of a handle that is built."""
    assert handle.artifact is not None, f"{handle.label} is not built"
    return handle.artifact


class ResidentSweeper:
    """A sweeper that is loaded when first needed and stays for all chunks."""

    def __init__(self, store: Store, work: SweepWork, runtime: Runtime) -> None:
        self._store, self._work, self._runtime = store, work, runtime
        self._sweeper: Sweeper | None = None

    def get(self) -> Sweeper:
        """The sweeper, with the whole pool and all sets."""
        if self._sweeper is None:
            fetch: Callable[[Handle], Path] = lambda h: self._store.fetch(artifact_of(h))  # noqa: E731
            models = {artifact_of(h).digest: fetch(h) for h in self._work.pool.values()}
            sets = [
                PreparedSet(name, artifact_of(handle).digest, fetch(handle))
                for name, handle in self._work.sets.items()
            ]
            self._sweeper = Sweeper(models, sets, self._work.config, self._runtime)
        return self._sweeper


def run_chunk(
    store: Store,
    table: LossesTable,
    chunk: list[Job],
    sweeper: ResidentSweeper,
    ledger: Ledger,
    progress: Progress,
) -> None:
    """Evaluate one chunk under a lease, unless another run has done it meanwhile. Raises Busy."""
    names = [[identity(job.mixture), list(job.sets)] for job in chunk]
    with store.lease(f"sweep/{fingerprint('chunk', [table.key, names])[:32]}"):
        table.refresh()
        resident = sweeper.get()
        left = [job for job in chunk if resident.lacks(table, job)]
        with Meter(resident.device) as meter:
            rows = resident.evaluate(left, meter, progress)
        cost = meter.cost.model_dump()
        if rows:
            table.append(rows, cost)
            ledger.sweep_costs.append(cost)
        ledger.num_evaluated += len(rows)
        ledger.num_known += sum(len(job.sets) for job in chunk) - len(rows)
