"""A real Prefect server for tests, as a plain process on this machine's loopback address.

Alone it keeps everything in SQLite in its folder; given PostgreSQL and Redis (``tests.databases``) it is
what ``deploy/compose.yaml`` runs, in one process or as an API and its background services apart. It
never reads the caller's Prefect settings: profile, home and every ``PREFECT_`` variable are its own.
``environment`` leads a client in another process here.

    with PrefectServer(folder, auth="team:secret") as server:
        subprocess.run(command, env={**clean_environment(), **server.environment})
"""

import base64
import http.client
import json
import os
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from flows.prefect.settings import CLIENT, SERVER
from tests.databases import RedisServer, wait_until
from tests.servers import Child, free_port, is_answered

QUIET = {
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
    "NO_COLOR": "1",
}

WITH_REDIS = {
    "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
    "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
    # prefect-redis 0.3.0 empties its batch every ten seconds, with whatever came while it waited for Redis.
    "PREFECT_REDIS_MESSAGING_PUBLISHER_BATCH_SIZE": "1",
    "PREFECT_REDIS_MESSAGING_PUBLISHER_PUBLISH_EVERY": "86400",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
    "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": "prefect_redis.cleanup_queue",
}
"""What several server processes must share: events, their order, leases, workers' clean-up; no event lost."""


class Answer(NamedTuple):
    """Status and body of an HTTP response."""

    status: int
    body: Any


class PrefectServer:
    """``prefect server start`` in a folder of its own; the database outlives a restart."""

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        database_url: str | None = None,
        redis: RedisServer | None = None,
        auth: str | None = None,
        settings: Mapping[str, str] | None = None,
        *,
        services_apart: bool = False,
    ) -> None:
        """Nothing runs before ``start``.

        Args:
            folder: Where logs, homes and the SQLite file go; made if it is not there.
            port: TCP port on 127.0.0.1; a free one if None.
            database_url: A PostgreSQL; SQLite in ``folder`` if None.
            redis: The broker; the server's own memory if None.
            auth: ``user:password`` that every request must bring; nobody is asked if None.
            settings: Further variables of the server, which win over ours.
            services_apart: Run background services in a second process; needs ``redis``.
        """
        self.folder = folder.resolve()
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api_url = f"{self.url}/api"
        self._auth = auth
        self._apart = services_apart
        self._children: list[Child] = []
        database = database_url or f"sqlite+aiosqlite:///{self.folder}/prefect.db"
        self._settings = {
            **CLIENT,
            **SERVER,
            **QUIET,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            # `--host` and `--port` would leave the page asking port 4200.
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self.port),
            **({"PREFECT_SERVER_API_AUTH_STRING": auth} if auth else {}),
            **(_broker(redis) if redis else {}),
            **(settings or {}),
        }

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead a client here; ``clean_environment`` is what they are added to."""
        home = self.folder / "client"
        home.mkdir(parents=True, exist_ok=True)
        known = {**CLIENT, **QUIET, "PREFECT_API_URL": self.api_url, "PREFECT_HOME": str(home)}
        return known | ({"PREFECT_API_AUTH_STRING": self._auth} if self._auth else {})

    def start(self, seconds: float = 120) -> None:
        """Start it unless it runs, and wait until its API answers.

        Raises:
            RuntimeError: something else listens at its port, or it ended at once.
            TimeoutError: it did not answer in ``seconds``.
        """
        if self._children:
            return
        if is_answered(self.url):
            raise RuntimeError(f"something else listens at {self.url}; choose another port")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            web = self._launch("server", "start", *(["--no-services"] if self._apart else []))
            wait_until(self._is_healthy, web, seconds)
            if self._apart:  # after the API, which has made the tables by then
                self._launch("server", "services", "start", name="services")
        except BaseException:
            self.kill()
            raise

    def _launch(self, *command: str, name: str = "server") -> Child:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        environment = {**self._settings, "PREFECT_HOME": str(home)}
        # A child gets our environment, and `env` takes away what it must not see.
        dropped = [f"--unset={key}" for key in _foreign(os.environ) if key not in environment]
        program = ["env", *dropped, sys.executable, "-m", "prefect", *command]
        child = Child(program, self.folder / f"{name}.log", environment)
        self._children.append(child)
        return child

    def _is_healthy(self) -> bool:
        try:
            return self.request("GET", "/health").status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """What the API answers to a bare HTTP request: no token, no credentials but ``headers``."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, f"/api{path}", data, sent)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        try:
            return Answer(response.status, json.loads(text) if text else None)
        except ValueError:
            return Answer(response.status, text.decode(errors="replace"))

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What the API answers to somebody with credentials and, where it is asked for, a token.

        Raises:
            RuntimeError: it refuses.
        """
        answer = self.request(method, path, body, {**self.credentials, **self._token()})
        if answer.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.body}")
        return answer.body

    @property
    def credentials(self) -> dict[str, str]:
        """The header that says who asks; empty where nobody is asked."""
        if not self._auth:
            return {}
        return {"Authorization": f"Basic {base64.b64encode(self._auth.encode()).decode()}"}

    def _token(self) -> dict[str, str]:
        client = str(uuid.uuid4())
        answer = self.request("GET", f"/csrf-token?client={client}", headers=self.credentials)
        if answer.status != http.client.OK:
            return {}  # switched off
        return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": answer.body["token"]}

    def stop(self) -> None:
        """End it in order; nothing happens if it does not run."""
        while self._children:
            self._children.pop().stop()

    def kill(self) -> None:
        """As ``kill -9`` does; nothing happens if it does not run."""
        while self._children:
            self._children.pop().kill()

    def restart(self) -> None:
        """Kill it if it runs; start it again on the same port with the same database."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def clean_environment() -> dict[str, str]:
    """Our environment without anything that is meant for Prefect."""
    foreign = set(_foreign(os.environ))
    return {name: value for name, value in os.environ.items() if name not in foreign}


def _foreign(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith("PREFECT_")]


def _broker(redis: RedisServer) -> dict[str, str]:
    return {
        **WITH_REDIS,
        "PREFECT_REDIS_MESSAGING_URL": redis.url,
        "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": redis.url,
        "PREFECT_SERVER_DOCKET_URL": redis.url,
    }
