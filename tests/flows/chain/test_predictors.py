"""Predictors beside merging: columns of a validation, and what a ranking may go by."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.chain.recipe_file import RecipeError
from flows.run.execute import RunResult, execute
from flows.run.folder import read_report
from flows.run.stored import find_run
from flows.runners.inline import InlineRunner
from flows.runners.planner import plan
from storage.artifact import seal
from storage.garbage import collect
from storage.step import Runtime
from storage.store import Store
from tasks.evaluation.token_nats import NATS
from tasks.evaluation.uphill import FLATNESS
from tasks.ranking.rank import MACRO_MEAN
from tasks.training.train import TRAIN
from tests.flows.conftest import Place, mixpool

OTHERS = ("evaluation.predictors=[probability, scaled 1.5]", "validation.references=4")
RUNTIME = Runtime(device="cpu", threads=1)


@pytest.fixture(scope="module")
def place(finished: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With the store of a run, in which tests leave more."""
    return finished.copy(tmp_path_factory.mktemp("place"))


def run(place: Place, *overrides: str, validate: bool = False) -> RunResult:
    runner = InlineRunner(Store(place.store), RUNTIME)
    return execute(runner, place.load(*overrides), with_references=validate)


@pytest.fixture(scope="module")
def validated(place: Place) -> RunResult:
    return run(place, *OTHERS, validate=True)


def table(result: RunResult) -> pd.DataFrame:
    """Losses in nats per token: mixtures as rows, sets as columns."""
    losses = result.report.losses
    tokens = [counts.num_tokens for counts in losses.counts]
    return pd.DataFrame(losses.nll / tokens, losses.mixtures, losses.sets)


def test_each_predictor_is_a_column_of_a_validation(validated: RunResult) -> None:
    trust = validated.report.validation
    assert trust is not None
    assert {"probability", "scaled 1.5", "singles"} <= {*trust.pairs}
    assert {"proxy", "probability", "scaled 1.5", "singles"} <= {*trust.table["predictor"]}
    # By Jensen's inequality averaged probabilities are never worse than the mean of the losses.
    assert (trust.pairs["probability"] <= trust.pairs["singles"] + 1e-6).all()
    assert trust.pairs["scaled 1.5"].sub(trust.pairs["proxy"]).abs().min() > 1e-4


def test_a_validation_trains_and_runs_what_lacks_and_nothing_twice(
    place: Place, validated: RunResult
) -> None:
    """Models run once on each set; the scaled merges of the references alone are evaluated."""
    models = Store(place.store).records(NATS.name)
    assert len([*models]) == 6 * 6
    # References, the base model, and the scaled merges of the references, on six sets.
    assert validated.summary["losses_evaluated"] == (4 + 1 + 4) * 6
    again = InlineRunner(Store(place.store), RUNTIME)
    found = execute(again, place.load(*OTHERS), with_references=True)
    assert [entry.label for entry in again.ledger.entries if entry.built] == []
    assert again.ledger.num_evaluated == 0
    assert found.report.validation is not None
    assert validated.report.validation is not None
    pd.testing.assert_frame_equal(found.report.validation.pairs, validated.report.validation.pairs)


def test_gc_keeps_the_losses_of_every_predictor(place: Place, validated: RunResult) -> None:
    """A table for merges, another for scaled ones."""
    assert len(validated.content["losses"]) == 2
    assert not any(collect(Store(place.store), None)[:-1])


def test_a_ranking_goes_by_the_predictor_that_the_recipe_names(
    place: Place, validated: RunResult
) -> None:
    """Nothing is trained; a mixture of one has its model's own losses; every page names the predictor."""
    merged = table(validated)
    pairs = validated.report.validation.pairs if validated.report.validation else pd.DataFrame()
    alone = [label for label in merged.index if " + " not in label]
    for name in ("probability", "singles", "scaled 1.5"):
        found = run(place, f"evaluation.rank_by={name}")
        assert found.summary["trained"] == []
        losses = table(found)
        assert list(losses.index) == list(merged.index)
        if not name.startswith("scaled"):
            np.testing.assert_allclose(losses.loc[alone], merged.loc[alone], rtol=1e-6)
            assert found.summary["losses_evaluated"] == 0
        for row in pairs[pairs["evaluation_set"] != MACRO_MEAN].to_dict("records"):
            value = losses.loc[row["mixture"], row["evaluation_set"]]
            assert value == pytest.approx(row[name], rel=1e-6)
        macro = found.report.rankings[MACRO_MEAN]
        best = losses.mean(axis=1).sort_values()
        assert macro["loss"].tolist() == pytest.approx(best.tolist())
        assert found.summary["ranked_by"] == name
        assert f"all losses of mixtures are of evaluation.rank_by: {name}" in found.report.notes[-1]
        page = (Path(place.store) / found.folder / "report.html").read_text(encoding="utf-8")
        assert "judged by another predictor than merging" in page
        shown = mixpool("show", "ranking", "--store", place.store).stdout
        assert f"judged by {name}" in " ".join(shown.split())
        stored = read_report(Store(place.store), find_run(Store(place.store), None))
        assert stored.ranked_by == name


def test_a_plan_knows_what_predictors_lack(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    found = plan(
        place.store,
        place.load("evaluation.rank_by=probability"),
        RUNTIME,
        InlineRunner(Store(place.store)).reporter,
    )
    assert len(found.to_build(NATS)) == 6 * 6
    assert found.to_build(TRAIN) == found.to_build(FLATNESS) == []
    assert found.pairs_missing == 0


def test_a_search_goes_by_a_predictor(place: Place) -> None:
    """The same mixtures have the losses of the ranking by it."""
    by = "evaluation.rank_by=probability"
    runner = InlineRunner(Store(place.store), RUNTIME)
    found = execute(runner, place.load(by, "search.evaluations=24"), with_search=True)
    assert found.summary["trained"] == []
    searched, all_of_them = table(found), table(run(place, by))
    both = searched.index.intersection(all_of_them.index)
    assert len(both) > 5
    np.testing.assert_allclose(searched.loc[both], all_of_them.loc[both], rtol=1e-6)


def test_a_ranking_says_what_a_validation_of_its_pool_favoured(
    place: Place, validated: RunResult
) -> None:
    """References are too few here to favour anything, so what a run says of them is written over."""
    assert "favoured" in validated.content["summary"]
    assert not any("favours" in note for note in run(place).report.notes)
    summary = {**validated.content["summary"], "favoured": {MACRO_MEAN: "probability"}}
    name = "99990101T000000Z-tiny"
    content = {**validated.content, "name": name, "summary": summary}
    folder = Path(place.store) / "runs" / name
    folder.mkdir()
    (folder / "run.json").write_bytes(seal(content))
    note = f"the validation in run {name} favours probability on the {MACRO_MEAN}"
    assert any(words.startswith(note) for words in run(place).report.notes)
    notes = run(place, "evaluation.rank_by=probability").report.notes
    assert not any("favours" in words for words in notes)
    # Of another pool, nothing is known.
    fewer = "corpus.source.include_domains=[birds, law, sums]"
    other = run(place, fewer, "mixtures.spaces.0.sizes=[1, 2]")
    assert not any("favours" in words for words in other.report.notes)
    assert json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("predictors=[median]", "evaluation.predictors[0]: 'median' is no predictor: allowed are"),
        ("predictors=[scaled]", "'scaled' is no predictor: allowed are merge, probability"),
        ("predictors=[scaled 1]", "with a positive number other than 1 behind it"),
        ("predictors=[scaled nan]", "'scaled nan' is no predictor"),
        ("rank_by=validated", "evaluation.rank_by: 'validated' is no predictor: allowed are"),
        (
            "predictors=[scaled 1.5, scaled 1.50]",
            "evaluation.predictors have a name twice: ['scaled 1.5', 'scaled 1.5']",
        ),
    ],
)
def test_what_is_no_predictor_is_refused(finished: Place, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        finished.load(f"evaluation.{override}")
    assert message in str(error.value)


def test_a_race_goes_by_merges_alone(finished: Place) -> None:
    with pytest.raises(RecipeError, match=r"rank_by is 'singles', and evaluation\.race evaluates"):
        finished.load("evaluation.race={}", "evaluation.rank_by=singles")


def test_a_ladder_goes_by_merges_alone(finished: Place) -> None:
    ladder = "validation.ladder=[{train.learning_rate: 1e-4}]"
    with pytest.raises(RecipeError, match=r"rank_by is 'singles', and validation\.ladder compares"):
        finished.load(ladder, "evaluation.rank_by=singles")
