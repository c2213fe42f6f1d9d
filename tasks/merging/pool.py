"""The pool in memory: each member's weights as one flat vector, averaged into one flat buffer.

A member is read piece by piece from where it is kept: on the device that merges, in pinned host
memory where a GPU has too little, or in its files where the host has too little as well. The merged
model's parameters are views of the buffer. So beside the pool there is one model and a few
megabytes; a pool that is read from its files takes that alone. The arithmetic, and so every bit of
a merge, is the same in all three (``tasks.merging.average.weighted_sum``).
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from tasks.machine.memory import free_memory
from tasks.merging import average
from tasks.merging.average import MergeError, PieceSums
from tasks.mixtures.mixture import Mixture
from tasks.models.facts import facts_of
from tasks.models.folder import load_model, load_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LOG = logging.getLogger("mixpool.sweep")

SPARE = 0.8
"""Share of free memory that a pool may take."""

PoolPlace = Literal["device", "host", "files"]

Reader = Callable[[int, int], "torch.Tensor"]
"""Weights ``start..end-1`` of a member, on the device that merges."""


class Span(NamedTuple):
    """A tensor's bytes in a safetensors file."""

    path: Path
    offset: int
    """Of its first byte in the file."""
    dtype: str
    shape: tuple[int, ...]


class Pool:
    """The members' weights, float32, each as one flat vector in the order of ``layout``.

    Args:
        folders: model folders by the members' names.
        device: the torch device that merges.
        gigabytes: what the pool may take of the device, and of the host, in 10^9 bytes; None is
            four fifths of what is free.
        compiled: whether merges on the device are compiled by torch, once for two, four, eight and
            sixteen members, some seconds each.

    Raises:
        MergeError: the members have other tensors, shapes or types, or unequal integer tensors.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        device: str,
        gigabytes: float | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        self.folders = dict(folders)
        self._compiled = compiled
        self.device = device
        self.layout = _layout(next(iter(folders.values())))
        self.size = sum(shape.numel() for shape in self.layout.values())
        self._facts = {name: facts_of(folder) for name, folder in folders.items()}
        self._scratch: dict[torch.dtype, PieceSums] = {}
        self.place = _choose_place(4 * self.size, len(folders), device, gigabytes)
        if self.place != "device":
            LOG.warning(
                "the pool's %d models of %d MB each do not fit into %s; they are read from %s",
                len(folders),
                4 * self.size // 10**6,
                "memory" if self.place == "files" else f"the memory of {device}",
                "their files at every merge" if self.place == "files" else "host memory",
            )
        self._read = dict(self._readers())

    def _readers(self) -> Iterator[tuple[str, Reader]]:
        names = list(self.folders)
        first = load_weights(self.folders[names[0]])
        for name in names:
            weights = load_weights(self.folders[name])
            average.check_same_tensors(names[0], first, name, weights)
            yield name, self._reader(self.folders[name], weights)

    def _reader(self, folder: Path, weights: Mapping[str, "torch.Tensor"]) -> Reader:
        import torch

        if self.place == "files":
            return FileReader(folder, list(self.layout), self.device)
        pieces = [weights[key].float().flatten() for key in self.layout]
        if self.place == "device":
            whole = torch.cat(pieces).to(self.device)
            return lambda start, end: whole[start:end]
        held = torch.cat(pieces).pin_memory()
        return lambda start, end: held[start:end].to(self.device, non_blocking=True)

    def merge_into(self, target: "torch.Tensor", mixture: Mixture, dtype: "torch.dtype") -> None:
        """Write the average of a mixture's members over ``target``, float32, shape (size,).

        Raises:
            MergeError: the members differ in architecture, tokenizer, base model or steps.
        """
        import torch

        average.check_mergeable({name: self._facts[name] for name in mixture.members})
        readers = [self._read[name] for name in mixture.members]
        parts = [part for _, part in mixture.parts]
        fits = self.place == "device" and len(parts) <= average.FUSED_MEMBERS
        if self._compiled and fits and dtype == torch.float64:
            average.fused_sum(target, [read(0, self.size) for read in readers], parts)
            return
        if dtype not in self._scratch:
            self._scratch[dtype] = PieceSums(dtype, self.device)
        scratch = self._scratch[dtype]
        step = average.piece_size(self.device)
        for start in range(0, self.size, step):
            end = min(start + step, self.size)
            average.accumulate(target[start:end], [r(start, end) for r in readers], parts, scratch)

    def outside(self, digest: str, folder: Path) -> "torch.Tensor":
        """The weights of the members' base model, which is no member; float32, shape (size,), on the device.

        Raises:
            MergeError: a member started from another model, or the tensors differ.
        """
        import torch

        for name, facts in self._facts.items():
            if facts.base != digest:
                raise MergeError(
                    f"model {name!r} did not start from the base model {digest[:10]} that it would be "
                    f"scaled from, but from {(facts.base or 'one from outside')[:10]}: train it from that one"
                )
        weights, first = load_weights(folder), next(iter(self.folders))
        average.check_same_tensors(first, load_weights(self.folders[first]), "base", weights)
        whole = torch.cat([weights[key].float().flatten() for key in self.layout])
        return whole.to(self.device)


def _layout(folder: Path) -> "dict[str, torch.Size]":
    return {
        key: tensor.shape
        for key, tensor in load_weights(folder).items()
        if tensor.is_floating_point()
    }


def _choose_place(
    model_bytes: int, members: int, device: str, gigabytes: float | None
) -> PoolPlace:
    """Where a pool of so many models goes: the fastest place that has room for it."""
    import psutil
    import torch

    def room(free: int) -> float:
        # The merged model lies beside the pool.
        return gigabytes * 1e9 if gigabytes is not None else SPARE * free - model_bytes

    free_memory()  # what is only garbage, or kept by torch for later, is room too
    needed = model_bytes * members
    host = room(psutil.virtual_memory().available)
    if not device.startswith("cuda"):
        return "device" if needed <= host else "files"
    if needed <= room(torch.cuda.mem_get_info(device)[0]):
        return "device"
    return "host" if needed <= host else "files"


class FileReader:
    """Reads a member's weights from its safetensors files, a piece at a time.

    Raises:
        MergeError: a tensor is not stored in float32, as every artifact's are.
    """

    def __init__(self, folder: Path, names: list[str], device: str) -> None:
        self._device = device
        spans = spans_of(folder)
        self._spans: list[tuple[int, int, Span]] = []
        start = 0
        for name in names:
            if (span := spans[name]).dtype != "F32":
                raise MergeError(
                    f"tensor {name!r} of {span.path} is stored as {span.dtype}, and a pool that is "
                    "read from its files must be float32: give runtime.pool_gigabytes for all of it"
                )
            count = math.prod(span.shape)
            self._spans.append((start, start + count, span))
            start += count

    def __call__(self, start: int, end: int) -> "torch.Tensor":
        """Weights ``start..end-1``."""
        import torch

        weights = np.empty(end - start, dtype=np.float32)
        for first, last, span in self._spans:
            low, high = max(start, first), min(end, last)
            if low < high:
                offset = span.offset + 4 * (low - first)
                read = np.fromfile(span.path, np.float32, high - low, offset=offset)
                if len(read) < high - low:
                    raise MergeError(f"{span.path} ends too early: run `mixpool verify`")
                weights[low - start : high - start] = read
        return torch.from_numpy(weights).to(self._device)


def spans_of(folder: Path) -> dict[str, Span]:
    """Where each tensor of a model folder lies.

    A safetensors file is eight bytes of length (little-endian), so many bytes of JSON with type,
    shape and offsets of every tensor, and the data behind it.
    """
    spans = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                offset = 8 + length + entry["data_offsets"][0]
                spans[name] = Span(path, offset, entry["dtype"], tuple(entry["shape"]))
    return spans


class MergedModel:
    """A model whose parameters are views of one flat buffer that merges are written into.

    Raises:
        MergeError: the model's class lacks a tensor that the files hold.
    """

    def __init__(self, pool: Pool) -> None:
        import torch

        self.model: PreTrainedModel = load_model(next(iter(pool.folders.values())), pool.device)
        self.num_parameters = self.model.num_parameters()
        # By each of its names: files have a tied tensor under any one of them.
        tensors = self.model.state_dict(keep_vars=True)
        lacking = [name for name in pool.layout if name not in tensors]
        if lacking:
            raise MergeError(
                f"a {type(self.model).__name__} has no tensor {lacking[0]!r}, which the files hold: give "
                "models that one version of transformers has made"
            )
        sizes = [shape.numel() for shape in pool.layout.values()]
        self.flat = torch.empty(sum(sizes), device=pool.device)
        self.tensors = [tensors[name] for name in pool.layout]
        for tensor, view in zip(self.tensors, torch.split(self.flat, sizes), strict=True):
            view.copy_(tensor.detach().flatten())
            tensor.data = view.view(tensor.shape)
