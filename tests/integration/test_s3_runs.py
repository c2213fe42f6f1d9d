"""Whole runs with store and corpus on a real S3 server: shared, killed, read by others, cut off."""

import os
import re
import signal
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from flows.chain.recipe import Recipe
from flows.chain.runner import Quiet
from flows.run.execute import RunResult, execute
from flows.runners.inline import InlineRunner
from flows.runners.planner import plan
from storage.backends.urls import open_backend
from storage.step import Handle, Runtime
from storage.store import Store
from tasks.evaluation.window import load_windows
from tests.faulty import FaultyProxy
from tests.integration.conftest import Place
from tests.servers import BUCKET

if TYPE_CHECKING:
    from tests.conftest import TinyCorpus, TinyRecipe
    from tests.integration.conftest import Running, Runs
    from tests.servers import S3Server

pytestmark = pytest.mark.slow

T = TypeVar("T")

TRAININGS = ["base", "birds-0", "law-0", "rivers-0", "sums-0"]
PAIRS = 10 * 4


@pytest.fixture(scope="module")
def server(s3_server: "S3Server") -> Iterator["S3Server"]:
    """A server that this process uses, and whose store lies below a prefix of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        yield s3_server


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been read yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def new_place() -> Place:
    """An empty place for a store."""
    return Place(f"s3://{BUCKET}/{uuid.uuid4().hex}/store")


@pytest.fixture
def place(server: "S3Server") -> Place:
    """Where a test makes a store of its own."""
    del server
    return new_place()


@pytest.fixture(scope="module")
def recipe(
    server: "S3Server", tiny_recipe: "TinyRecipe", tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """Four partitions, ten mixtures, four sets; its corpus is on the server."""
    folder = tmp_path_factory.mktemp("corpus")
    tiny_recipe(folder)
    where = f"{BUCKET}/{uuid.uuid4().hex}/corpus"
    for path in (folder / "corpus").iterdir():
        bucket, _, prefix = where.partition("/")
        server.client().upload_file(str(path), bucket, f"{prefix}/{path.name}")
    return tiny_recipe(
        folder,
        "corpus.source.include_domains=[birds, law, rivers, sums]",
        f"corpus.source.urls=['s3://{where}/*.jsonl']",
    )


class Finished(NamedTuple):
    """A store on S3, and the run that has made it, which some tests look at and none changes."""

    place: Place
    result: RunResult


@pytest.fixture(scope="module")
def finished(
    recipe: Recipe, server: "S3Server", tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """A run of this process."""
    del server
    found = new_place()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        run = InlineRunner(Store(found.url), Runtime(threads=1))
        return Finished(found, execute(run, recipe))


@pytest.fixture(scope="module")
def alone(
    runs: "Runs", recipe: Recipe, tmp_path_factory: pytest.TempPathFactory, server: "S3Server"
) -> tuple[Place, bytes]:
    """What one run alone leaves, on a disk, and its ranking."""
    place = Place(str(tmp_path_factory.mktemp("alone")))
    Store(place.url)
    report = runs.finish(runs.start(place.url, recipe, environment=server.environment))
    return place, place.ranking(report)


def start(runs: "Runs", place: Place, recipe: Recipe, server: "S3Server", cache: Path) -> "Running":
    environment = {**server.environment, "XDG_CACHE_HOME": str(cache)}
    return runs.start(place.url, recipe, environment=environment)


def test_a_run_on_s3_says_what_one_on_a_disk_says_and_costs_nothing_twice(
    recipe: Recipe, finished: Finished, alone: tuple[Place, bytes]
) -> None:
    place, first = finished
    assert sorted(first.summary["trained"]) == TRAININGS
    assert place.losses() == alone[0].losses()
    assert place.ranking({"folder": first.folder}) == alone[1]
    again = execute(InlineRunner(Store(place.url), Runtime(threads=1)), recipe)
    assert (again.summary["trained"], again.summary["losses_evaluated"]) == ([], 0)
    planned = plan(place.url, recipe, Runtime(), Quiet())
    assert (planned.to_build(), planned.pairs_missing) == ([], 0)
    place.check_sound()


def test_two_at_once_make_each_training_and_each_loss_once(
    runs: "Runs",
    recipe: Recipe,
    place: Place,
    server: "S3Server",
    alone: tuple[Place, bytes],
    tmp_path: Path,
) -> None:
    both = [start(runs, place, recipe, server, tmp_path / str(number)) for number in range(2)]
    reports = [runs.finish(run) for run in both]
    trained = [label for summary in place.summaries() for label in summary["trained"]]
    assert sorted(trained) == TRAININGS
    assert sum(summary["losses_evaluated"] for summary in place.summaries()) == PAIRS
    assert place.losses() == alone[0].losses()
    assert [place.ranking(report) for report in reports] == [alone[1]] * 2
    place.check_sound()


def test_one_of_two_is_killed_while_it_holds_a_lease(
    runs: "Runs",
    recipe: Recipe,
    place: Place,
    server: "S3Server",
    alone: tuple[Place, bytes],
    tmp_path: Path,
) -> None:
    victim = start(runs, place, recipe, server, tmp_path / "victim")
    backend = open_backend(place.url)
    _wait_for(lambda: [p for p in backend.list("work/train") if p.endswith("checkpoint.json")])
    os.kill(victim.pid, signal.SIGSTOP)
    held = [path for path in backend.list("work/train") if "/lease." in path]
    assert held, "the training ended before it was stopped"
    other = start(runs, place, recipe, server, tmp_path / "other")
    assert "is at it; waiting" in _wait_for(other.said.read_text)
    os.kill(victim.pid, signal.SIGKILL)
    assert runs.wait(victim) == -signal.SIGKILL
    report = runs.finish(other)
    assert sorted(place.trained().values()) == TRAININGS
    assert place.losses() == alone[0].losses()
    assert place.ranking(report) == alone[1]
    assert len(place.summaries()) == 1
    place.check_sound()


def test_a_model_that_a_plain_client_downloads_gives_the_losses_in_the_table(
    finished: Finished, server: "S3Server", tmp_path: Path
) -> None:
    place, result = finished
    model = download(server, result.outcome.pool["birds-0"], place, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    assert result.outcome.rows is not None
    rows = {row.evaluation_set: row for row in result.outcome.rows if row.label == "birds-0"}
    for name, handle in result.outcome.windows.items():
        windows = load_windows(download(server, handle, place, tmp_path / name))
        inputs, targets = (
            torch.from_numpy(array.astype("int64")) for array in (windows.inputs, windows.targets)
        )
        with torch.no_grad():
            logits = loaded(input_ids=inputs).logits
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).double(), targets.flatten(), reduction="none"
        ).view_as(targets)
        nll = sum(
            each[row, first : first + length].sum().item()
            for row, (first, length) in enumerate(zip(windows.first, windows.length, strict=True))
        )
        assert nll == pytest.approx(rows[name].nll, rel=1e-5)


def download(server: "S3Server", handle: Handle, place: Place, target: Path) -> Path:
    """An artifact's folder by plain boto3, as anybody could."""
    assert handle.artifact is not None
    prefix = f"{place.url.removeprefix(f's3://{BUCKET}/')}/{handle.artifact.prefix}/"
    client = server.client()
    for found in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]:
        path = target / found["Key"].removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(BUCKET, found["Key"], str(path))
    return target


def test_a_browser_can_walk_from_the_index_page_to_everything(
    finished: Finished, server: "S3Server"
) -> None:
    place, result = finished
    page = f"{server.endpoint}/{place.url.removeprefix('s3://')}/index.html"
    with urllib.request.urlopen(page) as answer:
        assert answer.headers["Content-Type"] == "text/html"
        text = answer.read().decode()
    links = re.findall(r'href="([^"#]+)"', text)
    assert f"{result.folder}/report.html" in links
    for link in links:
        with urllib.request.urlopen(urllib.parse.urljoin(page, link)) as answer:
            assert answer.status == 200, link


def test_only_what_is_new_in_the_corpus_is_read(
    recipe: Recipe,
    place: Place,
    server: "S3Server",
    tiny_corpus: "TinyCorpus",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (url,) = recipe.corpus.source.urls
    folder = url.removeprefix("s3://").removesuffix("/*.jsonl")
    with FaultyProxy(server.endpoint, rate=0, seed=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)

        def read(act: Callable[[], object]) -> list[str]:
            """Which of the corpus's files a run asks for."""
            before = len(proxy.log)
            act()
            asked = [
                target.partition("?")[0]
                for method, target, _ in proxy.log[before:]
                if method == "GET"
            ]
            return sorted(
                {path.rpartition("/")[2] for path in asked if folder in path} - {"corpus"}
            )

        def run() -> RunResult:
            return execute(InlineRunner(Store(place.url), Runtime(threads=1)), recipe)

        # Nor are files read whose path tells a domain that is not wanted.
        assert read(run) == [f"{name}.jsonl" for name in ("birds", "law", "rivers", "sums")]
        assert read(run) == []
        assert read(lambda: plan(place.url, recipe, Runtime(), Quiet())) == []
        bucket, _, prefix = folder.partition("/")
        one = {"Bucket": bucket, "Key": f"{prefix}/birds.jsonl"}
        client = server.client()
        old = client.get_object(**one)["Body"].read()
        new = (tiny_corpus(tmp_path / "more", seed=1) / "birds.jsonl").read_bytes()
        try:
            client.put_object(**one, Body=old + new)
            assert read(run) == ["birds.jsonl"]
            assert read(run) == []
        finally:
            client.put_object(**one, Body=old)


def _wait_for(look: Callable[[], T]) -> T:
    """What ``look`` sees as soon as it sees something."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.01)
    raise TimeoutError("nothing was to be seen for a minute")
