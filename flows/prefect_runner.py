"""The chain under Prefect: every use of a step, and every chunk of a sweep, is one task run.

Prefect shows, retries and limits; it decides nothing. Our own look-up is the first thing in a task
run, and a hit ends it as ``Cached``; Prefect's cache and result storage are off. A task run that finds
another run at the same work ends at once as ``Elsewhere``, so that it keeps no slot, and is submitted
again when that work is done or its lease has ended.
"""

import errno
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler
from prefect.states import Cancelled, Completed

from flows.prefect_progress import PrefectReporter
from flows.runners import (
    POLL_SECONDS,
    Ledger,
    Reporter,
    ResidentSweeper,
    SweepPlan,
    SweepWork,
    note,
    offset,
    run_chunk,
    step_meter,
)
from storage.cache import (
    Call,
    Handle,
    OutOfSpaceError,
    Progress,
    Runtime,
    build,
    look_ahead,
    lookup,
)
from storage.lease import Busy
from storage.store import Store
from tasks.losses import Row
from tasks.sweep import Job

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun

LOG = logging.getLogger("mixpool.run")

LONGEST_POLL_SECONDS = 15.0
"""Work that another run holds is looked at ever more rarely, down to this."""

LASTING = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""What another attempt would meet again."""

# Torch's random state and the device belong to the process, whatever else runs beside.
_TURN = threading.Lock()


class Stopped(Exception):  # noqa: N818 - a consequence, not a fault
    """The run has failed elsewhere or was interrupted, so this piece of it goes no further."""


class Piece(NamedTuple):
    """What one task run does."""

    step: str
    name: str
    act: Callable[[threading.Event], bool]
    """Does it, until the event is set; whether the store had it. Raises Busy and Stopped."""
    is_free: Callable[[], bool]
    """Whether it is worth while to try again after another run was found at it."""


def may_pass(task: "Task[..., Any]", task_run: "TaskRun", state: "State[Any]") -> bool:
    """Whether another attempt can help: faults of disks and networks pass, all others stay."""
    del task, task_run
    error = state.data
    if not isinstance(error, OSError) or isinstance(error, (*LASTING, OutOfSpaceError)):
        return False
    return error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=[2, 20, 60],
    retry_condition_fn=may_pass,
)
def carry_out(name: str, act: Callable[[], bool]) -> Any:
    """Do one piece of work; the result, for the flow only, is whether it is done."""
    try:
        hit = act()
    except Busy as busy:
        LOG.info("%s: %s is at it; waiting", name, busy.holder)
        return Completed(name="Elsewhere", message=f"{busy.holder} is at it", data=False)
    except Stopped as stopped:
        return Cancelled(message=str(stopped))
    return Completed(name="Cached", message="the store had it", data=True) if hit else True


@functools.cache
def task_of(step: str) -> "Task[..., Any]":
    """The one task function under a step's name; its tags may be given limits in Prefect."""
    return carry_out.with_options(name=step, tags={"mixpool", f"mixpool-{step}"})


class PrefectRunner:
    """Makes task runs of what the chain asks for; to be used inside a flow run."""

    def __init__(
        self, store: Store, runtime: Runtime | None = None, reporter: Reporter | None = None
    ) -> None:
        self.store = store
        self.runtime = runtime or Runtime()
        self.reporter: Reporter = reporter or PrefectReporter()
        self.ledger = Ledger()
        forward_logs()

    def map(self, calls: Sequence[Call[Any]]) -> list[Handle]:
        """The results of calls that do not need one another, in order; one task run for each."""
        look_ahead(self.store, calls)
        found: dict[int, Handle] = {}

        def piece(number: int, call: Call[Any]) -> Piece:
            def act(stop: threading.Event) -> bool:
                found[number] = self._obtain(call, stop)
                return found[number].hit

            return Piece(call.step.name, call.name, act, lambda: self._is_free(call))

        self._carry_out([piece(number, call) for number, call in enumerate(calls)])
        return [note(self.ledger, call, found[number]) for number, call in enumerate(calls)]

    def _obtain(self, call: Call[Any], stop: threading.Event) -> Handle:
        found = lookup(self.store, call)
        if found is not None:
            return found
        meter = step_meter(call, self.runtime)
        progress = stoppable(self.reporter.task(call.name), stop)
        if call.step.kind != "model":
            return build(self.store, call, self.runtime, meter, progress)
        with _TURN:
            return build(self.store, call, self.runtime, meter, progress)

    def _is_free(self, call: Call[Any]) -> bool:
        if lookup(self.store, call, fresh=True) is not None:
            return True
        try:
            with self.store.lease(f"{call.step.name}/{call.key}"):
                return True
        except Busy:
            return False

    def sweep(self, work: SweepWork) -> list[Row]:
        """Evaluate what the losses table lacks; one task run for each chunk of mixtures."""
        plan = SweepPlan.of(self.store, work)
        self.ledger.num_known += plan.num_known
        chunks = plan.chunks(self.runtime.chunk)
        if not chunks:
            self.reporter.say(f"sweep: all {plan.num_known:,} losses are in the store")
            return plan.rows()
        self._carry_out(self._sweep_pieces(plan, chunks))
        return plan.rows()

    def _sweep_pieces(self, plan: SweepPlan, chunks: list[list[Job]]) -> list[Piece]:
        sweeper = ResidentSweeper(self.store, plan.work, self.runtime)
        progress = self.reporter.task("sweep")
        progress(0, len(plan.jobs), "mixtures")
        done = 0

        def act(chunk: list[Job], stop: threading.Event) -> bool:
            nonlocal done
            # All chunks write their merges into one flat buffer.
            with _TURN:
                before = self.ledger.num_evaluated
                shown = stoppable(offset(progress, done, len(plan.jobs)), stop)
                run_chunk(self.store, plan.table, chunk, sweeper, self.ledger, shown)
                done += len(chunk)
                return self.ledger.num_evaluated == before

        return [
            # A chunk takes minutes at most, so it is simply tried again.
            Piece("sweep", name, functools.partial(act, chunk), lambda: True)
            for number, chunk in enumerate(chunks, 1)
            if (name := f"sweep chunk {number} of {len(chunks)}")
        ]

    def _carry_out(self, pieces: Sequence[Piece]) -> None:
        """Do all pieces; what another run holds is left for last."""
        held = submit(pieces)
        pause = POLL_SECONDS
        while held:
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
            free = {piece.name for piece in held if piece.is_free()}
            still = [piece for piece in held if piece.name not in free]
            held = still + submit([piece for piece in held if piece.name in free])


def submit(pieces: Sequence[Piece]) -> list[Piece]:
    """Do pieces, each in a task run; those that another run is at. The first fault ends them all."""
    stop = threading.Event()
    futures = [
        task_of(piece.step).submit(piece.name, functools.partial(_unless_stopped, piece, stop))
        for piece in pieces
    ]
    try:
        done = [future.result() for future in futures]
    except BaseException:  # also an interrupt, which would leave a training to its thread
        stop.set()
        raise
    return [piece for piece, is_done in zip(pieces, done, strict=True) if not is_done]


def _unless_stopped(piece: Piece, stop: threading.Event) -> bool:
    check(stop)
    return piece.act(stop)


def check(stop: threading.Event) -> None:
    """Raise Stopped where the run is to end."""
    if stop.is_set():
        raise Stopped("another part of the run failed, or it was interrupted")


def stoppable(progress: Progress, stop: threading.Event) -> Progress:
    """Progress that ends the work which reports it; its last checkpoint stays."""

    def show(done: int, total: int, unit: str) -> None:
        check(stop)
        progress(done, total, unit)

    return show


def forward_logs() -> None:
    """Send what ``mixpool`` loggers say inside a run to that run's logs, from INFO upwards."""
    logger = logging.getLogger("mixpool")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
        handler = APILogHandler()
        # Threads that renew leases belong to no run, and Prefect warns about lines without one.
        handler.addFilter(lambda record: bool(FlowRunContext.get() or TaskRunContext.get()))
        logger.addHandler(handler)
