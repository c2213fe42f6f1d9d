"""What a team runs, as plain processes of this machine: PostgreSQL, Redis, Prefect, a worker, a bucket.

Prefect's API and its background services are processes of their own and ask for a password and a token.
Worker and commands reach the bucket through a proxy that counts requests and harms none. All of it dies
with the process that started it.

    with Team(folder, s3, recipe) as team, team.api() as api:
        team.deploy()
        team.start_worker()
        api.wait(api.start("ingest/mixpool"), 60)
"""

import itertools
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
import pytest

from flows.chain.recipe import Recipe
from flows.chain.recipe_file import to_yaml
from storage.store import Store
from tests.databases import PostgresServer, RedisServer
from tests.faulty import FaultyProxy
from tests.prefect_api import PrefectApi
from tests.prefect_server import PrefectServer
from tests.servers import BUCKET, Child, S3Server

MIXPOOL = Path(sys.executable).with_name("mixpool")
AUTH = "team:planted-Passw0rd-of-the-team"
KEYS = {"access_key": "AKIAPLANTED5TEAM", "secret_key": "planted/secret+key+of+the+team"}
"""What the servers of S3 that tests start take anything for."""

COMMAND_SECONDS = 120.0
"""A command takes some 5 s, most of it for imports."""


class Started(NamedTuple):
    """A command that goes on."""

    process: "subprocess.Popen[bytes]"
    log: Path


class Worker(Child):
    """A worker, which starts a process for each flow run."""

    def family(self) -> list[psutil.Process]:
        """The worker, its runs, and the processes of their devices."""
        head = psutil.Process(self._process.pid)
        return [head, *head.children(recursive=True)]


class Team:
    """Everything, with a corpus and a recipe in a folder of its own of the bucket.

    Args:
        folder: for data, homes and logs.
        s3: a server with the bucket ``tests.servers.BUCKET``.
        make_recipe: makes the recipe, given overrides, and writes the corpus to ``folder/corpus``.
    """

    def __init__(self, folder: Path, s3: S3Server, make_recipe: Callable[..., Recipe]) -> None:
        self.folder, self.s3 = folder, replace(s3, **KEYS)
        self.where = f"s3://{BUCKET}/team-{uuid.uuid4().hex[:8]}"
        self.recipe, self.pool = f"{self.where}/recipe.yaml", f"{self.where}/pool"
        self._make_recipe = make_recipe
        self._worker: Worker | None = None
        self._held = ExitStack()
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.callback(self.kill_worker)
            self.proxy = held.enter_context(FaultyProxy(self.s3.endpoint, rate=0, seed=0))
            postgres = held.enter_context(PostgresServer(self.folder))
            redis = held.enter_context(RedisServer(self.folder))
            self.server = PrefectServer(
                self.folder / "prefect",
                database_url=postgres.url,
                redis=redis,
                auth=AUTH,
                services_apart=True,
            )
            patch = held.enter_context(pytest.MonkeyPatch.context())
            for name in [name for name in os.environ if name.startswith("PREFECT_")]:
                patch.delenv(name)
            for name, value in self._environment().items():
                patch.setenv(name, value)
            self._upload()
            held.enter_context(self.server)
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def _environment(self) -> dict[str, str]:
        return {
            **self.s3.environment,
            **self.server.environment,
            "AWS_ENDPOINT_URL": self.proxy.endpoint,
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            # By default a worker looks for runs every ten seconds.
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "OMP_NUM_THREADS": "1",
        }

    def _upload(self) -> None:
        urls = f"corpus.source.urls=['{self.where}/corpus/*.jsonl']"
        text = to_yaml(self._make_recipe(self.folder, urls))
        for path in (self.folder / "corpus").iterdir():
            self.put(f"corpus/{path.name}", path.read_bytes())
        self.put("recipe.yaml", text.encode())

    # What a person does --------------------------------------------------------------------------

    def put(self, name: str, data: bytes) -> str:
        """Put an object below ``where``; its URL."""
        url = f"{self.where}/{name}"
        key = url.removeprefix(f"s3://{BUCKET}/")
        self.s3.client().put_object(Bucket=BUCKET, Key=key, Body=data)
        return url

    def start(self, *command: str | Path) -> Started:
        """Start a command that knows where everything is."""
        log = self.folder / f"command-{next(self._numbers)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT
            )
        self._held.callback(process.kill)
        return Started(process, log)

    def finish(self, started: Started, seconds: float = COMMAND_SECONDS) -> str:
        """What a command said, which must have gone well by then."""
        self.wait(f"{started.log.name} ends", lambda: started.process.poll() is not None, seconds)
        assert started.process.wait() == 0, self.said()
        return started.log.read_text()

    def deploy(self, every: float) -> None:
        """Register the flows."""
        places = ("--store", self.pool, "--recipe", self.recipe)
        self.finish(self.start(MIXPOOL, "deploy", *places, "--every", str(every)))

    def start_worker(self) -> Worker:
        """The worker, which is started where there is none."""
        if self._worker is None:
            command = [sys.executable, "-m", "prefect", "worker", "start"]
            options = ["--pool", "mixpool", "--type", "process", "--limit", "3"]
            self._worker = Worker([*command, *options], self.folder / "worker.log")
        return self._worker

    def kill_worker(self, spared: str | None = None) -> list[psutil.Process]:
        """As ``kill -9`` does, the worker and all it started; those whose command says ``spared``."""
        if self._worker is None:
            return []
        family = self._worker.family()
        left = [one for one in family if spared is not None and spared in " ".join(one.cmdline())]
        for process in family:
            if process not in left:
                process.kill()
        self._worker.kill()
        self._worker = None
        return left

    # What there is -------------------------------------------------------------------------------

    def api(self) -> PrefectApi:
        """A client of Prefect; to be closed."""
        return PrefectApi(self.server.url.replace("://", f"://{AUTH}@"), self.said)

    def store(self) -> Store:
        """A new client of the store."""
        return Store(self.pool, create=False)

    def said(self) -> str:
        """The last lines of servers, worker and commands."""
        logs = [*self.folder.glob("*.log"), *self.folder.glob("prefect/*.log")]
        texts = {log.name: log.read_text(errors="replace") for log in logs}
        return "\n".join(f"{name}:\n{text[-2000:]}" for name, text in texts.items())

    def wait(
        self, what: str, is_so: Callable[[], bool], seconds: float, pause: float = 0.3
    ) -> float:
        """Return when it is so; after how many seconds. Raises TimeoutError with all logs."""
        began = time.monotonic()
        while not is_so():
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"not so after {seconds:g} s: {what}\n{self.said()}")
            time.sleep(pause)
        return time.monotonic() - began


class Deployment:
    """One deployment as the API has it."""

    def __init__(self, team: Team, api: PrefectApi, name: str) -> None:
        self._team, self._api, self.name = team, api, name
        self.id = api.deployment(name)

    def change(self, path: str = "", **fields: Any) -> None:
        """Change some of its fields, or of something below it."""
        self._team.server.ask("PATCH", f"/deployments/{self.id}{path}", fields)

    def content(self) -> dict[str, Any]:
        """What the server knows of it."""
        found: dict[str, Any] = self._api.get(f"/deployments/{self.id}")
        return found

    def runs(self, **chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Its runs that filters of the API choose, in the order of their expected start."""
        found: list[dict[str, Any]] = self._api.ask(
            "/flow_runs/filter",
            {
                "deployments": {"id": {"any_": [self.id]}},
                "flow_runs": chosen,
                "sort": "EXPECTED_START_TIME_ASC",
            },
        )
        return found
