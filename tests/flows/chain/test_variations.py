"""Recipes of every kind run through, and a plan then knows that nothing is left to do."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.chain.notes import notes_of
from flows.chain.recipe import Recipe
from flows.chain.runner import Quiet
from flows.run.execute import RunResult, execute
from flows.runners.inline import InlineRunner
from flows.runners.planner import plan
from storage.step import Runtime
from storage.store import Store
from tests.model_table import Ground, random_model

TinyRecipe = Callable[..., Recipe]

SMALL = [
    "corpus.source.include_domains=[birds, law]",
    "corpus.split.tokens_per_partition=400",
    "train.steps=2",
    "base.train.steps=2",
    "base.architecture.num_layers=1",
]
"""Two partitions, three mixtures, two sets."""


def run(recipe: Recipe, store: Path) -> RunResult:
    """Carry out a recipe; every loss must be there, finite, and known to a plan."""
    result = execute(InlineRunner(Store(str(store)), Runtime(threads=1)), recipe)
    outcome = result.outcome
    rows = outcome.rows
    assert rows is not None
    assert len(rows) == len(outcome.mixtures) * len(outcome.sets) > 0
    assert all(math.isfinite(row.nll) and row.nll > 0 for row in rows)
    known = plan(str(store), recipe, Runtime(), Quiet())
    assert ([call.name for call in known.to_build()], known.pairs_missing) == ([], 0)
    assert known.notes == notes_of(outcome), "said in the same words"
    return result


def labels(result: RunResult) -> list[str]:
    return [mixture.label for mixture in result.outcome.mixtures]


@pytest.mark.parametrize(
    ("changes", "mixtures"),
    [
        ([], 3),
        (["mixtures.spaces=[{kind: grid, steps: 3}]"], 4),
        (["mixtures.spaces=[{kind: grid, steps: 4, fewest: 2, unit: domain, merge: micro}]"], 3),
        (["mixtures.spaces=[{kind: dirichlet, count: 5, resolution: 20}]"], 5),
        (
            [
                "mixtures.spaces=[{kind: explicit, mixtures: "
                "[{birds: 1, law: 3}, {birds-0: 0.5, law: 0.25}]}]"
            ],
            2,
        ),
        (
            [
                "mixtures.spaces=[{kind: leave-one-out, around: [birds, law]}, {kind: subsets, sizes: [1]}]"
            ],
            3,
        ),
        (
            [
                "base.architecture={hidden_size: 64, num_layers: 3, num_heads: 4, num_kv_heads: 2, "
                "intermediate_size: 128, context_length: 64, tie_embeddings: false}"
            ],
            3,
        ),
        (["base.train.keep_optimizer=true", "train.optimizer_state=carried"], 3),
        (["train.schedule=cosine", "train.warmup_steps=1", "train.final_fraction=0.1"], 3),
        (["evaluation.windows={format: paloma, context_length: 32}"], 3),
        (["evaluation.windows.max_document_tokens=20"], 3),
        (
            [
                "train.precision=bfloat16",
                "base.train.precision=bfloat16",
                "evaluation.evaluate={precision: bfloat16, average: float32}",
            ],
            3,
        ),
    ],
)
def test_variations(
    tmp_path: Path, tiny_recipe: TinyRecipe, changes: list[str], mixtures: int
) -> None:
    result = run(tiny_recipe(tmp_path, *SMALL, *changes), tmp_path / "store")
    assert len(result.outcome.mixtures) == mixtures
    assert len(result.outcome.partitions) == 2


def test_explicit_weights_are_shared_and_reduced(tmp_path: Path, tiny_recipe: TinyRecipe) -> None:
    spaces = "mixtures.spaces=[{kind: explicit, mixtures: [{birds: 2, law: 6}, {birds-0: 0.5}]}]"
    result = run(tiny_recipe(tmp_path, *SMALL, spaces), tmp_path / "store")
    assert sorted(labels(result)) == ["1 birds-0 + 3 law-0", "birds-0"]


def test_macro_and_micro_differ_for_domains_of_different_size(
    tmp_path: Path, tiny_recipe: TinyRecipe
) -> None:
    recipe = tiny_recipe(
        tmp_path,
        *SMALL,
        "corpus.split.partitions_per_domain=2",
        "mixtures.spaces=[{kind: subsets, unit: domain, merge: macro}, "
        "{kind: subsets, unit: domain, merge: micro}]",
    )
    file = tmp_path / "corpus" / "law.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:10]))
    result = run(recipe, tmp_path / "store")
    assert result.outcome.domains == {"birds-0": "birds", "birds-1": "birds", "law-0": "law"}
    assert sorted(labels(result)) == [
        "1 birds-0 + 1 birds-1 + 2 law-0",
        "birds-0 + birds-1",
        "birds-0 + birds-1 + law-0",
        "law-0",
    ]


def test_short_partitions_are_trained_and_replaced_when_they_grow(
    tmp_path: Path, tiny_recipe: TinyRecipe
) -> None:
    changes = ["corpus.short_partitions=true", "corpus.split.partitions_per_domain=null"]
    changes += ["corpus.split.tokens_per_partition=1000"]
    recipe = tiny_recipe(tmp_path, *SMALL, *changes)
    first = run(recipe, tmp_path / "store").outcome
    short = [entry.name for entry in first.partitions if not entry.sealed]
    assert {name.split("-open-")[0].rpartition("-")[0] for name in short} == {"birds", "law"}
    file = tmp_path / "corpus" / "law.jsonl"
    with file.open("a") as lines:
        lines.write(json.dumps({"text": "law of a new kind " * 3}) + "\n")
    second = run(recipe, tmp_path / "store")
    trained = second.summary["trained"]
    assert len(trained) <= 1
    assert all(name.startswith("law-") for name in trained)


def test_tokenizer_and_base_model_may_be_given(tmp_path: Path, tiny_recipe: TinyRecipe) -> None:
    made = run(tiny_recipe(tmp_path, *SMALL), tmp_path / "store").outcome
    store = Store(str(tmp_path / "store"))
    assert made.tokenizer.artifact is not None
    assert made.base.artifact is not None
    tokenizer, model = tmp_path / "tokenizer", tmp_path / "model"
    shutil.copytree(store.fetch(made.tokenizer.artifact), tokenizer)
    shutil.copytree(store.fetch(made.base.artifact), model)
    given = f"tokenizer={{kind: given, path: '{tokenizer}'}}"
    trained = run(tiny_recipe(tmp_path, *SMALL, given, "corpus.name=b"), tmp_path / "store")
    assert trained.summary["trained"] == []  # the same bytes, so the same models
    both = [given, f"base={{kind: given, path: '{model}'}}", "corpus.split.base_fraction=0"]
    small = [change for change in SMALL if not change.startswith("base.")]
    neither = run(tiny_recipe(tmp_path, *small, *both, "corpus.name=c"), tmp_path / "store")
    assert neither.summary["trained"] == ["birds-0", "law-0"]
    assert neither.outcome.base.label == "base"
    first, second = neither.report.notes[:2]
    assert first == "each document ends with '<|endoftext|>' (id 0)"
    assert second.startswith("the base model's folder has no tokenizer that can be read")


def test_a_given_base_model_is_tried_before_it_is_trained(
    tmp_path: Path, tiny_recipe: TinyRecipe
) -> None:
    """Contexts are refused at once, and what was found is said by run and plan in the same words."""
    ground = Ground(tmp_path / "ground")
    model = random_model("gemma3", {}, tmp_path / "model")
    small = [change for change in SMALL if not change.startswith("base.")]
    small += [f"base={{kind: given, path: '{model}'}}", "corpus.split.base_fraction=0"]
    small += [f"tokenizer={{kind: given, path: '{ground.tokenizer}'}}"]
    long = tiny_recipe(tmp_path, *small, "evaluation.windows.context_length=65")
    with pytest.raises(
        ValueError, match=r"evaluation\.windows\.context_length 65 is more than .* 64"
    ):
        run(long, tmp_path / "store")
    assert not list(Store(str(tmp_path / "store")).records("train"))
    recipe = tiny_recipe(tmp_path, *small)
    planned = plan(str(tmp_path / "store"), recipe, Runtime(), Quiet())
    assert any("a run tries it (step probe)" in note for note in planned.notes)
    made = run(recipe, tmp_path / "store")
    (note,) = [note for note in made.report.notes if "get no gradient" in note]
    assert "(model.multi_modal_projector" in note
    assert note in plan(str(tmp_path / "store"), recipe, Runtime(), Quiet()).notes


def test_base_and_evaluation_may_have_documents_of_their_own(
    tmp_path: Path, tiny_recipe: TinyRecipe
) -> None:
    chance = random.Random(1)
    for name in ("own", "exam"):
        words = (" ".join(chance.choices("abcdefgh", k=100)) for _ in range(30))
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": w}) + "\n" for w in words)
        )
    recipe = tiny_recipe(
        tmp_path,
        *SMALL,
        f"base.source={{urls: ['{tmp_path}/own.jsonl']}}",
        "corpus.split.base_fraction=0",
        "corpus.split.heldout_fraction=0",
        f"evaluation.sets=[{{name: exam, source: {{urls: ['{tmp_path}/exam.jsonl']}}}}]",
    )
    result = run(recipe, tmp_path / "store")
    assert [entry.name for entry in result.outcome.sets] == ["exam"]


def test_names_of_domains_may_be_anything(tmp_path: Path, tiny_recipe: TinyRecipe) -> None:
    names = {"birds": "[/red] C++", "law": "日本 a + b", "sums": "<b>&'\"%s{0}"}
    recipe = tiny_recipe(
        tmp_path,
        *SMALL,
        "corpus.source.format.domain_fields=[domain]",
        f"corpus.source.include_domains={json.dumps([*names.values()])}",
    )
    for name, domain in names.items():
        file = tmp_path / "corpus" / f"{name}.jsonl"
        rows = [json.loads(line) | {"domain": domain} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(recipe, tmp_path / "store")
    assert sorted(result.outcome.domains.values()) == sorted(names.values())
    check_printing(result, tmp_path / "store")


def check_printing(result: RunResult, store: Path) -> None:
    from tests.flows.conftest import mixpool

    for what in ("partitions", "models", "ranking", "lineage"):
        shown = mixpool("show", what, "--store", store)
        assert shown.exit_code == 0, shown.stderr
        assert "[/red] C++" in shown.stdout
    best = result.report.rankings["macro mean"].iloc[0]["mixture"]
    exported = mixpool("export", "best", "--store", store, "--weights", store.parent / "w.yaml")
    assert exported.exit_code == 0, exported.stderr
    assert f"sampling weights of {best}" in exported.stdout
    page = (store / result.folder / "report.html").read_text(encoding="utf-8")
    assert "<b>&'" not in page
