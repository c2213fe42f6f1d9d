"""A race killed by SIGKILL goes on where it was: no part and no row is made twice, all comes out alike."""

import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from flows.chain.recipe import Recipe
from tests.flows.chain.test_race import RACE, RULES

if TYPE_CHECKING:
    from tests.conftest import TinyRecipe
    from tests.integration.conftest import Runs, Shelf

pytestmark = pytest.mark.slow

Shelves = Callable[[str], "Shelf"]

MOMENTS = {
    "a part of a set is about to be recorded": r"unpublished records/part/",
    "the first look is half done": r"sweep \(look 1\): 1 of",
    "a leader is evaluated in full": r"sweep \(in full\): 1 of",
    "rows of a leader are about to appear": r"unpublished losses/\w+/0000\d\d.parquet",
    "all is done but run.json": r"unpublished runs/.*/run.json",
}


class Undisturbed(NamedTuple):
    """A race that nobody killed."""

    shelf: "Shelf"
    recipe: Recipe
    report: dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(
    runs: "Runs",
    shelves: Shelves,
    tiny_recipe: "TinyRecipe",
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:
    few = "corpus.source.include_domains=[birds, law, rivers, sums]"
    recipe = tiny_recipe(tmp_path_factory.mktemp("corpus"), *RACE, RULES, few)
    shelf = shelves("undisturbed")
    return Undisturbed(shelf, recipe, runs.finish(runs.start(shelf.path, recipe)))


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_when(runs: "Runs", shelves: Shelves, undisturbed: Undisturbed, moment: str) -> None:
    shelf, events = shelves(moment.replace(" ", "-")), undisturbed.report["events"]
    found = [n for n, event in enumerate(events, 1) if re.match(MOMENTS[moment], event)]
    killed = runs.start(shelf.path, undisturbed.recipe, kill_at=found[2 * len(found) // 3])
    assert runs.wait(killed) == -signal.SIGKILL
    records, rows = shelf.files("records"), shelf.losses()
    report = runs.finish(runs.start(shelf.path, undisturbed.recipe))
    everything = undisturbed.shelf.losses()
    assert report["summary"]["losses_evaluated"] == len(everything) - len(rows)
    assert shelf.files("records").items() >= records.items()
    assert shelf.losses() == everything
    assert report["summary"]["race"] == undisturbed.report["summary"]["race"]
    assert shelf.ranking(report) == undisturbed.shelf.ranking(undisturbed.report)
    shelf.check_sound()
