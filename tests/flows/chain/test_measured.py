"""Layers chosen and sharpness measured, through the whole chain."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.chain.ablation import Outcome, ablate
from flows.chain.recipe import Recipe
from flows.chain.validation import train_references, validate
from flows.run.report_data import rank_judged, report_of
from flows.runners.inline import InlineRunner
from storage.step import Runtime
from storage.store import Store
from tasks.models.folder import load_weights
from tasks.ranking.rank import MACRO_MEAN
from tasks.report.data import ReportData
from tests.flows.conftest import Place, mixpool_json

CHOSEN = [
    *("train.layers={mode: freeze, blocks: 4}", "train.sharpness={rho: 0.1}", "train.replay=0.25"),
    *("base.train.sharpness={}", "evaluation.sharpness=0.1"),
    *("train.steps=3", "validation.repeats=1"),
    *("corpus.source.include_domains=[birds, law, sums]", "mixtures.spaces.0.sizes=[2]"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")), create=True)


@pytest.fixture(scope="module")
def result(
    tiny_recipe: Callable[..., Recipe], store: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, ReportData]:
    """A validation and its report, which is not drawn."""
    torch.set_num_threads(1)
    recipe = tiny_recipe(tmp_path_factory.mktemp("corpus"), *CHOSEN)
    run = InlineRunner(store, Runtime(device="cpu", threads=1))
    outcome = ablate(run, recipe)
    trust = validate(run, recipe, outcome, train_references(run, recipe, outcome))
    return outcome, report_of(run, recipe, outcome, rank_judged(store, outcome), trust, None)


def made(store: Store, step: str) -> dict[str, Any]:
    return {record.label: record for record in store.records(step)}


def test_every_training_but_the_base_models_goes_by_norms_of_its_own_text(
    result: tuple[Outcome, ReportData], store: Store
) -> None:
    """References by those of all their partitions' text, beside the base model's."""
    trainings, norms = made(store, "train"), made(store, "localise")
    base = trainings.pop("base")
    assert trainings.keys() == norms.keys()
    assert len(trainings) == len(result[0].pool) + 2 + 1
    for label, training in trainings.items():
        assert training.inputs["norms"] == norms[label].output.digest
        assert norms[label].inputs["ordinary"] == base.inputs["tokens"] == training.inputs["replay"]
        own = {name: d for name, d in training.inputs.items() if name not in {"norms", "replay"}}
        assert own == {n: d for n, d in norms[label].inputs.items() if n != "ordinary"}
        relative, shares = norms[label].details["relative"], training.details["layers"]
        mean = sum(relative.values()) / len(relative)
        assert shares == {layer: float(norm > mean) for layer, norm in relative.items()}
        before, after = (
            load_weights(store.fetch(base.output)),
            load_weights(store.fetch(training.output)),
        )
        (chosen,) = [layer for layer, share in shares.items() if share]
        moved = {name for name in before if not after[name].equal(before[name])}
        assert moved == {name for name in before if name.startswith(f"{chosen}.")}


def test_sharpness_stands_beside_barriers(result: tuple[Outcome, ReportData], store: Store) -> None:
    outcome, report = result
    partitions = report.partitions.set_index("partition")
    records = made(store, "sharpness")
    assert {n: r.details["sharpness"] for n, r in records.items()} == partitions[
        "sharpness"
    ].to_dict()
    for name, record in records.items():
        assert record.inputs["model"] == outcome.pool[name].digest
        assert record.inputs["tokens"] == outcome.tokens[name].digest
    trust = report.validation
    assert trust is not None
    macro = trust.barriers[trust.barriers["evaluation_set"] == MACRO_MEAN]
    for name, barrier in zip(partitions.index, partitions["barrier"], strict=True):
        of_pairs = macro[(macro["first"] == name) | (macro["second"] == name)]["barrier"]
        assert len(of_pairs) == 2
        assert barrier == pytest.approx(math.fsum(of_pairs) / 2)
    assert trust.words[-1].startswith(
        "Whether flatter models merge better cannot be told from 3 pairs"
    )


def test_a_plan_counts_what_is_measured(tmp_path: Path, new_place: Any) -> None:
    place: Place = new_place(tmp_path)
    sets = [word for change in CHOSEN for word in ("--set", change)]
    planned = mixpool_json("plan", place.recipe, "--store", place.store, "--references", *sets)
    assert len(planned["steps"]["localise"]["build"]) == 3 + 2 + 1
    assert len(planned["steps"]["sharpness"]["build"]) == 3
    assert len(planned["steps"]["train"]["build"]) == 1 + 3 + 2 + 1
