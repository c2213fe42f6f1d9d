"""Advisory leases, so that two runs do not do the same work at the same time.

A lease is a chain of files ``lease.0``, ``lease.1``, ... of which the highest number counts. An expired
lease is taken over by creating the next number, which only one of many can do, on every backend. The
holder renews its lease by replacing its own file, so a holder that slept cannot bring back a lease that
another took over. Age is measured by the clock that stamps the files. A holder on this host whose
process is gone has expired at once.

Leases only save work. Results are right without them, because records are create-only.
"""

import json
import logging
import os
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

import psutil

from storage.backends.backend import Backend

LOG = logging.getLogger("mixpool.lease")

TIME_TO_LIVE = 60.0
"""Seconds after which a lease that was not renewed may be taken over."""


class Busy(Exception):  # noqa: N818 - a state of the world, not a fault
    """Somebody else holds the lease; ``holder`` says who, in words."""

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(f"{name} is being worked on by {holder}")
        self.holder = holder


class Lease:
    """Holds ``<folder>/lease.<n>`` while the ``with`` block runs, renewed by a thread.

    Raises:
        Busy: on entry, where a live holder has it.
    """

    def __init__(self, backend: Backend, folder: str, time_to_live: float = TIME_TO_LIVE) -> None:
        self._backend = backend
        self._folder = folder
        self._time_to_live = time_to_live
        self._owner = _this_process()
        self._path = ""
        self._renewed = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        for _ in range(100):
            numbers = lease_numbers(self._backend, self._folder)
            if holder := self._live_holder(numbers):
                raise Busy(self._folder, holder)
            mine = max(numbers, default=-1) + 1
            self._path = f"{self._folder}/lease.{mine}"
            # A create whose answer was lost is repeated by the client and then finds its own file.
            self._renewed = time.monotonic()
            created = self._backend.create(self._path, self._content()) or self._is_mine()
            if created and self._is_alone(mine):
                for number in numbers:
                    self._backend.delete(f"{self._folder}/lease.{number}")
                self._stop.clear()
                self._thread = threading.Thread(
                    target=self._renew, name="mixpool-lease", daemon=True
                )
                self._thread.start()
                return self
        raise Busy(self._folder, "many others at once")

    def _is_alone(self, mine: int) -> bool:
        """Look again: a listing may have been older than somebody's whole turn."""
        others = [n for n in lease_numbers(self._backend, self._folder) if n != mine]
        if self._live_holder(others) is None:
            return True
        self._backend.delete(self._path)
        time.sleep(random.random() / 10)
        return False

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if kind is not None and not issubclass(kind, Exception):
            self._backend.hurry()  # an interrupt does not wait for a server that is gone
        if self._thread is not None:
            self._thread.join()
        try:
            if self._is_mine():
                self._backend.delete(self._path)
        except Exception as failure:
            # The work is done, and the lease ends by itself: no reason to fail.
            LOG.warning("could not release %s (%s)", self._path, failure)

    def _renew(self) -> None:
        while not self._stop.wait(self._time_to_live / 3):
            try:
                mine, now = self._content(), time.monotonic()
                if not self._backend.swap(self._path, mine, mine):
                    LOG.warning("%s was taken over by another run; going on", self._path)
                    return
                self._renewed = now
            except Exception as error:  # clients of object stores have errors of their own
                LOG.warning("could not renew %s (%s); trying again", self._path, error)

    @property
    def is_held(self) -> bool:
        """Whether nobody can have taken it over, however long this process was stopped."""
        return time.monotonic() - self._renewed < self._time_to_live and self._is_mine()

    def _content(self) -> bytes:
        return json.dumps(self._owner).encode()

    def _is_mine(self) -> bool:
        try:
            return _owner(self._backend.read(self._path)).get("token") == self._owner["token"]
        except FileNotFoundError:
            return False

    def _live_holder(self, numbers: list[int]) -> str | None:
        paths = (f"{self._folder}/lease.{number}" for number in sorted(numbers, reverse=True))
        holders = (live_holder(self._backend, path, self._time_to_live) for path in paths)
        return next((holder for holder in holders if holder), None)


def lease_numbers(backend: Backend, folder: str) -> list[int]:
    """The numbers of the lease files in ``folder``."""
    names = (Path(path).name for path in backend.list(folder))
    return [int(name[6:]) for name in names if name.startswith("lease.") and name[6:].isdigit()]


def live_holder(backend: Backend, path: str, time_to_live: float = TIME_TO_LIVE) -> str | None:
    """Who holds the lease at ``path``, in words; None where it has expired or is gone."""
    try:
        seen = backend.look(path)
    except FileNotFoundError:
        return None
    owner = _owner(seen.data)
    is_dead = owner.get("boot") == _boot() and not _is_running(owner)
    if is_dead or seen.age > time_to_live:
        return None
    holder = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
    if seen.age < -time_to_live:  # a clock was wrong when it was written, or is now
        holder += (
            f", until {-seen.age:,.0f} s from now by the time of {path}, which lies ahead: set the clock "
            "right, or delete that file where no such process runs"
        )
    return holder


def _owner(data: bytes) -> dict[str, Any]:
    """Who wrote a lease; nobody where it is damaged, and then only time ends it."""
    try:
        owner = json.loads(data)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _this_process() -> dict[str, str | int | float]:
    process = psutil.Process()
    return {
        "host": os.uname().nodename,
        "boot": _boot(),
        "pid": process.pid,
        "started": process.create_time(),
        "token": uuid.uuid4().hex,
    }


def _boot() -> str:
    # Process ids mean nothing on another host, in another container, or after a restart.
    boot = Path("/proc/sys/kernel/random/boot_id")
    since = boot.read_text().strip() if boot.exists() else f"{psutil.boot_time():.0f}"
    namespace = Path("/proc/self/ns/pid")
    inside = str(namespace.readlink()) if namespace.exists() else ""
    return f"{os.uname().nodename} {since} {inside}"


def _is_running(owner: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(int(owner["pid"]))
        same = abs(process.create_time() - owner["started"]) < 5.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
