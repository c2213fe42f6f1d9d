"""The flows on what a team runs: PostgreSQL, Redis, Prefect with a password, S3, a process worker.

One set of servers serves all tests, in their order: each goes on from what the earlier ones have left,
and a worker that is killed early on is looked at in the end, as nobody misses it for a minute and a half.
"""

import asyncio
import contextlib
import io
import itertools
import json
import platform
import re
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from storage import audit, garbage, lineage
from storage.artifact import dashed
from tests.databases import PASSWORD
from tests.prefect_api import FINAL, PrefectApi
from tests.servers import BUCKET
from tests.team import AUTH, KEYS, MIXPOOL, Deployment, Team

if TYPE_CHECKING:
    from tests.conftest import TinyCorpus, TinyRecipe
    from tests.servers import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.team, pytest.mark.timeout(900)]

RUN_SECONDS = 240.0
"""For a small run; it takes some 15 s."""
RUNTIME = {"device": "cpu", "threads": 1}
LIMIT = dashed("mixpool", platform.node(), "cpu")
FIRST = {f"{domain}-0" for domain in ("birds", "cooking", "law", "letters", "rivers", "sums")}
NEW = "tools-0"
LONG_STEPS, OTHER_STEPS = 100_000, 6
NUM_EVENTS = 8


@pytest.fixture(scope="module")
def team(
    tmp_path_factory: pytest.TempPathFactory, s3_server: "S3Server", tiny_recipe: "TinyRecipe"
) -> Iterator[Team]:
    """All servers; the flows are registered, and look for data every hour."""
    with Team(tmp_path_factory.mktemp("team"), s3_server, tiny_recipe) as made:
        made.deploy(every=3600)
        yield made


@pytest.fixture(scope="module")
def api(team: Team) -> Iterator[PrefectApi]:
    """The server's API."""
    with team.api() as found:
        yield found


@pytest.fixture(scope="module")
def ingest(team: Team, api: PrefectApi) -> Deployment:
    """The deployment that events and schedules start; its runs wait a second for files to settle."""
    found = Deployment(team, api, "ingest/mixpool")
    parameters = {**found.content()["parameters"], "settle_seconds": 1, "runtime": RUNTIME}
    found.change(parameters=parameters)
    return found


def trained(tasks: dict[str, str], state: str = "Completed") -> set[str]:
    """What task runs in a state have trained."""
    return {
        name.removeprefix("train ")
        for name, found in tasks.items()
        if name.startswith("train ") and found == state
    }


def labels(team: Team) -> list[str]:
    """What each training in the store has trained."""
    return sorted(record.label for record in team.store().records("train"))


def rankings(team: Team) -> dict[str, bytes]:
    """The table of each finished run, by name, oldest first."""
    store = team.store()
    ended = [name for name, content in lineage.run_folders(store).items() if content]
    return {name: store.backend.read(f"runs/{name}/ranking.parquet") for name in ended}


def count(api: PrefectApi, runs: list[str], **state: Any) -> int:
    """How many task runs of flow runs the API knows, of a state if one is given."""
    chosen = {"task_runs": {"state": state}} if state else {}
    return int(api.ask("/task_runs/count", {"flow_runs": {"id": {"any_": runs}}, **chosen}))


def overlaps(spans: list[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Those that end when the next one has begun already."""
    pairs = itertools.pairwise(sorted(spans))
    return [(began, ended) for (_, ended), (began, _) in pairs if began < ended]


def span(run: dict[str, Any]) -> tuple[datetime, datetime]:
    """When a run began and ended."""
    return datetime.fromisoformat(run["start_time"]), datetime.fromisoformat(run["end_time"])


# Data lands --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(team: Team, api: PrefectApi, ingest: Deployment) -> str:
    """The first run, which has ended."""
    team.start_worker()
    run = api.start(ingest.name)
    api.wait(run, RUN_SECONDS)
    return run


def test_the_first_run_trains_everything_and_shows_it(
    team: Team, api: PrefectApi, first: str
) -> None:
    assert api.run(first)["state_name"] == "Completed"
    assert trained(api.tasks(first)) == {"base", *FIRST}
    left = api.artifacts(first)
    assert {"tiny-plan", "tiny-ranking", "tiny-cost", "tiny-summary"} <= set(left)
    assert len(json.loads(left["tiny-ranking"]["data"])) == 21
    assert team.pool in left["tiny-summary"]["data"]
    assert labels(team) == sorted(["base", *FIRST])


ROOT = Path(__file__).parents[2]
NOTIFY = f"""
import fsspec, runpy, sys
bucket, _, key = sys.argv[1].removeprefix("s3://").partition("/")
info = fsspec.filesystem("s3").info(sys.argv[1])
found = {{"key": key, "eTag": info["ETag"].strip('"'), "size": info["size"]}}
record = {{"eventName": "ObjectCreated:Put", "s3": {{"bucket": {{"name": bucket}}, "object": found}}}}
print(runpy.run_path("{ROOT / "deploy" / "landed.py"}")["handler"]({{"Records": [record]}}))
"""
"""Does what S3 and Lambda do for a new object."""


@pytest.fixture(scope="module")
def landed(
    team: Team, api: PrefectApi, first: str, tiny_corpus: "TinyCorpus"
) -> tuple[str, list[str]]:
    """The URL of new data, which was told three times, and what the store had before."""
    assert api.run(first)["state_type"] == "COMPLETED"
    before = labels(team)
    text = (tiny_corpus(team.folder / "new", seed=1) / "birds.jsonl").read_bytes()
    url = team.put("corpus/tools.jsonl", text)
    told = [team.start(MIXPOOL, "landed", url, "--corpus", "tiny") for _ in range(2)]
    assert len({team.finish(one) for one in told}) == 1
    notified = team.start("env", "MIXPOOL_CORPUS=tiny", sys.executable, "-c", NOTIFY, url)
    assert team.finish(notified).strip() == "1"
    return url, before


def test_data_that_lands_starts_one_run_that_trains_what_is_new(
    team: Team, api: PrefectApi, ingest: Deployment, landed: tuple[str, list[str]], first: str
) -> None:
    url, before = landed
    team.wait("the event has started a run", lambda: bool(started_for(ingest, [url])), 90)
    (run,) = started_for(ingest, [url])
    assert api.wait(run["id"], RUN_SECONDS)["state_name"] == "Completed"
    tasks = api.tasks(run["id"])
    assert trained(tasks) == {NEW}
    assert trained(tasks, "Cached") == trained(api.tasks(first))
    assert labels(team) == sorted([*before, NEW])
    rows = json.loads(api.artifacts(run["id"])["tiny-ranking"]["data"])
    assert len([row for row in rows if NEW in row["mixture"]]) == 7
    assert set(mixtures(team)) == {row["mixture"] for row in rows}


def started_for(ingest: Deployment, urls: list[str]) -> list[dict[str, Any]]:
    """The runs that events of these URLs have started."""
    return [run for run in ingest.runs() if run["parameters"].get("uri") in urls]


def mixtures(team: Team) -> list[str]:
    """All mixtures in the newest ranking."""
    import pandas as pd

    (*_, newest) = rankings(team).values()
    return [str(name) for name in pd.read_parquet(io.BytesIO(newest))["mixture"].unique()]


# A worker dies -----------------------------------------------------------------------------------


class Crash(NamedTuple):
    """A run that trained when its worker and its process were killed."""

    run: str
    device: psutil.Process
    time: float


def slots(api: PrefectApi) -> tuple[int, int]:
    """How many slots the device's limit has, and how many are taken."""
    found = api.get(f"/v2/concurrency_limits/{LIMIT}")
    return found["limit"], found["active_slots"]


@pytest.fixture(scope="module")
def crash(team: Team, api: PrefectApi, landed: tuple[str, list[str]]) -> Crash:
    """A training that is going on loses the run that it is for."""
    del landed  # its run has ended
    team.start_worker()
    run = api.start(
        "ablate/mixpool",
        overrides=[f"train.steps={LONG_STEPS}"],
        runtime={**RUNTIME, "checkpoint_seconds": 1},
    )
    backend = team.store().backend

    def is_training() -> bool:
        return any("lease" not in path for path in backend.list("work/train"))

    api.until(run, is_training, RUN_SECONDS)
    assert slots(api) == (1, 1)
    (device,) = team.kill_worker(spared="flows.runners.worker")
    return Crash(run, device, time.monotonic())


def test_the_process_of_a_device_does_not_outlive_its_run(crash: Crash) -> None:
    assert psutil.wait_procs([crash.device], 30)[1] == []


# Rows and names ----------------------------------------------------------------------------------

NUM_TASK_RUNS = 500
SETTLE_SECONDS = 25
"""With these settings it takes some 4 s for four times as many, with Prefect's own a minute."""


@pytest.mark.usefixtures("crash")
def test_every_task_run_of_a_burst_gets_its_row_and_its_end(team: Team, api: PrefectApi) -> None:
    """Hundreds a second, far more than a chain makes: rows of a burst wait in Redis."""
    script = Path(__file__).with_name("many_task_runs.py")
    said = team.finish(team.start(sys.executable, script, str(NUM_TASK_RUNS)))
    run, half = re.findall(r"^flow run (\S+)$", said, re.MULTILINE), NUM_TASK_RUNS // 2
    wanted = {"all": NUM_TASK_RUNS, "ended": NUM_TASK_RUNS, "Completed": half, "Cached": half}
    found: dict[str, int] = {}

    def is_whole() -> bool:
        found["all"] = count(api, run)
        found["ended"] = count(api, run, type={"any_": ["COMPLETED"]})
        found["Completed"] = count(api, run, name={"any_": ["Completed"]})
        found["Cached"] = count(api, run, name={"any_": ["Cached"]})
        return found == wanted

    with contextlib.suppress(TimeoutError):
        team.wait("all rows are there", is_whole, SETTLE_SECONDS, pause=0.5)
    assert found == wanted


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
def test_strangers_are_refused(team: Team, method: str, path: str, headers: dict[str, str]) -> None:
    answer = team.server.request(method, path, [] if path == "/events" else {}, headers)
    # A change without a token is refused before anybody is asked for a name.
    assert answer.status == (401 if method == "GET" else 403)


def test_a_token_alone_opens_nothing(team: Team) -> None:
    server, client = team.server, TOKEN["Prefect-Csrf-Client"]
    answer = server.request("GET", f"/csrf-token?client={client}", headers=server.credentials)
    true = {**TOKEN, "Prefect-Csrf-Token": answer.body["token"]}
    for path, body in (("/flow_runs/filter", {}), ("/events", [])):
        statuses = [
            server.request("POST", path, body, headers).status
            for headers in ({**true}, {**true, **WRONG}, {**TOKEN, **server.credentials})
        ]
        assert statuses == [401, 401, 403]
        assert server.request("POST", path, body, {**true, **server.credentials}).status < 300


def test_only_probes_need_no_name(team: Team) -> None:
    assert [team.server.request("GET", path).status for path in ("/health", "/ready")] == [200, 200]


def test_events_are_not_taken_from_strangers(team: Team) -> None:
    async def knock() -> None:
        async with connect(f"ws://127.0.0.1:{team.server.port}/api/events/in"):
            raise AssertionError("it was let in")

    with pytest.raises(InvalidStatus, match="403"):
        asyncio.run(knock())


# Nothing new -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("crash")
def test_many_events_at_once_are_answered_by_few_runs(
    team: Team, api: PrefectApi, ingest: Deployment
) -> None:
    team.start_worker()
    before, tables = labels(team), rankings(team)
    urls = [f"{team.where}/corpus/part-{number}.jsonl" for number in range(NUM_EVENTS)]
    events = [
        {
            "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": "corpus.data.landed",
            "resource": {"prefect.resource.id": "corpus.tiny"},
            "payload": {"uri": url},
        }
        for url in urls
    ]
    team.server.ask("POST", "/events", events)

    def are_answered() -> bool:
        started = started_for(ingest, urls)
        return len(started) == NUM_EVENTS and {run["state_type"] for run in started} <= FINAL

    team.wait("all events are answered", are_answered, RUN_SECONDS)
    runs = started_for(ingest, urls)
    assert sorted(run["parameters"]["uri"] for run in runs) == sorted(urls)
    looked = [run for run in runs if run["state_name"] == "Unchanged"]
    covered = [run for run in runs if run["state_name"] == "Covered"]
    assert len(looked) + len(covered) == NUM_EVENTS
    assert 1 <= len(looked) < NUM_EVENTS / 2
    assert count(api, [run["id"] for run in runs]) == 0
    assert (labels(team), rankings(team)) == (before, tables)
    assert overlaps([span(run) for run in looked]) == []


@pytest.mark.usefixtures("crash")
def test_a_schedule_is_replaced_and_its_looks_cost_next_to_nothing(
    team: Team, api: PrefectApi, ingest: Deployment
) -> None:
    team.start_worker()
    by_hand = {"slug": "by-hand", "active": False, "schedule": {"cron": "0 0 1 1 *"}}
    team.server.ask("POST", f"/deployments/{ingest.id}/schedules", [by_hand])
    team.deploy(every=15)
    schedules = {found["slug"]: found for found in ingest.content()["schedules"]}
    assert sorted(schedules) == ["by-hand", "mixpool"]
    assert schedules["mixpool"]["schedule"]["interval"] == 15
    before = len(team.proxy.log)

    def looks() -> list[dict[str, Any]]:
        found = ingest.runs(state={"name": {"any_": ["Unchanged"]}})
        return [run for run in found if run["auto_scheduled"]]

    team.wait("a look has ended", lambda: bool(looks()), RUN_SECONDS)
    for found in schedules.values():
        team.server.ask("DELETE", f"/deployments/{ingest.id}/schedules/{found['id']}")
    going_on = {"type": {"not_any_": [*FINAL]}}
    team.wait("no look goes on", lambda: ingest.runs(state=going_on) == [], RUN_SECONDS)
    ended = looks()
    assert count(api, [run["id"] for run in ended]) == 0
    assert max(run["total_run_time"] for run in ended) < 10
    targets = [unquote(target) for _, target, _ in team.proxy.log[before:]]
    prefix = f"prefix={team.where.removeprefix(f's3://{BUCKET}/')}/corpus/&"
    listings = [target for target in targets if prefix in target and "max-keys" not in target]
    assert len(listings) == len(ended)


# Two runs at once --------------------------------------------------------------------------------


def test_the_device_of_a_dead_run_is_free_again(team: Team, api: PrefectApi, crash: Crash) -> None:
    left = crash.time + 150 - time.monotonic()
    team.wait("nobody holds the device", lambda: slots(api) == (1, 0), max(left, 1))


@pytest.mark.usefixtures("crash")
def test_two_runs_at_once_share_the_work_and_take_turns(team: Team, api: PrefectApi) -> None:
    team.start_worker()
    known = {*rankings(team)}
    begun = [
        api.start("ablate/mixpool", overrides=[f"train.steps={OTHER_STEPS}"], runtime=RUNTIME)
        for _ in range(2)
    ]
    ended = [api.wait(run, RUN_SECONDS) for run in begun]
    assert [run["state_name"] for run in ended] == ["Completed"] * 2
    assert max(run["start_time"] for run in ended) < min(run["end_time"] for run in ended)
    folders = lineage.run_folders(team.store())
    summaries = [content["summary"] for content in folders.values() if content][-2:]
    tables = {name: table for name, table in rankings(team).items() if name not in known}
    assert (len(tables), len({*tables.values()})) == (2, 1)
    by_each = [label for summary in summaries for label in summary["trained"]]
    assert sorted(by_each) == sorted([*FIRST, NEW])
    spans = times(team, OTHER_STEPS)
    assert len(spans) == len(by_each)
    assert overlaps(spans) == []


def times(team: Team, steps: int) -> list[tuple[datetime, datetime]]:
    """When each training of so many steps began and ended."""
    found = [record for record in team.store().records("train") if record.config["steps"] == steps]
    ends = [datetime.fromisoformat(record.provenance["created"]) for record in found]
    seconds = [timedelta(seconds=record.cost["seconds"]) for record in found]
    return [(end - took, end) for end, took in zip(ends, seconds, strict=True)]


# In the end --------------------------------------------------------------------------------------


def test_a_run_whose_processes_are_gone_is_ended(team: Team, api: PrefectApi, crash: Crash) -> None:
    left = crash.time + 300 - time.monotonic()
    found = api.wait(crash.run, max(left, 1))
    assert found["state_type"] == "CRASHED"
    assert "nothing was heard of its process for 90 seconds" in found["state"]["message"]
    assert times(team, LONG_STEPS) == []
    assert audit.verify(team.store(), lambda done, total, unit: None) == []
    assert garbage.live_work(team.store()) == []


def test_an_event_told_twice_has_started_one_run(
    ingest: Deployment, landed: tuple[str, list[str]]
) -> None:
    """Minutes later, too."""
    assert len(started_for(ingest, [landed[0]])) == 1


def pages(api: PrefectApi, kind: str) -> Iterator[dict[str, Any]]:
    """Everything of a kind that the server has."""
    for offset in itertools.count(step=200):
        found = api.ask(f"/{kind}/filter", {"offset": offset, "limit": 200})
        yield from found
        if len(found) < 200:
            return


KINDS = ("flow_runs", "artifacts", "logs", "deployments", "work_pools", "automations")


@pytest.mark.usefixtures("crash")
def test_no_secret_is_left_anywhere(team: Team, api: PrefectApi) -> None:
    everything = [(kind, json.dumps(one)) for kind in KINDS for one in pages(api, kind)]
    assert {kind for kind, _ in everything} == {*KINDS}
    logs = [*team.folder.glob("*.log"), *team.folder.glob("prefect/*.log")]
    everything += [(log.name, log.read_text(errors="replace")) for log in logs]
    assert {"worker.log", "server.log", "services.log"} <= {name for name, _ in everything}
    sent = team.server.credentials["Authorization"].removeprefix("Basic ")
    for secret in (*KEYS.values(), AUTH.partition(":")[2], sent, PASSWORD):
        assert [where for where, text in everything if secret in text] == []


@pytest.mark.usefixtures("crash")
def test_the_services_have_met_no_fault(team: Team) -> None:
    """What fails there ends no run: schedules, for one, would never start any."""
    said = (team.folder / "prefect" / "services.log").read_text()
    assert [line for line in said.splitlines() if " | ERROR " in line] == []
