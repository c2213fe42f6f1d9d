"""Mixtures that a validation names are really trained to their weights; repetition as in a longer run."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from flows.chain.drawing import drawing
from flows.run.folder import read_report
from flows.run.stored import find_run
from storage.artifact import Record
from storage.store import Store
from tasks.mixtures.mixture import Mixture
from tasks.partitions.manifest import PartitionEntry
from tasks.ranking.rank import MACRO_MEAN
from tests.conftest import TinyRecipe
from tests.flows.conftest import Place, mixpool, mixpool_json

BLOCKS = 2 * 5 * 4
"""Of a reference of two partitions."""


def records(place: Place) -> dict[str, Record]:
    return {record.label: record for record in Store(place.store).records("train")}


def test_named_mixtures_are_trained_to_their_weights_and_stand_beside_the_sample(
    finished: Place, tmp_path: Path
) -> None:
    place = finished.copy(tmp_path)
    words = ["validate", place.recipe, "--store", place.store, "--references", "3"]
    before = mixpool_json(*words)
    asked = ["--mixture", "birds=0.7,law=0.3", "--mixture", "best", "--mixture", "proportional"]
    planned = mixpool_json(
        "plan", place.recipe, "--store", place.store, "--references", "--set", "validation.references=3",
        "--set", "validation.mixtures=[{birds: 0.7, law: 0.3}]", "--set", "validation.proportional=true",
    )  # fmt: skip
    found = mixpool_json(*words, *asked)
    # The sample is as it was, in its keys and in its figures.
    assert found["validation"] == before["validation"]
    assert planned["references"]["build"] == [name for name in found["trained"] if "7 " in name] + [
        name for name in found["trained"] if "7 " not in name and name.count("+") == 5
    ]
    labels = [row["mixture"] for row in found["named"] if row["evaluation_set"] == MACRO_MEAN]
    assert labels[0] == "7 birds-0 + 3 law-0"
    assert labels[2].count(" + ") == 5
    assert {f"reference {labels[0]}", f"reference {labels[2]}"} <= {*found["trained"]}
    record = records(place)[f"reference {labels[0]}"]
    pool = records(place)
    digests = {pool[name].inputs["tokens"]: part for name, part in (("birds-0", 7), ("law-0", 3))}
    inputs = [record.inputs[name] for name in ("tokens.0000", "tokens.0001")]
    assert record.config["weights"] == [digests[digest] for digest in inputs]
    assert record.config["steps"] == 2 * 5
    given = dict(zip(inputs, record.details["sources"], strict=True))
    assert {digests[d]: given[d]["blocks"] for d in inputs} == {7: 28, 3: 12}
    assert sum(source["blocks"] for source in record.details["sources"]) == BLOCKS
    # All tokens of partitions, as whole parts.
    whole = pool[f"reference {labels[2]}"]
    tokens = {p["name"]: p["tokens"] for p in partitions(place)}
    shares = [Fraction(tokens[name], sum(tokens.values())) for name in sorted(tokens)]
    assert sorted(Fraction(w, sum(whole.config["weights"])) for w in whole.config["weights"]) == (
        sorted(shares)
    )
    check_rows(place, found["named"], labels)
    again = mixpool_json(*words, *asked)
    assert (again["trained"], again["losses_evaluated"]) == ([], 0)
    assert again["named"] == found["named"]
    shown = " ".join(mixpool(*words, *asked).stdout.split())
    assert "7 birds-0 + 3 law-0, really trained as long as the even references of k = 2" in shown
    assert "no even reference of that k was trained" in shown


def partitions(place: Place) -> list[dict[str, Any]]:
    return [
        {"name": record.label, "tokens": record.details["num_tokens"]}
        for record in Store(place.store).records("partition")
    ]


def check_rows(place: Place, rows: list[dict[str, Any]], labels: list[str]) -> None:
    """Ranks and the best even one by pandas alone; the report that is read back has the same table."""
    store = Store(place.store)
    data = read_report(store, find_run(store, None))
    assert data.validation is not None
    assert data.validation.named is not None
    read = json.loads(data.validation.named.to_json(orient="records", double_precision=15))
    assert read == rows
    pairs = data.validation.pairs
    assert {*labels}.isdisjoint({*pairs["mixture"]} - {labels[1]}), "they are in no correlation"
    for row in rows:
        even = pairs[(pairs["evaluation_set"] == row["evaluation_set"]) & (pairs["k"] == row["k"])]
        even = even[even["mixture"] != row["mixture"]]
        assert row["even"] == len(even)
        for column in ("proxy", "reference"):
            assert row[f"{column}_rank"] == 1 + (even[column] < row[column]).sum()
        if len(even):
            best = even.loc[even["reference"].idxmin()]
            assert row["best_even"] == best["mixture"]
            assert row["difference"] == pytest.approx(row["reference"] - best["reference"])
            assert row["low"] < row["difference"] < row["high"]
        else:
            assert row["best_even"] is None
    page = (Path(place.store) / "runs" / find_run(store, None).name / "report.html").read_text()
    assert "Mixtures that were named" in page
    first = {row["evaluation_set"]: row["reference"] for row in rows if row["mixture"] == labels[0]}
    macro = first.pop(MACRO_MEAN)
    assert sum(first.values()) / len(first) == pytest.approx(macro)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["--mixture", "brids=1"],
            1,
            "names 'brids', which is unknown: did you mean one of ['birds",
        ),
        (["--mixture", "birds=0,law=0"], 2, "mixtures[0] is {'birds': 0.0, 'law': 0.0}: give one"),
        (["--mixture", "birds"], 2, "--mixture 'birds': write it as NAME=VALUE,NAME=VALUE"),
        (["--mixture", "birds=much"], 2, "validation.mixtures[0].birds"),
        (
            ["--mixture", "birds=99,law=1"],
            1,
            "the share of 'law-0' in '99 birds-0 + law-0' is 1 of 100",
        ),
        (
            ["--set", "train.weights=[1]"],
            2,
            "train.weights is [1]: a training of the recipe has no mixture",
        ),
        (["--set", "train.repeat_as={}"], 2, "train.repeat_as.tokens is not given"),
        (["--set", "train.repeat_as={tokens: 9, epochs: ['2']}"], 2, "they follow from the corpus"),
        (
            ["--set", "base.train.repeat_as={tokens: 9}"],
            2,
            "is for partitions' models: give train.repeat",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    words: list[str], code: int, message: str, tmp_path: Path, finished: Place
) -> None:
    message = message.replace("99 birds-0 + law-0", "99 birds-0 + 1 law-0")
    refused = mixpool("validate", finished.recipe, "--store", tmp_path / "store", *words)
    assert refused.exit_code == code
    assert message in refused.stderr.replace("\n", " ")


def test_best_needs_a_finished_run(tmp_path: Path, finished: Place) -> None:
    place = finished.copy(tmp_path)
    words = ["validate", place.recipe, "--store", place.store, "--mixture", "best"]
    refused = mixpool(*words[:1], place.recipe, "--store", tmp_path / "none", *words[4:])
    assert refused.exit_code == 1
    Path(place.recipe).write_text(
        Path(place.recipe).read_text().replace("name: tiny", "name: b", 1)
    )
    refused = mixpool(*words)
    assert refused.exit_code == 1
    assert "there is no finished run of the recipe 'b'" in refused.stderr


def test_a_budget_pays_for_named_mixtures_and_both_repeats(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    words = ["plan", place.recipe, "--store", place.store, "--references"]
    words += ["--set", "validation.repeats=1", "--set", "validation.mixtures=[{birds: 2, law: 1}]"]
    words += ["--set", "validation.repeats_of=both"]
    # One reference three times over (itself and two repeats), one that is named, and two others.
    planned = mixpool_json(*words, "--set", "validation.budget=6")["references"]["build"]
    assert len(planned) == 3 + 1 + 2
    macro = mixpool_json("show", "runs", "--store", place.store)
    assert macro
    again = [name for name in planned if "seed" in name]
    assert again[0] == f"{planned[0]} (seed 1)"
    assert again[1].removesuffix(" (seed 1)") in planned[1:3]
    poor = mixpool(*words, "--set", "validation.budget=4")
    assert "beside 1 that are named" in poor.stderr


def test_the_best_and_the_worst_are_trained_again(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    rules = ["references=3", "repeats=1", "repeats_of=both", "mixtures=[{birds: 2, law: 1}]"]
    sets = [word for rule in rules for word in ("--set", f"validation.{rule}")]
    found = mixpool_json("validate", place.recipe, "--store", place.store, *sets)
    assert len(found["trained"]) == 3 + 1 + 2
    store = Store(place.store)
    trust = read_report(store, find_run(store, None)).validation
    assert trust is not None
    assert trust.noise is not None
    macro = trust.pairs[trust.pairs["evaluation_set"] == MACRO_MEAN].set_index("mixture")
    noise = trust.noise[trust.noise["evaluation_set"] == MACRO_MEAN].set_index("mixture")
    assert noise.index.tolist() == [macro["proxy"].idxmin(), macro["proxy"].idxmax()]
    assert noise["runs"].tolist() == [2, 2]
    made = records(place)
    for label, sd in noise["sd"].items():
        digests = [made[f"reference {label}{seed}"].output.digest for seed in ("", " (seed 1)")]
        assert digests[0] != digests[1]
        assert 0 < sd < 0.1


# Repetition ----------------------------------------------------------------------------------------


def entries(**tokens: int) -> list[PartitionEntry]:
    """Partitions ``a_0`` and so on of domains ``a``."""
    return [
        PartitionEntry.model_construct(name=name, domain=name[0], num_tokens=count)
        for name, count in tokens.items()
    ]


def test_epochs_are_the_longer_runs(tmp_path: Path, tiny_recipe: TinyRecipe) -> None:
    """Long run's tokens, times the share of a source, over its tokens at hand: of all its partitions."""
    pool = entries(a_0=300, a_1=100, b_0=50)
    recipe = tiny_recipe(tmp_path, "train.repeat_as={tokens: 1000}")

    def epochs(*files: str, mixture: Mixture | None = None, **rule: int) -> list[Fraction]:
        changed = recipe.train.repeat_as.model_copy(update=rule)  # type: ignore[union-attr]
        train = recipe.train.model_copy(update={"repeat_as": changed})
        drawn = drawing(recipe.model_copy(update={"train": train}), pool, files, mixture).train
        assert drawn.repeat_as is not None
        assert drawn.repeat_as.tokens is None, "no part of a key"
        assert drawn.weights == (
            None if mixture is None else [dict(mixture.parts)[n] for n in files]
        )
        return [Fraction(text) for text in drawn.repeat_as.epochs]

    assert epochs("a_1") == [Fraction(1000, 2 * 400)]
    assert epochs("b_0") == [Fraction(1000, 2 * 50)]
    assert epochs("b_0", sources=5) == [Fraction(1000, 5 * 50)]
    even = Mixture.uniform(["a_0", "b_0"])
    assert epochs("b_0", "a_0", mixture=even) == [Fraction(500, 50), Fraction(500, 400)]
    three = Mixture.of({"a_0": 2, "a_1": 1, "b_0": 1})
    assert epochs("a_0", "a_1", "b_0", mixture=three) == [
        *2 * [Fraction(750, 400)],
        Fraction(250, 50),
    ]
    plain = tiny_recipe(tmp_path)
    assert drawing(plain, pool, ["a_0"]) is plain
    assert drawing(plain, pool, ["a_0", "b_0"], even) is plain


def test_a_pool_repeats_as_the_longer_run_and_so_do_its_references(
    finished: Place, tmp_path: Path
) -> None:
    """Exact counts; where a partition has too little text it repeats more often, and a note says so."""
    place = finished.copy(tmp_path)
    tokens = {p["name"]: p["tokens"] for p in partitions(place)}
    longer = 6 * 4 * max(tokens.values())
    words = ["--store", place.store, "--set", f"train.repeat_as={{tokens: {longer}}}"]
    found = mixpool_json("validate", place.recipe, *words, "--set", "validation.references=2")
    store = Store(place.store)
    made = {r.label: r for r in store.records("train") if r.config.get("repeat_as")}
    assert {*found["trained"]} == {*made}
    for label, record in made.items():
        sources = record.details["sources"]
        files = sorted(name for name in record.inputs if name.startswith("tokens"))
        digests = {records(place)[name].inputs["tokens"]: name for name in tokens}
        for name, source in zip(files, sources, strict=True):
            partition = digests[record.inputs[name]]
            share = Fraction(1, 2 if label.startswith("reference ") else 6)
            times = longer * share / tokens[partition]
            kept = min(source["available"], -(-source["blocks"] // times))
            assert source["different"] == kept
            assert source["blocks"] == 20
            assert source["epochs"] == 20 / kept
    note = "partitions that have too little text for as few repetitions"
    assert not any(note in problem for problem in found["problems"])
    # Twice the steps of a tiny run read partitions more than once, and this longer run would not.
    rules = ["train.repeat_as={tokens: 99}", "train.steps=20"]
    short = mixpool_json(
        *["run", place.recipe, "--store", place.store],
        *[word for rule in rules for word in ("--set", rule)],
    )
    (problem,) = [problem for problem in short["problems"] if note in problem]
    assert problem.count(" times, there 0.0") == 6
