"""Teachers through the whole chain: who teaches whom, what is counted, and what is said of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.chain.ablation import Prepared, prepare, scan_corpus
from flows.chain.notes import notes_of
from flows.chain.recipe import Recipe
from flows.chain.recipe_file import RecipeError, load_recipe, override_recipe, to_yaml
from flows.run.execute import RunResult, execute
from flows.runners.inline import InlineRunner
from storage.artifact import Record
from storage.step import Runtime
from storage.store import Store
from tasks.training.train import TRAIN
from tests.flows.conftest import Place, mixpool, mixpool_json

SMALL = (
    "corpus.source.include_domains=[birds, law, sums]",
    *("base.train.steps=4", "base.train.keep_optimizer=true"),
    *("train.steps=4", "train.optimizer_state=carried", "train.replay=0.25"),
    "mixtures.spaces=[{kind: subsets, sizes: [2]}]",
)
POOL = "train.teacher={from: pool}"
MIXTURE = "train.teacher={from: mixture, names: [law, sums-0], stop: 0.5}"
PARTITIONS = ("birds-0", "law-0", "sums-0")
QUIET = Runtime(device="cpu", threads=1)


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.set_num_threads(1)
    return tiny_recipe(tmp_path_factory.mktemp("teachers"), *SMALL)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")), create=True)


@pytest.fixture(scope="module")
def result(recipe: Recipe, store: Store) -> RunResult:
    taught = override_recipe(recipe, [POOL])
    return execute(InlineRunner(store, QUIET), taught, with_references=True)


def trainings(store: Store) -> dict[str, Record]:
    return {record.label: record for record in store.records("train")}


def taught_by(record: Record) -> dict[str, str]:
    return {n: d for n, d in record.inputs.items() if n.startswith("teacher-")}


def prepared(store: Store, recipe: Recipe) -> tuple[Prepared, list[str]]:
    """The pool of a recipe, and what was trained for it now."""
    run = InlineRunner(store, QUIET)
    pool = prepare(run, recipe, scan_corpus(run, recipe))
    return pool, [entry.label for entry in run.ledger.built(TRAIN)]


def test_the_pool_that_learnt_from_text_alone_teaches_every_training(
    result: RunResult, store: Store
) -> None:
    made = trainings(store)
    references = [label for label in made if label.startswith("reference ")]
    teachers = [f"teacher {name}" for name in PARTITIONS]
    assert len(references) == 2
    assert made.keys() == {"base", *PARTITIONS, *teachers, *references}
    digests = sorted(made[label].output.digest for label in teachers)
    for label in (*PARTITIONS, *references):
        # A partition's own model is among its teachers, so that all students have the same.
        assert [*taught_by(made[label]).items()] == [
            (f"teacher-{number}", digest) for number, digest in enumerate(digests)
        ]
        # Where they come from is in no key: their digests are.
        rules = {"share": 0.5, "temperature": 1.0, "stop": 0.3, "choice": "random"}
        assert made[label].config["teacher"] == rules
        steps = made[label].config["steps"]
        assert made[label].details["teacher_passes"] == {4: 2, 8: 3}[steps]
    for label in ("base", *teachers):
        assert "teacher" not in made[label].config
        assert not taught_by(made[label])
        assert "teacher_passes" not in made[label].details
    student, teacher = made["birds-0"].cost, made["teacher birds-0"].cost
    assert student["tokens"] == teacher["tokens"]
    # Two of four steps had one forward pass more, which is a third of a step.
    assert student["flops"] == pytest.approx(teacher["flops"] * (1 + 2 / 4 / 3))
    assert {*result.summary["trained"]} == made.keys()


def test_a_run_without_teachers_finds_their_models(
    recipe: Recipe, result: RunResult, store: Store
) -> None:
    """Its pool is the teachers, of whom a run with the mixture of two trains none."""
    alone, trained = prepared(store, recipe)
    assert trained == []
    words = "partition models and references learnt from teachers beside their text: "
    assert [note for note in result.report.notes if "teachers" in note] == [
        f"{words}3 teachers, one at random at each step; for the first 30% of the steps, with a share of "
        "0.5 of the loss, at temperature 1"
    ]
    assert not [note for note in notes_of(alone) if "teachers" in note]
    mixed, trained = prepared(store, override_recipe(recipe, [MIXTURE]))
    assert trained == [*PARTITIONS]
    made = {record.output.digest: record for record in store.records("train")}
    names = {
        name: made[d].label
        for name, d in taught_by(made[mixed.pool["birds-0"].built.digest]).items()
    }
    assert {*names} == {"teacher-0.0000", "teacher-0.0001"}
    assert {*names.values()} == {"teacher law-0", "teacher sums-0"}
    assert f"{words}the average of 2 models; for the first 50%" in " ".join(notes_of(mixed))


def test_an_export_names_the_teachers(result: RunResult, store: Store, tmp_path: Path) -> None:
    run = Path(result.folder).name
    words = ("export", "birds-0 + law-0", "--store", store.url, "--run", run)
    exported = mixpool(*words, "--model", tmp_path / "model")
    assert exported.exit_code == 0, exported.stderr
    card = (tmp_path / "model" / "README.md").read_text()
    (line,) = re.findall(r"(?m)^- teachers in training: (.*)$", card)
    assert line.startswith("3 teachers, one at random at each step; for the first 30%")
    digests = {trainings(store)[f"teacher {name}"].output.digest for name in PARTITIONS}
    assert {*re.findall(r"[0-9a-f]{64}", line)} == digests


def test_a_plan_counts_the_teachers(tmp_path: Path, new_place: Any) -> None:
    place: Place = new_place(tmp_path)
    sets = [word for change in (*SMALL, POOL) for word in ("--set", change)]
    planned = mixpool_json("plan", place.recipe, "--store", place.store, "--references", *sets)
    build = planned["steps"]["train"]["build"]
    teachers = [f"teacher {name}" for name in PARTITIONS]
    assert build[:7] == ["base", *teachers, *PARTITIONS]
    one = 4 * 4 * 32
    assert planned["training_tokens"] == one + 2 * 3 * one + 2 * 2 * one
    searched = mixpool_json("plan", place.recipe, "--store", place.store, "--search", *sets)
    assert searched["steps"]["train"]["build"] == build[:7]
    mixed = [word for change in (*SMALL, MIXTURE) for word in ("--set", change)]
    planned = mixpool_json("plan", place.recipe, "--store", place.store, *mixed)
    assert planned["steps"]["train"]["build"] == ["base", *teachers[1:], *PARTITIONS]


def test_a_given_model_teaches(
    recipe: Recipe, result: RunResult, store: Store, tmp_path: Path
) -> None:
    """An export of this store has its tokenizer; it is taken over, and its folder is in no key."""
    run = Path(result.folder).name
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        words = ("export", "law-0", "--store", store.url, "--run", run, "--model", folder)
        assert mixpool(*words).exit_code == 0
    keys = []
    for folder in folders:
        given = (
            f"tokenizer={{kind: given, path: {folder}}}",
            f"train.teacher={{from: path, names: [{folder}]}}",
        )
        found, _ = prepared(store, override_recipe(recipe, given))
        record = found.pool["sums-0"].record
        assert record is not None
        assert {*taught_by(record)} == {"teacher-0"}
        keys.append({name: model.digest for name, model in found.pool.items()})
    assert keys[0] == keys[1]
    assert [r.label for r in store.records("import-model")] == ["teacher one"]
    config = json.loads((folders[0] / "config.json").read_text())
    config["max_position_embeddings"] = 31
    (folders[1] / "config.json").write_text(json.dumps(config))
    refused = override_recipe(recipe, given)
    with pytest.raises(
        ValueError, match=r"^train\.teacher\.names '.*two': train\.context_length 32"
    ):
        prepared(store, refused)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.teacher={share: 0.5}", "train.teacher.from is not given: allowed are pool, path"),
        ("train.teacher={from: mixtures}", "train.teacher.from: Input should be 'pool', 'path'"),
        (
            "train.teacher={from: pool, of: 3}",
            "train.teacher.of: is no field here; fields are choice, from,",
        ),
        ("train.teacher={from: pool, share: 0}", "train.teacher: share is 0, so nothing"),
        ("base.train.teacher={from: pool}", "base.train.teacher is given: the base model learns"),
        (
            "train.teacher={from: path, names: [a]}",
            "tokenizer.kind is 'train': a given model knows",
        ),
    ],
)
def test_recipes_that_are_refused(recipe: Recipe, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        override_recipe(recipe, [change])


def test_a_control_has_no_teacher(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"control is true and train\.teacher is given"):
        override_recipe(recipe, [POOL, "control=true"])


def test_a_recipe_with_teachers_is_written_as_it_is_read(recipe: Recipe, tmp_path: Path) -> None:
    taught = override_recipe(recipe, [MIXTURE])
    (tmp_path / "recipe.yaml").write_text(to_yaml(taught))
    assert load_recipe(tmp_path / "recipe.yaml") == taught
    assert Recipe.model_validate_json(taught.model_dump_json()) == taught


@pytest.mark.parametrize(
    ("change", "runtime", "message"),
    [
        ("{from: mixture, names: [laws]}", {}, r"train\.teacher\.names names 'laws', which is unk"),
        ("{from: pool}", {"compile": True}, r"compile is true and train\.teacher is given"),
    ],
)
def test_refused_before_anything_is_trained(
    recipe: Recipe, tmp_path: Path, change: str, runtime: dict[str, Any], message: str
) -> None:
    store = Store(str(tmp_path), create=True)
    where = QUIET.model_copy(update=runtime)
    run, refused = InlineRunner(store, where), override_recipe(recipe, [f"train.teacher={change}"])
    corpus = scan_corpus(run, refused)
    with pytest.raises(ValueError, match=message):
        prepare(run, refused, corpus)
    assert not [*store.records("train")]
