"""The processes of one training: one leads, and tells the others over private lines what all do together.

The process that trains leads: it starts another for each further device. torch's collectives wait for
everybody, so each is announced. A process ends when its line to the leader does, whatever it is at; where one
dies, the training ends.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from tasks.machine.child import program_of, start_child
from tasks.training.divergence import TrainingError
from tasks.training.shards import PATIENCE, Place, joined

END_SECONDS = 10.0
"""Seconds in which a process ends once its line is closed, or it is killed."""

READY, FAILED, KILLED = "ready", "failed", "was killed"
STEP, STATE, PUT = "step", "state", "put"
"""What all do together: take the step of a number, put a state together, put a folder's in force."""

# In the other processes ----------------------------------------------------------------------------


class Orders:
    """What the leader tells a process to do."""

    def __init__(self, line: Connection, place: Place) -> None:
        self._line, self._place = line, place
        self._joined = contextlib.ExitStack()
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def __next__(self) -> tuple[Any, ...]:
        return self._inbox.get()

    def __iter__(self) -> Self:
        return self

    def meet(self) -> None:
        """Join the others, now that all is ready that this process does alone."""
        self.ready()
        self._joined.enter_context(joined(self._place))

    def ready(self) -> None:
        """Tell the leader, who waits for it, that what was ordered is done."""
        self._line.send((READY, ""))

    def _listen(self) -> None:
        try:
            while True:
                self._inbox.put(self._line.recv())
        except (EOFError, OSError):
            os._exit(0)  # also out of a collective, in which nobody else is any more


def serve() -> None:
    """Follow the leader at the socket whose number is the only argument, until it closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    number = int(sys.argv[1])
    os.set_inheritable(number, False)
    line = Connection(number)
    with contextlib.suppress(EOFError):
        follow, job, place = line.recv()
        try:
            follow(job, place, Orders(line, place))
        except BaseException as error:
            line.send((FAILED, f"{type(error).__name__}: {error}"))
            os._exit(1)


# In the process that leads -------------------------------------------------------------------------


class Lead:
    """The other processes of a training, none where there is one device.

    Args:
        follow: called in each with the job, its place and its orders.
        job: anything that can be pickled.
        devices: one for each process; the first is this one's.
        scratch: folder for the file by which they meet; None is the system's temporary folder.
    """

    def __init__(
        self,
        follow: Callable[[Any, Place, Orders], None],
        job: object,
        devices: list[str],
        scratch: str | None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=scratch, prefix="mixpool-shards-")
        meeting = str(Path(self._folder.name) / "meeting")
        places = [Place(n, len(devices), device, meeting) for n, device in enumerate(devices)]
        self.place, *self._others = places
        self._told = (follow, job)
        self._joined = contextlib.ExitStack()
        self._said: dict[int, str] = {}
        self._is_closing = False
        self._children: list[tuple[subprocess.Popen[bytes], Connection]] = []

    def __enter__(self) -> Self:
        for place in self._others:
            self._children.append(start_child(program_of(serve), os.environ))
            self._children[-1][1].send((*self._told, place))
        return self

    def tell(self, *order: object) -> None:
        """Have all others do the same as this process does next. A death shows where they meet."""
        for _, line in self._children:
            with contextlib.suppress(OSError):
                line.send(order)

    def meet(self) -> None:
        """Join the others once they are ready; nothing is to be done where there are none."""
        if self._children:
            self.wait()
            self._joined.enter_context(joined(self.place))
            for process, _ in self._children:
                threading.Thread(target=self._watch, args=(process,), daemon=True).start()

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Let nobody wait for a process that has died; NCCL does not notice by itself."""
        process.wait()
        if not self._is_closing:
            import torch.distributed as dist

            with contextlib.suppress(Exception):
                dist.group.WORLD.abort()  # type: ignore[union-attr]

    def put(self, folder: Path) -> None:
        """Have all others put in force the state in a folder, and wait until they have."""
        self.tell(PUT, folder)
        self.wait()

    def wait(self) -> None:
        """Wait until each has done what it was told, or is ready.

        Raises:
            TimeoutError: one is not, after ``PATIENCE``.
            EOFError: one has ended.
        """
        for number, (_, line) in enumerate(self._children, 1):
            if not line.poll(PATIENCE.total_seconds()):
                raise TimeoutError(f"process {number} did nothing for {PATIENCE}")
            kind, words = line.recv()
            if kind == FAILED:
                self._said[number - 1] = words
                raise EOFError(words)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._is_closing = True
        # Lines are closed first: whoever then waits for this process ends, and has no fault of its own.
        for number in range(len(self._children)):
            self._close(number)
        faults = [self._end(number) for number in range(len(self._children))]
        self._joined.close()
        self._folder.cleanup()
        # Those that a death has left alone fail as well.
        told = min(filter(None, faults), key=lambda words: KILLED not in words, default=None)
        if told is not None and isinstance(error, Exception):
            raise TrainingError(
                f"{told}: the training ends here, and the next run goes on from its resume point"
            ) from error

    def _close(self, number: int) -> None:
        """Close a line; what its process still said is kept."""
        _, line = self._children[number]
        with contextlib.suppress(EOFError, OSError):
            while line.poll():
                kind, words = line.recv()
                if kind == FAILED:
                    self._said[number] = words
        line.close()

    def _end(self, number: int) -> str:
        """End a process; what was wrong with it, if anything."""
        process, words = self._children[number][0], self._said.get(number)
        try:
            status = process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = 0
        name = f"process {number + 1} of runtime.shards, on {self._others[number].device},"
        if status < 0:
            return f"{name} {KILLED} ({signal.Signals(-status).name})"
        words = words or (f"exit status {status}" if status else "")
        return f"{name} failed ({words})" if words else ""
