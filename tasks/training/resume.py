"""Resume points: the state from which a training goes on, bit by bit, as if never stopped.

A state is the weights, the optimizer, the random state and the losses so far (their number is the
position), all of it safetensors and JSON. The training waits only for the copy to host memory;
writing and uploading go on beside it. The optimizer's state is also stored alone with a model, for
a later training that carries it on.
"""

import json
import logging
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from storage.checkpoint import BackgroundSaves
from storage.step import Workspace

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LOG = logging.getLogger("mixpool.train")

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
    saves.wait()  # before the copy: host memory need not hold two
    saves.save(partial(_write, _snapshot(model, optimizer), [*losses]), len(losses))


def _write(
    tensors: "dict[str, dict[str, torch.Tensor]]", losses: list[float], folder: Path
) -> None:
    """Write what ``load_state`` reads."""
    from safetensors.torch import save_file

    for name, of_file in tensors.items():
        save_file(of_file, folder / f"{name}.safetensors")
    (folder / "losses.json").write_text(json.dumps(losses))


def _snapshot(
    model: "PreTrainedModel", optimizer: "torch.optim.AdamW"
) -> "dict[str, dict[str, torch.Tensor]]":
    """The state at one moment, in host memory and no longer the model's own, by file."""
    import torch

    random = {"cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(model.device)
    return {
        "weights": _copied(_weights(model)),
        "optimizer": _copied(_moments(optimizer)),
        "random": random,
    }


def _copied(tensors: dict[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


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
    model: "PreTrainedModel", optimizer: "torch.optim.AdamW", workspace: Workspace
) -> list[float]:
    """Put the latest resume point in force; the losses so far, none where there is no such point."""
    import torch
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(dir=workspace.runtime.scratch) as name:
        folder = Path(name)
        step = workspace.checkpoints.load(folder)
        if step is None:
            return []
        weights = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            for key, tensor in _weights(model).items():
                tensor.copy_(weights[key])
        load_optimizer(optimizer, folder / "optimizer.safetensors", model.device)
        random = load_file(folder / "random.safetensors")
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and model.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], model.device)
        losses: list[float] = json.loads((folder / "losses.json").read_text())
    LOG.info("resuming at step %d", step)
    return losses


def _weights(model: "PreTrainedModel") -> dict[str, "torch.Tensor"]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def save_optimizer(optimizer: "torch.optim.AdamW", path: Path) -> None:
    """Write the optimizer's tensors, named by number of parameter and field."""
    from safetensors.torch import save_file

    tensors = {name: value.cpu().contiguous() for name, value in _moments(optimizer).items()}
    save_file(tensors, path)


def _moments(optimizer: "torch.optim.AdamW") -> dict[str, "torch.Tensor"]:
    states = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, state in states.items() for name, value in state.items()}


def load_optimizer(optimizer: "torch.optim.AdamW", path: Path, device: "torch.device") -> None:
    """Read what ``save_optimizer`` wrote; learning rate and decay stay as they are."""
    from safetensors.torch import load_file

    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(path, device=str(device)).items():
        number, _, field = name.partition(".")
        states.setdefault(int(number), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
