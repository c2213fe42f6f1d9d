"""References are steps: trained once, reused, and compared with what merging predicted."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.run.execute import execute
from flows.runners.inline import InlineRunner
from storage.garbage import collect
from storage.lineage import run_folders
from storage.step import Call, Handle
from storage.store import Store
from tasks.ranking.rank import MACRO_MEAN
from tests.flows.conftest import Place, mixpool, mixpool_json

SETS = 6
PROXY = {"scope": "all", "predictor": "proxy"}


def test_references_are_trained_once_and_one_more_costs_one_training(
    finished: Place, tmp_path: Path
) -> None:
    place = finished.copy(tmp_path)
    words = ["validate", place.recipe, "--store", place.store, "--references"]
    planned = mixpool_json(
        *["plan", *words[1:-1], "--references", "--set"], "validation.references=3"
    )
    found = mixpool_json(*words, "3")
    first = found["trained"]
    assert len(first) == 3
    assert all(label.startswith("reference ") for label in first)
    # The plan has named them, as the ranking that they are chosen by was in the store.
    assert planned["references"]["build"] == first
    assert planned["references"]["tokens"] == planned["training_tokens"] == 3 * 2 * 5 * 4 * 32
    assert planned["losses_to_evaluate"] == (3 + 1) * SETS
    # Beside the references themselves, the base model; singles and midpoints were known.
    assert found["losses_evaluated"] == (3 + 1) * SETS
    assert {row["evaluation_set"] for row in found["validation"]} == {*domains(place), MACRO_MEAN}
    assert any("barrier" in sentence for sentence in found["verdict"])

    again = mixpool_json(*words, "3")
    assert (again["trained"], again["losses_evaluated"]) == ([], 0)
    assert again["validation"] == found["validation"]
    assert again["verdict"] == found["verdict"]

    more = mixpool_json(*words, "4")
    assert len(more["trained"]) == 1
    assert {*more["trained"]}.isdisjoint(first)
    assert more["losses_evaluated"] == SETS

    shown = mixpool(*words, "4").stdout
    assert more["verdict"][0] in " ".join(shown.split())
    check_references(place, len(first) + 1)
    check_figures(place, more["validation"])


class Interrupted(InlineRunner):
    """Is stopped after its first reference."""

    left = 1

    def obtain(self, call: Call[Any]) -> Handle:
        if call.label.startswith("reference "):
            self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().obtain(call)


def test_gc_keeps_what_an_interrupted_validation_has_trained(
    finished: Place, tmp_path: Path
) -> None:
    place = finished.copy(tmp_path)
    recipe, store = place.load("validation.references=2"), Store(place.store)
    with pytest.raises(KeyboardInterrupt):
        execute(Interrupted(store), recipe, with_references=True)
    assert not any(collect(Store(place.store), None)[:-1])
    again = InlineRunner(Store(place.store))
    execute(again, recipe, with_references=True)
    assert len([entry for entry in again.ledger.entries if entry.built]) == 1
    # The run that ended has the same references, so the folder of the other is not needed.
    (begun,) = {path.split("/")[1] for path in collect(Store(place.store), None).runs}
    assert begun not in run_folders(Store(place.store))


def domains(place: Place) -> list[str]:
    """Names of the held-out sets."""
    return [line["partition"][:-2] for line in _partitions(place)]


def _partitions(place: Place) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mixpool_json("show", "partitions", "--store", place.store)
    return found


def check_references(place: Place, number: int) -> None:
    """A reference is the base model trained on its partitions' tokens, as long as all of them."""
    store = Store(place.store)
    records = {record.label: record for record in store.records("train")}
    references = {k: r for k, r in records.items() if k.startswith("reference ")}
    assert len(references) == number
    for label, record in references.items():
        members = label.removeprefix("reference ").split(" + ")
        parts = [records[name] for name in members]
        assert record.config == {
            **parts[0].config,
            "steps": parts[0].config["steps"] * len(members),
        }
        assert {part.inputs["model"] for part in parts} == {record.inputs["model"]}
        tokens = {digest for name, digest in record.inputs.items() if name != "model"}
        assert tokens == {part.inputs["tokens"] for part in parts}


def check_figures(place: Place, figures: list[dict[str, object]]) -> None:
    """The table is what pandas makes of the run's own pairs of losses."""
    latest = mixpool_json("show", "runs", "--store", place.store)[-1]["run"]
    folder = Path(place.store) / "runs" / latest
    pairs = pd.read_parquet(folder / "references.parquet")
    assert {row["k"] for row in figures} == {"2", "within", "pooled"}
    for row in figures:
        if row["scope"] != "all" or row["k"] == "within":
            continue
        of_set = pairs[pairs["evaluation_set"] == row["evaluation_set"]]
        assert row["references"] == len(of_set) == 4
        column = str(row["predictor"])
        if of_set[column].nunique() > 1:
            expected = of_set[column].corr(of_set["reference"])
            assert row["pearson"] == pytest.approx(expected, abs=1e-9)
    losses = pd.read_parquet(folder / "losses.parquet")
    means = (
        losses.assign(mean=losses["nll"] / losses["num_tokens"]).groupby("mixture")["mean"].mean()
    )
    ranked = means[[" + " in label for label in means.index]].sort_values()
    macro = pairs[pairs["evaluation_set"] == MACRO_MEAN]
    assert macro["mixture"].iloc[0] == ranked.index[0], "the best by proxy is examined"
    for pair in macro.to_dict("records"):
        assert pair["proxy"] == pytest.approx(means[str(pair["mixture"])])
        members = str(pair["mixture"]).split(" + ")
        assert pair["singles"] == pytest.approx(means[members].mean())


def test_what_the_recipe_does_not_judge_is_evaluated_for_the_comparison(
    finished: Place, tmp_path: Path
) -> None:
    """Partitions alone, and the midpoints of pairs, of which the recipe may allow a few."""
    place = finished.copy(tmp_path)
    found = mixpool_json(
        "validate", place.recipe, "--store", place.store, "--set", "mixtures.spaces.0.sizes=[3]",
        "--set", "corpus.source.include_domains=[birds, law, sums, rivers]",
        "--set", "corpus.name=four", "--set", "validation.sizes=[3]", "--set", "validation.pairs=2",
        "--set", "validation.repeats=1",
    )  # fmt: skip
    assert found["mixtures"] == 4
    assert len(found["trained"]) == 1 + 4 + 2 + 1
    # Triples, single partitions, two midpoints, two references, a repeated one, the base model.
    assert found["losses_evaluated"] == (4 + 4 + 2 + 2 + 1 + 1) * 4
    seeds = [label for label in found["trained"] if label.endswith(" (seed 1)")]
    first = next(label for label in found["trained"] if label.startswith("reference "))
    assert seeds == [f"{first} (seed 1)"]
    latest = mixpool_json("show", "runs", "--store", place.store)[-1]["run"]
    tables = Path(place.store) / "runs" / latest / "tables"
    noise = pd.read_parquet(tables / "validation-noise.parquet").set_index("evaluation_set")
    assert noise.loc[MACRO_MEAN, "runs"] == 2
    assert (noise["sd"] > 0).all()
    barriers = pd.read_parquet(tables / "validation-barriers.parquet")
    assert len(barriers) == 2 * (4 + 1)
    ends = barriers[["loss_first", "loss_second"]].max(axis=1)
    assert barriers["barrier"].tolist() == pytest.approx((barriers["midpoint"] - ends).tolist())
    macro = [
        row
        for row in found["validation"]
        if row["evaluation_set"] == MACRO_MEAN and row.items() >= PROXY.items()
    ]
    assert [row["references"] for row in macro] == [2, 2, 2]
    assert all(row["pearson"] is None or math.isfinite(row["pearson"]) for row in macro)


@pytest.mark.parametrize(
    ("budget", "number"),
    [("3", 3), ("3 trainings", 3), ("3000 tokens", 2), ("4 ktokens", 3), ("1 GJ", 15)],
)
def test_a_budget_picks_how_many(finished: Place, tmp_path: Path, budget: str, number: int) -> None:
    """A reference of two partitions takes 2 x 5 steps of 4 blocks of 32 tokens."""
    planned = mixpool_json(
        "plan", finished.recipe, "--store", finished.copy(tmp_path).store, "--references",
        "--set", f"validation.budget={budget}",
    )  # fmt: skip
    assert len(planned["references"]["build"]) == number
    assert planned["references"]["tokens"] == number * 1280


def test_a_budget_that_pays_for_less_than_two_is_refused(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    words = ["validate", place.recipe, "--store", place.store, "--budget"]
    poor = mixpool(*words, "2000 tokens")
    assert poor.exit_code == 1
    assert "2000 tokens pays for 1 references" in poor.stderr
    odd = mixpool(*words, "much")
    assert odd.exit_code == 2
    assert "validation.budget: the budget 'much' is none" in odd.stderr
    unknown = mixpool(
        "plan", place.recipe, "--store", str(tmp_path / "new"), "--references",
        "--set", "validation.budget=2 kJ",
    )  # fmt: skip
    assert "no training in the store has measured any" in unknown.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--references", "16"],
            "asks for 16 mixtures, and the recipe has 15 uniform ones of sizes",
        ),
        (["--budget", "1"], "of 1 trainings pays for 1 references"),
        (["--set", "validation.sizes=[5]"], "the recipe has 0 uniform ones of sizes [5]: add to"),
    ],
)
def test_what_cannot_be_validated_is_refused_before_anything_is_trained(
    finished: Place, tmp_path: Path, words: list[str], message: str
) -> None:
    store = tmp_path / "new"
    result = mixpool("validate", finished.recipe, "--store", store, *words)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not list(store.glob("records/train/*"))
