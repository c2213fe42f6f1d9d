"""The parent's side of a device process: start it, send it orders, show its progress, end it.

The process is started at the first order and kept for the next. An error in the parent during an order
(a stop, a time limit, an interrupt, a progress bar that fails) ends that order: the process gets a stop
message and ``STOP_SECONDS`` to save and to release, then it is killed. A process that died, or in which
CUDA may have failed, is replaced at the next order.
"""

import logging
import os
import pickle
import signal
import subprocess
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from flows.chain.runner import Ledger, ignore
from flows.chain.work import SweepWork
from flows.runners.stopping import Watch
from flows.runners.worker import STOP, STOP_SECONDS, Done, Failed, Order, Shown, Worker, main
from storage.step import Call, Handle, Progress, Runtime
from tasks.evaluation.sweep import Job
from tasks.machine.child import program_of, start_child

POLL_SECONDS = 0.2
"""Seconds in which a stop is noticed."""

ENTRY = program_of(main)


class DeviceProcessError(OSError):
    """The process of a device died at work; the next order starts another one."""


class DeviceChild(NamedTuple):
    """A child process that serves orders, and the connection to it."""

    process: subprocess.Popen[bytes]
    line: Connection

    @classmethod
    def start(cls, url: str, runtime: Runtime) -> "DeviceChild":
        """A new process for the one device of the runtime."""
        # As the command line sets them, see flows.command.main.
        defaults = {"TOKENIZERS_PARALLELISM": "true", "OMP_WAIT_POLICY": "passive"}
        child = cls(*start_child(ENTRY, {**defaults, **os.environ}))
        child.send(pickle.dumps((url, runtime)))
        return child

    def send(self, message: bytes) -> None:
        """Send a message. A dead child is noticed when its answer is awaited."""
        with suppress(OSError):
            self.line.send_bytes(message)

    def end(self, patience: float) -> int | None:
        """End the child, by force after ``patience`` seconds; its exit status.

        None where even that does not end it, as when a driver hangs.
        """
        self.line.close()
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(patience)
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(STOP_SECONDS)
        return None


class DeviceProcess:
    """A device with a process of its own, which carries out one order at a time."""

    def __init__(self, url: str, runtime: Runtime) -> None:
        self.name = runtime.device
        self._url, self._runtime = url, runtime
        self._child: DeviceChild | None = None
        self._turn = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process, None while there is none."""
        return None if self._child is None else self._child.process.pid

    def build(self, call: Call[Any], progress: Progress, stop: threading.Event) -> Handle:
        """See ``flows.runners.devices.Device``."""
        handle = self._ask(Order(Worker.build, (call,)), call.name, progress, stop)
        assert isinstance(handle, Handle)
        return handle

    def sweep(
        self, work: SweepWork, chunk: list[Job], progress: Progress, stop: threading.Event
    ) -> Ledger:
        """See ``flows.runners.devices.Device``."""
        # The mixtures of a sweep are many, and the chunk has those that are meant. A sweep that
        # differs in nothing else finds the pool resident.
        order = Order(Worker.sweep, (work._replace(mixtures=[], stage=None), chunk))
        swept = self._ask(order, "a chunk of the sweep", progress, stop)
        assert isinstance(swept, Ledger)
        return swept

    def close(self) -> None:
        """End the process; an order that is being carried out is waited for."""
        with self._turn:
            self._end(STOP_SECONDS)

    def _ask(self, order: Order, title: str, progress: Progress, stop: threading.Event) -> Any:
        watch = Watch(title, self._runtime, stop)
        with self._turn:
            watch.check()
            child = self._running()
            child.send(pickle.dumps(order))
            try:
                while (answer := self._hear(child, title, progress)) is None:
                    watch.check()
            except DeviceProcessError:
                raise
            except BaseException:  # also an interrupt, and whatever progress raises
                self._stop(child, title)
                raise
            if isinstance(answer, Done):
                return answer.result
            error = answer.error()
            error.add_note(f"in the process of {self.name}:\n{answer.trace}")
            if isinstance(error, RuntimeError):
                self._end(0)  # after an error of CUDA nothing works in a process any more
            raise error

    def _running(self) -> DeviceChild:
        # Messages or a death from the time when it was idle concern no order.
        with suppress(DeviceProcessError):
            while self._child is not None and self._child.line.poll():
                self._hear(self._child, "nothing", ignore)
        if self._child is None:
            self._child = DeviceChild.start(self._url, self._runtime)
        return self._child

    def _hear(self, child: DeviceChild, title: str, progress: Progress) -> Done | Failed | None:
        """Pass on one message of the process; its answer, else None. Raises DeviceProcessError."""
        try:
            message = child.line.recv() if child.line.poll(POLL_SECONDS) else None
        except (EOFError, OSError):
            # Its end of the line is closed a moment before it is gone.
            status = self._end(POLL_SECONDS)
            raise DeviceProcessError(
                f"the process of {self.name} {_in_words(status)} while it was at {title}; everything "
                "committed is kept and unfinished training resumes: run again"
            ) from None
        if isinstance(message, Done | Failed):
            return message
        if isinstance(message, Shown):
            progress(*message)
        elif isinstance(message, logging.LogRecord):
            logger = logging.getLogger(message.name)
            if logger.isEnabledFor(message.levelno):
                logger.handle(message)
        return None

    def _stop(self, child: DeviceChild, title: str) -> None:
        """End the order; kill the process where the order does not end in time."""
        child.send(STOP)
        latest = time.monotonic() + STOP_SECONDS
        try:
            while time.monotonic() < latest:
                if self._hear(child, title, ignore) is not None:
                    return
        except DeviceProcessError:
            return
        except BaseException:  # a second interrupt is impatient
            self._end(0)
            raise
        self._end(0)

    def _end(self, patience: float) -> int | None:
        child, self._child = self._child, None
        return None if child is None else child.end(patience)


def _in_words(status: int | None) -> str:
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL, which is also how the system ends what takes too much memory)"
    if status is not None and status < 0:
        return f"crashed ({signal.Signals(-status).name})"
    return f"ended with exit status {status}, after what it printed"
