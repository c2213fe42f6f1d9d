"""Step: in which layers does a text make larger gradients than ordinary text?

The relative gradient norm of layer l is mean over blocks of ||g_l|| on the text, over the same mean on
ordinary text, that of the base model (Fernandez et al. 2024, arXiv 2411.04448). Each block has a pass of its
own, in float32 and without dropout. ``tasks.training.layers`` says what a training makes of it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from storage.fingerprint import Config
from storage.step import Step, Workspace
from tasks.machine.device import choose_device
from tasks.machine.flops import Attention, training_flops
from tasks.models.facts import facts_of
from tasks.models.folder import check_context, load_model
from tasks.tokens.tokenize import load_tokens
from tasks.training.accumulate import Accumulation
from tasks.training.blocks import Blocks
from tasks.training.gradients import loss_function, moved
from tasks.training.layers import NORMS, layers_of
from tasks.training.train import check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LocaliseConfig(Config):
    """On which blocks gradients are measured."""

    context_length: int = Field(ge=2)
    """Tokens predicted in each block."""
    blocks: int = Field(ge=1)
    """Blocks of each text, the first of a training's order; fewer where it has fewer."""
    seed: int = Field(ge=0, lt=1 << 63)
    """Seed of the order of blocks."""


def build(
    config: LocaliseConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Measure ``inputs["model"]`` on every input whose name begins with ``tokens``, and on ``ordinary``.

    Raises:
        TrainingError: too few tokens for one block.
        ValueError: the model has no layers, one without a gradient, or a shorter context, or the tokens
            were made by another tokenizer.
    """
    model = load_model(inputs["model"], choose_device(workspace.runtime))
    check_context(model, config.context_length, "train.context_length")
    folders = {name: path for name, path in sorted(inputs.items()) if name != "model"}
    check_tokenizer(facts_of(inputs["model"]), folders)
    ordinary = [load_tokens(folders.pop("ordinary"))]
    if not layers_of(model):
        raise ValueError(
            f"a {type(model).__name__} has no numbered layers to choose from: leave train.layers out"
        )
    texts = {"own": [load_tokens(path) for path in folders.values()], "ordinary": ordinary}
    means = {name: layer_norms(model, files, config, workspace) for name, files in texts.items()}
    relative = {}
    for layer, norm in means["own"].items():
        if not (means["ordinary"][layer] > 0 and math.isfinite(norm / means["ordinary"][layer])):
            raise ValueError(
                f"layer {layer} has gradients of norm {norm:g} on the text and of "
                f"{means['ordinary'][layer]:g} on ordinary text, which gives no ratio: leave train.layers "
                "out"
            )
        relative[layer] = norm / means["ordinary"][layer]
    found = {"relative": relative, **means}
    (output / NORMS).write_text(json.dumps(found, indent=1))
    return {"relative": relative}


def layer_norms(
    model: "PreTrainedModel",
    files: Sequence[np.ndarray],
    config: LocaliseConfig,
    workspace: Workspace,
) -> dict[str, float]:
    """The mean over blocks of the Euclidean norm of each layer's gradient, by layer."""
    from torch.nn.utils import get_total_norm

    layers = layers_of(model)
    gradients_of = Accumulation(loss_function(model, "float32", compiled=False), model)
    flops = training_flops(model.num_parameters(), 1, Attention.of(model, config.context_length))
    blocks, sums = first_blocks(files, config), dict.fromkeys(layers, 0.0)
    for place, block in enumerate(blocks):
        model.zero_grad(set_to_none=True)
        gradients_of(moved(block[None], model.device), place)
        for layer, parameters in layers.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            sums[layer] += get_total_norm(gradients).item()
        workspace.meter.add(tokens=config.context_length, flops=flops * config.context_length)
        workspace.progress(place + 1, len(blocks), "blocks")
    return {layer: total / len(blocks) for layer, total in sums.items()}


def first_blocks(files: Sequence[np.ndarray], config: LocaliseConfig) -> np.ndarray:
    """Token ids of the blocks that are measured, int64, shape (blocks, context + 1).

    Raises:
        TrainingError: too few tokens for one block.
    """
    blocks = Blocks([*files], config.context_length, config.seed)
    number = min(config.blocks, len(blocks))
    return np.stack([blocks[place] for place in range(number)]).astype(np.int64)


LOCALISE = Step("localise", 1, "norms", LocaliseConfig, build, on_device=True)
