"""Linear layers on a CPU by oneDNN, whose kernels are faster than MKL's on AMD's processors.

torch has both and multiplies float32 matrices by MKL, while ``torch.compile`` calls oneDNN
(``python -m tests.benchmarks forward`` compares them). oneDNN generates code for each number of
rows, which takes time and stays in memory. It is therefore used for one number only, that of a
set's commonest batches; torch multiplies the others.
"""

import functools
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NO_CODE = "could not create a primitive"
"""All that oneDNN says where it has no memory for its code; checked with torch 2.13."""


def has_onednn() -> bool:
    """Whether this torch has what is needed, on a kind of processor that can gain by it."""
    import torch

    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    here = built_in and platform.machine() in ("x86_64", "AMD64")
    return here and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(
    inputs: "torch.Tensor", weight: "torch.Tensor", bias: "torch.Tensor | None"
) -> "torch.Tensor":
    """``torch.nn.functional.linear`` of float32 on a CPU; it has no gradient.

    Args:
        inputs: shape (..., width).
        weight: shape (outputs, width).
        bias: shape (outputs,), or None.
    """
    import torch

    # Private, checked with torch 2.13; ``has_onednn`` looks for it.
    multiply = torch.ops.mkldnn._linear_pointwise
    product: torch.Tensor = multiply(inputs, weight, bias, "none", [], "")
    return product


class OnednnLayers:
    """Makes the linear layers of a model, float32 on a CPU, multiply common batches by oneDNN.

    The model gives no gradients any more.
    """

    rows = 0
    """Positions of the batches that are common."""

    def __init__(self, model: "torch.nn.Module") -> None:
        import torch

        for layer in model.modules():
            # Kinds of their own may do more than multiply.
            if type(layer) is torch.nn.Linear and layer.weight.dtype == torch.float32:
                layer.forward = functools.partial(self._multiply, layer)  # type: ignore[method-assign]

    def _multiply(self, layer: "torch.nn.Linear", inputs: "torch.Tensor") -> "torch.Tensor":
        import torch.nn.functional as F

        multiply = onednn_linear if inputs.shape[:-1].numel() == self.rows else F.linear
        return multiply(inputs, layer.weight, layer.bias)
