"""A batch's loss, gradients and copy to the device, and the clipping of gradients, for the training loop.

Each does what the usual few lines of torch do, bit by bit, without needless waits for the device.
When compiled, the layers are compiled one by one, and the loss. Under ``torch.compile`` of a whole
model, transformers builds a mask of context x context for every sequence, and attention is slow
with it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tasks.machine.compiled import compile_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


LogitsOf = Callable[["torch.Tensor"], "torch.Tensor"]
"""From token ids, int64, shape (B, context + 1), to logits of all but the first, (B, context, V)."""
LossOf = Callable[["torch.Tensor"], "torch.Tensor"]
"""From token ids, int64, shape (B, context + 1), to the mean nats of all but the first."""
GradientsOf = Callable[["torch.Tensor", int], "torch.Tensor"]
"""From a batch and the number of its step to its loss; the gradients are left at the parameters."""


def loss_function(model: "PreTrainedModel", precision: str, *, compiled: bool) -> LossOf:
    """What computes the loss of a batch; ``precision`` is that of matrix products.

    The model's parameters stay where they are, and what is saved of it stays the same, if compiled.
    """
    import torch

    logits_of = logits_function(model, precision)
    cross_entropy: Any = torch.compile(_cross_entropy) if compiled else _cross_entropy
    if compiled:
        compile_layers(model)

    def loss_of(tokens: "torch.Tensor") -> "torch.Tensor":
        loss: torch.Tensor = cross_entropy(logits_of(tokens), tokens[:, 1:])
        return loss

    return loss_of


def logits_function(model: "PreTrainedModel", precision: str) -> LogitsOf:
    """What runs a model on a batch; ``precision`` is that of matrix products."""
    import torch

    forward: Any = model

    def logits_of(tokens: "torch.Tensor") -> "torch.Tensor":
        is_lower = precision == "bfloat16"
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=is_lower):
            logits: torch.Tensor = forward(input_ids=tokens[:, :-1], use_cache=False).logits
        return logits

    return logits_of


def _cross_entropy(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    import torch.nn.functional as F

    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def moved(batch: np.ndarray, device: "torch.device") -> "torch.Tensor":
    """A batch as a tensor on the device, which need not be there yet."""
    import torch

    tokens = torch.from_numpy(batch)
    # Only from pinned memory does a copy wait for nothing.
    return tokens.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tokens


def whole(tensor: "torch.Tensor") -> "torch.Tensor":
    """A tensor with the parts that other processes have of it; all of them must ask at once."""
    of_parts: Any = getattr(tensor, "full_tensor", None)  # without the import of what has it
    return tensor if of_parts is None else cast("torch.Tensor", of_parts())


def clip(parameters: list["torch.nn.Parameter"], max_norm: float) -> None:
    """Scale all gradients down, in place, where their joint norm is above ``max_norm``."""
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    norm = whole(get_total_norm([p.grad for p in parameters if p.grad is not None]))
    # Where the factor is one, a CPU is spared a pass over all gradients; a GPU would wait to know.
    if norm.device.type != "cpu" or not max_norm / (norm + 1e-6) >= 1:
        clip_grads_with_norm_(parameters, max_norm, norm)
