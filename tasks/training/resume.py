"""Resume points: the state from which a training goes on, bit by bit, as if never stopped.

A state is the weights that are trained, the optimizer, the random state and the losses so far (their
number is the position), all of it safetensors and JSON. The training waits only for the copy to host
memory; writing and uploading go on beside it. The optimizer's state is also stored alone with a model,
for a later training that carries it on.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from storage.checkpoint import BackgroundSaves
from storage.step import Workspace
from tasks.training.gradients import whole

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LOG = logging.getLogger("mixpool.train")

State = dict[str, dict[str, "torch.Tensor"]]
"""The tensors of a training by file and name: weights, optimizer and random state."""

PATIENT_SECONDS = 10.0
"""A training that is stopped is saved first, unless an earlier save of it took longer than this."""


def save_state(
    model: "PreTrainedModel",
    optimizer: "torch.optim.AdamW",
    losses: list[float],
    saves: BackgroundSaves,
) -> None:
    """Begin to make the present state the training's resume point; it is copied before this returns.

    Raises:
        Exception: whatever made the save before this one fail.
    """
    saves.save(partial(_write, snapshot(model, optimizer), [*losses]), len(losses))


def _write(tensors: State, losses: list[float], folder: Path) -> None:
    """Write what ``read`` reads, and the losses."""
    from safetensors.torch import save_file

    for name, of_file in tensors.items():
        save_file(of_file, folder / f"{name}.safetensors")
    (folder / "losses.json").write_text(json.dumps(losses))


def snapshot(model: "PreTrainedModel", optimizer: "torch.optim.AdamW") -> State:
    """The state at one moment, in host memory and no longer the model's own.

    Of a model in several processes it is the whole one; all of them must ask at once.
    """
    import torch

    random = {"cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(model.device)
    return {
        "weights": _copied(_weights(model)),
        "optimizer": _copied(_moments(optimizer)),
        "random": random,
    }


def take_part(model: "PreTrainedModel", optimizer: "torch.optim.AdamW") -> None:
    """What another process does while one takes a snapshot; nothing is kept."""
    for tensor in (*_weights(model).values(), *_moments(optimizer).values()):
        whole(tensor)


def _copied(tensors: dict[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    return {name: whole(t).to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def save_last(
    model: "PreTrainedModel",
    optimizer: "torch.optim.AdamW",
    losses: list[float],
    saves: BackgroundSaves,
) -> None:
    """Save the state of a training that was stopped; where that fails, the earlier one stands."""
    end = time.monotonic() + PATIENT_SECONDS
    try:
        saves.wait(PATIENT_SECONDS)
        save_state(model, optimizer, losses, saves)
        saves.wait(max(0.0, end - time.monotonic()))
    except Exception as error:  # the caller must hear of what stopped the training, not of this
        LOG.warning("stopped after step %d, which could not be saved (%s)", len(losses), error)
    else:
        LOG.info("stopped after step %d, which is saved", len(losses))


def load_state(
    model: "PreTrainedModel",
    optimizer: "torch.optim.AdamW",
    workspace: Workspace,
    others: Callable[[Path], object] = bool,
) -> list[float]:
    """Put the latest resume point in force; the losses so far, none where there is no such point.

    ``others`` has other processes put in force what a folder holds, and returns when they have.
    """
    with tempfile.TemporaryDirectory(dir=workspace.runtime.scratch) as name:
        folder = Path(name)
        step = workspace.checkpoints.load(folder)
        if step is None:
            return []
        put(model, optimizer, read(folder))
        others(folder)
        losses: list[float] = json.loads((folder / "losses.json").read_text())
    LOG.info("resuming at step %d", step)
    return losses


def read(folder: Path) -> State:
    """The state that a folder holds, in host memory."""
    from safetensors.torch import load_file

    return {
        name: load_file(folder / f"{name}.safetensors")
        for name in ("weights", "optimizer", "random")
    }


def put(model: "PreTrainedModel", optimizer: "torch.optim.AdamW", state: State) -> None:
    """Put a state in force; of a model in several processes, this one's part of it."""
    import torch

    with torch.no_grad():
        for key, tensor in _weights(model).items():
            tensor.copy_(_part(state["weights"][key], tensor))
    _put_moments(optimizer, state["optimizer"])
    torch.set_rng_state(state["random"]["cpu"])
    if "cuda" in state["random"] and model.device.type == "cuda":
        torch.cuda.set_rng_state(state["random"]["cuda"], model.device)


def _part(value: "torch.Tensor", like: "torch.Tensor") -> "torch.Tensor":
    """What this process holds of a tensor, if it is one that holds a part."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    on_device = value.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def _weights(model: "PreTrainedModel") -> dict[str, "torch.Tensor"]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return {name: tensor.detach() for name, tensor in [*trained, *model.named_buffers()]}


def save_optimizer(optimizer: "torch.optim.AdamW", path: Path) -> None:
    """Write the optimizer's tensors, named by number of parameter and field."""
    from safetensors.torch import save_file

    tensors = {name: value.cpu().contiguous() for name, value in _moments(optimizer).items()}
    save_file(tensors, path)


def _moments(optimizer: "torch.optim.AdamW") -> dict[str, "torch.Tensor"]:
    states = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, state in states.items() for name, value in state.items()}


def load_optimizer(optimizer: "torch.optim.AdamW", path: Path) -> None:
    """Read what ``save_optimizer`` wrote; learning rate and decay stay as they are."""
    from safetensors.torch import load_file

    _put_moments(optimizer, load_file(path))


def _put_moments(optimizer: "torch.optim.AdamW", moments: "dict[str, torch.Tensor]") -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in moments.items():
        number, _, field = name.partition(".")
        # The number of steps, which has no dimension, is no part of anything.
        of_state = _part(value, parameters[int(number)]) if value.dim() else value
        states.setdefault(int(number), {})[field] = of_state
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
