"""A given model that mixpool's losses would not be those of is refused in one sentence, with a remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.step import Workspace
from tasks.models import probe
from tasks.models.folder import load_model
from tasks.models.probe import ProbeConfig
from tests.tiny_types import CONTEXT, tiny_config

pytest_plugins = ["tests.tasks.tiny_models"]


@pytest.fixture
def probed(
    given: Callable[..., Path],
    imported: Callable[[Path], Path],
    tokenizer: Path,
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> Callable[..., list[str]]:
    """The notes on a tiny model of a type, with further fields, for contexts of a recipe."""

    def make(kind: str, train: int = 32, windows: int = 32, **fields: object) -> list[str]:
        inputs = {"model": imported(given(tiny_config(kind, **fields))), "tokenizer": tokenizer}
        config = ProbeConfig(train=train, windows=windows)
        details: Any = probe.build(config, inputs, new(), workspace())
        return list(details["notes"])

    return make


@pytest.mark.parametrize(
    ("kind", "train", "windows", "message"),
    [
        (
            "whisper",
            CONTEXT + 1,
            8,
            r"^train\.context_length 65: a WhisperForCausalLM fails on so many",
        ),
        (
            "mpt",
            8,
            CONTEXT + 1,
            r"^evaluation\.windows\.context_length 65: a MptForCausalLM fails on",
        ),
        (
            "gpt2",
            8,
            CONTEXT + 1,
            r"^evaluation\.windows\.context_length 65 is more than the model's 64",
        ),
    ],
)
def test_a_context_that_is_too_long_is_found_before_any_training(
    kind: str, train: int, windows: int, message: str, probed: Callable[..., list[str]]
) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*: lower it"):
        probed(kind, train, windows)
    assert probed(kind, CONTEXT, CONTEXT)[1:] == []


def test_later_tokens_are_seen_even_by_a_model_that_learned_nothing(
    probed: Callable[..., list[str]],
) -> None:
    """Random weights make the smallest difference that there is."""
    with pytest.raises(
        ValueError, match=r"a BertLMHeadModel, sees later .*: set is_decoder to true in"
    ):
        probed("bert")
    assert probed("bert", is_decoder=True) == []


def test_chance_in_a_forward_pass(probed: Callable[..., list[str]]) -> None:
    message = "a ReformerModelWithLMHead, says something else at every pass"
    with pytest.raises(ValueError, match=message):
        probed("reformer", is_decoder=True, attn_layers=["lsh", "local"])
    (*_, note) = probed("reformer", is_decoder=True)
    assert "draws random numbers of its own" in note


def test_a_model_that_writes_its_own_weights(
    given: Callable[..., Path], imported: Callable[[Path], Path]
) -> None:
    """RWKV halves them at every sixth layer, which a loaded one is told not to do."""
    folder = imported(given(tiny_config("rwkv", num_hidden_layers=7)))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        probe.check_sound(load_model(folder), ids)
        model: Any = load_model(folder)
        model.config.rescale_every = 6
        with pytest.raises(ValueError, match="RwkvForCausalLM, writes its own weights"):
            probe.check_sound(model, ids)


def test_an_auxiliary_loss_is_left_out(probed: Callable[..., list[str]]) -> None:
    (note,) = probed("mixtral", output_router_logits=True)
    assert "auxiliary loss (output_router_logits), which mixpool does not train on" in note
    assert probed("mixtral") == []


def test_parameters_that_text_does_not_reach(probed: Callable[..., list[str]]) -> None:
    """Attention to an encoder, with its norm: four matrices with biases, in two layers."""
    (note,) = probed("bart")
    untrained = 2 * (4 * (32 * 32 + 32) + 2 * 32)
    assert note.startswith(f"{untrained:,} of ")
    assert "get no gradient from 32 tokens of text (model.decoder.layers.0.encoder_attn." in note
