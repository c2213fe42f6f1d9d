"""Step: a model of a given shape with random weights, from which a base model is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import Field

from storage.fingerprint import Config
from storage.step import Step, Workspace
from tasks.machine.device import choose_device
from tasks.models.folder import save_untrained
from tasks.tokens.tokenizer import Encoder

TRAINED = 16
"""Bytes of a parameter in training: itself, its gradient and the optimizer's two moments in float32."""


class LlamaArchitecture(Config):
    """A Llama-like model that starts from random weights."""

    kind: Literal["llama"] = "llama"
    """This choice's name."""
    hidden_size: int = Field(ge=1)
    """Width of the residual stream."""
    num_layers: int = Field(ge=1, le=10_000)
    """Number of transformer blocks."""
    num_heads: int = Field(ge=1)
    """Number of attention heads; divides the width."""
    num_kv_heads: int | None = Field(default=None, ge=1)
    """Number of key and value heads; None is as many as attention heads."""
    intermediate_size: int = Field(ge=1)
    """Width of the feed-forward layer."""
    context_length: int = Field(ge=2)
    """Tokens that the model sees at most."""
    tie_embeddings: bool = True
    """Whether input and output embeddings are one tensor."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the random weights."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of the random weights."""


class InitialiseConfig(Config):
    """Random weights for an architecture and a tokenizer."""

    architecture: LlamaArchitecture
    """Shape and seed of the model."""


def build_initial(
    config: InitialiseConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """A model with random weights for ``inputs["tokenizer"]``.

    Raises:
        ValueError: the head count does not divide the width, or the model does not fit into memory.
    """
    import torch
    from transformers import AutoModelForCausalLM

    encoder = Encoder(inputs["tokenizer"])
    # A GPU has memory of its own for training.
    is_here = choose_device(workspace.runtime) == "cpu"
    check_memory(config.architecture, encoder.vocab_size, TRAINED if is_here else 4)
    settings = llama_config(config.architecture, encoder.vocab_size, encoder.end_of_text)
    torch.manual_seed(config.architecture.seed)
    model = AutoModelForCausalLM.from_config(settings)
    details = save_untrained(model, settings.to_dict(), inputs["tokenizer"], output)
    workspace.progress(1, 1, "model")
    return details


def check_memory(architecture: LlamaArchitecture, vocab_size: int, num_bytes: int) -> None:
    """Raise ValueError where ``num_bytes`` for each parameter are more than this machine's memory."""
    width = architecture.hidden_size
    narrow = width // architecture.num_heads * (architecture.num_kv_heads or architecture.num_heads)
    block = 2 * width * (width + narrow + 1) + 3 * width * architecture.intermediate_size
    embeddings = vocab_size * width * (1 if architecture.tie_embeddings else 2)
    num_parameters = embeddings + architecture.num_layers * block + width
    needed, there = num_bytes * num_parameters, psutil.virtual_memory().total
    if needed > there:
        raise ValueError(
            f"base.architecture has {num_parameters:,} parameters with a vocabulary of {vocab_size:,}, "
            f"which take about {needed / 1e9:,.0f} GB, and this machine has {there / 1e9:,.0f}: lower "
            "base.architecture.hidden_size, intermediate_size or num_layers"
        )


def llama_config(architecture: LlamaArchitecture, vocab_size: int, end_of_text: int) -> Any:
    """The transformers configuration of an architecture."""
    from transformers import LlamaConfig

    if architecture.hidden_size % architecture.num_heads:
        raise ValueError(
            f"base.architecture.num_heads {architecture.num_heads} does not divide "
            f"hidden_size {architecture.hidden_size}"
        )
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        num_key_value_heads=architecture.num_kv_heads or architecture.num_heads,
        intermediate_size=architecture.intermediate_size,
        max_position_embeddings=architecture.context_length,
        tie_word_embeddings=architecture.tie_embeddings,
        initializer_range=architecture.initializer_range,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )


INITIALISE = Step("initialise", 1, "model", InitialiseConfig, build_initial)
