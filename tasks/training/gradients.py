"""The loss of a batch, its copy to the device, and the clipping of gradients, for the training loop.

Each does what the usual few lines of torch do, bit by bit, without needless waits for the device.
When compiled, the layers are compiled one by one, and the loss. Under ``torch.compile`` of a whole
model, transformers builds a mask of context x context for every sequence, and attention is slow
with it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.machine.compiled import compile_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


LossOf = Callable[["torch.Tensor"], "torch.Tensor"]
"""From token ids, int64, shape (B, context + 1), to the mean nats of all but the first."""


def loss_function(model: "PreTrainedModel", precision: str, *, compiled: bool) -> LossOf:
    """What computes the loss of a batch; ``precision`` is that of matrix products.

    The model's parameters stay where they are, and what is saved of it stays the same, if compiled.
    """
    import torch

    forward: Any = model
    cross_entropy: Any = torch.compile(_cross_entropy) if compiled else _cross_entropy
    if compiled:
        compile_layers(model)

    def loss_of(tokens: "torch.Tensor") -> "torch.Tensor":
        is_lower = precision == "bfloat16"
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=is_lower):
            logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
        loss: torch.Tensor = cross_entropy(logits, tokens[:, 1:])
        return loss

    return loss_of


def _cross_entropy(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    import torch.nn.functional as F

    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def moved(batch: np.ndarray, device: "torch.device") -> "torch.Tensor":
    """A batch as a tensor on the device, which need not be there yet."""
    import torch

    tokens = torch.from_numpy(batch)
    # Only from pinned memory does a copy wait for nothing.
    return tokens.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tokens


def clip(parameters: list["torch.nn.Parameter"], max_norm: float) -> None:
    """Scale all gradients down, in place, where their joint norm is above ``max_norm``."""
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    # Where the factor is one, a CPU is spared a pass over all gradients; a GPU would wait to know.
    if norm.device.type != "cpu" or not max_norm / (norm + 1e-6) >= 1:
        clip_grads_with_norm_(parameters, max_norm, norm)
