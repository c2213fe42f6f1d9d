"""Average models: check that they may be averaged, then sum their weights.

``tasks.models.facts`` has the facts that must agree. Weights are summed in float64, where each
product of a float32 weight and a part is exact. So a mixture has one bit pattern, in any order, and
whether it is averaged tensor by tensor or as one flat vector. There is one exception: where weights
that belong together differ by a factor of 10 million or more, the order matters. It is that of the
members' names.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.models.facts import Facts, fact_differences

if TYPE_CHECKING:
    import torch


CPU_PIECE, GPU_PIECE = 1 << 17, 1 << 22
"""Weights summed at once: float64 sums of a piece stay in a processor's cache (on a GPU, in its L2
cache), so that the memory is read once for each member and written once."""


class MergeError(ValueError):
    """Models that may not be averaged; the message names the difference."""


def check_mergeable(members: Mapping[str, Facts]) -> None:
    """Refuse members that do not agree.

    Args:
        members: facts by the name that people know the model by.

    Raises:
        MergeError: naming the first pair that differs and all facts in which it does.
    """
    names = list(members)
    for name in names[1:]:
        unlike = fact_differences(members[names[0]], members[name])
        if unlike:
            raise MergeError(
                f"models {names[0]!r} and {name!r} cannot be averaged, they differ in "
                f"{'; '.join(unlike)}. "
                "Train both from one base model, with one tokenizer and equal steps"
            )


class PieceSums:
    """Where sums of one piece are kept, in the precision of the sum; made once for many merges."""

    def __init__(self, dtype: "torch.dtype", device: str) -> None:
        import torch

        size = piece_size(device)
        self.total = torch.empty(size, dtype=dtype, device=device)
        # A GPU converts while it adds.
        self.term = None if device.startswith("cuda") else torch.empty_like(self.total)


def piece_size(device: str) -> int:
    """Weights that are summed at once on a device."""
    return GPU_PIECE if device.startswith("cuda") else CPU_PIECE


def accumulate(
    target: "torch.Tensor",
    pieces: Sequence["torch.Tensor"],
    parts: Sequence[int],
    scratch: PieceSums,
) -> None:
    """Write sum of ``parts[i] * pieces[i]`` over sum of ``parts``, added in the given order.

    Args:
        target: float32, shape (size,), at most ``piece_size`` of the device.
        pieces: float32, each of the target's shape, on its device.
        parts: positive integers.
        scratch: its type is that of the sum.
    """
    divisor = math.gcd(*parts)
    counts = [part // divisor for part in parts]
    total = scratch.total[: len(target)]
    total.copy_(pieces[0])
    if counts[0] != 1:
        total.mul_(counts[0])
    for piece, count in zip(pieces[1:], counts[1:], strict=True):
        if scratch.term is not None:
            piece = scratch.term[: len(target)].copy_(piece)
        total.add_(piece, alpha=count)
    if sum(counts) != 1:
        total.div_(sum(counts))
    target.copy_(total)


FUSED_MEMBERS = 16
"""Most members that one compiled kernel sums: compiling takes seconds for each power of two."""


def fused_sum(
    target: "torch.Tensor", tensors: Sequence["torch.Tensor"], parts: Sequence[int]
) -> None:
    """What ``accumulate`` writes with sums in float64, in one compiled pass over memory.

    The bits are the same because these sums are exact (see above); a compiler may fuse products and
    sums, so in float32 they would not be.

    Args:
        target: float32, any shape.
        tensors: up to ``FUSED_MEMBERS`` of the target's shape and device.
        parts: positive integers.
    """
    import torch

    divisor = math.gcd(*parts)
    counts = [part // divisor for part in parts]
    # Filled up to a power of two with nothing of the first, so that few kernels are compiled.
    room = (1 << (len(counts) - 1).bit_length()) - len(counts)
    numbers = [*counts, *[0] * room, sum(counts)]
    factors = torch.tensor(numbers, dtype=torch.float64, device=target.device).unbind()
    # Each filler is a tensor of its own: torch compiles anew for one that stands twice in a list.
    fillers = [tensors[0].detach() for _ in range(room)]
    _compiled_sum()(target, [*tensors, *fillers], factors)


@functools.cache
def _compiled_sum() -> Callable[..., None]:
    import torch

    def write(
        target: torch.Tensor, tensors: list[torch.Tensor], factors: Sequence[torch.Tensor]
    ) -> None:
        total = tensors[0].double() * factors[0]
        for tensor, factor in zip(tensors[1:], factors[1:-1], strict=True):
            total = total + tensor.double() * factor
        target.copy_(total / factors[-1])

    compiled: Callable[..., None] = torch.compile(write, dynamic=False)
    return compiled


def weighted_sum(
    tensors: Sequence["torch.Tensor"], parts: Sequence[int], dtype: "torch.dtype"
) -> "torch.Tensor":
    """Sum of ``parts[i] * tensors[i]`` over sum of ``parts``, added in the given order in ``dtype``.

    Returns:
        float32, of the shape of the tensors, which is one for all.
    """
    import torch

    device = str(tensors[0].device)
    size, scratch = piece_size(device), PieceSums(dtype, device)
    merged = torch.empty_like(
        tensors[0], dtype=torch.float32, memory_format=torch.contiguous_format
    )
    columns = (torch.split(tensor.reshape(-1), size) for tensor in tensors)
    for target, *pieces in zip(torch.split(merged.view(-1), size), *columns, strict=True):
        accumulate(target, pieces, parts, scratch)
    return merged


def average_weights(
    members: Mapping[str, Mapping[str, "torch.Tensor"]],
    parts: Mapping[str, int],
    dtype: "torch.dtype | None" = None,
) -> dict[str, "torch.Tensor"]:
    """Weighted average of models, tensor by tensor, members in the order of their names.

    Args:
        members: tensors by name (tied ones once) for each member.
        parts: positive integers by member.
        dtype: float64 (default) or float32: in which the sum is kept.

    Returns:
        float32 tensors; integer and boolean tensors are copied.

    Raises:
        MergeError: members have other tensors, shapes or types, or unequal integer tensors.
    """
    import torch

    names = sorted(parts)
    first = members[names[0]]
    for name in names[1:]:
        check_same_tensors(names[0], first, name, members[name])
    merged = {}
    for key, tensor in first.items():
        if tensor.is_floating_point():
            column = [members[name][key] for name in names]
            counts = [parts[name] for name in names]
            merged[key] = weighted_sum(column, counts, dtype or torch.float64)
        else:
            merged[key] = tensor.clone()
    return merged


def check_same_tensors(
    first_name: str,
    first_tensors: Mapping[str, "torch.Tensor"],
    second_name: str,
    second_tensors: Mapping[str, "torch.Tensor"],
) -> None:
    """Refuse models whose tensors do not correspond. Raises MergeError naming the tensor."""
    models = f"models {first_name!r} and {second_name!r}"
    odd = sorted({*first_tensors} ^ {*second_tensors})
    if odd:
        raise MergeError(f"{models}: only one of them has the tensor {odd[0]!r}")
    for key, tensor in first_tensors.items():
        counterpart = second_tensors[key]
        for field in ("shape", "dtype"):
            mine, theirs = getattr(tensor, field), getattr(counterpart, field)
            if mine != theirs:
                raise MergeError(f"{models} differ in the {field} of {key!r}: {mine} and {theirs}")
        if not tensor.is_floating_point() and not tensor.equal(counterpart):
            raise MergeError(
                f"{models} differ in the integer tensor {key!r}, which cannot be averaged"
            )
