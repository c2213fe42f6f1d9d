"""One training in several processes, each with its part of every weight and of every batch (FSDP2).

torch's ``fully_shard`` brings a layer's weights together where the layer is computed, and each process gets
its part of the summed gradients. Weights keep their names, shapes and order, so what is saved is what one
process saves. Who starts the processes, and how they end, is in ``tasks.training.lead``.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from storage.step import Runtime
from tasks.machine.device import devices_of
from tasks.training.gradients import GradientsOf

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

PATIENCE = timedelta(minutes=10)
"""Time in which a process must come to what all do together."""


class Place(NamedTuple):
    """The place of a process among those of a training."""

    rank: int
    """0 is the one that leads."""
    size: int
    """Number of processes."""
    device: str
    """Its torch device."""
    meeting: str
    """File by which they find one another."""


def shard_devices(runtime: Runtime, batch_size: int) -> list[str]:
    """A device for each process of a training.

    Raises:
        ValueError: there are too few, or they or the batch cannot be shared, or layers are compiled.
    """
    size = runtime.shards
    if size == 1:
        return devices_of(runtime)[:1]
    devices = devices_of(runtime)
    if size > len(devices):
        raise ValueError(
            f"runtime.shards is {size}, and runtime.device has {len(devices)} ({', '.join(devices)}): lower "
            "it, or list more devices"
        )
    devices = devices[:size]
    kinds = {name.partition(":")[0] for name in devices}
    if not (kinds == {"cpu"} or (kinds == {"cuda"} and len({*devices}) == size)):
        raise ValueError(
            f"runtime.shards is {size}, and the devices {', '.join(devices)} cannot share a training: "
            "list different GPUs, or cpu several times"
        )
    if batch_size % size:
        raise ValueError(
            f"train.batch_size {batch_size} cannot be shared evenly among runtime.shards {size}: choose a "
            "multiple of it, or other shards"
        )
    if runtime.compile:
        raise ValueError("runtime.compile and runtime.shards are not used together: leave one out")
    return devices


@contextlib.contextmanager
def joined(place: Place) -> Iterator[None]:
    """Meet the other processes; inside the block they work together.

    Raises:
        ValueError: this process has other such work already.
    """
    import torch
    import torch.distributed as dist

    kind = torch.device(place.device).type
    if dist.is_initialized():
        raise ValueError("runtime.shards: torch.distributed is in use in this process: use another")
    store = dist.FileStore(place.meeting, place.size)  # type: ignore[attr-defined]
    backend = "nccl" if kind == "cuda" else "gloo"
    on_device = torch.cuda.device(place.device) if kind == "cuda" else contextlib.nullcontext()
    with on_device:
        with _loopback():
            dist.init_process_group(
                backend, store=store, rank=place.rank, world_size=place.size, timeout=PATIENCE
            )
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Gloo listens on this machine's loopback alone, unless the environment names an interface."""
    name, before = "GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ[name] = before or ("lo0" if sys.platform == "darwin" else "lo")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def shard(model: "PreTrainedModel", device: str) -> None:
    """Keep this process's part of each weight of a model that lies in host memory, on its device.

    Raises:
        ValueError: the model's layers cannot be brought together one by one.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    layers = _layers(model)
    assert dist.group.WORLD is not None
    mesh = DeviceMesh.from_group(dist.group.WORLD, torch.device(device).type)
    for module in [*layers, model]:
        fully_shard(module, mesh=mesh)


def _layers(model: "nn.Module") -> "list[nn.Module]":
    """The elements of a model's lists of modules, which are brought together one at a time."""
    from torch import nn

    found = [m for lists in model.modules() if isinstance(lists, nn.ModuleList) for m in lists]
    layers = [*dict.fromkeys(found)]
    inside = [{id(m) for m in layer.modules()} for layer in layers]
    if any(isinstance(m, nn.ModuleList) for layer in layers for m in layer.modules()):
        raise ValueError(
            f"runtime.shards: a layer of {type(model).__name__} has a list of modules inside, of which "
            "processes may use others (experts): train it in one process"
        )
    outer = [m for m in model.modules() if not any(id(m) in of for of in inside)]
    owners = [{id(p) for p in layer.parameters()} for layer in layers]
    owners.append({id(p) for m in outer for p in m.parameters(recurse=False)})
    if sum(map(len, owners)) > len(set().union(*owners)):
        raise ValueError(
            f"runtime.shards: layers of {type(model).__name__} share weights with others (tied weights): "
            "train it in one process"
        )
    return layers


class PartGradients:
    """The gradients of a batch, of which each process computes a part.

    Dropout of a process goes by seed, step and rank, so that a resume point needs no other's random state.
    """

    def __init__(self, gradients_of: GradientsOf, place: Place, seed: int) -> None:
        self._gradients_of, self._place, self._seed = gradients_of, place, seed

    def __call__(self, tokens: "torch.Tensor", step: int) -> "torch.Tensor":
        """The mean loss of the whole batch; see ``GradientsOf``."""
        import torch
        import torch.distributed as dist

        rank, size = self._place.rank, self._place.size
        source = np.random.SeedSequence([self._seed, step, rank])
        torch.manual_seed(int(source.generate_state(1, np.uint64)[0]))
        loss = self._gradients_of(torch.chunk(tokens, size)[rank], step).detach().clone()
        dist.all_reduce(loss)
        return loss / size
