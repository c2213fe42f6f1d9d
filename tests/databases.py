"""A real PostgreSQL and a real Redis, as plain processes on this machine's loopback address.

They are what a team's Prefect server stands on. Both ask for a password and die with the process that
started them (``tests.servers.Child``). PostgreSQL refuses to run as root: its data then belongs to the
user that Debian's package makes, in a folder that this user can reach, which a test's own is not.

    with PostgresServer(folder) as postgres, RedisServer(folder) as redis:
        postgres.url, redis.url
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from tests.servers import Child, free_port

INSTALL = "apt-get install -y --no-install-recommends postgresql redis-server"

USER = DATABASE = "prefect"
PASSWORD = "mixpool-secret"  # for a server on loopback that lives as long as a test

# Nothing has to survive a crash of the machine; connections come over loopback only.
POSTGRES_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "64MB",
    "jit": "off",
}

REDIS_OPTIONS = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir {folder}
save ""
appendonly no
maxmemory-policy noeviction
"""


def wait_until(is_ready: Callable[[], bool], child: Child, seconds: float = 30) -> None:
    """Return when ``is_ready``.

    Raises:
        RuntimeError: the server ended instead.
        TimeoutError: it did neither in ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not is_ready():
        child.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer in {seconds} s; look into {child.log}")
        time.sleep(0.05)


def find(program: str) -> str:
    """Where a program is; Debian keeps PostgreSQL's outside of the search path.

    Raises:
        RuntimeError: it is not installed; the message has the command.
    """
    homes = Path("/usr/lib/postgresql").glob("*/bin")
    newest_first = sorted(homes, key=lambda home: int(home.parent.name), reverse=True)
    places = [*map(str, newest_first), os.environ.get("PATH", os.defpath)]
    found = shutil.which(program, path=os.pathsep.join(places))
    if found is None:
        raise RuntimeError(f"{program} not found; on Debian, as root: {INSTALL}")
    return found


class PostgresServer:
    """A new PostgreSQL with an empty database ``prefect``."""

    def __init__(self, folder: Path) -> None:
        """Nothing runs before ``start``; ``folder/postgres.log`` has what it says."""
        self._log = folder / "postgres.log"
        self._port = free_port()
        self._home: Path | None = None
        self._child: Child | None = None
        self.url = f"postgresql+asyncpg://{USER}:{PASSWORD}@127.0.0.1:{self._port}/{DATABASE}"

    def start(self) -> None:
        """Make the database and wait until it answers.

        Raises:
            RuntimeError: PostgreSQL is not installed, or ended at once.
        """
        server, is_ready = find("postgres"), find("pg_isready")
        data = self._make_cluster()
        options = [f"-c{name}={value}" for name, value in POSTGRES_OPTIONS.items()]
        command = [*_as_user(), server, "-D", str(data), "-p", str(self._port), *options]
        self._child = Child(command, self._log)
        place = ["-h", "127.0.0.1", "-p", str(self._port), "-U", USER]
        asked = [is_ready, "-q", *place, "-d", "postgres"]
        try:
            wait_until(lambda: subprocess.call(asked) == 0, self._child)
            _run([find("createdb"), *place, DATABASE], {"PGPASSWORD": PASSWORD})
        except BaseException:
            self.stop()
            raise

    def _make_cluster(self) -> Path:
        self._home = Path(tempfile.mkdtemp(prefix="mixpool-postgres-"))
        password, data = self._home / "password", self._home / "data"
        password.write_text(PASSWORD)
        if _as_user():
            for path in (self._home, password):
                shutil.chown(path, "postgres", "postgres")
        identity = [f"--username={USER}", f"--pwfile={password}", "--auth=scram-sha-256"]
        storage = [f"--pgdata={data}", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
        _run([*_as_user(), find("initdb"), *identity, *storage])
        return data

    def stop(self) -> None:
        """End it and throw its data away; nothing happens if it does not run."""
        if self._child is not None:
            self._child.stop()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
        self._child = self._home = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class RedisServer:
    """A new, empty Redis that asks for a password."""

    def __init__(self, folder: Path) -> None:
        """Nothing runs before ``start``; ``folder/redis.log`` has what it says."""
        self._folder = folder.resolve()
        self.host, self.port, self.password = "127.0.0.1", free_port(), PASSWORD
        self.url = f"redis://default:{self.password}@{self.host}:{self.port}/0"
        self._child: Child | None = None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: Redis is not installed, or ended at once.
        """
        config = self._folder / "redis.conf"
        options = {"port": self.port, "password": self.password, "folder": self._folder}
        config.write_text(REDIS_OPTIONS.format(**options))
        self._child = Child([find("redis-server"), config], self._folder / "redis.log")
        try:
            wait_until(self._is_ready, self._child)
        except BaseException:
            self.stop()
            raise

    def _is_ready(self) -> bool:
        with Redis.from_url(self.url) as client:
            try:
                return bool(client.ping())
            except RedisError:
                return False

    def stop(self) -> None:
        """End it; nothing happens if it does not run."""
        if self._child is not None:
            self._child.stop()
        self._child = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _as_user() -> list[str]:
    """What stands before a command that must not run as root; it becomes that command."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    env = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
