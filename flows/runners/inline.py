"""``InlineRunner``: carries out every step at once, in this process."""

import time
from collections.abc import Sequence
from typing import Any

from flows.chain.runner import POLL_SECONDS, Ledger, Quiet, Reporter, note
from flows.chain.work import SweepPlan, SweepWork
from flows.runners.chunks import ResidentSweeper, run_chunk
from storage.cache import build, look_ahead, lookup
from storage.lease import Busy
from storage.step import Call, Handle, Progress, Runtime
from storage.store import Store
from tasks.evaluation.losses import LossRows
from tasks.machine.device import choose_device
from tasks.machine.meter import Meter, energy_source


class InlineRunner:
    """Does everything now, in this process; waits where another run does the same work."""

    def __init__(
        self, store: Store, runtime: Runtime | None = None, reporter: Reporter | None = None
    ) -> None:
        self.store = store
        self.runtime = runtime or Runtime()
        self.reporter: Reporter = reporter or Quiet()
        self.ledger = Ledger()
        self._raced: ResidentSweeper | None = None
        """The pool in memory, which all stages of a race share."""

    def map(self, calls: Sequence[Call[Any]]) -> list[Handle]:
        """Look up or build every call; work that another run holds is left for last."""
        look_ahead(self.store, calls)
        results: dict[int, Handle] = {}
        waiting = dict(enumerate(calls))
        said: set[str] = set()
        while waiting:
            for number, call in list(waiting.items()):
                try:
                    handle = self.obtain(call)
                except Busy as busy:
                    say_once(self.reporter, said, f"{call.name}: {busy.holder} is at it; waiting")
                    continue
                results[number] = note(self.ledger, call, handle)
                del waiting[number]
            if waiting:
                time.sleep(POLL_SECONDS)
        return [results[number] for number in range(len(calls))]

    def obtain(self, call: Call[Any]) -> Handle:
        """One result, from the store or built now. Raises Busy."""
        handle = lookup(self.store, call)
        if handle is not None:
            return handle
        if call.step.on_device:
            self._raced = None  # it may need the memory of the pool
        progress = self.reporter.task(call.name)
        return build(self.store, call, self.runtime, step_meter(call, self.runtime), progress)

    def sweep(self, work: SweepWork) -> LossRows:
        """Evaluate what the losses table lacks, chunk by chunk."""
        plan = SweepPlan.of(self.store, work, self.runtime.scratch)
        self.ledger.num_known += plan.num_known
        progress = self.reporter.task(work.title) if plan.jobs else _ignore
        waiting = plan.chunks(self.runtime.chunk)
        sweeper = self._sweeper_for(work)
        done, said = 0, set[str]()
        while waiting:
            left = []
            for chunk in waiting:
                try:
                    shown = offset(progress, done, len(plan.jobs))
                    run_chunk(self.store, plan.table, chunk, sweeper, self.ledger, shown)
                    done += len(chunk)
                except Busy as busy:
                    say_once(self.reporter, said, f"sweep: {busy.holder} is at it; waiting")
                    left.append(chunk)
            waiting = left
            if waiting:
                time.sleep(POLL_SECONDS)
        return plan.rows(self.runtime.scratch)

    def rest(self) -> None:
        """Free the pool that the stages of a race share."""
        self._raced = None

    def _sweeper_for(self, work: SweepWork) -> ResidentSweeper:
        if work.stage is None:
            self._raced = None
            return ResidentSweeper(self.store, work, self.runtime)
        if self._raced is None:
            self._raced = ResidentSweeper(self.store, work, self.runtime)
        self._raced.turn_to(work)
        return self._raced


def _ignore(done: int, total: int, unit: str) -> None:
    """No progress to show."""


def say_once(reporter: Reporter, said: set[str], message: str) -> None:
    """Say a line unless it is in ``said``."""
    if message not in said:
        said.add(message)
        reporter.say(message)


def offset(progress: Progress, before: int, whole: int) -> Progress:
    """Progress of a part, shown as progress of the whole."""
    return lambda done, total, unit: progress(before + done, whole, unit)


def step_meter(call: Call[Any], runtime: Runtime) -> Meter:
    """A meter for the device that the step computes on."""
    device = choose_device(runtime) if call.step.on_device else "cpu"
    return Meter(device, energy_source(device, how=runtime.energy))
