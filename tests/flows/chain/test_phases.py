"""Replay, phases and the control, through the whole chain."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.chain.ablation import CONTROL
from flows.chain.recipe import Recipe
from flows.run.costs import EVERY_MIXTURE
from flows.run.execute import RunResult, execute
from flows.runners.inline import InlineRunner
from storage.step import Runtime
from storage.store import Store
from tasks.ranking.rank import MACRO_MEAN
from tests.flows.conftest import Place, mixpool, mixpool_json

PHASE = [
    *("base.train.of=6", "base.train.steps=4", "base.train.keep_optimizer=true"),
    *("train.of=6", "train.begins_at=4", "train.steps=2", "train.optimizer_state=carried"),
    *("train.replay=0.5", "control=true", "mixtures.spaces=[{kind: subsets, sizes: [1, 2]}]"),
]
QUIET = Runtime(device="cpu", threads=1)


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.set_num_threads(1)
    return tiny_recipe(tmp_path_factory.mktemp("phases"), *PHASE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")), create=True)


@pytest.fixture(scope="module")
def result(recipe: Recipe, store: Store) -> RunResult:
    return execute(InlineRunner(store, QUIET), recipe, with_references=True)


def trainings(store: Store) -> dict[str, Any]:
    return {record.label: record for record in store.records("train")}


def test_every_training_but_the_base_models_replays_its_tokens(
    result: RunResult, store: Store
) -> None:
    made = trainings(store)
    references = [label for label in made if label.startswith("reference ")]
    assert len(references) == 2
    assert made.keys() == {"base", *result.outcome.pool, *references}
    base = made["base"].inputs["tokens"]
    for label in {*made} - {"base"}:
        assert made[label].inputs["replay"] == base
        # A phase is as long as it is, so a reference takes no more steps than a tail.
        assert made[label].config["steps"] == 2
        assert made[label].config["replay"] == (1.0 if label == CONTROL else 0.5)
    assert {*made[CONTROL].inputs} == {"model", "replay"}


def test_the_control_is_ranked_and_the_others_are_compared_with_it(result: RunResult) -> None:
    table = result.report.rankings[MACRO_MEAN].set_index("mixture")
    better = int((table["loss"] < table["loss"][CONTROL]).sum())
    (note,) = [note for note in result.report.notes if CONTROL in note]
    assert note.startswith(f"{better} of {len(table) - 1} mixtures are better than the control")
    gain = table["loss"][CONTROL] - table["loss"].drop(CONTROL).min()
    assert f" by {abs(gain):.4f} nats per token" in note
    assert CONTROL not in {m for pair in result.outcome.judged[:-1] for m in pair.members}


@pytest.mark.usefixtures("result")
def test_an_export_says_what_was_replayed(store: Store, tmp_path: Path) -> None:
    mixture = f"birds-0 + {CONTROL}"
    exported = mixpool("export", mixture, "--store", store.url, "--model", tmp_path / "model")
    assert exported.exit_code == 0, exported.stderr
    card = (tmp_path / "model" / "README.md").read_text()
    shares = dict(re.findall(r"(?m)^\| (\S+) \| .* \| (\S+) \| [0-9a-f]{10} \|$", card))
    assert shares == {"birds-0": "0.5", CONTROL: "1"}
    weights = mixpool("export", mixture, "--store", store.url, "--format", "yaml")
    assert "birds-0 (0.5), control (1)" in weights.stderr


def test_training_every_mixture_takes_a_phase_for_each(result: RunResult) -> None:
    (row,) = result.report.cost[result.report.cost["item"] == EVERY_MIXTURE].to_dict("records")
    assert row["tokens"] == len(result.outcome.mixtures) * 2 * 4 * 32


def test_a_plan_counts_phases(tmp_path: Path, new_place: Any) -> None:
    place: Place = new_place(tmp_path)
    sets = [word for change in PHASE for word in ("--set", change)]
    planned = mixpool_json("plan", place.recipe, "--store", place.store, "--references", *sets)
    tail, base = 2 * 4 * 32, 4 * 4 * 32
    partitions = 6
    assert planned["training_tokens"] == base + tail * (partitions + 1 + 2)
    assert CONTROL in planned["steps"]["train"]["build"]
    searched = mixpool_json("plan", place.recipe, "--store", place.store, "--search", *sets)
    assert len(searched["steps"]["train"]["build"]) == 1 + partitions


def test_a_domain_that_is_called_as_the_control_is_refused(tmp_path: Path, new_place: Any) -> None:
    place: Place = new_place(tmp_path)
    (place.corpus / "birds.jsonl").rename(place.corpus / "control.jsonl")
    refused = mixpool("plan", place.recipe, "--store", place.store, "--set", "control=true")
    assert refused.exit_code == 1
    assert "a domain is called 'control', as the model is that control asks for" in refused.stderr
