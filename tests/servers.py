"""Real S3 servers for tests, as plain processes on this machine's loopback address.

ministack keeps objects on disk, so that it can be killed and started again in the middle of a test;
``tests.ceph`` starts a real Ceph. A server never outlives the process that started it, however that
ends: a shell waits beside it on a pipe which the kernel closes then. What a server says goes to a file
in its folder.

    python -m tests.servers ministack --port 4566 --data DIR      one to play with, until Ctrl-C
"""

import argparse
import contextlib
import http.client
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3

BUCKET = "mixpool-test"
"""The bucket that is made on every server."""

REGION = "us-east-1"

# The shell becomes the server; what it leaves behind kills both when the pipe closes. No process can
# get the server's number meanwhile, since it is also the number of the group that both are in.
GUARDED = 'exec 3<&0; { read _ <&3; kill -KILL -$$; } >/dev/null 2>&1 & exec "$@" </dev/null 3<&-'


@dataclass
class S3Server:
    """Where a server answers, and who may ask."""

    endpoint: str
    """``http://127.0.0.1:PORT``."""

    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead any S3 client here, whatever the person's own set-up is."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A new boto3 client; threads may share it."""
        session = boto3.Session(self.access_key, self.secret_key, region_name=REGION)
        return session.client("s3", endpoint_url=self.endpoint)

    def make_bucket(self, name: str) -> None:
        """Make a bucket unless it is there."""
        client = self.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)


class Child:
    """A server process; it dies with this process."""

    def __init__(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start ``command`` with ``environment`` added to ours; its output is appended to ``log``."""
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", GUARDED, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                process_group=0,
            )

    def check(self) -> None:
        """Raise RuntimeError, with what the server said last, if it has ended."""
        if (status := self._process.poll()) is not None:
            said = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the server ended with status {status}; {self.log} says:\n{said}")

    def wait(self) -> None:
        """Return when the server has ended."""
        self._process.wait()

    def kill(self) -> None:
        """As ``kill -9`` does; the server is gone on return."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask the server to end; kill it if it has not done so after five seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._end(signal.SIGTERM)
            return
        self.kill()

    def _end(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        self._process.wait(5)
        assert self._process.stdin is not None
        self._process.stdin.close()


def free_port(together: int = 1) -> int:
    """A TCP port of the loopback address that is free, as are those after it, ``together`` in all.

    Linux gives no such port to an outgoing connection (``ip_local_port_range``), so that a server finds
    it free again when it is started anew.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 32_768 - together)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for number in range(port, port + together):
                held.enter_context(socket.socket()).bind(("127.0.0.1", number))
            return port


def is_answered(endpoint: str) -> bool:
    """Whether a server gives any HTTP response."""
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=10)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
    return True


def wait_for_answer(child: Child, endpoint: str, seconds: float = 60) -> None:
    """Return when the server gives any HTTP response.

    Raises:
        RuntimeError: it ended instead.
        TimeoutError: it did neither in ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not is_answered(endpoint):
        child.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer from {endpoint} in {seconds} s; look into {child.log}")
        time.sleep(0.02)


def launch(
    command: Sequence[str], log: Path, endpoint: str, environment: Mapping[str, str] | None = None
) -> Child:
    """Start a server and wait until it answers.

    Raises:
        RuntimeError: something answers there already, or the server ended at once.
    """
    if is_answered(endpoint):
        raise RuntimeError(f"something else listens at {endpoint}; choose another port")
    child = Child(command, log, environment)
    try:
        wait_for_answer(child, endpoint)
    except BaseException:
        child.kill()
        raise
    return child


class Ministack:
    """A ministack server: objects on disk, on one port and in one folder for all its lives."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        """Nothing runs before ``start``; objects lie below ``folder/data``."""
        self._folder = folder.resolve()
        self._port = port or free_port()
        self._child: Child | None = None
        self.server = S3Server(f"http://127.0.0.1:{self._port}", "mixpool", "mixpool-secret")

    def start(self) -> None:
        """Start the server unless it runs, and wait until it answers."""
        if self._child is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        environment = {
            "SERVICES": "s3",
            # It would listen on all addresses.
            "IOT_MTLS_ENABLED": "0",
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(self._folder / "data"),
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self._port),
            "TMPDIR": str(self._folder),
            # It would clear away containers that it takes for its own.
            "DOCKER_HOST": f"unix://{self._folder}/none",
        }
        command, log = [sys.executable, "-m", "ministack"], self._folder / "ministack.log"
        self._child = launch(command, log, self.server.endpoint, environment)
        # It forgets buckets that were empty.
        for bucket in self._folder.glob("data/[0-9]*/*"):
            self.server.make_bucket(bucket.name)

    def kill(self) -> None:
        """As ``kill -9`` does; nothing happens if it does not run."""
        if self._child is not None:
            self._child.kill()
        self._child = None

    def restart(self) -> None:
        """Kill it if it runs; start it again on the same port with the same objects."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End it in order; nothing happens if it does not run."""
        if self._child is not None:
            self._child.stop()
        self._child = None

    def wait(self) -> None:
        """Return when it has ended."""
        if self._child is not None:
            self._child.wait()


def serve(folder: Path, port: int) -> None:
    """Run ministack until Ctrl-C, after telling how to reach it."""
    # A shell makes the processes that it starts in the background ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ministack = Ministack(folder, port)
    try:
        ministack.start()
        ministack.server.make_bucket(BUCKET)
        for name, value in ministack.server.environment.items():
            print(f"export {name}={shlex.quote(value)}")
        print(f"# s3://{BUCKET} is there; Ctrl-C ends the server.", flush=True)
        ministack.wait()
    except KeyboardInterrupt:
        pass
    finally:
        ministack.stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
    parser.add_argument("server", choices=["ministack"])
    parser.add_argument("--port", type=int, default=4566, help="TCP port on 127.0.0.1 (4566)")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the objects and the log"
    )
    options = parser.parse_args()
    serve(options.data, options.port)


if __name__ == "__main__":
    main()
