"""Child servers (Prefect's server and worker) that end with `mixpool serve`.

They are in process groups of their own, so that Ctrl-C reaches only their parent, which ends them in
order. Their process ids are noted in a file: where the parent was killed, its next start ends them.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

NOTE, LOCK = "services.json", "lock"


class ServeError(RuntimeError):
    """A service did not start, or ended by itself."""


@contextlib.contextmanager
def alone_in(home: Path) -> Iterator[None]:
    """Hold a folder while the block runs; a holder that was killed no longer holds it.

    Raises:
        ServeError: another process holds it.
    """
    with (home / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ServeError(
                f"another mixpool serve (process {lock.read().strip()}) uses {home}: end it, or give "
                "--home FOLDER and --port for a second one"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@dataclass
class Service:
    """A process of Prefect's, and its log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise ServeError, with the end of the log, if the process has ended."""
        if (status := self.process.poll()) is not None:
            said = self.log.read_text(errors="replace")[-1500:]
            raise ServeError(
                f"the {self.name} ended with status {status}; {self.log} says:\n{said}"
            )

    def end(self) -> None:
        """Ask the process to end; kill it after 15 s, and then the processes that it started."""
        started = []
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        self.process.kill()
        self.process.wait()
        _kill(started)


@contextlib.contextmanager
def service(home: Path, name: str, arguments: list[str]) -> Iterator[Service]:
    """``python ARGUMENTS`` for as long as the block runs; its output is in ``home/NAME.log``."""
    log = home / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # For the next start, which ends it if this process is killed.
    file = home / NOTE
    noted = json.loads(file.read_text()) if file.exists() else []
    noted.append([process.pid, psutil.Process(process.pid).create_time()])
    file.write_text(json.dumps(noted))
    started = Service(name, process, log)
    try:
        yield started
    finally:
        started.end()


def end_left_over(home: Path, say: Callable[[str], None]) -> None:
    """End the noted processes of an earlier start that was killed."""
    file = home / NOTE
    for pid, started in json.loads(file.read_text()) if file.exists() else []:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() == started:
                say(f"ending process {pid}, which an earlier start has left")
                _kill([*process.children(recursive=True), process])
    file.unlink(missing_ok=True)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it looks whether it is still the same
            process.kill()
    psutil.wait_procs(processes, timeout=10)
