"""A race over a whole chain: exact on the finalists, planned, resumed, reused, and told of."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.chain.recipe import Recipe
from flows.chain.runner import Quiet
from flows.run.execute import RunResult, execute
from flows.runners.inline import InlineRunner
from flows.runners.planner import Plan, plan
from storage.step import Runtime
from storage.store import Store
from tasks.evaluation.set_part import PART
from tasks.ranking.rank import MACRO_MEAN
from tests.flows.conftest import mixpool

TinyRecipe = Callable[..., Recipe]

RACE = [
    "corpus.split.heldout_fraction=0.4",
    "corpus.split.heldout_documents=100",
    "corpus.split.tokens_per_partition=600",
    "mixtures.spaces=[{kind: subsets}]",
    "evaluation.windows.max_document_tokens=32",
    "train.steps=4",
]
"""63 mixtures of six partitions, six sets of some sixteen documents."""
RULES = "evaluation.race={top: 3, groups: 16, fewest: 4, confidence: 0.9}"
RUNTIME = Runtime(threads=1, chunk=8)


class StoppedError(Exception):
    """The run was ended here."""


def run(recipe: Recipe, store: Path) -> tuple[RunResult, InlineRunner]:
    runner = InlineRunner(Store(str(store)), RUNTIME)
    return execute(runner, recipe), runner


def planned(recipe: Recipe, store: Path) -> Plan:
    return plan(str(store), recipe, RUNTIME, Quiet())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("race")


@pytest.fixture(scope="module")
def raced(place: Path, tiny_recipe: TinyRecipe) -> tuple[RunResult, InlineRunner]:
    """A race in a store of its own."""
    return run(tiny_recipe(place, *RACE, RULES), place / "raced")


@pytest.fixture(scope="module")
def full(place: Path, tiny_recipe: TinyRecipe) -> RunResult:
    """The same with every mixture evaluated in full."""
    return run(tiny_recipe(place, *RACE), place / "full")[0]


def test_finalists_have_the_losses_of_a_full_sweep(
    raced: tuple[RunResult, InlineRunner], full: RunResult
) -> None:
    found, everything = (one.outcome.rows for one in (raced[0], full))
    assert found is not None
    assert everything is not None
    exact = {(row.mixture, row.windows): row for row in everything}
    assert [exact[row.mixture, row.windows] for row in found] == list(found)
    assert len(everything) == 63 * 6
    assert len(found) == 6 * len(raced[0].outcome.judged) < 63 * 6


def test_the_best_are_those_of_a_full_sweep(
    raced: tuple[RunResult, InlineRunner], full: RunResult
) -> None:
    columns = ["mixture", "k", "loss", "perplexity", "difference"]
    one, other = (r.report.rankings[MACRO_MEAN][columns].head(3) for r in (raced[0], full))
    pd.testing.assert_frame_equal(one, other)


def test_what_was_screened_out_is_in_a_table(
    place: Path, raced: tuple[RunResult, InlineRunner], full: RunResult
) -> None:
    result = raced[0]
    table = pd.read_parquet(place / "raced" / result.folder / "screened.parquet")
    judged = [mixture.label for mixture in result.outcome.judged]
    assert sorted([*table["mixture"], *judged]) == sorted(m.label for m in full.outcome.mixtures)
    exact = full.report.rankings[MACRO_MEAN].set_index("mixture")["loss"]
    assert (table["low"] > table["bound"]).all()
    assert (table["bound"] >= exact.sort_values().iloc[2] - 1e-9).all()
    inside = (table["low"] <= exact[table["mixture"]].to_numpy() + 1e-6) & (
        exact[table["mixture"]].to_numpy() <= table["high"] + 1e-6
    )
    assert inside.mean() > 0.9


def test_summary_and_page_tell_of_the_race(
    place: Path, raced: tuple[RunResult, InlineRunner]
) -> None:
    result, runner = raced
    race = result.summary["race"]
    assert race["screened_out"] + race["finalists"] == result.summary["mixtures"] == 63
    costs = sum(int(cost["tokens"]) for cost in runner.ledger.sweep_costs)
    assert race["evaluated_tokens"] == costs < race["full_tokens"]
    assert list(result.summary["best"]) == [MACRO_MEAN]
    page = (place / "raced" / result.folder / "report.html").read_text()
    assert race["words"][0] in page
    assert "Best of 63 mixtures for the macro mean over 6 evaluation sets" in page
    assert re.search(r"other finalists? (is|are) tied with it", page)
    for absent in ('id="effects"', 'id="sizes"', "By evaluation set"):
        assert absent not in page


def test_command_line_tells_of_the_race(
    place: Path, raced: tuple[RunResult, InlineRunner], tiny_recipe: TinyRecipe
) -> None:
    from flows.chain.recipe_file import to_yaml

    (place / "recipe.yaml").write_text(to_yaml(tiny_recipe(place, *RACE, RULES)))
    said = mixpool("run", place / "recipe.yaml", "--store", place / "raced")
    race = raced[0].summary["race"]
    assert race["words"][0] in said.stdout
    assert "losses evaluated now: 0 " in said.stdout
    for what in ("ranking", "runs"):
        shown = mixpool("show", what, "--store", place / "raced")
        told = race["words"][0] if what == "ranking" else f" {race['finalists']} "
        assert told in shown.stdout
    planned = mixpool("plan", place / "recipe.yaml", "--store", place / "raced")
    assert "0 losses; " in planned.stdout


def test_a_plan_says_what_is_certain_and_that_there_is_more(
    tmp_path: Path, place: Path, raced: tuple[RunResult, InlineRunner], tiny_recipe: TinyRecipe
) -> None:
    recipe = tiny_recipe(place, *RACE, RULES)
    before, after = planned(recipe, tmp_path / "new"), planned(recipe, place / "raced")
    assert before.is_open
    assert before.pairs_missing >= 6 * 57
    assert next(call.label for call in before.to_build(PART)).endswith("part 1")
    runner = raced[1]
    assert not after.is_open
    assert (after.to_build(), after.pairs_missing) == ([], 0)
    assert after.pairs_known == runner.ledger.num_evaluated + runner.ledger.num_known


def test_where_there_is_little_to_spare_all_are_evaluated_in_full(
    tmp_path: Path, place: Path, full: RunResult, tiny_recipe: TinyRecipe
) -> None:
    """A first look of 300 groups of documents is more than the sets have."""
    shutil.copytree(place / "full", tmp_path / "store")
    recipe = tiny_recipe(place, *RACE, "evaluation.race={top: 3, groups: 300}")
    result, runner = run(recipe, tmp_path / "store")
    assert runner.ledger.num_evaluated == 0
    assert list(result.report.rankings) == list(full.report.rankings)
    assert any(note.startswith("All 63 mixtures were evaluated") for note in result.report.notes)
    pd.testing.assert_frame_equal(
        result.report.rankings[MACRO_MEAN], full.report.rankings[MACRO_MEAN]
    )


def test_a_race_goes_on_where_it_was_ended(
    tmp_path: Path,
    place: Path,
    raced: tuple[RunResult, InlineRunner],
    tiny_recipe: TinyRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ended after every few chunks; nothing is evaluated twice, and all comes out the same."""
    recipe, evaluated, ends = tiny_recipe(place, *RACE, RULES), 0, 0
    while True:
        runner = InlineRunner(Store(str(tmp_path)), RUNTIME)
        sweep, calls = runner.sweep, iter(range(3))

        def ending(work: Any, sweep: Any = sweep, calls: Any = calls) -> Any:
            if next(calls, None) is None:
                raise StoppedError
            return sweep(work)

        monkeypatch.setattr(runner, "sweep", ending if ends < 3 else sweep)
        try:
            result = execute(runner, recipe)
        except StoppedError:
            ends += 1
            evaluated += runner.ledger.num_evaluated
            continue
        break
    assert ends == 3
    assert evaluated + runner.ledger.num_evaluated == raced[1].ledger.num_evaluated
    assert result.summary["race"] == raced[0].summary["race"]
    assert list(result.outcome.rows or []) == list(raced[0].outcome.rows or [])


def test_new_data_is_judged_anew_and_old_rows_are_used(
    tmp_path: Path, tiny_recipe: TinyRecipe
) -> None:
    recipe = tiny_recipe(tmp_path, *RACE, RULES)
    landing = tmp_path / "corpus" / "sums.jsonl"
    late = landing.rename(tmp_path / "late.jsonl")
    before = run(recipe, tmp_path / "store")[0]
    late.rename(landing)
    result, runner = run(recipe, tmp_path / "store")
    assert (len(before.outcome.mixtures), len(result.outcome.mixtures)) == (31, 63)
    # At least the first look of the old mixtures of several partitions at the old sets.
    assert runner.ledger.num_known >= (31 - 5) * 5
    race = result.summary["race"]
    assert race["screened_out"] + race["finalists"] == 63


@pytest.mark.usefixtures("raced")
def test_validation_compares_also_what_was_screened_out(
    place: Path, tiny_recipe: TinyRecipe
) -> None:
    recipe = tiny_recipe(place, *RACE, RULES, "validation={references: 4, sizes: [2, 3]}")
    runner = InlineRunner(Store(str(place / "raced")), RUNTIME)
    result = execute(runner, recipe, with_references=True)
    assert result.report.validation is not None
    labels = {*result.report.validation.pairs["mixture"]}
    assert len(labels) == 4
    assert labels - {mixture.label for mixture in result.outcome.judged}
    content = json.loads((place / "raced" / result.folder / "run.json").read_text())
    assert content["content"]["summary"]["race"]["finalists"] == len(result.outcome.judged)


def test_with_one_set_the_first_look_takes_several_parts_of_it(
    tmp_path: Path, tiny_recipe: TinyRecipe
) -> None:
    """Parts of 4, 4 and 8 documents make the 16 that a first look has at least."""
    tiny_recipe(tmp_path)
    (tmp_path / "corpus" / "sums.jsonl").rename(tmp_path / "sums.jsonl")
    sets = f"evaluation.sets=[{{name: sums, source: {{urls: ['{tmp_path}/sums.jsonl']}}}}]"
    alone = ["evaluation.heldout=false", "corpus.split.heldout_fraction=0", sets]
    recipe = tiny_recipe(tmp_path, *RACE, RULES, *alone)
    result, runner = run(recipe, tmp_path / "store")
    parts = [entry.label for entry in runner.ledger.built(PART)]
    assert parts == ["sums part 1", "sums part 2", "sums part 3"]
    (look,) = result.summary["race"]["looks"]
    assert (look["look"], look["evaluated"], look["share"]) == (0, 31, pytest.approx(16 / 40))
    everything, _ = run(tiny_recipe(tmp_path, *RACE, *alone), tmp_path / "store")
    best = everything.report.rankings[MACRO_MEAN]["mixture"].head(3).tolist()
    assert result.report.rankings[MACRO_MEAN]["mixture"].head(3).tolist() == best
