"""A search over a whole chain: real losses, a budget that holds, nothing paid for twice, a plan."""

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.chain.ablation import scan_corpus
from flows.chain.recipe import Recipe
from flows.chain.runner import Quiet
from flows.chain.search import SearchOutcome, scope, search
from flows.chain.work import SweepPlan, SweepWork
from flows.command.summary import by_surrogate, figure
from flows.runners.inline import InlineRunner
from flows.runners.planner import Plan, plan
from storage.step import Runtime
from storage.store import Store
from tasks.evaluation.losses import LossRows
from tasks.evaluation.losses_table import LossesTable
from tasks.mixtures.mixture import Mixture
from tasks.ranking.rank import MACRO_MEAN
from tasks.search.descent import DESCEND
from tasks.training.train import TRAIN
from tests.flows.conftest import Place, mixpool, mixpool_json

RUNTIME = Runtime(threads=1, chunk=8)
SETS = 6
RULES = (
    "search.evaluations=24",
    "search.start=12",
    "search.batch=6",
    "search.surrogates=[linear, quadratic]",
    "search.descent={starts: 2, steps: 3, tokens: 64}",
    "search.constraints.resolution=20",
)


class StoppedError(Exception):
    """The search was ended here."""


def searched(recipe: Recipe, store: Path, limit: int = 10**6) -> tuple[SearchOutcome, InlineRunner]:
    """A search that is ended after ``limit`` sweeps."""

    class Ending(InlineRunner):
        sweeps = 0

        def sweep(self, work: SweepWork) -> LossRows:
            self.sweeps += 1
            if self.sweeps > limit:
                raise StoppedError
            return super().sweep(work)

    runner = Ending(Store(str(store)), RUNTIME)
    return search(runner, recipe, scan_corpus(runner, recipe)), runner


def planned(recipe: Recipe, store: Path) -> Plan:
    return plan(str(store), recipe, RUNTIME, Quiet(), with_search=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, finished: Place) -> Place:
    """A store in which six models are trained and all mixtures of one and two are evaluated."""
    return finished.copy(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def first(place: Place) -> tuple[SearchOutcome, InlineRunner, Plan]:
    """A search, and what was planned before it."""
    recipe = place.load(*RULES)
    before = planned(recipe, Path(place.store))
    return *searched(recipe, Path(place.store)), before


def test_the_budget_holds_and_every_row_is_real(
    place: Place, first: tuple[SearchOutcome, InlineRunner, Plan]
) -> None:
    found, runner, _ = first
    mixtures, rows = found.outcome.mixtures, found.outcome.rows
    assert len(mixtures) == len({*mixtures}) == 24
    assert rows is not None
    assert rows.labels == [mixture.label for mixture in mixtures]
    assert runner.ledger.num_evaluated + runner.ledger.num_known == 25 * SETS  # and the base model
    assert runner.ledger.built(TRAIN) == []
    # The same losses as a sweep's over the same mixtures, in one store or another.
    outcome = found.outcome
    config = place.load().evaluation.evaluate
    again = SweepWork(mixtures, outcome.pool, outcome.windows, config)
    assert SweepPlan.of(runner.store, again).rows() == rows


def test_what_is_told_is_what_was_evaluated(
    first: tuple[SearchOutcome, InlineRunner, Plan],
) -> None:
    outcome, told = first[0].outcome, first[0].result
    assert told is not None
    assert outcome.rows is not None
    assert told.trace["mixture"].tolist() == outcome.rows.labels
    assert told.trace["evaluation"].tolist() == list(range(1, 25))
    assert {*told.trace["proposed_by"]} <= {"start", "descent", "linear", "quadratic"}
    assert (told.trace["proposed_by"] == "start").sum() == 12
    best = told.trace.iloc[int(told.trace["objective"].to_numpy().argmin())]
    assert told.best["mixture"][0] == best["mixture"]
    assert told.best["objective"][0] == told.trace["best"].iloc[-1] == best["objective"]
    sets = [*outcome.windows]
    np.testing.assert_allclose(told.best[sets].mean(axis=1), told.best["objective"])
    assert {*told.surrogates["target"]} == {*sets}
    chosen = told.surrogates.loc[told.surrogates["chosen"], "surrogate"].unique()
    assert len(chosen) == 1
    words = " ".join(told.words)
    assert best["mixture"] in words
    assert chosen[0] in words
    assert "Descent through the merged model landed on" in words


def test_the_same_again_costs_nothing(
    place: Place, first: tuple[SearchOutcome, InlineRunner, Plan]
) -> None:
    again, runner = searched(place.load(*RULES), Path(place.store))
    assert runner.ledger.num_evaluated == 0
    assert runner.ledger.built(DESCEND) == []
    assert again.outcome.rows == first[0].outcome.rows
    assert again.result is not None
    assert first[0].result is not None
    pd.testing.assert_frame_equal(again.result.trace, first[0].result.trace)
    assert again.result.words == first[0].result.words
    after = planned(place.load(*RULES), Path(place.store))
    assert (after.pairs_missing, after.mixtures, after.is_search) == (0, 24, False)


def test_a_plan_counts_what_is_left_at_most(
    place: Place, first: tuple[SearchOutcome, InlineRunner, Plan]
) -> None:
    _, runner, before = first
    assert before.is_search
    assert before.to_json()["upper_bound"]
    assert before.mixtures == 24
    assert before.pairs_known + before.pairs_missing == 25 * SETS
    assert before.pairs_missing >= runner.ledger.num_evaluated
    assert [call.step for call in before.to_build()] == [DESCEND]
    assert before.descent_tokens == before.to_json()["descent_tokens"] == 2 * 3 * 64 * 3
    assert before.then.endswith(", and a descent worth 1,152 evaluated tokens")
    assert before.seconds_per_pair is not None
    assert before.seconds_per_token is not None
    evaluated, descended = before.effort * before.seconds_per_pair, 1152 * before.seconds_per_token
    assert before.seconds == pytest.approx(evaluated + descended)
    assert replace(before, seconds_per_token=None).seconds is None
    more = planned(place.load(*RULES, "search.evaluations=30"), Path(place.store))
    assert (more.pairs_missing, more.mixtures) == (6 * SETS, 30)
    assert more.descent_tokens == 0
    assert more.then == ", which the search chooses as it goes"


def test_a_plan_of_nothing_yet(tmp_path: Path, place: Place) -> None:
    made = planned(place.load(*RULES), tmp_path / "none")
    assert (made.pairs_missing, made.mixtures) == (25 * SETS, 24)
    assert len(made.to_build(TRAIN)) == 7
    assert len(made.to_build(DESCEND)) == 1
    said = mixpool("plan", place.recipe, "--store", tmp_path / "none", "--search").stdout
    assert "which the search chooses as it goes" in said


def test_more_evaluations_cost_the_difference(
    tmp_path: Path, place: Place, first: tuple[SearchOutcome, InlineRunner, Plan]
) -> None:
    store = Path(place.copy(tmp_path).store)
    more, runner = searched(place.load(*RULES, "search.evaluations=30"), store)
    assert more.outcome.mixtures[:24] == first[0].outcome.mixtures
    assert len(more.outcome.mixtures) == 30
    assert runner.ledger.num_evaluated <= 6 * SETS
    assert runner.ledger.num_evaluated + runner.ledger.num_known == 31 * SETS


def test_the_command_leaves_a_run(
    place: Place, first: tuple[SearchOutcome, InlineRunner, Plan]
) -> None:
    rules = [word for rule in RULES for word in ("--set", rule)]
    words = ("search", place.recipe, "--store", place.store, *rules)
    found = mixpool_json(*words)
    assert found["losses_evaluated"] == 0
    assert found["mixtures"] == 24
    assert first[0].result is not None
    assert found["search"] == first[0].result.words
    best = first[0].result.best.iloc[0]
    assert found["found"] == {
        "mixture": best["mixture"],
        "objective": pytest.approx(best["objective"]),
        "evaluations": 24,
    }
    folder = Path(place.store) / found["run"]
    assert first[0].result.words[1].split(",")[0] in (folder / "report.html").read_text()
    content = json.loads((folder / "run.json").read_text())["content"]
    assert Mixture.of(content["best"]).label == first[0].result.best["mixture"][0]
    said = mixpool(*words, "--evaluations", "26")
    assert "26 of " in said.stdout
    order = [
        "26 of ",
        "Best mixtures by the objective of the search",
        f"Best mixtures by {MACRO_MEAN}",
    ]
    places = [said.stdout.index(words) for words in order]
    assert places == sorted(places)
    shown = mixpool("show", "ranking", "--store", place.store)
    assert shown.exit_code == 0


def test_a_search_that_was_ended_goes_on(
    tmp_path: Path, finished: Place, first: tuple[SearchOutcome, InlineRunner, Plan]
) -> None:
    copy = finished.copy(tmp_path)
    recipe, store = copy.load(*RULES), Path(copy.store)
    with pytest.raises(StoppedError):
        searched(recipe, store, limit=4)
    config = recipe.evaluation.evaluate
    paid = len(LossesTable(Store(str(store)), config))
    found, runner = searched(recipe, store)
    assert found.outcome.rows == first[0].outcome.rows
    assert len(LossesTable(Store(str(store)), config)) == paid + runner.ledger.num_evaluated
    assert runner.ledger.num_evaluated < first[1].ledger.num_evaluated


def test_a_search_without_an_answer_leaves_that_of_the_ranking(
    tmp_path: Path, place: Place
) -> None:
    store = place.copy(tmp_path).store
    rules = [
        *RULES,
        "search.evaluations=12",
        "search.descent=null",
        "search.objective.caps={law: -99}",
    ]
    words = [word for rule in rules for word in ("--set", rule)]
    found = mixpool_json("search", place.recipe, "--store", store, *words)
    assert found["found"] is None
    assert found["search"][1].startswith("None of them keeps every cap.")
    content = json.loads((Path(store) / found["run"] / "run.json").read_text())["content"]
    assert Mixture.of(content["best"]).label == found["best"][MACRO_MEAN]["mixture"]


def test_surrogates_are_shown_as_the_objective_weighs_them() -> None:
    rows = [("linear", "law", 0.5, 0.75), ("linear", "sums", 0.9, 0.25), ("linear", "rest", -1, 0)]
    frame = pd.DataFrame(rows, columns=["surrogate", "target", "spearman", "share"])
    shown = by_surrogate(frame.assign(pearson=frame["spearman"], rmse=2.0, rows=7, chosen=True))
    assert shown.to_dict("records") == [
        {
            "surrogate": "linear",
            "spearman": 0.6,
            "pearson": 0.6,
            "rmse": 2,
            "rows": 7,
            "chosen": "yes",
        }
    ]


def test_figures_show_what_they_are() -> None:
    figures = [1.2345678, -0.5, 0.0, 1e-12, -1e-12, 1e300, 123456.789, np.nan, np.inf]
    assert [figure(one) for one in figures] == (
        "1.23457 −0.50000 0.00000 1e-12 −1e-12 1e+300 123,456.78900 – ∞".replace("e-", "e−").split()
    )


def test_constraints_and_caps_hold(place: Place) -> None:
    rules = [
        *RULES,
        "search.evaluations=16",
        "search.start=8",
        "search.constraints.most_partitions=3",
        "search.constraints.bounds={law: [0.25, 0.5]}",
        "search.objective.weights={law: 1, sums: 1}",
        "search.objective.caps={law: 50}",
        "search.descent=null",
    ]
    found, _ = searched(place.load(*rules), Path(place.store))
    for mixture in found.outcome.mixtures:
        assert mixture.size <= 3
        assert 0.25 <= mixture.weights["law-0"] <= 0.5
    told = found.result
    assert told is not None
    assert {*told.surrogates["surrogate"]} == {"linear", "quadratic"}
    np.testing.assert_allclose(told.best[["law", "sums"]].mean(axis=1), told.best["objective"])
    words = " ".join(told.words)
    assert "0 of the evaluated mixtures break a cap" in words
    best = next(m for m in found.outcome.mixtures if m.label == told.best["mixture"][0])
    assert ("these constraints bind: " in words) == (
        best.size == 3 or best.weights["law-0"] in (Fraction(1, 4), Fraction(1, 2))
    )
    assert "Descent" not in words


def test_a_domain_is_one_unit(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> None:
    changes = [
        "corpus.split.partitions_per_domain=2",
        "corpus.split.tokens_per_partition=600",
        "search.unit=domain",
        "search.constraints.even=true",
    ]
    recipe = tiny_recipe(tmp_path, *changes)
    corpus = scan_corpus(InlineRunner(Store(str(tmp_path / "store")), RUNTIME), recipe)
    design = scope(recipe, corpus).first()
    assert {one.mixture.size for one in design} >= {1, 5, 6}
    for one in design:
        assert one.judged.size == 2 * one.mixture.size
        assert one.judged.is_uniform


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("search.constraints.bounds={lawn: [0, 1]}", "lawn"),
        ("search.objective.weights={laws: 1}", "laws"),
        ("search.constraints.fewest_partitions=7", "7"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_trained(
    tmp_path: Path, place: Place, change: str, message: str
) -> None:
    store = tmp_path / "store"
    with pytest.raises(ValueError, match=message):
        searched(place.load(*RULES, change), store)
    assert not list(store.glob("records/train"))


def test_an_unknown_surrogate_is_refused_by_name(place: Place) -> None:
    said = mixpool("search", place.recipe, "--set", "search.surrogates=[linea]")
    assert said.exit_code == 2
    assert "search.surrogates: 'linea' is no surrogate; they are 'linear'" in said.stderr


# A table of losses ----------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Forty mixtures of three parts with a loss that is least at (0.2, 0.3, 0.5)."""
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 40)
    frame = pd.DataFrame(weights, columns=["code", "prose", "maths"])
    frame["loss"] = 1 + ((weights - [0.2, 0.3, 0.5]) ** 2).sum(axis=1)
    frame["other"] = 2 - weights[:, 0]
    frame.to_csv(tmp_path / "losses.csv", index=False)
    return tmp_path / "losses.csv"


def test_a_table_is_searched(table: Path, tmp_path: Path) -> None:
    words = ("search", "--losses", table, "--targets", "loss", "--weights", "code,prose,maths")
    few = ("--count", "3", "--output", tmp_path / "out", "--set", "surrogates=[linear, quadratic]")
    found = mixpool_json(*words, *few)
    assert len(found["proposals"]) == 3
    best = found["proposals"][0]
    weights = [best[f"weight of {name}"] for name in ("code", "prose", "maths")]
    np.testing.assert_allclose(weights, [0.2, 0.3, 0.5], atol=0.03)
    chosen = {row["surrogate"] for row in found["surrogates"] if row["chosen"]}
    assert chosen == {"quadratic"}
    assert len(found["held_out"]) == 8
    for name in ("surrogates", "held_out", "proposals"):
        one, other = pd.read_parquet(tmp_path / f"out/{name}.parquet"), len(found[name])
        assert len(one) == len(pd.read_csv(tmp_path / f"out/{name}.csv")) == other
    shown = mixpool(*words, "--set", "surrogates=[quadratic]").stdout
    assert "Mixtures to try next" in shown
    assert "quadratic" in shown


def test_given_rows_are_predicted(table: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("name,code,prose,maths\nbest,20,30,50\ncorner,1,0,0\n")
    words = ("search", "--losses", table, "--targets", "loss", "--weights", "code,prose,maths")
    run = (*words, "--predict", rows, "--set", "surrogates=[quadratic]")
    found = mixpool_json(*run, "--output", tmp_path / "out")
    best, corner = found["predictions"]
    assert best["predicted"] == best["predicted loss"] == pytest.approx(1, abs=1e-3)
    assert (best["extrapolates"], best["outside"], best["standard error"]) == ("", 0, None)
    assert corner["extrapolates"].startswith("'code' is 1, in the table")
    assert corner["predicted"] == pytest.approx(1 + 0.8**2 + 0.3**2 + 0.5**2, abs=0.01)
    assert "1 of 2 rows lie outside of what the table holds" in found["notes"][-1]
    assert pd.read_parquet(tmp_path / "out/predictions.parquet")["row"].tolist() == [1, 2]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        f"{name}.{kind}" for name in ("surrogates", "predictions") for kind in ("csv", "parquet")
    }
    assert "Predictions" in mixpool(*run).stdout
    rows.write_text("code,prose\n1,2\n")
    said = mixpool(*run)
    assert said.exit_code == 1
    assert "'maths', which is unknown" in said.stderr


def test_constraints_of_a_table_come_from_a_file_and_from_set(table: Path, tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text("bounds: {code: [0.5, 0.6]}\n")
    found = mixpool_json(
        *("search", "--losses", table, "--targets", "loss,other"),
        *("--constraints", tmp_path / "limits.yaml", "--set", "constraints.resolution=10"),
        *("--set", "surrogates=[linear]", "--set", "objective.weights={loss: 1}"),
    )
    assert found["proposals"]
    for row in found["proposals"]:
        assert row["weight of code"] in (0.5, 0.6)
        assert all((10 * row[f"weight of {n}"]) % 1 < 1e-9 for n in ("code", "prose", "maths"))


def test_repetition_in_a_table_goes_by_a_file_of_tokens(table: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text('{"code": 100, "prose": 1000, "maths": 50}')
    words = ("search", "--losses", table, "--targets", "loss,other", "--set", "surrogates=[linear]")
    run = ("--set", "constraints.repetition={tokens: 1000, most: 1}")
    found = mixpool_json(*words, *run, "--tokens", tmp_path / "tokens.json")
    assert found["proposals"]
    for row in found["proposals"]:
        assert row["weight of code"] <= 0.1
        assert row["weight of maths"] <= 0.05
    assert found["notes"][0].startswith(
        "Weights: code, prose, maths; targets: loss, other; row sums"
    )
    (tmp_path / "tokens.json").write_text('{"code": 0}')
    said = mixpool(*words, *run, "--tokens", tmp_path / "tokens.json")
    assert said.exit_code == 2
    assert "tokens.json: code: Input should be greater than 0" in said.stderr


def test_the_losses_of_a_run_are_a_table(finished: Place, tmp_path: Path) -> None:
    (run,) = sorted(Path(finished.store).glob("runs/*/losses.parquet"))
    found = mixpool_json("search", "--losses", run, "--set", "surrogates=[linear]", "--count", "2")
    names = ("birds", "cooking", "law", "letters", "rivers", "sums")
    assert {row["target"] for row in found["surrogates"]} == {*names}
    best = found["proposals"][0]
    assert sum(best[f"weight of {name}-0"] for name in names) == pytest.approx(1)
    (tmp_path / "losses.parquet").write_bytes(run.read_bytes())
    alone = mixpool("search", "--losses", tmp_path / "losses.parquet")
    assert alone.exit_code == 1
    assert "there is no members.parquet at" in alone.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--losses", "{table}"], "--losses needs --targets"),
        ([], "give a recipe, or --losses"),
        (["recipe.yaml", "--losses", "{table}"], "give a recipe, or --losses"),
        (
            ["--losses", "{table}", "--targets", "loss", "--set", "objective.caps={loss: 1}"],
            "no losses of a base model",
        ),
        (["recipe.yaml", "--count", "10"], "--count is for --losses"),
        (["recipe.yaml", "--held-out", "0.2"], "--held-out is for --losses"),
        (["recipe.yaml", "--output", "out"], "--output is for --losses"),
        (["recipe.yaml", "--targets", "loss"], "--targets is for --losses"),
        (["--losses", "{table}", "--evaluations", "9"], "--evaluations is for a recipe"),
        (["--losses", "{table}", "--store", "there"], "--store is for a recipe"),
        (["recipe.yaml", "--predict", "rows.csv"], "--predict is for --losses"),
        (
            ["--losses", "{table}", "--predict", "{table}", "--count", "3"],
            "--count means nothing with",
        ),
        (
            [
                *("--losses", "{table}", "--targets", "loss", "--weights", "code,prose,maths"),
                *("--predict", "{table}", "--set", "constraints.most_partitions=2"),
            ],
            "--set constraints means nothing with --predict",
        ),
        (["--losses", "{table}", "--set", "batch=3"], "--set batch means nothing with --losses"),
        (["--losses", "{table}", "--set", "descent.steps=3"], "--set descent means nothing"),
        (["--losses", "{table}", "--tokens", "none.json"], "and --tokens go together"),
        (
            ["--losses", "{table}", "--set", "constraints.repetition={tokens: 9}"],
            "and --tokens go together",
        ),
        (["--losses", "{table}", "--targets", "loss", "--set", "evaluation=1"], "evaluation: "),
        (["--losses", "{table}", "--targets", "loss", "--constraints", "none.yaml"], "none.yaml"),
    ],
)
def test_wrong_usage_is_told(table: Path, words: list[str], message: str) -> None:
    said = mixpool("search", *(word.replace("{table}", str(table)) for word in words))
    assert said.exit_code == 2
    assert message in said.stderr


def test_a_column_that_is_not_there_is_named(table: Path) -> None:
    said = mixpool("search", "--losses", table, "--targets", "los")
    assert said.exit_code == 1
    assert "'los'" in said.stderr
