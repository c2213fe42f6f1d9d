"""The child's side of a device process: carries out orders, reports progress, logs and results.

Orders and messages go over one private socket pair. A thread of its own listens for a stop and for the
end of the parent. Either ends the work at its next report of progress, so that a training saves its
resume point and leases are released; work that does not report is ended after ``STOP_SECONDS``. Pickle
is safe here: only our own parent and child hold the two ends of the socket.
"""

import faulthandler
import functools
import logging
import logging.handlers
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from flows.chain.runner import Ledger
from flows.chain.work import SweepWork
from flows.runners.chunks import ResidentSweeper, run_chunk
from flows.runners.inline import step_meter
from flows.runners.stopping import check, checked
from storage.cache import build
from storage.step import Call, Handle, Progress, Runtime
from storage.store import Store
from tasks.evaluation.losses_table import LossesTable
from tasks.evaluation.sweep import Job
from tasks.machine.memory import free_memory

STOP_SECONDS = 20.0
"""Seconds in which work must end after a stop."""

IDLE_SECONDS = 30.0
"""Seconds without an order after which the device's memory is given back."""

STOP = b"stop"
"""The one message to a worker that is no order."""


class Worker:
    """Builds and evaluates on one device; the pool of a sweep stays from chunk to chunk."""

    def __init__(self, url: str, runtime: Runtime) -> None:
        self._url, self._runtime = url, runtime
        self._work: SweepWork | None = None
        self._resident: ResidentSweeper | None = None

    @functools.cached_property
    def _store(self) -> Store:
        # The parent has opened the store, and with that checked that it is fit for writers.
        return Store(self._url, create=False)

    def build(self, call: Call[Any], progress: Progress) -> Handle:
        """The result of a call. Raises what ``storage.cache.build`` raises."""
        self._resident = None  # what is trained may need the memory of the pool
        meter = step_meter(call, self._runtime)
        return build(self._store, call, self._runtime, meter, progress)

    def sweep(self, work: SweepWork, chunk: list[Job], progress: Progress) -> Ledger:
        """Evaluate a chunk. Raises Busy and what ``tasks.evaluation.sweep.Sweeper`` raises."""
        if self._resident is None:
            self._resident = ResidentSweeper(self._store, work, self._runtime)
        if work != self._work:
            self._resident.turn_to(work)
            self._table = LossesTable(self._store, work.config, self._runtime.scratch)
            self._work = work
        return run_chunk(self._store, self._table, chunk, self._resident, progress)

    def rest(self) -> None:
        """Make room on the device for others."""
        self._resident = None
        free_memory()


class Order(NamedTuple):
    """What a worker is to do: one use of a step, or one chunk of a sweep."""

    act: Callable[..., Handle | Ledger]
    """A method of ``Worker``."""
    given: tuple[Any, ...]
    """Its arguments, without the progress."""


class Shown(NamedTuple):
    """A message: how far the work is."""

    done: int
    total: int
    unit: str


class Done(NamedTuple):
    """A message: the work is done."""

    result: Any


class Failed(NamedTuple):
    """A message: the work has failed; what is needed to raise the same error elsewhere."""

    kind: type[Exception]
    make: Callable[..., Any]
    made_with: tuple[Any, ...]
    args: tuple[Any, ...]
    state: dict[str, Any]
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> "Failed":
        """The message for an error; a RuntimeError with its words where it cannot be sent."""
        trace = "".join(traceback.format_exception(error)).rstrip()
        if isinstance(error, Exception):
            with suppress(Exception):
                reduced = error.__reduce__()
                assert not isinstance(reduced, str)
                make, made_with, *state = reduced
                sent = cls(type(error), make, made_with, error.args, dict(*state), trace)
                arrived: Failed = pickle.loads(pickle.dumps(sent))
                if str(arrived.error()) == str(error):
                    return sent
        words = (f"{type(error).__name__}: {error}",)
        return cls(RuntimeError, RuntimeError, words, words, {}, trace)

    def error(self) -> Exception:
        """The error, as the worker met it."""
        error: Exception
        try:
            error = self.make(*self.made_with)
        except TypeError:  # an error that composes its message of other arguments
            error = self.kind.__new__(self.kind, *self.made_with)
        error.args = self.args
        error.__dict__.update(self.state)
        return error


class ParentLine:
    """The connection to the parent, for all threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._turn = threading.Lock()

    def send(self, message: object) -> None:
        """Send a message; ignored where the parent is gone."""
        with self._turn, suppress(OSError):
            self._connection.send(message)


class LogForwarder(logging.handlers.QueueHandler):
    """Sends log records to the parent, whose handlers show them."""

    def __init__(self, line: ParentLine) -> None:
        super().__init__(queue.SimpleQueue())
        self._line = line

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record, which ``prepare`` has made fit to be sent."""
        self._line.send(record)


Inbox = queue.SimpleQueue[tuple[bytes, threading.Event] | None]
"""Orders with the event that stops each; None at the end."""


def listen(connection: Connection, inbox: Inbox) -> None:
    """Receive orders and stops until the parent is gone; then end all work and this process."""
    stop = threading.Event()
    try:
        while True:
            message = connection.recv_bytes()
            if message == STOP:
                stop.set()
            else:
                stop = threading.Event()  # a stop that came too late is not one for this order
                inbox.put((message, stop))
    except (EOFError, OSError):
        stop.set()
        inbox.put(None)
        # A timer in C: it also ends work that never lets another thread of Python run again.
        faulthandler.dump_traceback_later(STOP_SECONDS, exit=True)


def obey(worker: Worker, line: ParentLine, message: bytes, stop: threading.Event) -> Done | Failed:
    """Carry out one order."""
    try:
        order: Order = pickle.loads(message)
        progress = checked(lambda *report: line.send(Shown(*report)), lambda: check(stop))
        return Done(order.act(worker, *order.given, progress))
    except BaseException as error:
        return Failed.of(error)


def serve(connection: Connection) -> None:
    """Carry out orders, one at a time, until the parent is gone."""
    line, inbox = ParentLine(connection), Inbox()
    logger = logging.getLogger("mixpool")
    logger.setLevel(logging.INFO)
    logger.addHandler(LogForwarder(line))
    worker = Worker(*connection.recv())
    threading.Thread(target=listen, args=(connection, inbox), daemon=True).start()
    while True:
        try:
            order = inbox.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            worker.rest()
            continue
        if order is None:
            return
        line.send(obey(worker, line, *order))


def main() -> None:
    """Serve the socket whose number is the only argument."""
    # An interrupt of the whole group of processes is the parent's business: it sends a stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    number = int(sys.argv[1])
    os.set_inheritable(number, False)  # or what we start would keep the parent waiting for our end
    with suppress(EOFError):
        serve(Connection(number))
