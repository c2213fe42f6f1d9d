"""``PrefectRunner``: each call of a step, and each chunk of a sweep, is one Prefect task run.

Prefect shows, retries and limits; it decides nothing. Steps that need a device are computed in that
device's process (``flows.runners.devices``). A single task run is in ``flows.prefect.task_runs``.
"""

import functools
import logging
import threading
from collections.abc import Sequence
from typing import Any, Self

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

from flows.chain.runner import Ledger, Reporter, note
from flows.chain.work import SweepPlan, SweepWork
from flows.prefect.limits import hold_device
from flows.prefect.progress import PrefectReporter
from flows.prefect.task_runs import Piece, carry_out_all
from flows.runners.devices import Devices
from flows.runners.inline import step_meter
from flows.runners.stopping import check, checked
from storage.cache import build, look_ahead, lookup
from storage.lease import Busy
from storage.step import Call, Handle, Runtime
from storage.store import Store
from tasks.evaluation.losses import LossRows
from tasks.evaluation.sweep import Job
from tasks.shown import Shown
from tasks.steps import MODELS

LOG = logging.getLogger("mixpool.run")

# Steps computed in this process take turns, as each uses all cores.
_TURN = threading.Lock()


class PrefectRunner:
    """Carries out the chain by task runs; used as a context inside a flow run.

    Args:
        may_train: whether a model that is not in the store is made, or refused.
    """

    def __init__(
        self, store: Store, runtime: Runtime | None = None, *, may_train: bool = True
    ) -> None:
        self.store = store
        self.runtime = runtime or Runtime()
        self._shown = PrefectReporter()
        self.reporter: Reporter = self._shown
        self.ledger = Ledger()
        self.devices = Devices(store.url, self.runtime, self._hold)
        self._may_train = may_train
        forward_logs()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()
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
        handles: dict[int, Handle] = {}

        def piece(number: int, call: Call[Any]) -> Piece:
            def act(stop: threading.Event) -> bool:
                handles[number] = self._obtain(call, stop)
                return handles[number].hit

            return Piece(call.step.name, call.name, act, lambda: self._is_free(call))

        needs_device = any(call.step.on_device for call in lacking)
        workers = len(self.devices.names) if needs_device else 1
        carry_out_all([piece(number, call) for number, call in enumerate(calls)], workers)
        return [note(self.ledger, call, handles[number]) for number, call in enumerate(calls)]

    def _check_trained(self, lacking: Sequence[Call[Any]]) -> None:
        untrained = [call.label for call in lacking if call.step in MODELS]
        if untrained and not self._may_train:
            raise ValueError(
                f"{len(untrained)} models are not in the store ({', '.join(untrained[:8])}), and this "
                "flow only evaluates: run ablate or ingest first"
            )

    def _obtain(self, call: Call[Any], stop: threading.Event) -> Handle:
        if (handle := lookup(self.store, call)) is not None:
            return handle
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

    def sweep(self, work: SweepWork) -> LossRows:
        """Evaluate what the losses table lacks; one task run for each chunk of mixtures."""
        plan = SweepPlan.of(self.store, work, self.runtime.scratch)
        self.ledger.num_known += plan.num_known
        chunks = plan.chunks(self.runtime.chunk)
        if not chunks:
            self.reporter.say(f"{work.title}: all {plan.num_known:,} losses are in the store")
        else:
            carry_out_all(self._sweep_pieces(plan, chunks), len(self.devices.names))
        return plan.rows()

    def _sweep_pieces(self, plan: SweepPlan, chunks: list[list[Job]]) -> list[Piece]:
        title = plan.work.title
        work = plan.work._replace(mixtures=[])  # sent with every chunk, which names its own
        progress = self.reporter.task(title)
        done: dict[int, int] = {}

        def show(number: int, part: int, total: int, unit: str) -> None:
            """Progress of a chunk, of which several go on at once, as progress of the whole."""
            del total
            done[number] = part
            progress(sum(done.copy().values()), len(plan.jobs), unit)

        def act(number: int, chunk: list[Job], stop: threading.Event) -> bool:
            with self.devices.take(stop) as device:
                swept = device.sweep(work, chunk, functools.partial(show, number), stop)
            show(number, len(chunk), len(chunk), "mixtures")
            self.ledger.add_sweep(swept)
            return not swept.num_evaluated

        return [
            # A chunk takes minutes at most, so it is simply tried again.
            Piece("sweep", name, functools.partial(act, number, chunk), lambda: True)
            for number, chunk in enumerate(chunks, 1)
            if (name := f"{title} chunk {number} of {len(chunks)}")
        ]


def forward_logs() -> None:
    """Send lines of ``mixpool`` loggers inside a run to that run's logs, from INFO upwards."""
    logger = logging.getLogger("mixpool")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
        handler = APILogHandler()
        # Threads that renew leases belong to no run, and Prefect warns about lines without one.
        handler.addFilter(lambda record: bool(FlowRunContext.get() or TaskRunContext.get()))
        handler.addFilter(Shown())
        logger.addHandler(handler)
