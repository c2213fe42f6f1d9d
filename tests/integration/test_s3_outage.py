"""The S3 server is killed, again and again, while a run works on it: the run waits and goes on."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.run.execute import execute
from flows.runners.inline import InlineRunner
from storage.step import Runtime
from storage.store import Store
from tests.integration.conftest import Place
from tests.servers import BUCKET, Ministack

if TYPE_CHECKING:
    from tests.conftest import TinyRecipe
    from tests.integration.conftest import Runs

pytestmark = pytest.mark.slow

OUTAGES = 3


@pytest.fixture
def ministack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ministack]:
    """A server of its own, since other tests would miss it."""
    (tmp_path / "server").mkdir()
    found = Ministack(tmp_path / "server")
    found.start()
    try:
        found.server.make_bucket(BUCKET)
        for name, value in found.server.environment.items():
            monkeypatch.setenv(name, value)
        yield found
    finally:
        found.stop()


def test_a_server_that_is_killed_and_restarted_costs_time_only(
    ministack: Ministack, runs: "Runs", tiny_recipe: "TinyRecipe", tmp_path: Path
) -> None:
    on_disk = tiny_recipe(tmp_path, "corpus.source.include_domains=[birds, law, sums]")
    for path in (tmp_path / "corpus").iterdir():
        ministack.server.client().upload_file(str(path), BUCKET, f"corpus/{path.name}")
    recipe = tiny_recipe(
        tmp_path,
        "corpus.source.include_domains=[birds, law, sums]",
        f"corpus.source.urls=['s3://{BUCKET}/corpus/*.jsonl']",
    )
    calm = execute(InlineRunner(Store(str(tmp_path / "calm")), Runtime(threads=1)), on_disk)

    place = Place(f"s3://{BUCKET}/store")
    environment = {**ministack.server.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    running = runs.start(place.url, recipe, environment=environment)
    outages = 0
    while not running.report.exists():
        time.sleep(0.7)
        if outages < OUTAGES:
            outages += 1
            ministack.kill()
            time.sleep(0.7)
            ministack.restart()
    report = runs.finish(running)
    assert outages == OUTAGES
    assert report["summary"]["trained"] == calm.summary["trained"]
    assert report["summary"]["losses_evaluated"] == calm.summary["losses_evaluated"]
    assert place.ranking(report) == Place(str(tmp_path / "calm")).ranking({"folder": calm.folder})
    place.check_sound()
