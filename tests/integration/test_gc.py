"""After ``gc`` a kept run's recipe runs again without building anything; the other's things are gone."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.run.execute import RunResult, execute
from flows.runners.inline import InlineRunner
from storage import lineage
from storage.garbage import Garbage, collect
from storage.step import Runtime

if TYPE_CHECKING:
    from tests.conftest import TinyCorpus, TinyRecipe
    from tests.integration.conftest import Shelf

pytestmark = pytest.mark.slow

Shelves = Callable[[str], "Shelf"]

SMALL = "corpus.source.include_domains=[birds, law, sums]"


def _name(result: RunResult) -> str:
    return result.folder.removeprefix("runs/")


def _collect(shelf: "Shelf", *keep: RunResult) -> Garbage:
    garbage = collect(shelf.store, [_name(result) for result in keep])
    shelf.check_sound()
    return garbage


@pytest.mark.parametrize("kept", [0, 1])
def test_a_kept_run_costs_nothing_again(
    shelves: Shelves, tiny_recipe: "TinyRecipe", tmp_path: Path, kept: int
) -> None:
    shelf, runtime = shelves(f"kept {kept}"), Runtime(threads=1)
    recipes = [tiny_recipe(tmp_path, SMALL, f"train.steps={steps}") for steps in (2, 3)]
    results = [execute(InlineRunner(shelf.store, runtime), recipe) for recipe in recipes]
    _collect(shelf, results[kept])
    assert [*lineage.run_folders(shelf.store)] == [_name(results[kept])]
    models = {handle.digest for handle in results[1 - kept].outcome.pool.values()}
    assert not {record.output.digest for record in shelf.store.records()} & models
    run = InlineRunner(shelf.store, runtime)
    again = execute(run, recipes[kept])
    assert not any(entry.built for entry in run.ledger.entries)
    assert run.ledger.num_evaluated == 0
    assert again.outcome.rows == results[kept].outcome.rows
    other = execute(InlineRunner(shelf.store, runtime), recipes[1 - kept])
    assert other.summary["trained"] == ["birds-0", "law-0", "sums-0"]
    assert other.outcome.rows == results[1 - kept].outcome.rows


def test_what_an_older_kept_run_used_and_the_chain_outlive_a_newer_run(
    shelves: Shelves, tiny_recipe: "TinyRecipe", tiny_corpus: "TinyCorpus", tmp_path: Path
) -> None:
    shelf, runtime = shelves("older"), Runtime(threads=1)
    recipe = tiny_recipe(tmp_path, SMALL, "corpus.split.partitions_per_domain=null")
    older = execute(InlineRunner(shelf.store, runtime), recipe)
    more = (tiny_corpus(tmp_path / "more", seed=1) / "birds.jsonl").read_text()
    with (tmp_path / "corpus" / "birds.jsonl").open("a") as file:
        file.write(more)
    newer = execute(InlineRunner(shelf.store, runtime), recipe)
    _collect(shelf, older)
    again = execute(InlineRunner(shelf.store, runtime), recipe)
    assert again.summary["trained"] == newer.summary["trained"] != []
    assert again.summary["losses_evaluated"] == 0
    told = {"story": newer.outcome.manifest.story}
    assert again.outcome.manifest.model_copy(update=told) == newer.outcome.manifest
    assert again.outcome.rows == newer.outcome.rows
