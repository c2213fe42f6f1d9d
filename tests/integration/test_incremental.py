"""What a run costs, counted: n partitions are n trainings, and what is there is never done again.

Before each run the plan says the same numbers, and writes nothing.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from flows.chain.recipe import Recipe
from flows.chain.runner import Quiet
from flows.run.execute import RunResult, execute
from flows.runners.inline import InlineRunner
from flows.runners.planner import Plan, plan
from storage.step import Runtime
from tasks.tokens.tokenize import TOKENIZE
from tasks.training.train import TRAIN

if TYPE_CHECKING:
    from tests.conftest import TinyCorpus, TinyRecipe
    from tests.integration.conftest import Shelf

pytestmark = pytest.mark.slow

Shelves = Callable[[str], "Shelf"]

RUNTIME = Runtime(threads=1, chunk=4)
TRAININGS = ["base", "birds-0", "cooking-0", "law-0", "letters-0", "rivers-0", "sums-0"]
MIXTURES = 6 + 15


class Counts(NamedTuple):
    """What a run did, or a plan says that it would do."""

    trained: list[str]
    known_trainings: int
    evaluated: int
    known_losses: int
    tokenized: int


def _planned(found: Plan) -> Counts:
    return Counts(
        sorted(call.label for call in found.to_build(TRAIN)),
        len(found.cached(TRAIN)),
        found.pairs_missing,
        found.pairs_known,
        len(found.to_build(TOKENIZE)),
    )


def _done(run: InlineRunner) -> Counts:
    ledger = run.ledger
    return Counts(
        sorted(entry.label for entry in ledger.built(TRAIN)),
        len(ledger.cached(TRAIN)),
        ledger.num_evaluated,
        ledger.num_known,
        len(ledger.built(TOKENIZE)),
    )


def _plan_and_run(shelf: "Shelf", recipe: Recipe) -> tuple[Counts, RunResult]:
    """Plan, run, and see that the plan told the truth and left no trace."""
    before = shelf.files()
    folders = {path: path.stat().st_mtime_ns for path in [shelf.path, *shelf.path.rglob("*")]}
    planned = _planned(plan(str(shelf.path), recipe, RUNTIME, Quiet()))
    assert shelf.files() == before
    assert {p: p.stat().st_mtime_ns for p in [shelf.path, *shelf.path.rglob("*")]} == folders
    run = InlineRunner(shelf.store, RUNTIME)
    result = execute(run, recipe)
    assert planned == _done(run)
    before.pop("index.html", None)  # the one file outside work/ that is written again
    assert shelf.files().items() >= before.items()
    shelf.check_sound()
    return planned, result


def _pinned(result: RunResult) -> dict[str, Any]:
    """Digests of everything that later data must not touch."""
    outcome = result.outcome
    return {
        "tokenizer": outcome.tokenizer.digest,
        "base": outcome.base.digest,
        **{f"tokens {name}": handle.digest for name, handle in outcome.tokens.items()},
        **{f"model {name}": handle.digest for name, handle in outcome.pool.items()},
        **{f"set {name}": handle.digest for name, handle in outcome.windows.items()},
    }


@pytest.fixture(scope="module")
def first(
    shelves: Shelves,
    tiny_recipe: "TinyRecipe",
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple["Shelf", Path, Counts, RunResult]:
    """The first run of six partitions and all their mixtures of one and two."""
    folder = tmp_path_factory.mktemp("first")
    shelf = shelves("first")
    counts, result = _plan_and_run(shelf, tiny_recipe(folder))
    return shelf, folder, counts, result


@pytest.fixture
def grown(
    first: tuple["Shelf", Path, Counts, RunResult], shelves: Shelves, tmp_path: Path
) -> tuple["Shelf", Path, RunResult]:
    """A copy of the store and the corpus after the first run."""
    shelf, folder, _, result = first
    copy = shelves(f"copy of first for {tmp_path.name}")
    shutil.copytree(shelf.path, copy.path, dirs_exist_ok=True)
    shutil.copytree(folder / "corpus", tmp_path / "corpus")
    return copy, tmp_path, result


def _add(corpus: Path, name: str, texts: Iterable[str]) -> None:
    """Append documents to a domain's file, or begin one."""
    with (corpus / f"{name}.jsonl").open("a") as file:
        file.writelines(f"{json.dumps({'text': text})}\n" for text in texts)


def _texts(corpus: Path, name: str) -> list[str]:
    lines = (corpus / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_each_partition_is_one_training(
    first: tuple["Shelf", Path, Counts, RunResult],
) -> None:
    _, _, counts, result = first
    assert counts == Counts(TRAININGS, 0, MIXTURES * 6, 0, 7)
    assert len(result.outcome.partitions) == 6


def test_a_second_run_does_nothing(
    grown: tuple["Shelf", Path, RunResult], tiny_recipe: "TinyRecipe"
) -> None:
    shelf, folder, result = grown
    counts, again = _plan_and_run(shelf, tiny_recipe(folder))
    assert counts == Counts([], 7, 0, MIXTURES * 6, 0)
    assert _pinned(again) == _pinned(result)
    assert again.outcome.rows == result.outcome.rows


def test_one_more_domain_is_one_more_training(
    grown: tuple["Shelf", Path, RunResult], tiny_recipe: "TinyRecipe"
) -> None:
    shelf, folder, result = grown
    _add(folder / "corpus", "stones", (t.upper() for t in _texts(folder / "corpus", "birds")))
    counts, after = _plan_and_run(shelf, tiny_recipe(folder))
    new_mixtures, new_sets = 1 + 6, 1
    evaluated = new_mixtures * 7 + MIXTURES * new_sets
    assert counts == Counts(["stones-0"], 7, evaluated, MIXTURES * 6, 1)
    assert _pinned(after).items() >= _pinned(result).items()
    assert result.outcome.rows is not None
    assert after.outcome.rows is not None
    assert {*map(str, after.outcome.rows)} >= {*map(str, result.outcome.rows)}


def test_more_documents_of_a_domain_are_new_partitions_of_it(
    shelves: Shelves, tiny_recipe: "TinyRecipe", tiny_corpus: "TinyCorpus", tmp_path: Path
) -> None:
    shelf = shelves("more documents")
    recipe = tiny_recipe(
        tmp_path,
        "corpus.split.partitions_per_domain=null",
        "corpus.source.include_domains=[birds, law]",
    )
    _, result = _plan_and_run(shelf, recipe)
    more = tiny_corpus(tmp_path / "more", seed=1)
    _add(tmp_path / "corpus", "birds", _texts(more, "birds"))
    counts, after = _plan_and_run(shelf, recipe)
    new = sorted({*after.outcome.pool} - {*result.outcome.pool})
    assert new
    assert all(name.startswith("birds-") for name in new)
    assert counts.trained == new
    assert counts.tokenized == len(new)
    assert counts.evaluated == 2 * (len(after.outcome.mixtures) - len(result.outcome.mixtures))
    assert counts.known_losses == 2 * len(result.outcome.mixtures)
    assert _pinned(after).items() >= _pinned(result).items()
    assert len(after.outcome.sets) == 2


def test_a_duplicate_is_no_new_data(
    grown: tuple["Shelf", Path, RunResult], tiny_recipe: "TinyRecipe"
) -> None:
    shelf, folder, result = grown
    _add(folder / "corpus", "stones", _texts(folder / "corpus", "birds"))
    counts, after = _plan_and_run(shelf, tiny_recipe(folder))
    assert counts == Counts([], 7, 0, MIXTURES * 6, 0)
    assert _pinned(after) == _pinned(result)
