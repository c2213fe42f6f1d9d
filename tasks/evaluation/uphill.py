"""Step: how sharp is the minimum that a model lies in? The rise of its loss on the way up.

Sharpness is L(w + rho * g / ||g||) - L(w) in nats per token, where L is the mean loss of some blocks of the
text that the model was trained on, in float32 and without dropout, and g its gradient. It is what
sharpness-aware training makes small (``tasks.training.sharpness``), and may be read off any model.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from storage.step import Step, Workspace
from tasks.machine.device import choose_device
from tasks.machine.flops import Attention, forward_flops
from tasks.models.facts import facts_of
from tasks.models.folder import check_context, load_model
from tasks.tokens.tokenize import load_tokens
from tasks.training.accumulate import Accumulation
from tasks.training.gradients import loss_function, moved
from tasks.training.localise import LocaliseConfig, first_blocks
from tasks.training.sharpness import raised
from tasks.training.train import check_tokenizer

BLOCKS = 32
"""Blocks of a text that the sharpness in a report is measured on."""


class FlatnessConfig(LocaliseConfig):
    """How far uphill, and on which blocks."""

    rho: float = Field(gt=0)
    """Distance in weights, by the Euclidean norm over all of them."""


def build(
    config: FlatnessConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Measure ``inputs["model"]`` on ``inputs["tokens"]``; the record has what the file has.

    Raises:
        TrainingError: too few tokens for one block.
        ValueError: the loss uphill is not finite, or the model has a shorter context, or the tokens were
            made by another tokenizer.
    """
    import torch

    model = load_model(inputs["model"], choose_device(workspace.runtime))
    check_context(model, config.context_length, "train.context_length")
    check_tokenizer(facts_of(inputs["model"]), {"tokens": inputs["tokens"]})
    blocks = first_blocks([load_tokens(inputs["tokens"])], config)
    loss_of = loss_function(model, "float32", compiled=False)
    gradients_of = Accumulation(loss_of, model)
    attention = Attention.of(model, config.context_length)
    flops = forward_flops(model.num_parameters(), 4 * config.context_length, attention)
    below, above = [], []
    # One by one: their gradients add up, and memory does not go by their number.
    for block in blocks:
        below.append(gradients_of(moved(block[None], model.device), 0).item())
    with raised([*model.parameters()], config.rho), torch.no_grad():
        for place, block in enumerate(blocks):
            above.append(loss_of(moved(block[None], model.device)).item())
            workspace.meter.add(tokens=config.context_length, flops=flops)
            workspace.progress(place + 1, len(blocks), "blocks")
    loss, uphill = (math.fsum(losses) / len(blocks) for losses in (below, above))
    if not math.isfinite(uphill - loss):
        raise ValueError(
            f"the loss is {loss:g} nats per token, and {uphill:g} at {config.rho:g} uphill: give a smaller "
            "evaluation.sharpness, or train the model anew"
        )
    found = {"sharpness": uphill - loss, "loss": loss, "blocks": len(blocks)}
    (output / "sharpness.json").write_text(json.dumps(found))
    return found


FLATNESS = Step("sharpness", 1, "sharpness", FlatnessConfig, build, on_device=True)
