"""References are steps: trained once, reused, and compared with what merging predicted."""

import math
from pathlib import Path

import pandas as pd
import pytest

from storage.store import Store
from tasks.ranking import MACRO_MEAN
from tests.flows.conftest import Place, mixpool, mixpool_json


def test_references_are_trained_once_and_one_more_costs_one_training(
    finished: Place, tmp_path: Path
) -> None:
    place = finished.copy(tmp_path)
    words = ["validate", place.recipe, "--store", place.store, "--references"]
    found = mixpool_json(*words, "3")
    first = found["trained"]
    assert len(first) == 3
    assert all(label.startswith("reference ") for label in first)
    assert found["losses_evaluated"] == 3 * 6
    assert len(found["validation"]) == (6 + 1) * 2

    again = mixpool_json(*words, "3")
    assert (again["trained"], again["losses_evaluated"]) == ([], 0)
    assert again["validation"] == found["validation"]

    more = mixpool_json(*words, "4")
    assert len(more["trained"]) == 1
    assert {*more["trained"]}.isdisjoint(first)
    assert more["losses_evaluated"] == 6

    table = mixpool(*words, "4").stdout
    assert "Merged models against really trained ones" in table
    assert "Pearson of means" in table

    check_references(place, len(first) + 1)
    check_figures(place, more["validation"])


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
    pairs = pd.read_parquet(Path(place.store) / "runs" / latest / "references.parquet")
    assert {row["k"] for row in figures} == {"2", "pooled"}
    for row in figures:
        of_set = pairs[pairs["evaluation_set"] == row["evaluation_set"]]
        assert row["references"] == len(of_set) == 4
        for method in ("pearson", "spearman"):
            for suffix, column in (("", "proxy"), ("_individual", "individual")):
                frame = of_set if method == "pearson" else of_set[[column, "reference"]].rank()
                assert row[method + suffix] == pytest.approx(frame[column].corr(frame["reference"]))
    losses = pd.read_parquet(Path(place.store) / "runs" / latest / "losses.parquet")
    means = (
        losses.assign(mean=losses["nll"] / losses["num_tokens"]).groupby("mixture")["mean"].mean()
    )
    for pair in pairs[pairs["evaluation_set"] == MACRO_MEAN].to_dict("records"):
        assert pair["proxy"] == pytest.approx(means[str(pair["mixture"])])
        members = str(pair["mixture"]).split(" + ")
        assert pair["individual"] == pytest.approx(means[members].mean())


def test_single_models_are_evaluated_where_the_recipe_judges_larger_mixtures_only(
    finished: Place, tmp_path: Path
) -> None:
    place = finished.copy(tmp_path)
    found = mixpool_json(
        "validate", place.recipe, "--store", place.store, "--set", "mixtures.spaces.0.sizes=[2]",
        "--set", "corpus.source.include_domains=[birds, law, sums]", "--set", "corpus.name=three",
    )  # fmt: skip
    assert found["mixtures"] == 3
    assert found["losses_evaluated"] == (3 + 3 + 2) * 3
    macro = [row for row in found["validation"] if row["evaluation_set"] == MACRO_MEAN]
    assert [row["references"] for row in macro] == [2, 2]
    assert all(row["pearson"] is None or math.isfinite(row["pearson"]) for row in macro)


def test_too_few_mixtures_are_refused_with_their_number(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    result = mixpool("validate", place.recipe, "--store", place.store, "--references", "16")
    assert result.exit_code == 1
    assert "asks for 16 mixtures, and the recipe has 15 uniform ones of sizes [2]" in result.stderr
