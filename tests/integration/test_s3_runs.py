"""Whole runs with store and corpus on a real S3 server: shared, killed, read by others, cut off."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from flows.planner import plan
from flows.recipe import Recipe
from flows.run import execute
from flows.runners import InlineRunner, Quiet
from storage.cache import Runtime
from storage.place import open_backend
from storage.store import Store
from tests.integration.conftest import Place
from tests.servers import BUCKET

if TYPE_CHECKING:
    from tests.conftest import TinyRecipe
    from tests.integration.conftest import Running, Runs
    from tests.servers import Ministack, S3Server

pytestmark = pytest.mark.slow

T = TypeVar("T")

TRAININGS = ["base", "birds-0", "law-0", "rivers-0", "sums-0"]
PAIRS = 10 * 4


@pytest.fixture(scope="module")
def server(ministack_server: "Ministack") -> Iterator["S3Server"]:
    """A server that this process uses, and whose store lies below a prefix of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ministack_server.server.environment.items():
            patch.setenv(name, value)
        yield ministack_server.server


@pytest.fixture
def place(server: "S3Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty place for a store, and an empty read cache."""
    del server
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Place(f"s3://{BUCKET}/{uuid.uuid4().hex}/store")


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
    recipe: Recipe, place: Place, alone: tuple[Place, bytes]
) -> None:
    first = execute(InlineRunner(Store(place.url), Runtime(threads=1)), recipe)
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


def _wait_for(look: Callable[[], T]) -> T:
    """What ``look`` sees as soon as it sees something."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.01)
    raise TimeoutError("nothing was to be seen for a minute")
