"""The chain under Prefect: every use of a step, and every chunk of a sweep, is one task run.

Prefect shows, retries and limits; it decides nothing. Our own look-up is the first thing in a task
run, and a hit ends it as ``Cached``; Prefect's cache and result storage are off. What needs a device is
computed in that device's process (``flows.runners.devices``). A task run that finds another run at the same work
ends at once as ``Elsewhere``, so that it keeps no slot, and is submitted again when that work is done or
its lease has ended.
"""

import errno
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.chain.runner import POLL_SECONDS, Ledger, Reporter, note
from flows.chain.work import SweepPlan, SweepWork
from flows.prefect.limits import hold_device
from flows.prefect.progress import PrefectReporter
from flows.runners.devices import Devices
from flows.runners.inline import step_meter
from flows.runners.stopping import Stopped, check, checked
from storage.backends.deadline import UnreachableError
from storage.cache import OutOfSpaceError, build, look_ahead, lookup
from storage.lease import Busy
from storage.step import Call, Handle, Progress, Runtime
from storage.store import Store
from tasks.evaluation.losses import Rows
from tasks.evaluation.sweep import Job
from tasks.readable import duration
from tasks.steps import MODELS

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun

LOG = logging.getLogger("mixpool.run")

LONGEST_POLL_SECONDS = 15.0
"""Work that another run holds is looked at ever more rarely, down to this."""

LASTING = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    OutOfSpaceError,
    UnreachableError,
)
"""What another attempt would meet again, or has been waited for long enough."""

# What is computed in this process uses all its cores, one after the other.
_TURN = threading.Lock()


class Piece(NamedTuple):
    """What one task run does."""

    step: str
    name: str
    act: Callable[[threading.Event], bool]
    """Does it, until the event is set; whether the store had it. Raises Busy and Stopped."""
    is_free: Callable[[], bool]
    """Whether it is worth while to try again after another run was found at it."""


def may_pass(task: "Task[..., Any]", task_run: "TaskRun", state: "State[Any]") -> bool:
    """Whether another attempt can help: faults of disks, networks and devices pass, others stay."""
    del task, task_run
    error = state.data
    if not isinstance(error, OSError) or isinstance(error, LASTING):
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
    began = time.monotonic()
    try:
        hit = act()
    except Busy as busy:
        LOG.info("%s: %s is at it; waiting", name, busy.holder)
        return Completed(name="Elsewhere", message=f"{busy.holder} is at it", data=False)
    except Stopped as stopped:
        LOG.info("%s: stopped; what it had done is kept", name)
        return Cancelled(message=str(stopped))
    if hit:
        return Completed(name="Cached", message="the store had it", data=True)
    LOG.info("%s: done in %s", name, duration(time.monotonic() - began))
    return True


@functools.cache
def task_of(step: str) -> "Task[..., Any]":
    """The one task function under a step's name; its tags may be given limits in Prefect."""
    return carry_out.with_options(name=step, tags={"mixpool", f"mixpool-{step}"})


class PrefectRunner:
    """Makes task runs of what the chain asks for; to be used as a context inside a flow run.

    Args:
        may_train: whether a model that is not in the store is made, or refused.
    """

    def __init__(
        self,
        store: Store,
        runtime: Runtime | None = None,
        reporter: Reporter | None = None,
        *,
        may_train: bool = True,
    ) -> None:
        self.store = store
        self.runtime = runtime or Runtime()
        self.reporter: Reporter = reporter or PrefectReporter()
        self._close = getattr(self.reporter, "close", lambda: None)
        self.ledger = Ledger()
        self.devices = Devices(store.url, self.runtime, self._hold)
        self._may_train = may_train
        forward_logs()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()
        self.devices.close()

    def _hold(self, device: str) -> Any:
        return hold_device(device, self.devices.names.count(device))

    def map(self, calls: Sequence[Call[Any]]) -> list[Handle]:
        """The results of calls that do not need one another, in order; one task run for each.

        Raises:
            ValueError: a model would have to be made, and this runner makes none.
        """
        look_ahead(self.store, calls)
        lacking = [call for call in calls if lookup(self.store, call) is None]
        self._check_trained(lacking)
        found: dict[int, Handle] = {}

        def piece(number: int, call: Call[Any]) -> Piece:
            def act(stop: threading.Event) -> bool:
                found[number] = self._obtain(call, stop)
                return found[number].hit

            return Piece(call.step.name, call.name, act, lambda: self._is_free(call))

        needs_device = any(call.step.on_device for call in lacking)
        workers = len(self.devices.names) if needs_device else 1
        carry_out_all([piece(number, call) for number, call in enumerate(calls)], workers)
        return [note(self.ledger, call, found[number]) for number, call in enumerate(calls)]

    def _check_trained(self, lacking: Sequence[Call[Any]]) -> None:
        untrained = [call.label for call in lacking if call.step in MODELS]
        if untrained and not self._may_train:
            raise ValueError(
                f"{len(untrained)} models are not in the store ({', '.join(untrained[:8])}), and this "
                "flow only evaluates: run ablate or ingest first"
            )

    def _obtain(self, call: Call[Any], stop: threading.Event) -> Handle:
        if (found := lookup(self.store, call)) is not None:
            return found
        progress = self.reporter.task(call.name)
        if call.step.on_device:
            with self.devices.take(stop) as device:
                LOG.info("%s: computing on %s", call.name, device.name)
                return device.build(call, progress, stop)
        with _TURN:
            meter = step_meter(call, self.runtime)
            stoppable = checked(progress, lambda: check(stop))
            return build(self.store, call, self.runtime, meter, stoppable)

    def _is_free(self, call: Call[Any]) -> bool:
        if lookup(self.store, call, fresh=True) is not None:
            return True
        try:
            with self.store.lease(f"{call.step.name}/{call.key}"):
                return True
        except Busy:
            return False

    def rest(self) -> None:
        """Nothing is held here: devices' processes rest when their work ends."""

    def sweep(self, work: SweepWork) -> Rows:
        """Evaluate what the losses table lacks; one task run for each chunk of mixtures."""
        plan = SweepPlan.of(self.store, work, self.runtime.scratch)
        self.ledger.num_known += plan.num_known
        chunks = plan.chunks(self.runtime.chunk)
        if not chunks:
            self.reporter.say(f"{work.title}: all {plan.num_known:,} losses are in the store")
            return plan.rows(self.runtime.scratch)
        carry_out_all(self._sweep_pieces(plan, chunks), len(self.devices.names))
        return plan.rows(self.runtime.scratch)

    def _sweep_pieces(self, plan: SweepPlan, chunks: list[list[Job]]) -> list[Piece]:
        title = plan.work.title
        work = plan.work._replace(mixtures=[])  # sent with every chunk, which names its own
        shown = Together(self.reporter.task(title), len(plan.jobs))

        def act(number: int, chunk: list[Job], stop: threading.Event) -> bool:
            with self.devices.take(stop) as device:
                swept = device.sweep(work, chunk, shown.part(number), stop)
            shown.part(number)(len(chunk), len(chunk), "mixtures")
            self.ledger.num_evaluated += swept.num_evaluated
            self.ledger.num_known += swept.num_known
            self.ledger.sweep_costs.extend(swept.costs)
            return not swept.num_evaluated

        return [
            # A chunk takes minutes at most, so it is simply tried again.
            Piece("sweep", name, functools.partial(act, number, chunk), lambda: True)
            for number, chunk in enumerate(chunks, 1)
            if (name := f"{title} chunk {number} of {len(chunks)}")
        ]


class Together:
    """Progress of parts that go on at the same time, shown as progress of the whole."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self._done: dict[int, int] = {}

    def part(self, number: int) -> Progress:
        """Progress of one part."""

        def show(done: int, total: int, unit: str) -> None:
            del total
            self._done[number] = done
            self._progress(sum(self._done.copy().values()), self._total, unit)

        return show


def carry_out_all(pieces: Sequence[Piece], workers: int) -> None:
    """Do all pieces, ``workers`` at a time; what another run holds is left for last."""
    held = submit(pieces, workers)
    pause = POLL_SECONDS
    while held:
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
        free = {piece.name for piece in held if piece.is_free()}
        still = [piece for piece in held if piece.name not in free]
        held = still + submit([piece for piece in held if piece.name in free], workers)


def submit(pieces: Sequence[Piece], workers: int) -> list[Piece]:
    """Do pieces, each in a task run; those that another run is at. The first fault ends them all."""
    stop = threading.Event()
    with ThreadPoolTaskRunner[Any](max_workers=workers) as threads:
        futures = [
            threads.submit(
                task_of(piece.step),
                {"name": piece.name, "act": functools.partial(_unless_stopped, piece, stop)},
            )
            for piece in pieces
        ]
        try:
            done = [future.result() for future in futures]
        except BaseException:  # also an interrupt, which would leave a training to its thread
            stop.set()
            for future in futures:
                future.wait()  # the pool would end what still runs, and what waits, as crashed
            raise
    return [piece for piece, is_done in zip(pieces, done, strict=True) if not is_done]


def _unless_stopped(piece: Piece, stop: threading.Event) -> bool:
    check(stop)
    return piece.act(stop)


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
