"""torch.compile of a model, layer by layer.

Compiled as a whole, a model has slow attention (see ``tasks.training.gradients``).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compile_layers(model: "PreTrainedModel") -> None:
    """Have torch.compile compile a model's layers, each when it is first called."""
    import torch

    lists = [layers for layers in model.modules() if isinstance(layers, torch.nn.ModuleList)]
    for layer in [layer for layers in lists for layer in layers] or [model]:
        layer.compile()
