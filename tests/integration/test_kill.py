"""A run may be killed at any moment: the next one goes on, and nothing committed is done again.

The run is real, in a process of its own, and dies by SIGKILL: at events spread evenly over a whole
run, at those between which a careless order of writes would lose something, and at an odd moment by the
clock.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from flows.chain.recipe import Recipe

if TYPE_CHECKING:
    from tests.conftest import TinyRecipe
    from tests.integration.conftest import Runs, Shelf

pytestmark = pytest.mark.slow

Shelves = Callable[[str], "Shelf"]

SMALL = (
    "corpus.source.include_domains=[birds, law, sums]",
    "base.train.steps=5",
    "train.steps=4",
)
TOKENS_PER_STEP = 4 * 32
TRAININGS = {"base", "birds-0", "law-0", "sums-0"}
SAVED = "a checkpoint has just taken over"

MOMENTS = {
    "a record is written and not there yet": r"unpublished records/train/base",
    "a training is committed, its checkpoint still there": r"after records/train/birds",
    "half of an artifact is there": r"before artifacts/model/\w+/model.safetensors",
    "a checkpoint's files are newer than its index": r"before work/train/\w+/checkpoint.json",
    SAVED: r"after work/train/\w+/checkpoint.json",
    "a manifest is about to appear": r"unpublished manifests/",
    "a part of the losses table is about to appear": r"unpublished losses/\w+/000001.parquet",
    "a part of the losses table has appeared": r"after losses/\w+/000001.parquet",
    "a chunk is half done": r"sweep: 3 of 6",
    "all is done but run.json": r"unpublished runs/.*/run.json",
}


class Undisturbed(NamedTuple):
    """A run that nobody killed."""

    shelf: "Shelf"
    recipe: Recipe
    events: list[str]
    run: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(
    runs: "Runs",
    shelves: Shelves,
    tiny_recipe: "TinyRecipe",
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:
    """One whole run in a store of its own."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("corpus"), *SMALL)
    runs.finish(runs.start(shelves("warm").path, recipe))
    shelf, began = shelves("undisturbed"), time.monotonic()
    report = runs.finish(runs.start(shelf.path, recipe))
    seconds = time.monotonic() - began
    return Undisturbed(shelf, recipe, report["events"], _run(shelf, report), seconds)


def _run(shelf: "Shelf", report: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shelf.path / report["folder"] / "run.json").read_text())
    return dict(content["content"])


def _positions(shelf: "Shelf") -> dict[str, int]:
    """Steps in the checkpoint of each training that has one, by key."""
    return {
        path.parent.name: json.loads(path.read_text())["content"]["position"]
        for path in shelf.path.glob("work/train/*/checkpoint.json")
    }


def _check_next_run(runs: "Runs", shelf: "Shelf", undisturbed: Undisturbed) -> None:
    """Run again to the end and compare with what was there and with the undisturbed run."""
    records, rows = shelf.files("records"), shelf.losses()
    committed, positions = shelf.trained(), _positions(shelf)
    report = runs.finish(runs.start(shelf.path, undisturbed.recipe))
    summary = report["summary"]
    assert {*summary["trained"]} == TRAININGS - {*committed.values()}
    assert sorted([*summary["trained"], *committed.values()]) == sorted(TRAININGS)
    assert summary["losses_evaluated"] == len(undisturbed.shelf.losses()) - len(rows)
    assert shelf.files("records").items() >= records.items()
    labels = undisturbed.shelf.trained()
    resumed = {labels[key]: at * TOKENS_PER_STEP for key, at in positions.items()}
    for label in summary["trained"]:
        assert report["began"][f"train {label}"] == resumed.get(label, 0)
    assert shelf.losses() == undisturbed.shelf.losses()
    files = _run(shelf, report)["files"]
    for name in ("losses.parquet", "ranking.parquet", "members.parquet"):
        assert files[name] == undisturbed.run["files"][name]
    shelf.check_sound()


def _kill_at(runs: "Runs", shelf: "Shelf", undisturbed: Undisturbed, number: int) -> None:
    killed = runs.start(shelf.path, undisturbed.recipe, kill_at=number)
    assert runs.wait(killed) == -signal.SIGKILL


@pytest.mark.parametrize("share", range(6))
def test_killed_anywhere(
    runs: "Runs", shelves: Shelves, undisturbed: Undisturbed, share: int
) -> None:
    shelf = shelves(f"anywhere-{share}")
    number = round((share + 0.5) / 6 * len(undisturbed.events))
    _kill_at(runs, shelf, undisturbed, number)
    _check_next_run(runs, shelf, undisturbed)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_when(runs: "Runs", shelves: Shelves, undisturbed: Undisturbed, moment: str) -> None:
    shelf = shelves(moment.replace(" ", "-"))
    found = [n for n, e in enumerate(undisturbed.events) if re.match(MOMENTS[moment], e)]
    _kill_at(runs, shelf, undisturbed, found[len(found) // 2] + 1)
    _check_next_run(runs, shelf, undisturbed)


def test_killed_by_the_clock(runs: "Runs", shelves: Shelves, undisturbed: Undisturbed) -> None:
    shelf = shelves("clock")
    running = runs.start(shelf.path, undisturbed.recipe)
    time.sleep(0.6 * undisturbed.seconds)
    os.kill(running.pid, signal.SIGKILL)
    assert runs.wait(running) in {-signal.SIGKILL, 0}
    _check_next_run(runs, shelf, undisturbed)


def test_killed_again_and_again(runs: "Runs", shelves: Shelves, undisturbed: Undisturbed) -> None:
    """Every life of the run gets further than the one before, until one comes to its end."""
    shelf = shelves("again-and-again")
    reached = []
    for _ in range(4):
        _kill_at(runs, shelf, undisturbed, len(undisturbed.events) // 4)
        steps = 5 if "base" in shelf.trained().values() else 0
        steps += 4 * (len(shelf.trained()) - (steps > 0))
        open_steps = [s for key, s in _positions(shelf).items() if key not in shelf.trained()]
        reached.append(steps + sum(open_steps) + len(shelf.losses()))
        if shelf.losses():
            break
    assert reached == sorted({*reached})
    _check_next_run(runs, shelf, undisturbed)


@pytest.mark.parametrize("step", [1, 4])
def test_a_killed_training_goes_on_where_it_was(
    runs: "Runs", shelves: Shelves, undisturbed: Undisturbed, step: int
) -> None:
    shelf = shelves(f"step-{step}")
    # Resume points are saved by a thread of their own, so their place among all events is not certain.
    killed = runs.start(shelf.path, undisturbed.recipe, kill_at=step, counted=MOMENTS[SAVED])
    assert runs.wait(killed) == -signal.SIGKILL
    report = runs.finish(runs.start(shelf.path, undisturbed.recipe))
    assert report["began"]["train base"] == step * TOKENS_PER_STEP
    assert report["began"]["train birds-0"] == 0
    assert shelf.losses() == undisturbed.shelf.losses()
