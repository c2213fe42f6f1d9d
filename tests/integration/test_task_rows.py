"""A team's server, as deploy/compose.yaml runs it: no row of a task run is lost, and nobody asks unnamed.

PostgreSQL, Redis, the API, the background services in a process of their own, credentials and tokens.
Task runs come at hundreds a second, which is far more than a chain makes: rows of a burst wait in Redis.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.databases import PostgresServer, RedisServer
from tests.prefect_server import PrefectServer, clean_environment

ROOT = Path(__file__).parents[2]
NUM_TASK_RUNS = 2000
SETTLE_SECONDS = 25
"""With these settings it takes some 4 s, with Prefect's own a minute."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """The server, alone in its databases."""
    folder = tmp_path_factory.mktemp("team")
    with PostgresServer(folder) as postgres, RedisServer(folder) as redis:
        made = PrefectServer(
            folder / "prefect",
            database_url=postgres.url,
            redis=redis,
            auth="team:mixpool-secret",
            services_apart=True,
        )
        with made:
            yield made


def count(server: PrefectServer, flow_run: str, **state: Any) -> int:
    """How many task runs of a flow run the API knows, of a state if one is given."""
    asked: dict[str, Any] = {"flow_runs": {"id": {"any_": [flow_run]}}}
    if state:
        asked["task_runs"] = {"state": state}
    found: int = server.ask("POST", "/task_runs/count", asked)
    return found


def test_every_task_run_of_a_burst_gets_its_row_and_its_end(server: PrefectServer) -> None:
    script = Path(__file__).with_name("many_task_runs.py")
    done = subprocess.run(
        [sys.executable, script, str(NUM_TASK_RUNS)],
        env={**clean_environment(), **server.environment, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    flow_run = done.stdout.split()[-1]
    deadline = time.monotonic() + SETTLE_SECONDS
    while (ended := count(server, flow_run, type={"any_": ["COMPLETED"]})) < NUM_TASK_RUNS:
        assert time.monotonic() < deadline, f"{ended} of {NUM_TASK_RUNS} rows show an end"
        time.sleep(0.5)
    found = {
        "all": count(server, flow_run),
        "ended": ended,
        "Completed": count(server, flow_run, name={"any_": ["Completed"]}),
        "Cached": count(server, flow_run, name={"any_": ["Cached"]}),
    }
    half = NUM_TASK_RUNS // 2
    assert found == {
        "all": NUM_TASK_RUNS, "ended": NUM_TASK_RUNS, "Completed": half, "Cached": half,
    }  # fmt: skip


WRONG = {"Authorization": "Basic dGVhbTp3cm9uZw=="}  # team:wrong
TOKEN = {"Prefect-Csrf-Client": "5e0bb2b6-6a3f-4a1c-8a57-57a6f3a6c1f6", "Prefect-Csrf-Token": "x"}


@pytest.mark.parametrize("headers", [{}, WRONG], ids=["no name", "wrong password"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/settings"),
        ("GET", "/csrf-token?client=somebody"),
        ("POST", "/flow_runs/filter"),
        ("POST", "/events"),
    ],
)
def test_strangers_are_refused(
    server: PrefectServer, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = server.request(method, path, [] if path == "/events" else {}, headers)
    # A change without a token is refused before anybody is asked for a name.
    assert answer.status == (401 if method == "GET" else 403)


def test_a_token_alone_opens_nothing(server: PrefectServer) -> None:
    client = TOKEN["Prefect-Csrf-Client"]
    answer = server.request("GET", f"/csrf-token?client={client}", headers=server.credentials)
    true = {**TOKEN, "Prefect-Csrf-Token": answer.body["token"]}
    for path, body in (("/flow_runs/filter", {}), ("/events", [])):
        statuses = [
            server.request("POST", path, body, headers).status
            for headers in ({**true}, {**true, **WRONG}, {**TOKEN, **server.credentials})
        ]
        assert statuses == [401, 401, 403]
        assert server.request("POST", path, body, {**true, **server.credentials}).status < 300


def test_only_probes_need_no_name(server: PrefectServer) -> None:
    assert [server.request("GET", path).status for path in ("/health", "/ready")] == [200, 200]


def test_events_are_not_taken_from_strangers(server: PrefectServer) -> None:
    async def knock() -> None:
        async with connect(f"ws://127.0.0.1:{server.port}/api/events/in"):
            raise AssertionError("it was let in")

    with pytest.raises(InvalidStatus, match="403"):
        asyncio.run(knock())
