"""``InlineRunner``: carries out every step at once, in this process."""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from flows.chain.runner import POLL_SECONDS, Ledger, Quiet, Reporter, ignore, note
from flows.chain.work import SweepPlan, SweepWork
from flows.runners.chunks import ResidentSweeper, run_chunk
from storage.cache import build, look_ahead, lookup
from storage.lease import Busy
from storage.step import Call, Handle, Runtime
from storage.store import Store
from tasks.evaluation.losses import LossRows
from tasks.evaluation.sweep import Job
from tasks.machine.device import choose_device, devices_of
from tasks.machine.meter import Meter, energy_source
from tasks.training.train import TRAIN

T = TypeVar("T")


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

        def obtain(number: int) -> None:
            results[number] = note(self.ledger, calls[number], self.obtain(calls[number]))

        self._do_all([(call.name, number) for number, call in enumerate(calls)], obtain)
        return [results[number] for number in range(len(calls))]

    def _do_all(self, works: Sequence[tuple[str, T]], do: Callable[[T], None]) -> None:
        """Do all works, each with its name; what another run holds is said once and left for last."""
        said: set[str] = set()
        while works:
            left = []
            for name, work in works:
                try:
                    do(work)
                except Busy as busy:
                    left.append((name, work))
                    if (message := f"{name}: {busy.holder} is at it; waiting") not in said:
                        said.add(message)
                        self.reporter.say(message)
            if works := left:
                time.sleep(POLL_SECONDS)

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
        progress = self.reporter.task(work.title) if plan.jobs else ignore
        shared = self._raced if work.stage else None
        sweeper = shared or ResidentSweeper(self.store, work, self.runtime)
        sweeper.turn_to(work)
        self._raced = sweeper if work.stage else None
        done = 0

        def evaluate(chunk: list[Job]) -> None:
            nonlocal done
            swept = run_chunk(
                self.store,
                plan.table,
                chunk,
                sweeper,
                lambda part, _, unit: progress(done + part, len(plan.jobs), unit),
            )
            self.ledger.add_sweep(swept)
            done += len(chunk)

        self._do_all([("sweep", chunk) for chunk in plan.chunks(self.runtime.chunk)], evaluate)
        return plan.rows()

    def rest(self) -> None:
        """Free the pool that the stages of a race share."""
        self._raced = None


def step_meter(call: Call[Any], runtime: Runtime) -> Meter:
    """A meter for the device that the step computes on, or the devices."""
    device = choose_device(runtime) if call.step.on_device else "cpu"
    if call.step.name == TRAIN.name:
        device = ",".join(dict.fromkeys(devices_of(runtime)[: runtime.shards]))
    return Meter(device, energy_source(device, how=runtime.energy))
