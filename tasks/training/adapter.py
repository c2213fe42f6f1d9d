"""LoRA: train a low-rank update of every linear layer, and store the ordinary model that it makes.

Beside x W an adapted layer computes scale * (dropout(x) A') B', with scale = alpha / rank, as in Hu et al.
2021 (arXiv 2106.09685) and in peft. A starts uniform within 1 / sqrt(inputs), B at zero, so that the first
pass is that of the base model, bit by bit. All else is frozen. Adapted are the linear layers, GPT-2's
transposed ones included; embeddings, the output layer, norms and biases are not.

When the training is over, scale * B A is added to W. So a member of the pool is a model like any other, and
the mean of such models is the base model plus the mean of the updates. Hooks, and not torch's
``parametrize``, since a parametrized weight has its whole gradient computed before A and B get theirs, and
knows nothing of the layer's input, on which dropout acts.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from storage.fingerprint import Config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FILE = "adapter.safetensors"
"""Beside a stored model: its A, shape (rank, inputs), and B, shape (outputs, rank), named by the weight."""
TRANSPOSED = "fan_in_fan_out"
"""Its one entry of metadata, ``true`` where W is stored as (inputs, outputs), so that W += scale * (B A)'."""


class AdapterConfig(Config):
    """A low-rank update of each linear layer (LoRA)."""

    rank: int = Field(ge=1)
    """Rank of each update; at most the smaller side of the smallest weight."""
    alpha: float | None = Field(default=None, gt=0)
    """The update is alpha / rank times the product of its two factors; None is twice the rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of an adapted layer's inputs that its update does not see, in training."""

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return 2.0 if self.alpha is None else self.alpha / self.rank


class Adapter:
    """The updates of a model's linear layers while they are trained; A and B are its only trained parameters.

    Args:
        seed: of A.

    Raises:
        ValueError: the model has matrices in other places than linear layers and embeddings, or shared
            ones, or a weight with a side smaller than the rank, or a layer that it does not call.
    """

    def __init__(self, model: "PreTrainedModel", config: AdapterConfig, seed: int) -> None:
        import torch

        self._layers, self._scale = _linear_layers(model), config.scale
        self._dropout = config.dropout
        _check_rank(config.rank, self._layers)
        _check_called(model, self._layers)
        generator = torch.Generator().manual_seed(seed)
        model.requires_grad_(False)
        for layer in self._layers.values():
            inputs, outputs = _sides(layer)
            first = (2 * torch.rand(config.rank, inputs, generator=generator) - 1) / inputs**0.5
            for name, start in ("lora_A", first), ("lora_B", torch.zeros(outputs, config.rank)):
                parameter = torch.nn.Parameter(start.to(layer.weight.device))
                layer.register_parameter(name, parameter)
        self._hooks = [layer.register_forward_hook(self._add) for layer in self._layers.values()]

    def _add(self, layer: Any, inputs: "tuple[torch.Tensor]", output: "torch.Tensor") -> Any:
        import torch.nn.functional as F

        seen = F.dropout(inputs[0], self._dropout, layer.training)
        return output + F.linear(F.linear(seen, layer.lora_A) * self._scale, layer.lora_B)

    def merge(self) -> "dict[str, torch.Tensor]":
        """Make the model an ordinary one, with scale * B A added to its weights in float64.

        Returns:
            float32, ``<weight>.A`` and ``<weight>.B`` of each layer.
        """
        import torch

        for hook in self._hooks:
            hook.remove()
        factors: dict[str, torch.Tensor] = {}
        for name, layer in self._layers.items():
            a, b = layer.lora_A.detach(), layer.lora_B.detach()
            del layer.lora_A, layer.lora_B
            update = self._scale * (b.double() @ a.double())
            with torch.no_grad():
                layer.weight += update.T if _is_transposed(layer) else update
            factors |= {f"{name}.weight.A": a, f"{name}.weight.B": b}
        return factors

    def save(self, folder: Path) -> None:
        """Take the adapter off the model, as ``merge`` does, and write ``FILE``."""
        from safetensors.torch import save_file

        factors = {name: tensor.contiguous() for name, tensor in self.merge().items()}
        transposed = any(map(_is_transposed, self._layers.values()))
        save_file(factors, folder / FILE, metadata={TRANSPOSED: str(transposed).lower()})


def mean_factors(members: Sequence[tuple[Path, float]]) -> "dict[str, torch.Tensor]":
    """The mean of the updates of some stored models, as the factors of one update; they have one scale.

    Their A stand below one another, and their B, each times its weight, beside one another: the rank is the
    sum of the ranks, and the product the mean of the products.

    Args:
        members: a model's folder and its weight.

    Returns:
        Names as in ``FILE``.
    """
    import torch
    from safetensors.torch import load_file

    factors = [load_file(folder / FILE) for folder, _ in members]
    for of_member, (_, weight) in zip(factors, members, strict=True):
        for name in of_member:
            if name.endswith(".B"):
                of_member[name] = (of_member[name].double() * weight).float()
    return {
        name: torch.cat([of_member[name] for of_member in factors], dim=int(name.endswith(".B")))
        for name in factors[0]
    }


def is_transposed(folder: Path) -> bool:
    """Whether a stored model's adapted weights have the shape (inputs, outputs)."""
    from safetensors import safe_open

    with safe_open(folder / FILE, "pt") as file:
        return bool(file.metadata()[TRANSPOSED] == "true")


def _linear_layers(model: "PreTrainedModel") -> dict[str, Any]:
    """The layers that are adapted, by name."""
    from torch.nn import Embedding, Linear
    from transformers.pytorch_utils import Conv1D

    named = list(model.named_parameters(remove_duplicate=False))
    uses = Counter(id(parameter) for _, parameter in named)
    left = {name for name, parameter in named if parameter.dim() >= 2}
    head = model.get_output_embeddings()
    layers = {}
    for name, module in model.named_modules():
        if module is head or isinstance(module, Embedding):
            left.discard(f"{name}.weight")
        elif isinstance(module, Linear | Conv1D) and uses[id(module.weight)] == 1:
            left.discard(f"{name}.weight")
            layers[name] = module
    if left or head is None or not layers:
        what = f"its weight {min(left)} is in none, or in two" if left else "it has none"
        raise ValueError(
            f"train.adapter is for models of linear layers, embeddings and one output layer, and of this "
            f"{type(model).__name__} {what}: leave train.adapter out"
        )
    return layers


def _check_rank(rank: int, layers: dict[str, Any]) -> None:
    small = {name: min(_sides(layer)) for name, layer in layers.items()}
    if too_small := [name for name, side in small.items() if side < rank]:
        first, others = too_small[0], f" and {len(too_small) - 1} others" if too_small[1:] else ""
        raise ValueError(
            f"train.adapter.rank {rank} is more than the smaller side of {first}.weight, "
            f"{small[first]}{others}: give {min(small.values())} at most"
        )


def _check_called(model: "PreTrainedModel", layers: dict[str, Any]) -> None:
    """Refuse layers whose weights are used otherwise, or not at all: a hook sees calls alone."""
    import torch

    called: set[Any] = set()
    hooks = [
        layer.register_forward_hook(lambda layer, *_: called.add(layer))
        for layer in layers.values()
    ]
    was_training = model.training
    with torch.no_grad():
        model.eval()(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    if missed := [name for name, layer in layers.items() if layer not in called]:
        raise ValueError(
            f"train.adapter is for layers that are called, and this {type(model).__name__} reads text "
            f"without calling {missed[0]}: leave train.adapter out"
        )


def _sides(layer: Any) -> tuple[int, int]:
    """Numbers of inputs and of outputs."""
    first, second = layer.weight.shape
    return (first, second) if _is_transposed(layer) else (second, first)


def _is_transposed(layer: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)
