"""An adapter is trained alone, and what is stored is the ordinary model that it makes."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import BartConfig, GPTNeoConfig, MixtralConfig

from storage.artifact import describe
from storage.checkpoint import Checkpoints
from storage.fingerprint import canonical
from storage.step import Runtime, Workspace
from storage.store import Store
from tasks.machine.flops import Attention, training_flops
from tasks.machine.meter import Meter
from tasks.merging.average import average_weights, check_mergeable
from tasks.models.facts import facts_of
from tasks.models.folder import load_model, load_weights
from tasks.training.adapter import FILE, Adapter, AdapterConfig
from tasks.training.config import TrainConfig
from tasks.training.train import build as train
from tests.tasks.training.test_train import SHORT, KilledError, stored, through_store

pytest_plugins = ["tests.tasks.tiny_models"]

ADAPTER: dict[str, Any] = {"rank": 4, "alpha": 12}
ROOT = Path(__file__).parents[3]
MODELS = ("llama", "gpt", "gpt_neo")
IDS = torch.arange(64).reshape(4, 16) % 300


@pytest.fixture(scope="module")
def corpus(tokens: Callable[[list[str]], Path], prose: Callable[..., list[str]]) -> Path:
    return tokens(prose(1))


@pytest.fixture(scope="module")
def gpt_neo(given: Callable[..., Path], imported: Callable[[Path], Path]) -> Path:
    """A model with dropout, linear layers with and without bias, and boolean buffers."""
    shape = GPTNeoConfig(
        vocab_size=300,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=32,
        window_size=8,
        resid_dropout=0.1,
        attention_dropout=0.1,
    )
    return imported(given(shape))


@pytest.fixture
def trained(
    corpus: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> Callable[..., Path]:
    """Train an adapter on the corpus; further arguments change the short config."""

    def make(model: Path, **config: Any) -> Path:
        output = new()
        settings = TrainConfig.model_validate({**SHORT, "adapter": ADAPTER, **config})
        train(settings, {"model": model, "tokens": corpus}, output, workspace())
        return output

    return make


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def updates(folder: Path, scale: float) -> dict[str, torch.Tensor]:
    """scale * B A by the weight's name, as peft has it: transposed for GPT-2's layers."""
    factors = load_file(folder / FILE)
    with safe_open(folder / FILE, "pt") as file:
        transposed = file.metadata()["fan_in_fan_out"] == "true"
    names = [name.removesuffix(".A") for name in factors if name.endswith(".A")]
    products = {n: scale * (factors[f"{n}.B"] @ factors[f"{n}.A"]) for n in names}
    return {n: product.T if transposed else product for n, product in products.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_start_is_the_base_model_to_the_bit(name: str, request: pytest.FixtureRequest) -> None:
    base, adapted = (load_model(request.getfixturevalue(name)) for _ in range(2))
    adapter = Adapter(adapted, AdapterConfig(rank=4), seed=3)
    assert logits(adapted).equal(logits(base))
    assert not adapted.training
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[2] for n in trained} == {"lora_A", "lora_B"}
    for name_of, parameter in trained.items():
        bound = parameter.shape[1] ** -0.5 if name_of.endswith("A") else 0.0
        assert 0.9 * bound <= parameter.abs().max() <= bound
    del adapter
    other = load_model(request.getfixturevalue(name))
    Adapter(other, AdapterConfig(rank=4), seed=4)
    first, second = (
        next(m for m in one.modules() if hasattr(m, "lora_A")) for one in (adapted, other)
    )
    assert not first.lora_A.equal(second.lora_A)


@pytest.mark.parametrize("name", MODELS)
def test_the_merged_model_computes_what_the_adapted_one_does(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Against x W + alpha / rank * x A' B', written out for one layer, and for the whole model."""
    folder = request.getfixturevalue(name)
    model, before = load_model(folder), load_weights(folder)
    names = [*model.state_dict()]
    adapter = Adapter(model, AdapterConfig.model_validate(ADAPTER), seed=3)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    path, layer = next((n, m) for n, m in model.named_modules() if hasattr(m, "lora_A"))
    x = torch.randn(3, layer.lora_A.shape[1])
    weight = before[f"{path}.weight"] if name == "gpt" else before[f"{path}.weight"].T
    bias = before.get(f"{path}.bias", torch.zeros(()))
    expected = x @ weight + bias + 12 / 4 * x @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    adapted = logits(model)
    factors = adapter.merge()
    assert [*model.state_dict()] == names
    torch.testing.assert_close(logits(model), adapted, rtol=0, atol=1e-5)
    assert len(factors) == 2 * {"llama": 7, "gpt": 4, "gpt_neo": 6}[name] * 2


@pytest.mark.parametrize("name", MODELS)
def test_what_is_stored_is_base_plus_update_and_the_rest_of_the_base(
    name: str, trained: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    output = trained(folder)
    before, after, moved = load_weights(folder), load_weights(output), updates(output, 12 / 4)
    assert before.keys() == after.keys()
    assert moved
    for key, tensor in before.items():
        if key in moved:
            torch.testing.assert_close(after[key], tensor + moved[key], rtol=0, atol=1e-6)
            assert moved[key].abs().max() > 1e-4
        else:
            assert after[key].equal(tensor)
    expected, facts = facts_of(folder), facts_of(output)
    assert (facts.architecture, facts.tokenizer) == (expected.architecture, expected.tokenizer)
    assert (facts.base, facts.steps) == (describe("model", folder).digest, 6)
    assert {p.name for p in output.iterdir()} == {p.name for p in folder.iterdir()} | {
        *(FILE, "training.json")
    }
    details = json.loads((output / "training.json").read_text())
    assert details["num_parameters"] == load_model(folder).num_parameters()
    assert details["losses"][-1] < details["losses"][0]


def test_the_mean_of_models_is_the_base_plus_the_mean_of_updates(
    gpt: Path, trained: Callable[..., Path]
) -> None:
    members = {n: trained(gpt, seed=i) for i, n in enumerate("ab")}
    check_mergeable({name: facts_of(path) for name, path in members.items()})
    weights = {name: load_weights(path) for name, path in members.items()}
    merged, base = average_weights(weights, {"a": 3, "b": 1}), load_weights(gpt)
    one, other = (updates(path, 12 / 4) for path in members.values())
    for key, tensor in merged.items():
        expected = base[key] + (0.75 * one[key] + 0.25 * other[key] if key in one else 0)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_killed_and_resumed_is_bit_identical(llama: Path, corpus: Path, tmp_path: Path) -> None:
    """The resume point holds the adapter alone; its dropout, replay and phase go on as they were."""
    fields: dict[str, Any] = {"replay": 0.4, "begins_at": 3, "of": 9, "schedule": "linear"}
    settings = TrainConfig.model_validate({**SHORT, **fields, "adapter": ADAPTER})
    folders = {"model": llama, "tokens": corpus, "replay": corpus}
    quiet, hard = Store(str(tmp_path / "quiet")), Store(str(tmp_path / "hard"))
    expected = through_store(quiet, settings, stored(quiet, **folders))
    inputs = stored(hard, **folders)
    with pytest.raises(KilledError):
        through_store(hard, settings, inputs, 4, checkpoint_seconds=0)
    torch.rand(7)
    (path,) = (p for p in hard.backend.list("work") if p.endswith("/weights.safetensors"))
    buffers = {name for name, _ in load_model(folders["model"]).named_buffers()}
    kept = {*load_file(tmp_path / "hard" / path)} - buffers
    assert {key.rpartition(".")[2] for key in kept} == {"lora_A", "lora_B"}
    found = through_store(hard, settings, inputs, checkpoint_seconds=0)
    assert found.digest == expected.digest


KILLED = """
import os, signal, sys
from pathlib import Path
from storage.checkpoint import Checkpoints
from storage.step import Runtime, Workspace
from storage.store import Store
from tasks.machine.meter import Meter
from tasks.training.train import TrainConfig, build
config, model, tokens, output, store = sys.argv[1:]
settings = TrainConfig.model_validate_json(config)
def progress(done, total, unit):
    if done == 4 * settings.batch_size * settings.context_length:
        os.kill(os.getpid(), signal.SIGKILL)
runtime = Runtime(device="cpu", threads=1, checkpoint_seconds=0)
workspace = Workspace(runtime, Checkpoints(Store(store).backend, "work/x"), Meter("cpu"), progress)
build(settings, {"model": Path(model), "tokens": Path(tokens)}, Path(output), workspace)
"""


def test_a_process_that_is_killed_loses_nothing(
    gpt: Path, corpus: Path, tmp_path: Path, new: Callable[[], Path], trained: Callable[..., Path]
) -> None:
    """With dropout of the model's own, too, and products in bfloat16."""
    fields = {**SHORT, "precision": "bfloat16", "adapter": ADAPTER}
    settings = TrainConfig.model_validate(fields)
    arguments = [settings.model_dump_json(), gpt, corpus, new(), tmp_path]
    ended = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    checkpoints = Checkpoints(Store(str(tmp_path)).backend, "work/x")
    begins: list[int] = []
    job = Workspace(
        Runtime(device="cpu", threads=1),
        checkpoints,
        Meter("cpu"),
        lambda done, total, unit: begins.append(done),
    )
    train(settings, {"model": gpt, "tokens": corpus}, output := new(), job)
    assert begins[0] in {2 * 4 * 16, 3 * 4 * 16}  # the third may have been under way
    assert describe("model", output) == describe("model", trained(gpt, precision="bfloat16"))


def test_dropout_and_every_setting_matter(llama: Path, trained: Callable[..., Path]) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"dropout": 0},
        {"alpha": 11},
        {"alpha": None},
        {"rank": 5},
    ]
    outputs = [trained(llama, steps=2, adapter={**ADAPTER, **change}) for change in changes]
    outputs.append(trained(llama, steps=2, seed=1))
    assert len({describe("model", output).digest for output in outputs}) == len(outputs)
    eight = trained(llama, steps=2, adapter={**ADAPTER, "alpha": 8})
    assert load_file(outputs[3] / FILE).keys() == load_file(eight / FILE).keys()
    assert describe("model", outputs[3]) == describe("model", eight)


def test_gradients_are_those_of_the_factors_written_out(llama: Path) -> None:
    """One SGD-free step: autograd through W + scale * B A, for a model without hooks."""
    adapted, plain = load_model(llama), load_model(llama)
    Adapter(adapted, AdapterConfig(rank=4, alpha=12), seed=3)
    factors = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    torch.manual_seed(1)
    for parameter in factors.values():
        torch.nn.init.normal_(parameter, std=0.1)
    paths = sorted({name.rpartition(".")[0] for name in factors})
    copies = {name: p.detach().clone().requires_grad_() for name, p in factors.items()}
    weights = {
        f"{path}.weight": plain.get_parameter(f"{path}.weight").detach()
        + 3 * copies[f"{path}.lora_B"] @ copies[f"{path}.lora_A"]
        for path in paths
    }
    for loss_logits in (
        adapted(input_ids=IDS).logits,
        torch.func.functional_call(plain, weights, kwargs={"input_ids": IDS}).logits,
    ):
        F.cross_entropy(loss_logits.flatten(0, 1), IDS.flatten()).backward()  # type: ignore[no-untyped-call]
    for name, parameter in factors.items():
        torch.testing.assert_close(parameter.grad, copies[name].grad, rtol=1e-4, atol=1e-7)


def test_operations_of_frozen_weights_gradients_are_spared(
    llama: Path, corpus: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    """4 N + 6 n per token, n of the adapter, and attention as in full training."""
    job = workspace()
    settings = TrainConfig.model_validate({**SHORT, "adapter": ADAPTER})
    with job.meter:
        train(settings, {"model": llama, "tokens": corpus}, output := new(), job)
    model = load_model(llama)
    number, attention = model.num_parameters(), Attention.of(model, 16)
    own = sum(tensor.numel() for tensor in load_file(output / FILE).values())
    assert attention is not None
    scores = 12 * attention.layers * attention.width * attention.context
    assert job.meter.cost.flops == pytest.approx(6 * 4 * 16 * (4 * number + 6 * own + scores))
    assert training_flops(number, 3, attention, 0) == training_flops(number, 3, attention)


def test_a_neutral_adapter_leaves_the_key_as_it_was() -> None:
    today = canonical(TrainConfig(steps=6))
    assert isinstance(today, dict)
    assert "adapter" not in today
    found = canonical(TrainConfig(steps=6, adapter=AdapterConfig(rank=8)))
    assert found == {**today, "adapter": {"rank": 8, "alpha": None, "dropout": 0.05}}


# What is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer_state": "carried"}, "optimizer_state is 'carried', and an adapter's weights"),
        ({"keep_optimizer": True}, "keep_optimizer keeps a state that no training can carry on"),
        ({"adapter": {"rank": 0}}, "greater than or equal to 1"),
        ({"adapter": {"rank": 4, "alpha": 0}}, "greater than 0"),
        ({"adapter": {"rank": 4, "dropout": 1}}, "less than 1"),
    ],
)
def test_fields_that_do_not_go_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate({**SHORT, "adapter": ADAPTER, **fields})


def test_a_rank_above_a_side(llama: Path, trained: Callable[..., Path]) -> None:
    message = (
        r"train\.adapter\.rank 33 is more than the smaller side of model\.layers\.0\.self_attn\.q_proj"
        r"\.weight, 32 and 13 others: give 32 at most"
    )
    with pytest.raises(ValueError, match=message):
        trained(llama, adapter={"rank": 33})
    trained(llama, adapter={"rank": 32}, steps=1)


def test_experts_have_no_linear_layers(
    given: Callable[..., Path],
    imported: Callable[[Path], Path],
    trained: Callable[..., Path],
) -> None:
    shape = MixtralConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=32,
    )
    message = r"of this MixtralForCausalLM its weight model\.layers\.0\.mlp\.experts\.down_proj is in none"
    with pytest.raises(ValueError, match=message):
        trained(imported(given(shape)))


def test_a_weight_of_two_layers(llama: Path) -> None:
    """Both would add their update to it."""
    model: Any = load_model(llama)
    attention = model.model.layers[1].self_attn
    attention.k_proj.weight = attention.q_proj.weight
    with pytest.raises(
        ValueError, match=r"its weight model\.layers\.1\.self_attn\.k_proj\.weight is"
    ):
        Adapter(model, AdapterConfig(rank=4), seed=0)


def test_a_layer_that_is_never_called(given: Callable[..., Path]) -> None:
    """The decoder of a translator has layers for what it translates."""
    shape = BartConfig(
        vocab_size=300,
        d_model=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
        is_decoder=True,
        is_encoder_decoder=False,
    )
    model = load_model(given(shape))
    message = (
        r"this BartForCausalLM reads text without calling model\.decoder\.layers\.0\.encoder_attn"
    )
    with pytest.raises(ValueError, match=message):
        Adapter(model, AdapterConfig(rank=4), seed=0)
