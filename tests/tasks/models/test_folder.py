"""Merged weights are what one line of float64 gives, and what does not belong together is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given as cases
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaModel,
    MixtralConfig,
)

from storage.artifact import describe
from storage.step import Workspace
from tasks.merging.average import (
    CPU_PIECE,
    MergeError,
    average_weights,
    check_mergeable,
    weighted_sum,
)
from tasks.models.facts import Facts, fact_differences, facts_of
from tasks.models.folder import load_model, load_weights, save_model
from tasks.models.initialise import (
    InitialiseConfig,
    LlamaArchitecture,
    build_initial,
    check_memory,
    llama_config,
)

pytest_plugins = ["tests.tasks.tiny_models"]

NAMES = ("a", "b", "c", "d", "e", "f")
SEEDS = st.integers(0, 10_000)
PARTS = st.lists(st.integers(1, 1000), min_size=1, max_size=6)


def members(seed: int, count: int) -> dict[str, dict[str, torch.Tensor]]:
    """Models with some tensors, an integer buffer and a boolean one."""
    lots = torch.Generator().manual_seed(seed)
    return {
        name: {
            "matrix": torch.randn(7, 5, generator=lots),
            "vector": torch.randn(3, generator=lots) * 1e-3,
            "scalar": torch.randn((), generator=lots),
            "none": torch.empty(0),
            "steps": torch.tensor([2**40, 3]),
            "mask": torch.tensor([True, False]),
        }
        for name in NAMES[:count]
    }


@cases(SEEDS, PARTS)
def test_average_is_one_line_of_float64(seed: int, parts: list[int]) -> None:
    models = members(seed, len(parts))
    merged = average_weights(models, dict(zip(models, parts, strict=True)))
    for key in ("matrix", "vector", "scalar", "none"):
        columns = [model[key].double().numpy() for model in models.values()]
        expected = np.average(columns, axis=0, weights=parts)
        assert merged[key].dtype == torch.float32
        np.testing.assert_allclose(merged[key], expected, rtol=2**-23, atol=1e-12)


@cases(SEEDS, PARTS, st.permutations(NAMES))
def test_names_and_their_order_do_not_show(seed: int, parts: list[int], names: list[str]) -> None:
    models = members(seed, len(parts))
    merged = average_weights(models, dict(zip(models, parts, strict=True)))
    renamed = dict(zip(names, models.values(), strict=False))
    again = average_weights(renamed, dict(zip(names, parts, strict=False)))
    assert all(tensor.equal(again[key]) for key, tensor in merged.items())


@cases(SEEDS, PARTS, st.integers(2, 50), st.sampled_from([torch.float64, torch.float32]))
def test_equal_proportions_are_one_mixture(
    seed: int, parts: list[int], factor: int, dtype: torch.dtype
) -> None:
    models = members(seed, len(parts))
    once = average_weights(models, dict(zip(models, parts, strict=True)), dtype)
    often = average_weights(
        models, {n: factor * p for n, p in zip(models, parts, strict=True)}, dtype
    )
    assert all(tensor.equal(often[key]) for key, tensor in once.items())


@cases(SEEDS, st.integers(1, 1000), st.sampled_from([torch.float64, torch.float32]))
def test_one_member_is_itself(seed: int, part: int, dtype: torch.dtype) -> None:
    models = members(seed, 1)
    merged = average_weights(models, {"a": part}, dtype)
    assert all(tensor.equal(merged[key]) for key, tensor in models["a"].items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pieces_do_not_show(dtype: torch.dtype) -> None:
    lots = torch.Generator().manual_seed(0)
    whole = [torch.randn(CPU_PIECE + 37, generator=lots) for _ in range(3)]
    merged = weighted_sum(whole, [1, 5, 3], dtype)
    for cut in (1, 7, CPU_PIECE - 3):
        halves = ([tensor[:cut] for tensor in whole], [tensor[cut:] for tensor in whole])
        assert merged.equal(torch.cat([weighted_sum(half, [1, 5, 3], dtype) for half in halves]))


def changed(model: dict[str, torch.Tensor], **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """The model with other tensors."""
    return {**model, **tensors}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"extra": torch.zeros(1)}, "only one of them has the tensor 'extra'"),
        ({"vector": torch.zeros(4)}, r"shape of 'vector': .*3.* and .*4"),
        ({"vector": torch.zeros(3).bfloat16()}, "dtype of 'vector': torch.float32 and torch.bfl"),
        ({"steps": torch.tensor([1.0, 3.0])}, "dtype of 'steps'"),
        ({"steps": torch.tensor([2**40 + 1, 3])}, "integer tensor 'steps'"),
        ({"mask": torch.tensor([True, True])}, "integer tensor 'mask'"),
    ],
)
def test_other_tensors_are_refused(tensors: dict[str, torch.Tensor], message: str) -> None:
    one, other = members(0, 2).values()
    pair = {"code": one, "prose": changed(other, **tensors)}
    with pytest.raises(MergeError, match=message) as error:
        average_weights(pair, {"code": 1, "prose": 1})
    assert "'code'" in str(error.value)
    assert "'prose'" in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("architecture", "f" * 64, "architecture: aaaaaaaaaa and ffffffffff"),
        ("tokenizer", "f" * 64, "tokenizer: bbbbbbbbbb and ffffffffff"),
        ("base", "f" * 64, "base model: cccccccccc and ffffffffff"),
        ("base", None, "base model: cccccccccc and None"),
        ("steps", 38, "number of steps: 37 and 38"),
    ],
)
def test_other_facts_are_refused(field: str, value: object, message: str) -> None:
    facts = Facts(architecture="a" * 64, tokenizer="b" * 64, base="c" * 64, steps=37)
    check_mergeable({"code": facts, "prose": facts})
    odd = facts.model_copy(update={field: value})
    with pytest.raises(MergeError, match="'code' and 'law' cannot be averaged") as error:
        check_mergeable({"code": facts, "prose": facts, "law": odd})
    assert message in str(error.value)
    assert len(fact_differences(facts, odd)) == 1


def test_real_models_merge_and_load(gpt: Path, new: Callable[[], Path]) -> None:
    """Tied embeddings stand once in the files and are tied again in the model."""
    from safetensors.torch import save_file

    one = load_weights(gpt)
    other = {key: tensor + 0.25 for key, tensor in one.items()}
    merged = average_weights({"a": one, "b": other}, {"a": 3, "b": 1})
    assert "lm_head.weight" not in merged
    folder = new()
    shutil.copy(gpt / "config.json", folder)
    save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})
    model: Any = load_model(folder)
    assert model.lm_head.weight is model.transformer.wte.weight
    expected = (3 * one["transformer.wte.weight"].double() + other["transformer.wte.weight"]) / 4
    torch.testing.assert_close(model.lm_head.weight.double(), expected, rtol=2**-23, atol=0)


def test_initial_weights_depend_on_the_seed_alone(
    llama: Path, tokenizer: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    def made(seed: int) -> Path:
        output = new()
        shape = LlamaArchitecture(
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            intermediate_size=48,
            context_length=32,
            seed=seed,
        )
        torch.rand(seed + 5)  # what was drawn before does not matter
        inputs = {"tokenizer": tokenizer}
        build_initial(InitialiseConfig(architecture=shape), inputs, output, workspace())
        return output

    assert describe("model", made(0)) == describe("model", llama)
    assert not load_weights(made(1))["model.embed_tokens.weight"].equal(
        load_weights(llama)["model.embed_tokens.weight"]
    )
    assert facts_of(made(1)) == facts_of(llama)


def test_heads_that_do_not_divide_the_width(
    tokenizer: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    shape = LlamaArchitecture(
        hidden_size=30, num_layers=1, num_heads=4, intermediate_size=8, context_length=8
    )
    with pytest.raises(ValueError, match="num_heads 4 does not divide hidden_size 30"):
        build_initial(
            InitialiseConfig(architecture=shape), {"tokenizer": tokenizer}, new(), workspace()
        )


@pytest.mark.parametrize("tied", [True, False])
def test_the_size_of_an_architecture_is_that_of_its_model(tied: bool) -> None:
    shape = LlamaArchitecture(
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=48,
        context_length=8,
        tie_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(llama_config(shape, 300, 0))
    number = model.num_parameters()
    there = psutil.virtual_memory().total
    check_memory(shape, 300, there // number)
    with pytest.raises(
        ValueError, match=rf"^base\.architecture has {number:,} parameters with a voc"
    ):
        check_memory(shape, 300, there // number + 1)


def test_an_architecture_that_no_machine_holds(
    tokenizer: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    shape = LlamaArchitecture(
        hidden_size=10**6, num_layers=8, num_heads=8, intermediate_size=10**7, context_length=8
    )
    with pytest.raises(
        ValueError, match=r"take about [\d,]{7,} GB, .*: lower base\.architecture\.hid"
    ):
        build_initial(
            InitialiseConfig(architecture=shape), {"tokenizer": tokenizer}, new(), workspace()
        )


def test_architecture_is_what_makes_weights_correspond(
    given: Callable[..., Path], imported: Callable[[Path], Path]
) -> None:
    settings = {"vocab_size": 300, "n_positions": 16, "n_embd": 8, "n_head": 2}
    one = given(GPT2Config(n_layer=1, **settings))
    facts = facts_of(imported(one))
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps({**config, "use_cache": False, "dtype": "float16"}))
    assert facts_of(imported(one)) == facts
    deeper = facts_of(imported(given(GPT2Config(n_layer=2, **settings))))
    with pytest.raises(MergeError, match="architecture"):
        check_mergeable({"a": facts, "b": deeper})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_in_as_float32(
    dtype: torch.dtype, given: Callable[..., Path], imported: Callable[[Path], Path]
) -> None:
    source = given(GPT2Config(vocab_size=300, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(source)
    before, after = load_weights(source), load_weights(imported(source))
    assert {tensor.dtype for tensor in before.values()} == {dtype}
    assert {*before} == {*after}
    for key, tensor in after.items():
        assert tensor.dtype == torch.float32
        assert tensor.equal(before[key].float())


def test_sharded_weights_load(given: Callable[..., Path], imported: Callable[[Path], Path]) -> None:
    settings = GPTNeoXConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    sharded, whole = given(settings, max_shard_size="10KB"), given(settings)
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    assert describe("model", imported(sharded)) == describe("model", imported(whole))
    assert {*load_weights(sharded)} == {*load_weights(whole)}


def test_experts_are_stored_as_they_are_in_memory(
    given: Callable[..., Path], imported: Callable[[Path], Path]
) -> None:
    """A published file splits them, and nothing in the model has those names."""
    source = given(
        MixtralConfig(
            vocab_size=300,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=8,
            num_local_experts=2,
        )
    )
    folder = imported(source)
    held = dict(load_model(folder).named_parameters())
    assert {*load_weights(folder)} == {*held} != {*load_weights(source)}
    assert all(tensor.equal(held[key]) for key, tensor in load_weights(folder).items())


def test_vocabulary_smaller_than_the_tokenizer(
    given: Callable[..., Path], imported: Callable[[Path], Path]
) -> None:
    small = given(GPT2Config(vocab_size=299, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="299 embeddings and the tokenizer ids up to 299"):
        imported(small)


def test_pickled_weights_are_refused(gpt: Path, new: Callable[[], Path]) -> None:
    folder = new()
    shutil.copy(gpt / "config.json", folder)
    torch.save(load_weights(gpt), folder / "pytorch_model.bin")
    shutil.copy(gpt / "model.safetensors", folder / "optimizer.safetensors")
    with pytest.raises(ValueError, match=r"no model\*\.safetensors .*pytorch_model\.bin") as error:
        load_model(folder)
    assert str(folder) in str(error.value)


def test_weights_that_are_missing_are_not_made_up(new: Callable[[], Path]) -> None:
    """Transformers fills them in at random, and every load gives another model."""
    folder = new()
    settings = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        tie_word_embeddings=False,
    )
    LlamaModel(settings).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"lacks 1 weights .*lm_head\.weight"):
        load_model(folder)


def test_code_in_a_model_folder_is_not_run(gpt: Path, new: Callable[[], Path]) -> None:
    folder, mark = new(), new() / "ran"
    shutil.copy(gpt / "model.safetensors", folder)
    config = json.loads((gpt / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(folder)
    assert not mark.exists()


def test_progress_bars_of_transformers_stay_as_they_were(llama: Path, tmp_path: Path) -> None:
    from transformers.utils import logging

    try:
        for had_bars in (True, False):
            (logging.enable_progress_bar if had_bars else logging.disable_progress_bar)()
            save_model(load_model(llama), tmp_path / str(had_bars), facts_of(llama))
            assert logging.is_progress_bar_enabled() is had_bars
    finally:
        logging.enable_progress_bar()
