"""The devices of a run: each piece of work waits for a free device, and is computed in its process.

The run's own process looks up, waits and shows; trainings and chunks of a sweep go to one child process
per device. So a machine's GPUs are all used, work that hangs can be ended, and a crash of CUDA ends one
piece of work and not the run. No process starts before it is needed.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property
from typing import Any, Protocol, Self

from flows.chain.runner import Ledger
from flows.chain.work import SweepWork
from flows.runners.process import DeviceProcess
from flows.runners.stopping import Watch, check, checked
from flows.runners.worker import Worker
from storage.step import Call, Handle, Progress, Runtime
from tasks.evaluation.sweep import Job
from tasks.machine.device import devices_of

WAIT_SECONDS = 0.5
"""Seconds between two checks whether another run has given back a device."""

Guard = Callable[[str], AbstractContextManager[Any]]
"""Entered with a device's name before it is used; TimeoutError says that another run has it."""


class Device(Protocol):
    """Computes one thing at a time."""

    name: str
    """The device as torch calls it; several that train together are separated by commas."""

    def build(self, call: Call[Any], progress: Progress, stop: threading.Event) -> Handle:
        """The result of a call, which is looked up again first; logs and progress arrive here.

        Raises:
            Stopped: ``stop`` was set; a training has saved its resume point if that was quick.
            TimeLimitError: the work took longer than the runtime allows.
            DeviceProcessError: the process died by itself; the next use starts a new one.
            Busy: another live run is building the same key.
            Exception: an error of the step, the store or ``progress``.
        """

    def sweep(
        self, work: SweepWork, chunk: list[Job], progress: Progress, stop: threading.Event
    ) -> Ledger:
        """Evaluate a chunk of a sweep into the losses table; raises what ``build`` raises.

        Returns:
            Numbers of losses, and what evaluating cost; what another run had meanwhile is known.
        """

    def close(self) -> None:
        """Give the device back, after the work that goes on."""


class DeviceHere:
    """A device used in this process, for stores in memory, which no other process can open."""

    def __init__(self, url: str, runtime: Runtime) -> None:
        self.name = runtime.device
        self._runtime, self._worker = runtime, Worker(url, runtime)

    def build(self, call: Call[Any], progress: Progress, stop: threading.Event) -> Handle:
        """See ``Device``; stop and time limit are looked at in reports of progress only."""
        watch = Watch(call.name, self._runtime, stop)
        return self._worker.build(call, checked(progress, watch.check))

    def sweep(
        self, work: SweepWork, chunk: list[Job], progress: Progress, stop: threading.Event
    ) -> Ledger:
        """See ``Device``; stop and time limit are looked at in reports of progress only."""
        watch = Watch("a chunk of the sweep", self._runtime, stop)
        return self._worker.sweep(work, chunk, checked(progress, watch.check))

    def close(self) -> None:
        """Make room on the device."""
        self._worker.rest()


class Devices:
    """The devices of one run on this machine.

    Args:
        url: of an existing store.
        runtime: with the devices to use.
        guard: entered around each use of a device, see ``Guard``.
    """

    def __init__(self, url: str, runtime: Runtime, guard: Guard = nullcontext) -> None:
        self._url, self._runtime, self._guard = url, runtime, guard
        self._changed = threading.Condition()
        self._devices: list[Device] = []
        self._taken: set[Device] = set()

    @cached_property
    def names(self) -> list[str]:
        """The devices as torch calls them. Raises ValueError where torch knows no such device."""
        names = devices_of(self._runtime)
        # One process has one random state, so there it can use one device at a time.
        return names[:1] if self._is_memory else names

    @property
    def _groups(self) -> list[str]:
        """The devices of each process: as many as train together, or all where they are too few."""
        size = min(self._runtime.shards, len(self.names))
        starts = range(0, len(self.names) - size + 1, size)
        return [",".join(self.names[start : start + size]) for start in starts]

    @property
    def _is_memory(self) -> bool:
        return self._url.startswith("memory:")

    @contextmanager
    def take(self, stop: threading.Event) -> Iterator[Device]:
        """A device for the block alone, as soon as one is free.

        Raises:
            Stopped: ``stop`` was set before one was free.
            ValueError: torch knows no such device.
        """
        while (claimed := self._attempt(stop)) is None:
            with self._changed:
                self._changed.wait(WAIT_SECONDS)
        device, held = claimed
        with held:
            yield device

    def _attempt(self, stop: threading.Event) -> tuple[Device, ExitStack] | None:
        """A free device, and the stack to close after its use; None while all are in use."""
        for device in self._all():
            check(stop)
            with suppress(TimeoutError), ExitStack() as held:
                if self._claim(device):
                    held.callback(self._give_back, device)
                    for name in device.name.split(","):
                        held.enter_context(self._guard(name))
                    return device, held.pop_all()
        return None

    def _all(self) -> list[Device]:
        kind = DeviceHere if self._is_memory else DeviceProcess
        with self._changed:
            if not self._devices:
                each = [self._runtime.model_copy(update={"device": n}) for n in self._groups]
                self._devices = [kind(self._url, runtime) for runtime in each]
            return self._devices

    def _claim(self, device: Device) -> bool:
        with self._changed:
            is_free = device not in self._taken
            self._taken.add(device)
            return is_free

    def _give_back(self, device: Device) -> None:
        with self._changed:
            self._taken.discard(device)
            self._changed.notify_all()

    def close(self) -> None:
        """End all processes; work that goes on is waited for, so set its ``stop`` first."""
        for device in self._devices:
            device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
