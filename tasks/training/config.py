"""The configuration of a training: everything that changes its result."""

from typing import Literal

from pydantic import Field

from storage.fingerprint import Config


class TrainConfig(Config):
    """How a model is trained."""

    steps: int = Field(ge=1)
    """Number of optimizer steps; the same for every partition, so that they can be averaged."""
    batch_size: int = Field(default=32, ge=1)
    """Blocks in one step."""
    context_length: int = Field(default=2048, ge=2)
    """Tokens predicted in each block."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Learning rate at its highest."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate moves after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero."""
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """Where cosine and linear schedules end, as a share of the learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean gradient."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the mean squared gradient."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's weight decay, on matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    optimizer_state: Literal["fresh", "carried"] = "fresh"
    """Whether the optimizer starts afresh, or with the base model's state, carried on."""
    keep_optimizer: bool = False
    """Whether the optimizer's state is stored with the model."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Bfloat16 computes matrix products in it (autocast); weights stay in float32."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of the order of blocks and of dropout."""


def training_tokens(config: TrainConfig) -> int:
    """Tokens that a training of this config predicts."""
    return config.steps * config.batch_size * config.context_length
