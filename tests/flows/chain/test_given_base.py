"""What is wrong with a given base model names the address that the person wrote, whichever step finds it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from flows.chain.ablation import base_model, probe_base
from flows.runners.inline import InlineRunner
from storage.cache import deposit
from storage.step import Runtime
from storage.store import Store
from tasks.models.given import GivenModel

pytest_plugins = ["tests.tasks.tiny_models"]

SIZES = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "config.json has quantization_config: "),
        ({"intermediate_size": 24}, "its weight model.layers.0.mlp.down_proj.weight has the shape"),
        ({"attention_dropout": 3.0}, "train.context_length 8: a LlamaForCausalLM fails on so many"),
    ],
)
def test_a_refusal_names_the_address(
    fields: dict[str, Any],
    message: str,
    given: Callable[..., Path],
    tokenizer: Path,
    memory_store: Store,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(
        given(LlamaConfig(**SIZES, num_attention_heads=2)), tmp_path / "base model"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    run = InlineRunner(memory_store, Runtime(device="cpu", threads=1))
    recipe: Any = SimpleNamespace(
        base=GivenModel(path=str(folder)),
        train=SimpleNamespace(context_length=8),
        evaluation=SimpleNamespace(windows=SimpleNamespace(context_length=8)),
    )
    handle = deposit(memory_store, "tokenizer", "tokenizer", "tokenizer", tokenizer, {})
    with pytest.raises(ValueError, match=rf"^base\.path '{folder}': {re.escape(message)}"):
        probe_base(run, recipe, base_model(run, recipe, handle, None), handle)
