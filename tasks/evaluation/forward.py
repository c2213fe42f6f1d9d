"""The forward pass of a sweep: the losses of the scored tokens, and no logits but theirs.

Logits, one for each position and each entry of the vocabulary, are the largest tensor of all, and
most of a loss's cost beside the matrix products. Where a model is a body with a linear head, which
is tested and not assumed, only the scored positions go through the head. Their logits are made in
tiles that stay in a processor's cache, with a running sum of exponentials (Milakov and Gimelshein
2018, "Online normalizer calculation for softmax"). Any other model computes all logits, and those
of the scored positions are taken.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.evaluation.onednn import OnednnLayers, onednn_linear
from tasks.evaluation.window import Windows
from tasks.machine.compiled import compile_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TILE = 1024
"""Positions, and entries of the vocabulary, in one tile on a CPU: 4 MB of float32 logits. Also the
positions whose logits are lifted to float32 at once."""

SMALL = 8192
"""Up to so many entries a CPU keeps whole rows of logits, fewer at a time, in the same 4 MB."""

LOWEST_BIAS = 100.0
"""A head whose bias masks tokens gives its logits."""

PIECE = 4096
"""Positions whose logits are computed at once on a GPU."""

CPU_BATCH, GPU_BATCH = 2048, 32768
"""Positions in one batch if nobody says otherwise: above the knee where latency stops being flat,
and on a CPU few enough that activations stay in its cache."""


class TokenBatch(NamedTuple):
    """B windows of at most T positions that are run together; S of their tokens are scored."""

    inputs: "torch.Tensor"
    """Token ids, int64, shape (B, T)."""
    scored: "torch.Tensor"
    """Positions in the flattened batch, int64, shape (S,)."""
    targets: "torch.Tensor"
    """The token that follows at each, int64, shape (S,)."""
    group: np.ndarray
    """Group of each one's document, shape (S,)."""


def default_batch(device: str) -> int:
    """Positions in one batch on a device."""
    return GPU_BATCH if device.startswith("cuda") else CPU_BATCH


def token_batches(
    windows: Windows, tokens: int, device: str, turns: Sequence[int] = ()
) -> list[TokenBatch]:
    """Windows in batches of at most ``tokens`` positions, of like length, shortest first.

    No batch has windows on both sides of one of ``turns``. The order depends on the windows alone, so a
    set's sums are added in one order.
    """
    order = np.argsort(windows.length, kind="stable")
    side = np.searchsorted(turns, windows.length)
    grouped: list[list[int]] = []
    for row in order.tolist():
        # Sorted by length, so this row would be the longest of the batch.
        is_full = not grouped or int(windows.length[row]) * (len(grouped[-1]) + 1) > tokens
        if is_full or side[grouped[-1][0]] != side[row]:
            grouped.append([])
        grouped[-1].append(row)
    return [_batch(windows, np.array(rows), device) for rows in grouped]


def _batch(windows: Windows, rows: np.ndarray, device: str) -> TokenBatch:
    import torch

    length = int(windows.length[rows].max())
    position = np.arange(length)
    scored = (position >= windows.first[rows, None]) & (position < windows.length[rows, None])
    inputs = windows.inputs[rows, :length].astype(np.int64)
    targets = windows.targets[rows, :length][scored].astype(np.int64)
    return TokenBatch(
        torch.from_numpy(inputs).to(device),
        torch.from_numpy(np.flatnonzero(scored)).to(device),
        torch.from_numpy(targets).to(device),
        np.repeat(windows.group[rows], scored.sum(1)),
    )


Linear = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]
"""Inputs, weight and bias to outputs, as ``torch.nn.functional.linear``."""


class Scorer:
    """Nats of each scored token of a batch, in the fastest way that gives the model's own losses.

    The model must hold sound weights when this is made; later they may be written over in place.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        compiled: whether torch.compile compiles the layers.
        onednn: whether common batches are multiplied by oneDNN (``tasks.evaluation.onednn``): for
        float32 on a
            CPU, where no gradients are asked for.
    """

    def __init__(
        self, model: "PreTrainedModel", *, compiled: bool = False, onednn: bool = False
    ) -> None:
        import torch.nn.functional as F

        self._model: Any = model
        self._head: Any = model.get_output_embeddings()
        self._body: Any = linear_body(model)
        self._linear: Linear = onednn_linear if onednn else F.linear
        if compiled:
            compile_layers(model)
        self._layers = OnednnLayers(model) if onednn else None

    def expect(self, prepared: Iterable[TokenBatch]) -> None:
        """Be fast at the commonest size of these batches: those of one set, whatever others there are."""
        if self._layers is not None:
            sizes = Counter(batch.inputs.numel() for batch in prepared)
            self._layers.rows = max(sizes, key=lambda rows: (sizes[rows], rows), default=0)

    def leave_onednn(self) -> bool:
        """Do without oneDNN from now on; False if it was not used."""
        import torch.nn.functional as F

        if self._layers is None:
            return False
        self._layers.rows, self._layers, self._linear = 0, None, F.linear
        return True

    def __call__(self, batch: TokenBatch) -> "torch.Tensor":
        """Nats, float32, shape (S,)."""
        if self._body is None:
            return _from_logits(self._model(input_ids=batch.inputs, use_cache=False), batch)
        output = self._body(input_ids=batch.inputs, use_cache=False)
        hidden = output.last_hidden_state.flatten(0, 1)
        if len(batch.scored) < len(hidden):
            hidden = hidden[batch.scored]
        head = self._head
        return head_losses(hidden, head.weight, head.bias, batch.targets, self._linear)


def linear_body(model: "PreTrainedModel") -> "torch.nn.Module | None":
    """The model without its head, if logits are one linear map of its last hidden state.

    A trial run decides: the head's input must be the body's output, and its output the model's logits.
    Caps, scales or masks of logits, and heads of other kinds, fail that; then the result is None.
    """
    import torch

    head, body = model.get_output_embeddings(), model.base_model
    if type(head) is not torch.nn.Linear or body is model:
        return None
    # A tile's sum is computed from its first logit, which must not drown in the others.
    if head.bias is not None and not bool((head.bias > -LOWEST_BIAS).all()):
        return None
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def keep(_: object, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append((inputs[0], output, output.clone()))

    ids = torch.arange(2, device=model.device)[None]
    handle = head.register_forward_hook(keep)
    try:
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits
            hidden = getattr(body(input_ids=ids, use_cache=False), "last_hidden_state", None)
    finally:
        handle.remove()
    if len(seen) != 1 or hidden is None:
        return None
    entered, left, untouched = seen[0]
    # The very tensor that left the head: a cap that changes no bit of small logits makes a new one.
    same = logits.data_ptr() == left.data_ptr() and logits.equal(untouched)
    return body if same and entered.equal(hidden) else None


def _from_logits(output: Any, batch: TokenBatch) -> "torch.Tensor":
    import torch
    import torch.nn.functional as F

    logits = output.logits.flatten(0, 1)
    pieces = zip(torch.split(batch.scored, TILE), torch.split(batch.targets, TILE), strict=True)
    # In pieces, because float32 logits of a whole batch are the largest tensor of all.
    losses = [F.cross_entropy(logits[s].float(), t, reduction="none") for s, t in pieces]
    return torch.cat(losses)


def head_losses(
    hidden: "torch.Tensor",
    weight: "torch.Tensor",
    bias: "torch.Tensor | None",
    targets: "torch.Tensor",
    linear: "Linear | None" = None,
) -> "torch.Tensor":
    """Cross-entropy of ``softmax(hidden @ weight.T + bias)``, without keeping the logits.

    Args:
        hidden: shape (S, width).
        weight: shape (vocabulary, width).
        bias: shape (vocabulary,), or None.
        targets: int64, shape (S,).
        linear: what multiplies full tiles; torch's own if None.

    Returns:
        Nats, float32, shape (S,).
    """
    import torch
    import torch.nn.functional as F

    if hidden.device.type == "cuda":
        size, losses_of = PIECE, _whole_rows
    elif len(weight) <= SMALL:
        size, losses_of = max(1, TILE * TILE // len(weight)), _whole_rows
    else:
        size, losses_of = TILE, _tiled_rows
    pieces = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    full = linear or F.linear
    return torch.cat(
        [losses_of(h, weight, bias, t, full if len(h) == size else F.linear) for h, t in pieces]
    )


def _whole_rows(
    hidden: "torch.Tensor",
    weight: "torch.Tensor",
    bias: "torch.Tensor | None",
    targets: "torch.Tensor",
    linear: Linear,
) -> "torch.Tensor":
    import torch

    # One kernel reads logits of any type and writes float32.
    logits = linear(hidden, weight, bias)
    return -torch.log_softmax(logits, 1, dtype=torch.float32).gather(1, targets[:, None])[:, 0]


def _tiled_rows(
    hidden: "torch.Tensor",
    weight: "torch.Tensor",
    bias: "torch.Tensor | None",
    targets: "torch.Tensor",
    linear: Linear,
) -> "torch.Tensor":
    import torch

    column = targets[:, None]
    target_logit = torch.zeros(len(targets), 1, device=hidden.device)
    normaliser = torch.full_like(target_logit, -torch.inf)
    for start in range(0, len(weight), TILE):
        end = min(start + TILE, len(weight))
        tile_bias = None if bias is None else bias[start:end]
        logits = linear(hidden, weight[start:end], tile_bias).float()
        here = (column >= start) & (column < end)
        at_target = logits.gather(1, (column - start).clamp(0, end - start - 1))
        target_logit = torch.where(here, at_target, target_logit)
        # The one fused kernel that sums exponentials: any logit less its log-probability is the sum.
        of_tile = logits[:, :1] - torch.log_softmax(logits, 1)[:, :1]
        normaliser = torch.logaddexp(normaliser, of_tile)
    return (normaliser - target_logit)[:, 0]


def token_losses(
    score: Scorer, prepared: list[TokenBatch], device: str, precision: str
) -> np.ndarray:
    """Nats of each scored token in the order of the batches, float32, shape (S,)."""
    import torch

    kind = torch.device(device).type
    with (
        torch.inference_mode(),
        torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        # Fetched once for a set: a GPU is not waited for between batches.
        nats: np.ndarray = torch.cat([score(batch) for batch in prepared]).cpu().numpy()
    return nats
