"""The state of a training: what must be kept so that it goes on, bit by bit, as if never stopped.

Weights, optimizer, random state and the losses so far (their number is the position). All of it is
safetensors and JSON. The optimizer's state alone is also stored with a model, where a later training
carries it on.
"""

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from storage.cache import Workspace

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
    workspace: Workspace,
) -> None:
    """Make the present state the training's resume point."""
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=workspace.runtime.scratch) as name:
        folder = Path(name)
        weights = {key: tensor.contiguous() for key, tensor in _weights(model).items()}
        save_file(weights, folder / "weights.safetensors")
        save_optimizer(optimizer, folder / "optimizer.safetensors")
        random = {"cpu": torch.get_rng_state()}
        if model.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(model.device)
        save_file(random, folder / "random.safetensors")
        (folder / "losses.json").write_text(json.dumps(losses))
        workspace.checkpoints.save(folder, len(losses))


def save_last(
    model: "PreTrainedModel",
    optimizer: "torch.optim.AdamW",
    losses: list[float],
    workspace: Workspace,
) -> None:
    """Save the state of a training that was stopped; where that fails, the earlier one stands."""
    try:
        save_state(model, optimizer, losses, workspace)
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

    states = optimizer.state_dict()["state"]
    flat = {f"{i}.{name}": value for i, state in states.items() for name, value in state.items()}
    save_file({name: value.cpu().contiguous() for name, value in flat.items()}, path)


def load_optimizer(optimizer: "torch.optim.AdamW", path: Path, device: "torch.device") -> None:
    """Read what ``save_optimizer`` wrote; learning rate and decay stay as they are."""
    from safetensors.torch import load_file

    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(path, device=str(device)).items():
        number, _, field = name.partition(".")
        states.setdefault(int(number), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
