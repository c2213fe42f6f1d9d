"""Two runs of one recipe on one store at the same moment share the work and say the same."""

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import pytest

from flows.chain.recipe import Recipe

if TYPE_CHECKING:
    from tests.conftest import TinyRecipe
    from tests.integration.conftest import Runs, Shelf

pytestmark = pytest.mark.slow

T = TypeVar("T")
Shelves = Callable[[str], "Shelf"]

TRAININGS = ["base", "birds-0", "law-0", "rivers-0", "sums-0"]
PAIRS = 10 * 4


@pytest.fixture(scope="module")
def recipe(tiny_recipe: "TinyRecipe", tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Four partitions, ten mixtures, four sets."""
    folder = tmp_path_factory.mktemp("corpus")
    return tiny_recipe(folder, "corpus.source.include_domains=[birds, law, rivers, sums]")


@pytest.fixture(scope="module")
def alone(runs: "Runs", shelves: Shelves, recipe: Recipe) -> "Shelf":
    """What one run alone leaves."""
    shelf = shelves("alone")
    runs.finish(runs.start(shelf.path, recipe))
    return shelf


def test_each_training_and_each_loss_is_made_once(
    runs: "Runs", shelves: Shelves, recipe: Recipe, alone: "Shelf"
) -> None:
    shelf = shelves("together")
    both = [runs.start(shelf.path, recipe) for _ in range(2)]
    reports = [runs.finish(run) for run in both]
    trained = [label for summary in shelf.summaries() for label in summary["trained"]]
    assert sorted(trained) == TRAININGS
    assert sum(summary["losses_evaluated"] for summary in shelf.summaries()) == PAIRS
    assert shelf.losses() == alone.losses()
    assert len({shelf.ranking(report) for report in reports}) == 1
    assert len({report["folder"] for report in reports}) == 2
    shelf.check_sound()


def test_one_that_is_killed_at_a_training_leaves_it_to_the_other(
    runs: "Runs", shelves: Shelves, recipe: Recipe, alone: "Shelf"
) -> None:
    shelf = shelves("one-killed")
    victim = runs.start(shelf.path, recipe)
    (index,) = _wait_for(lambda: list(shelf.path.glob("work/train/*/checkpoint.json")))
    os.kill(victim.pid, signal.SIGSTOP)
    assert list(index.parent.glob("lease.*")), "the training ended before it was stopped"
    other = runs.start(shelf.path, recipe)
    assert "train base: process" in _wait_for(other.said.read_text)
    os.kill(victim.pid, signal.SIGKILL)
    assert runs.wait(victim) == -signal.SIGKILL
    report = runs.finish(other)
    assert report["began"]["train base"] > 0
    assert sorted(report["summary"]["trained"]) == TRAININGS
    assert shelf.losses() == alone.losses()
    assert len(shelf.summaries()) == 1
    shelf.check_sound()


def _wait_for(look: Callable[[], T]) -> T:
    """What ``look`` sees as soon as it sees something."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.002)
    raise TimeoutError("nothing was to be seen for a minute")
