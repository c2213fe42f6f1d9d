"""``mixpool serve`` as a person meets it: the form, what a run leaves, cancelling, Ctrl-C, who may ask.

One server, one worker and one Chromium serve all tests, in their order: server and worker take 15 to 30 s
to start. Runs are started and watched over the API, as the page does it; what a person must see is looked
at in the page.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.connection import Connection
from websockets.typing import Subprotocol

from flows.chain.recipe import Recipe
from flows.chain.recipe_file import to_yaml
from flows.server.guard import PASSWORD
from storage import garbage
from storage.store import Store
from tests.browser import (
    CHROMIUM,
    enter,
    list_item,
    new_page,
    open_form,
    picture,
    press_submit,
    run_page,
    submit_corrected,
)
from tests.prefect_api import PrefectApi
from tests.servers import free_port
from tests.serving import MIXPOOL, Serving, gone, run_refused

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUN_SECONDS = 180.0
"""For a small run; it takes 8 to 20 s."""
QUICK = ["train.steps=4"]
FEW = ["search.evaluations=10", "search.start=6", "search.batch=4", "search.descent=null"]
RUNTIME = {"device": "cpu", "threads": 1}

# Minutes of training, and only a stop saves what it has come to.
LONG_STEPS = 50_000
KEPT_BY_STOPS = {**RUNTIME, "checkpoint_seconds": 3600}

needs_chromium = pytest.mark.skipif(
    not CHROMIUM.exists() and not os.environ.get("CI"),
    reason=f"{CHROMIUM} is not there; install Debian's package chromium",
)


@pytest.fixture(scope="module")
def serving(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable[..., Recipe]
) -> Iterator[Serving]:
    """A recipe for the tiny corpus, an empty store, and ``mixpool serve`` for both."""
    folder = tmp_path_factory.mktemp("serve")
    recipe = folder / "recipe.yaml"
    recipe.write_text(to_yaml(tiny_recipe(folder)))
    found = Serving(folder, recipe, folder / "store")
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def api(serving: Serving) -> Iterator[PrefectApi]:
    """The server's API."""
    with serving.api() as found:
        yield found


# Who may ask -------------------------------------------------------------------------------------


def test_nothing_listens_beyond_this_machine(serving: Serving) -> None:
    found = [
        connection.laddr
        for process in serving.family()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in found} == {"127.0.0.1"}
    assert {serving.port, serving.port + 1} <= {address.port for address in found}


OTHERS = [
    # A form or a fetch of another site, a sandbox, another port here, a name that is led here.
    ({"Origin": "https://elsewhere.example"}, http.client.FORBIDDEN),
    ({"Origin": "null"}, http.client.FORBIDDEN),
    ({"Origin": "http://127.0.0.1:9"}, http.client.FORBIDDEN),
    ({"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}, http.client.BAD_REQUEST),
]
"""What a browser says of a page that is not the server's, and what the page is told."""


@pytest.mark.parametrize(("sent", "status"), OTHERS)
def test_no_page_of_another_site_can_start_a_run(
    serving: Serving, api: PrefectApi, sent: dict[str, str], status: int
) -> None:
    path = f"/deployments/{api.deployment('ablate/mixpool')}/create_flow_run"
    # Even with password and token.
    assert api.post(path, {}, sent).status_code == status
    assert httpx.get(f"{serving.url}/api/csrf-token", headers=sent).status_code == status
    with pytest.raises(InvalidStatus) as refused, open_socket(serving, sent):
        pass
    assert refused.value.response.status_code == status
    assert api.runs() == []


def test_no_other_account_of_the_machine_can_ask(serving: Serving, api: PrefectApi) -> None:
    path = f"{serving.url}/api/deployments/{api.deployment('ablate/mixpool')}/create_flow_run"
    assert httpx.post(path, json={}).status_code == http.client.FORBIDDEN  # without a token
    for asked in ("version", "csrf-token?client=me", "deployments/name/ablate/mixpool"):
        for auth in (None, ("mixpool", "wrong")):
            answer = httpx.get(f"{serving.url}/api/{asked}", auth=auth)
            assert answer.status_code == http.client.UNAUTHORIZED
    for word in ("", "mixpool:wrong"):
        with open_socket(serving, {}) as events, pytest.raises(ConnectionClosedError):
            greet(events, word)
    key, port = urlsplit(serving.pages).path, serving.port + 1
    for path in ("/", "/index.html", f"{key[:-1]}/index.html"):
        assert ask_raw(f"127.0.0.1:{port}", path, "localhost")[0] == http.client.NOT_FOUND
    assert serving.home.stat().st_mode & 0o777 == 0o700
    assert urlsplit(serving.door).fragment == serving.password
    secrets = (serving.password.partition(":")[2], key.strip("/"))
    lines = [line for process in serving.family() for line in process.cmdline()]
    assert not [line for line in lines for secret in secrets if secret in line]


def test_the_own_page_and_own_programs_are_answered(serving: Serving, api: PrefectApi) -> None:
    with open_socket(serving, {"Origin": serving.url}) as events:
        assert greet(events, serving.password) == {"type": "auth_success"}
    assert api.post("/flows/count", {}, {"Origin": serving.url}).status_code == http.client.OK


def test_a_command_without_the_password_says_where_it_is(serving: Serving) -> None:
    command = [str(MIXPOOL), "landed", str(serving.recipe)]
    said = run_refused(command, {**serving.environment, "PREFECT_API_URL": f"{serving.url}/api"})
    assert "set PREFECT_API_AUTH_STRING=user:password" in said
    assert f"the file {PASSWORD}" in said


def open_socket(serving: Serving, sent: dict[str, str]) -> ClientConnection:
    """The socket at which Prefect's programs tell of events."""
    place = urlsplit(serving.url).netloc
    return connect(
        f"ws://{sent.get('Host', place)}/api/events/in",
        sock=socket.create_connection(("127.0.0.1", serving.port)),
        subprotocols=[Subprotocol("prefect")],
        additional_headers={name: value for name, value in sent.items() if name != "Host"},
    )


def greet(events: Connection, password: str) -> Any:
    """What the server says to a password."""
    events.send(json.dumps({"type": "auth", "token": password}))
    return json.loads(events.recv(timeout=30))


def test_an_open_address_needs_a_password(serving: Serving) -> None:
    said = run_refused(serving.command("--host", "0.0.0.0"), serving.environment)
    assert "PREFECT_SERVER_API_AUTH_STRING" in said


def test_a_second_serve_leaves_the_first_alone(serving: Serving, api: PrefectApi) -> None:
    said = run_refused(serving.command("--port", str(free_port(2))), serving.environment)
    assert re.search(rf"another mixpool serve \(process \d+\) uses {serving.home}: ", said)
    assert api.get("/health") is True


@pytest.mark.parametrize("taken", [0, 1])
def test_a_port_in_use_is_named(serving: Serving, tmp_path: Path, taken: int) -> None:
    port = free_port(2)
    command = serving.command("--home", str(tmp_path), "--port", str(port))
    with socket.create_server(("127.0.0.1", port + taken)):
        said = run_refused(command, serving.environment)
    assert f"port {port + taken} of 127.0.0.1 is in use" in said


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"store": ""}, "store"),
        # Refused before it is kept, for parameters are shown.
        ({"store": "s3://me:secret@bucket/pool"}, "store"),
        ({"runtime": {"threads": 0}}, "runtime.threads"),
        ({"overrides": ["nonsense"]}, "overrides[0]"),
    ],
)
def test_what_the_form_cannot_mean_starts_nothing(
    api: PrefectApi, parameters: dict[str, Any], field: str
) -> None:
    before = len(api.runs())
    answer = api.create_run("ablate/mixpool", parameters)
    assert 400 <= answer.status_code < 500
    assert f"'{field}'" in answer.json()["detail"]
    assert len(api.runs()) == before


def test_what_the_recipe_cannot_mean_fails_at_once_with_its_fields(api: PrefectApi) -> None:
    run = api.start("ablate/mixpool", overrides=["train.steps=-1", "train.stride=2"])
    found = api.wait(run, RUN_SECONDS)
    assert found["state_name"] == "Failed"
    for field in ("train.steps", "train.stride"):
        assert f"{field}: " in found["state"]["message"]
    assert api.tasks(run) == {}


# The page ----------------------------------------------------------------------------------------


@needs_chromium
def test_a_person_fills_in_the_form_and_finds_ranking_and_report(
    serving: Serving, api: PrefectApi
) -> None:
    asked: list[str] = []
    with new_page() as page:
        page.on("request", lambda request: asked.append(request.url))
        enter(page, serving.door)
        open_form(page, serving.url, api.deployment("ablate/mixpool"))
        check_form(page, serving)
        picture(page, "form")
        before = api.runs()
        submit_what_is_wrong(page)
        assert api.runs() == before
        run = submit(page, QUICK[0])
        assert api.wait(run, RUN_SECONDS)["state_name"] == "Completed"
        check_artifacts(page, serving, run)
        picture(page, "run")
        check_ranking(page, serving, api, run)
        picture(page, "ranking")
        check_report(page, serving, api, run)
    places = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert places == {urlsplit(place).netloc for place in (serving.url, serving.pages)}


def check_form(page: "Page", serving: Serving) -> None:
    """Fields are described and filled in."""
    form = page.locator("form")
    for text in (
        "the address of a recipe in YAML",
        "Where results are kept: a folder of the worker or an fsspec URL.",
        "each as field.path=value, such as train.learning_rate=3e-4",
        "How it is computed, never what.",
        "Seconds between two resume points of a training.",
    ):
        form.get_by_text(text).wait_for()
    assert form.get_by_role("textbox", name="store").input_value() == str(serving.store)
    assert form.get_by_label("address").get_by_role("textbox").input_value() == str(serving.recipe)
    assert form.get_by_label("Checkpoint Seconds").input_value() == "60"


def submit_what_is_wrong(page: "Page") -> None:
    """A recipe that trains less than nothing, and an override without a path; both are refused."""
    form = page.locator("form")
    form.get_by_role("tab", name="Recipe").click()
    steps = form.get_by_role("spinbutton", name="Steps", exact=True).last
    steps.fill("-1")
    page.get_by_role("button", name="Submit").click()
    too_small = "Value must be greater than or equal to 1."
    assert steps.evaluate("field => field.validationMessage") == too_small
    form.get_by_role("tab", name="address").click()
    form.get_by_role("button", name="Add item").click()
    list_item(page).fill("nonsense")
    # The page asks the server all the same, and shows what it answers.
    assert press_submit(page).status == http.client.CONFLICT
    page.get_by_text("Validation failed for field 'overrides[0]'").wait_for()
    form.get_by_text("'nonsense' does not match").wait_for()


def submit(page: "Page", override: str) -> str:
    """Correct the override and send the form; id of the run that it starts."""
    answer = submit_corrected(page, override, "does not match")
    assert answer.status == http.client.CREATED
    return str(answer.json()["id"])


def check_artifacts(page: "Page", serving: Serving, run: str) -> None:
    """Plan, ranking, cost, summary and report, of which each tells in a line what it is."""
    page.goto(run_page(serving.url, run, "Artifacts"))
    shown = page.get_by_role("tabpanel", name="Artifacts")
    for key, line in {
        "tiny-plan": "7 trainings of",
        "tiny-ranking": "Best 21 of 21 mixtures by macro mean (merge).",
        "tiny-cost": "What was spent now",
        "tiny-summary": "Best mixture: ",
        "tiny-report": "The report.",
    }.items():
        shown.get_by_role("link", name=key).get_by_text(line).wait_for()


def check_ranking(page: "Page", serving: Serving, api: PrefectApi, run: str) -> None:
    """The table has the mixtures that the store says are the best."""
    left = api.artifacts(run)["tiny-ranking"]
    rows = json.loads(left["data"])
    assert len(rows) == 21
    page.goto(f"{serving.url}/v2/artifacts/artifact/{left['id']}")
    for row in rows[:5]:
        page.get_by_role("cell", name=row["mixture"], exact=True).wait_for()


def check_report(page: "Page", serving: Serving, api: PrefectApi, run: str) -> None:
    """The link leads over http to the report as it lies in the store."""
    left = api.artifacts(run)["tiny-report"]
    page.goto(f"{serving.url}/v2/artifacts/artifact/{left['id']}")
    link = page.get_by_role("link", name="report.html")
    address = str(link.get_attribute("href"))
    assert re.fullmatch(rf"{re.escape(serving.pages)}/runs/[\w-]+-tiny/report\.html", address)
    assert (serving.store / address.removeprefix(f"{serving.pages}/")).exists()
    page.goto(address)
    page.get_by_role("heading", name="tiny", exact=True).wait_for()
    page.get_by_text("birds-0").first.wait_for()
    plots = page.evaluate("() => [...document.images].map(image => image.naturalWidth)")
    assert len(plots) > 3
    assert min(plots) > 0
    page.goto(f"{serving.pages}/")
    page.get_by_role("link", name="report.html").first.click()
    page.wait_for_url(address)
    foreign = serving.store / "foreign.html"
    foreign.write_text("<title>unchanged</title><script>document.title = 'changed'</script>")
    page.goto(f"{serving.pages}/foreign.html")
    assert page.title() == "unchanged"
    foreign.unlink()


# What there is already ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def later(serving: Serving) -> dict[str, str]:
    """Ids of runs that are started together once a recipe has been carried out."""
    recipe: dict[str, Any] = {"overrides": QUICK, "runtime": RUNTIME}
    with serving.api() as api:
        if not [run for run in api.runs() if run["state_name"] == "Completed"]:
            api.wait(api.start("ablate/mixpool", **recipe), RUN_SECONDS)
        damaged = shutil.copytree(serving.store, serving.folder / "damaged")
        spoil(damaged)
        # A store of its own, so that the newest run of the other is the one that is shown again.
        searched = shutil.copytree(serving.store, serving.folder / "searched")
        search = {**recipe, "overrides": [*QUICK, *FEW], "store": str(searched)}
        return {
            "search": api.start("search/mixpool", **search),
            "again": api.start("ablate/mixpool", **recipe),
            "ingest": api.start("ingest/mixpool", **recipe),
            "report": api.start("report/mixpool"),
            "verify": api.start("verify/mixpool", store=str(damaged)),
            "gc": api.start("gc/mixpool"),
        }


def spoil(store: Path) -> None:
    """Change one byte of a model."""
    victim = next(store.glob("artifacts/model/*/model.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.unlink()
    victim.write_bytes(data)


def test_what_the_store_has_is_shown_as_cached(api: PrefectApi, later: dict[str, str]) -> None:
    found = api.wait(later["again"], RUN_SECONDS)
    assert (found["state_name"], found["name"]) == ("Completed", "recipe")
    tasks = api.tasks(later["again"])
    assert set(tasks.values()) == {"Cached"}
    assert "train sums-0" in tasks
    plan = api.artifacts(later["again"])["tiny-plan"]
    assert plan["description"] == "Nothing to compute: everything is in the store."


@needs_chromium
def test_the_page_calls_it_cached(serving: Serving, api: PrefectApi, later: dict[str, str]) -> None:
    api.wait(later["again"], RUN_SECONDS)
    with new_page() as page:
        enter(page, serving.door)
        page.goto(run_page(serving.url, later["again"], "TaskRuns"))
        shown = page.get_by_role("tabpanel", name="Task Runs").get_by_role("listitem")
        row = shown.filter(has=page.get_by_role("link", name="train sums-0"))
        row.get_by_text("Cached").first.wait_for()
        picture(page, "cached")


def test_the_store_is_shown_to_this_machine_and_no_more_than_the_store(
    serving: Serving, later: dict[str, str]
) -> None:
    assert later
    assert (serving.store / ".." / serving.recipe.name).exists()
    local, key = urlsplit(serving.pages)[1:3]
    assert ask_raw(local, f"{key}/index.html", local)[0] == http.client.OK
    assert ask_raw(local, f"{key}/index.html", "elsewhere.example")[0] == http.client.BAD_REQUEST
    for path in ("/../recipe.yaml", "/%2e%2e/recipe.yaml", "/runs/..%2f../recipe.yaml"):
        status, said = ask_raw(local, f"{key}{path}", local)
        assert status == http.client.NOT_FOUND
        assert "tokenizer" not in said


def ask_raw(place: str, path: str, host: str) -> tuple[int, str]:
    """Status and text of a page; browsers, and httpx, would take dots out of the path."""
    connection = http.client.HTTPConnection(place, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_ingest_with_nothing_new_does_nothing(api: PrefectApi, later: dict[str, str]) -> None:
    found = api.wait(later["ingest"], RUN_SECONDS)
    assert (found["state_type"], found["state_name"]) == ("COMPLETED", "Unchanged")
    assert "nothing is new since run" in found["state"]["message"]
    assert api.tasks(later["ingest"]) == {}
    assert found["total_run_time"] < 10


def test_report_shows_the_ranking_again(api: PrefectApi, later: dict[str, str]) -> None:
    assert api.wait(later["report"], RUN_SECONDS)["state_name"] == "Completed"
    assert len(json.loads(api.artifacts(later["report"])["tiny-ranking"]["data"])) == 21


def test_search_looks_for_the_best_and_trains_nothing(
    api: PrefectApi, later: dict[str, str]
) -> None:
    found = api.wait(later["search"], RUN_SECONDS)
    assert found["state_name"] == "Completed"
    left = api.artifacts(later["search"])
    assert len(json.loads(left["tiny-ranking"]["data"])) == 10
    assert "## Search" in left["tiny-summary"]["data"]
    assert "- trained now: 0" in left["tiny-summary"]["data"]


def test_verify_fails_where_a_file_is_damaged(api: PrefectApi, later: dict[str, str]) -> None:
    found = api.wait(later["verify"], RUN_SECONDS)
    assert found["state_name"] == "Failed"
    assert found["state"]["message"] == "1 faults, 0 files set aside"
    left = api.artifacts(later["verify"])["verify"]
    (row,) = json.loads(left["data"])
    assert left["type"] == "table"
    assert "model.safetensors" in row["fault"]


def test_gc_tells_what_could_be_deleted(
    serving: Serving, api: PrefectApi, later: dict[str, str]
) -> None:
    before = sorted(serving.store.glob("artifacts/*/*"))
    found = api.wait(later["gc"], RUN_SECONDS)
    assert found["state_name"] == "Completed"
    assert found["state"]["message"].endswith("bytes could be deleted")
    assert api.artifacts(later["gc"])["garbage"]["type"] == "table"
    assert sorted(serving.store.glob("artifacts/*/*")) == before


# What is ended goes on ---------------------------------------------------------------------------


def start_long(api: PrefectApi, steps: int) -> str:
    """Start a run that trains one model for so many steps."""
    one_model = [
        "corpus.source.include_domains=[birds]",
        "mixtures.spaces=[{kind: subsets, sizes: [1]}]",
    ]
    overrides = [*one_model, f"train.steps={steps}"]
    return api.start("ablate/mixpool", overrides=overrides, runtime=KEPT_BY_STOPS)


def await_training(api: PrefectApi, run: str) -> None:
    """Return when some steps are done: the bar is shown after three seconds of them."""
    api.until(run, lambda: api.bars(run).get("train birds-0", 0) > 0, RUN_SECONDS)


def cancel(api: PrefectApi, run: str) -> None:
    """As the page's menu item does, until it is done."""
    api.set_state(run, "CANCELLING")
    assert api.wait(run, 90)["state_name"] == "Cancelled"


def trainings(store: Store, steps: int) -> int:
    """How many trainings of so many steps were committed."""
    return sum(record.config["steps"] == steps for record in store.records("train"))


def resumed_at(api: PrefectApi, run: str) -> list[int]:
    """The steps at which trainings of a run went on."""
    found = re.findall(r"resuming at step (\d+)", "\n".join(api.logs(run)))
    return [int(step) for step in found]


@pytest.fixture(scope="module")
def cancelled(serving: Serving) -> str:
    """Id of a run that was cancelled in the middle of a training."""
    with serving.api() as api:
        run = start_long(api, LONG_STEPS)
        await_training(api, run)
        cancel(api, run)
    return run


def test_cancelling_keeps_what_a_training_has_done(
    serving: Serving, api: PrefectApi, cancelled: str
) -> None:
    store = Store(str(serving.store), create=False)
    assert garbage.live_work(store) == []
    assert [file for file in serving.store.glob("work/train/*/*") if "lease" not in file.name]
    assert trainings(store, LONG_STEPS) == 0
    tasks = api.tasks(cancelled)
    assert (tasks["train base"], tasks["train birds-0"]) == ("Completed", "Cancelled")


@pytest.fixture(scope="module")
def again(serving: Serving, cancelled: str) -> str:
    """Id of another run of the same, which trains."""
    assert cancelled
    with serving.api() as api:
        run = start_long(api, LONG_STEPS)
        api.until(run, lambda: bool(resumed_at(api, run)), RUN_SECONDS)
        await_training(api, run)
    return run


def test_the_next_run_goes_on_at_once(api: PrefectApi, again: str) -> None:
    (step,) = resumed_at(api, again)
    assert 0 < step < LONG_STEPS
    assert not [line for line in api.logs(again) if "is at it" in line]


def test_ctrl_c_ends_everything_and_the_next_start_goes_on(serving: Serving, again: str) -> None:
    store = Store(str(serving.store), create=False)
    with serving.api() as api:
        known = {found["id"] for found in api.runs()}
    family = serving.family()
    assert serving.interrupt() == 0
    assert gone(family, 15) == []
    assert garbage.live_work(store) == []
    serving.start()
    with serving.api() as api:
        api.until(again, lambda: len(resumed_at(api, again)) == 2, RUN_SECONDS)
        assert {found["id"] for found in api.runs()} == known > {again}
        first, second = resumed_at(api, again)
        assert first < second < LONG_STEPS
        cancel(api, again)
        assert api.tasks(again)["train base"] == "Cached"
    assert trainings(store, LONG_STEPS) == 0


def test_what_a_killed_serve_leaves_is_ended_by_the_next(serving: Serving) -> None:
    services = serving.services()
    assert [one.is_running() for one in services] == [True, True]
    with serving.api() as api:
        known = len(api.runs())
    serving.kill()
    assert set(gone(services, 1)) == set(services)
    serving.start()
    assert serving.log.read_text().count("which an earlier start has left") == 2
    assert gone(services, 15) == []
    with serving.api() as api:
        assert len(api.runs()) == known


def test_a_server_that_ends_by_itself_ends_everything(serving: Serving) -> None:
    family, (server, _) = serving.family(), serving.services()
    server.kill()
    assert serving.wait() == 1
    assert "error: the server ended with status -9" in serving.said()
    assert gone(family, 15) == []
