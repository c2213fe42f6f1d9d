"""Norms are those of an explicit loop; what is frozen keeps its bits, what is scaled moves by its share."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as cases
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import GPT2Config

from storage.step import Workspace
from tasks.models.folder import load_model, load_weights
from tasks.tokens.tokenize import load_tokens
from tasks.training.blocks import Blocks
from tasks.training.config import TrainConfig
from tasks.training.layers import rate_shares
from tasks.training.localise import LocaliseConfig
from tasks.training.localise import build as localise
from tasks.training.train import build as train

pytest_plugins = ["tests.tasks.tiny_models"]

SHORT: dict[str, Any] = {"steps": 1, "batch_size": 4, "context_length": 16, "learning_rate": 1e-3}
CONFIG = LocaliseConfig(context_length=16, blocks=3, seed=5)


@pytest.fixture(scope="module")
def texts(tokens: Callable[[list[str]], Path], prose: Callable[..., list[str]]) -> dict[str, Path]:
    """Two files of a text, and one of another."""
    files = {"tokens.0": prose(1, 2), "tokens.1": prose(2, 2), "ordinary": prose(3, 3)}
    return {name: tokens(file) for name, file in files.items()}


@pytest.fixture
def measured(
    texts: dict[str, Path], new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> Callable[..., Path]:
    """The norms of the text on a model."""

    def make(model: Path, config: LocaliseConfig = CONFIG, **changes: Path) -> Path:
        output = new()
        localise(config, {"model": model, **texts, **changes}, output, workspace())
        return output

    return make


@pytest.fixture
def trained(
    texts: dict[str, Path], new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> Callable[..., Path]:
    """A model trained on the ordinary text; further arguments change the short config."""

    def make(model: Path, norms: Path | None = None, **config: Any) -> Path:
        inputs = {"model": model, "tokens": texts["ordinary"]} | ({"norms": norms} if norms else {})
        output = new()
        train(TrainConfig.model_validate({**SHORT, **config}), inputs, output, workspace())
        return output

    return make


def norms_of(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "norms.json").read_text())
    return found


@pytest.mark.parametrize(("model", "stem"), [("llama", "model.layers"), ("gpt", "transformer.h")])
def test_norms_are_those_of_an_explicit_loop(
    model: str,
    stem: str,
    texts: dict[str, Path],
    measured: Callable[..., Path],
    request: pytest.FixtureRequest,
) -> None:
    """Without dropout, which the GPT has; autograd in float64, block by block."""
    folder: Path = request.getfixturevalue(model)
    found = norms_of(measured(folder))
    net: Any = load_model(folder).double()
    layers = {f"{stem}.{n}": [*net.get_submodule(f"{stem}.{n}").parameters()] for n in range(2)}
    files = [load_tokens(path) for name, path in sorted(texts.items()) if name != "ordinary"]
    for name, read in (("own", files), ("ordinary", [load_tokens(texts["ordinary"])])):
        blocks, sums = Blocks(read, 16, 5), dict.fromkeys(layers, 0.0)
        for number in range(3):
            row = torch.from_numpy(blocks[number].astype("int64"))[None]
            loss = net(input_ids=row, labels=row).loss
            for layer, parameters in layers.items():
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
                sums[layer] += math.sqrt(sum(float((g**2).sum()) for g in gradients)) / 3
        assert found[name] == pytest.approx(sums, rel=1e-4)
    assert found["relative"] == {n: found["own"][n] / found["ordinary"][n] for n in layers}
    assert len({*found["relative"].values()}) == 2


def test_a_text_of_fewer_blocks_is_measured_on_all(
    llama: Path, texts: dict[str, Path], measured: Callable[..., Path]
) -> None:
    count = (len(load_tokens(texts["ordinary"])) - 1) // 16
    all_blocks, more = (
        norms_of(measured(llama, LocaliseConfig(context_length=16, blocks=blocks, seed=0)))
        for blocks in (count, count + 100)
    )
    assert all_blocks["ordinary"] == more["ordinary"]


def test_only_layers_above_the_mean_are_trained(
    gpt: Path, measured: Callable[..., Path], trained: Callable[..., Path]
) -> None:
    """The others, embeddings and the last norm keep their bits."""
    norms = measured(gpt)
    before = load_weights(gpt)
    after = load_weights(trained(gpt, norms, layers={"mode": "freeze"}, steps=3))
    relative = norms_of(norms)["relative"]
    chosen = max(relative, key=lambda layer: relative[layer])
    moved = {name for name in before if not after[name].equal(before[name])}
    assert moved == {name for name in before if name.startswith(f"{chosen}.")}


def test_a_layer_moves_by_its_share_of_the_rate(
    llama: Path, measured: Callable[..., Path], trained: Callable[..., Path]
) -> None:
    """AdamW's first step goes by the rate alone; what is in no layer takes the whole of it."""
    norms = measured(llama)
    relative = norms_of(norms)["relative"]
    before, plain = load_weights(llama), load_weights(trained(llama))
    after = load_weights(trained(llama, norms, layers={"mode": "scale"}))
    for name, start in before.items():
        layer = next((layer for layer in relative if name.startswith(f"{layer}.")), None)
        share = relative[layer] / max(relative.values()) if layer else 1.0
        expected = start.double() + share * (plain[name].double() - start.double())
        torch.testing.assert_close(after[name].double(), expected, rtol=0, atol=1e-6)
    assert min(relative.values()) < 0.99 * max(relative.values())


@cases(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_some_layer_is_trained_at_the_full_rate_or_none_stands_out(values: list[float]) -> None:
    norms = {f"layer.{number}": value for number, value in enumerate(values)}
    mean = sum(values) / len(values)
    if not max(values) > mean:
        with pytest.raises(ValueError, match=r"none is to be preferred: leave train\.layers out"):
            rate_shares(norms, "freeze")
        return
    frozen, scaled = rate_shares(norms, "freeze"), rate_shares(norms, "scale")
    assert frozen == {name: 1.0 if norm > mean else 0.0 for name, norm in norms.items()}
    assert scaled == {name: norm / max(values) for name, norm in norms.items()}
    assert max(scaled.values()) == max(frozen.values()) == 1


def test_in_ordinary_text_no_layer_stands_out(
    llama: Path,
    texts: dict[str, Path],
    trained: Callable[..., Path],
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> None:
    inputs, norms = (
        {"model": llama, **dict.fromkeys(("tokens", "ordinary"), texts["ordinary"])},
        new(),
    )
    localise(CONFIG, inputs, norms, workspace())
    with pytest.raises(ValueError, match="each of the 2 layers has the relative gradient norm 1,"):
        trained(llama, norms, layers={"mode": "freeze"})


def test_norms_of_another_model_are_refused(
    llama: Path, gpt: Path, measured: Callable[..., Path], trained: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=r"norms are of 2 layers \(transformer\.h\.0, \.\.\.\)"):
        trained(llama, measured(gpt), layers={"mode": "scale"})


def test_what_gives_no_ratio_is_refused(
    llama: Path,
    given: Callable[..., Path],
    imported: Callable[[Path], Path],
    new: Callable[[], Path],
    measured: Callable[..., Path],
) -> None:
    """A layer that no gradient reaches, as its weights are zero, and a model without layers."""
    still, weights = new(), load_weights(llama)
    shutil.copytree(llama, still, dirs_exist_ok=True)
    zeros = {name: 0 * w for name, w in weights.items() if name.startswith("model.layers.1.")}
    save_file({**weights, **zeros}, still / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layer model\.layers\.1 has gradients of norm 0"):
        measured(still)
    flat = GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=0, n_head=2)
    with pytest.raises(ValueError, match="a GPT2LMHeadModel has no numbered layers to choose from"):
        measured(imported(given(flat)))


@pytest.mark.parametrize("fields", [{"keep_optimizer": True}, {"optimizer_state": "carried"}])
def test_an_optimizers_state_is_of_all_weights(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="an optimizer's state is that of all weights"):
        TrainConfig.model_validate({**SHORT, "layers": {"mode": "freeze"}, **fields})
