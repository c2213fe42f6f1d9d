"""A pool of adapters through the whole chain: judged, reported, planned and exported for peft."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flows.chain.ablation import CONTROL
from flows.chain.recipe import Recipe
from flows.chain.runner import Quiet
from flows.run.execute import RunResult, execute
from flows.run.folder import read_report
from flows.run.stored import find_run
from flows.runners.inline import InlineRunner
from flows.runners.planner import plan
from storage.step import Runtime
from storage.store import Store
from tasks.models.folder import load_weights
from tests.flows.conftest import mixpool

FIELDS = [
    *("train.adapter={rank: 4, alpha: 12}", "control=true"),
    *("corpus.source.include_domains=[birds, law]", "mixtures.spaces.0.sizes=[1, 2]"),
]
QUIET = Runtime(device="cpu", threads=1)


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.set_num_threads(1)
    return tiny_recipe(tmp_path_factory.mktemp("adapters"), *FIELDS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")), create=True)


@pytest.fixture(scope="module")
def result(recipe: Recipe, store: Store) -> RunResult:
    planned = plan(store.url, recipe, QUIET, Quiet())
    found = execute(InlineRunner(store, QUIET), recipe)
    assert planned.pairs_missing == found.summary["losses_evaluated"] == (3 + 1 + 1) * 2
    return found


def test_what_was_learned_and_forgotten_is_beside_the_base_model(
    result: RunResult, store: Store
) -> None:
    assert result.outcome.base_rows is not None
    base = {row.evaluation_set: row.nll for row in result.outcome.base_rows}
    losses = result.report.losses
    tokens = {n: c.num_tokens for n, c in zip(losses.sets, losses.counts, strict=True)}
    nll = {
        (m, s): float(losses.nll[i, j])
        for i, m in enumerate(losses.mixtures)
        for j, s in enumerate(losses.sets)
    }
    table = result.report.forgetting
    assert table is not None
    assert [*table["mixture"]] == ["birds-0", "law-0"]  # the control's text is no set's
    for row, own, other in zip(
        table.to_dict("records"), ("birds", "law"), ("law", "birds"), strict=True
    ):
        mixture = row["mixture"]
        assert row["learned"] == pytest.approx((base[own] - nll[mixture, own]) / tokens[own])
        assert row["forgotten"] == pytest.approx(
            (nll[mixture, other] - base[other]) / tokens[other]
        )
    assert (table["learned"] > 0).all()
    page = store.backend.read(f"{result.folder}/report.html").decode()
    assert f'<td class="n">{table["learned"][0]:.4f}</td>' in page
    again = read_report(store, find_run(store, None)).forgetting
    assert again is not None
    assert again.equals(table)


@pytest.mark.usefixtures("result")
def test_the_exported_adapter_over_the_base_model_is_the_exported_model(
    store: Store, tmp_path: Path
) -> None:
    """By hand as peft reads it: lora_alpha / r times lora_B lora_A, added to a module's weight."""
    (base,) = (r for r in store.records("train") if r.label == "base")
    before = load_weights(store.fetch(base.output))
    for number, mixture in enumerate(("law-0", f"3 birds-0 + law-0 + {CONTROL}")):
        model, adapter = tmp_path / f"model {number}", tmp_path / f"adapter {number}"
        made = mixpool(
            "export", mixture, "--store", store.url, "--model", model, "--adapter", adapter
        )
        assert made.exit_code == 0, made.stderr
        config = json.loads((adapter / "adapter_config.json").read_text())
        members = mixture.count("+") + 1
        assert (config["r"], config["lora_alpha"]) == (4 * members, 12 * members)
        factors, merged = load_file(adapter / "adapter_model.safetensors"), load_weights(model)
        for name, tensor in merged.items():
            path = f"base_model.model.{name.removesuffix('.weight')}"
            expected = before[name]
            if name.removesuffix(".weight") in config["target_modules"]:
                a, b = factors.pop(f"{path}.lora_A.weight"), factors.pop(f"{path}.lora_B.weight")
                assert (a.shape[0], b.shape[1]) == (config["r"], config["r"])
                expected = expected + config["lora_alpha"] / config["r"] * b @ a
                assert not torch.allclose(expected, before[name], rtol=0, atol=1e-5)
            torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
        assert not factors
        card = (adapter / "README.md").read_text()
        assert "library_name: peft" in card
        assert "- trained by adapters of all linear layers (LoRA): rank 4, alpha 12" in card
        assert f"- base model: {base.output.digest}" in card
