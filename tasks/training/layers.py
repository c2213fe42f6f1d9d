"""Which layers a training moves, and how much: by the relative gradient norms of its text.

Fernandez et al. 2024 (arXiv 2411.04448), experimental. The norms are those of ``tasks.training.localise``.
Tensors of no layer (embeddings, last norm, head) are not localised: ``freeze`` leaves them as they are,
``scale`` trains them at the full rate.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.nn import Parameter
    from transformers import PreTrainedModel

NORMS = "norms.json"
"""The file of a ``norms`` artifact."""
_LAYER = re.compile(r"(.*?\.\d+)\.")


def layers_of(model: "PreTrainedModel") -> dict[str, list["Parameter"]]:
    """The parameters of each layer by its name (``model.layers.3``); what is in no layer is left out.

    A layer's name is that of a parameter up to its first number.
    """
    layers: dict[str, list[Parameter]] = {}
    for name, parameter in model.named_parameters():
        if found := _LAYER.match(name):
            layers.setdefault(found[1], []).append(parameter)
    return layers


def rate_shares(norms: Mapping[str, float], mode: Literal["freeze", "scale"]) -> dict[str, float]:
    """The share of the learning rate that each layer is trained at; of 0 it is not trained.

    Args:
        norms: the relative gradient norm of each layer, finite and not negative.

    Raises:
        ValueError: no layer stands out.
    """
    highest, mean = max(norms.values()), sum(norms.values()) / len(norms)
    if not highest > mean:
        raise ValueError(
            f"each of the {len(norms)} layers has the relative gradient norm {mean:g}, so none is to be "
            "preferred: leave train.layers out"
        )
    if mode == "freeze":
        return {layer: float(norm > mean) for layer, norm in norms.items()}
    return {layer: norm / highest for layer, norm in norms.items()}


def choose(
    model: "PreTrainedModel", mode: Literal["freeze", "scale"], folder: Path
) -> tuple[dict["Parameter", float], dict[str, float]]:
    """Freeze what is not to be trained; the rate's share by parameter, for all of them, and by layer.

    Args:
        folder: the ``norms`` of the training's text.

    Raises:
        ValueError: no layer stands out, or the norms are those of another model.
    """
    measured: dict[str, float] = json.loads((folder / NORMS).read_text())["relative"]
    layers = layers_of(model)
    if measured.keys() != layers.keys():
        raise ValueError(
            f"the gradient norms are of {len(measured)} layers ({min(measured)}, ...), and the model has "
            f"{len(layers)} others ({min(layers, default='none')}, ...): measure them on this model"
        )
    by_layer = rate_shares(measured, mode)
    shares = dict.fromkeys(model.parameters(), 0.0 if mode == "freeze" else 1.0)
    for layer, parameters in layers.items():
        shares |= dict.fromkeys(parameters, by_layer[layer])
    for parameter, share in shares.items():
        parameter.requires_grad_(parameter.requires_grad and share > 0)
    return shares, by_layer
