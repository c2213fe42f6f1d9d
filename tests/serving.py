"""``mixpool serve`` as a person starts it, with ports, folders and settings of its own.

It never outlives the process that started it: a shell waits beside it on a pipe which the kernel closes
then, and asks it to end, so that it ends server, worker and runs. Nothing of the caller's Prefect
settings gets in.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from flows.server.guard import PASSWORD, key_of
from tests.prefect_api import PrefectApi
from tests.prefect_server import clean_environment
from tests.servers import free_port

MIXPOOL = Path(sys.executable).with_name("mixpool")

GUARDED = (
    "exec 3<&0; { read _ <&3; kill -TERM $$; sleep 90; kill -KILL -$$; } >/dev/null 2>&1 & "
    'exec "$@" </dev/null 3<&-'
)

START_SECONDS = 240.0
"""It takes 15 to 30 s on a machine that does nothing else."""
STOP_SECONDS = 120.0

OWN = {
    # The page says "now" and means it: by default, a worker looks every ten seconds.
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "NO_COLOR": "1",
    "TERM": "dumb",
}


def wait_until(is_so: Callable[[], bool], seconds: float, message: Callable[[], str]) -> None:
    """Return when it is so. Raises TimeoutError with the message."""
    limit = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > limit:
            raise TimeoutError(f"{message()} (after {seconds:g} s)")
        time.sleep(0.1)


class Serving:
    """One home and one pair of ports, on which ``mixpool serve`` is started any number of times."""

    def __init__(self, folder: Path, recipe: Path, store: Path) -> None:
        """Nothing runs before ``start``; recipe and store are the defaults of the forms."""
        self.folder, self.recipe, self.store = folder, recipe, store
        self.home = folder / "home"
        self.log = folder / "serve.log"
        self.port = free_port(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def password(self) -> str:
        """What the server asks for, as ``user:password``."""
        return (self.home / PASSWORD).read_text().strip()

    @property
    def pages(self) -> str:
        """Where the store is."""
        return f"http://127.0.0.1:{self.port + 1}/{key_of(self.password)}"

    @property
    def door(self) -> str:
        """The address that is printed for a browser."""
        (found,) = re.findall(r"mixpool is at (\S+)", self.log.read_text())
        return str(found)

    def command(self, *options: str) -> list[str]:
        """The command line."""
        places = ["--store", str(self.store), "--recipe", str(self.recipe)]
        own = ["--home", str(self.home), "--port", str(self.port)]
        return [str(MIXPOOL), "serve", *places, *own, *options]

    @property
    def environment(self) -> dict[str, str]:
        """The caller's, without what is meant for Prefect, with a place of its own for data."""
        return {**clean_environment(), **OWN, "XDG_DATA_HOME": str(self.folder / "data-home")}

    def start(self) -> None:
        """Start it and return when it says where it is.

        Raises:
            RuntimeError: it ended instead.
            TimeoutError: it did neither.
        """
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", GUARDED, "sh", *self.command("--runs", "2")],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder,
                process_group=0,
            )
        wait_until(self._is_there, START_SECONDS, self.said)

    def _is_there(self) -> bool:
        assert self._process is not None
        if (status := self._process.poll()) is not None:
            raise RuntimeError(f"serve ended with status {status}; {self.said()}")
        return b"Ctrl-C ends it" in self.log.read_bytes()

    def said(self) -> str:
        """The last lines of serve, server and worker."""
        logs = [self.log, self.home / "server.log", self.home / "worker.log"]
        texts = {log.name: log.read_text(errors="replace") for log in logs if log.exists()}
        return "\n".join(f"{name}:\n{text[-2000:]}" for name, text in texts.items())

    def api(self) -> PrefectApi:
        """A client; to be closed."""
        return PrefectApi(self.url, self.said, self.password)

    def family(self) -> list[psutil.Process]:
        """serve and all processes that it started, and those that these started."""
        assert self._process is not None
        head = psutil.Process(self._process.pid)
        return [head, *head.children(recursive=True)]

    def services(self) -> list[psutil.Process]:
        """Prefect's server and worker, if they run."""
        notes = self.home / "services.json"
        known = json.loads(notes.read_text()) if notes.exists() else []
        found = [psutil.Process(pid) for pid, _ in known if psutil.pid_exists(pid)]
        started = [since for _, since in known]
        return [process for process in found if process.create_time() in started]

    def interrupt(self) -> int:
        """Press Ctrl-C, wait for the end, and give the exit status. Raises TimeoutExpired."""
        return self._end(signal.SIGINT)

    def kill(self) -> None:
        """As ``kill -9`` does to this one process; what it started stays."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order, and whatever a start that was killed has left."""
        if self._process is not None:
            self._end(signal.SIGTERM)
        for service in self.services():
            for process in [*service.children(recursive=True), service]:
                process.kill()

    def _end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end, and give the exit status. Raises TimeoutExpired."""
        assert self._process is not None
        status = self._process.wait(STOP_SECONDS)
        # The shell that waits is in the same group, so the group's number is nobody else's yet.
        os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None
        return status


def gone(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those of the processes that have not ended after so many seconds."""
    alive: list[psutil.Process] = psutil.wait_procs(processes, seconds)[1]
    return alive


def run_refused(command: Sequence[str], environment: dict[str, str]) -> str:
    """What a command says that must fail at once."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    return done.stderr
