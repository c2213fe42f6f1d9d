"""Step: train a model for a fixed number of steps on the blocks of one or several token files.

One loop, top to bottom. The batch at step i is a pure function of (seed, i), so a training that was
killed goes on from its checkpoint (weights, optimizer, random state, position) and ends, on a CPU,
bit by bit where it would have ended. Base model, partition models and references are all made here;
they differ in config and inputs only. Several token files are shuffled together (the paper's SEQ).
"""

import json
import logging
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from storage.cache import Step, Workspace
from storage.fingerprint import Config
from tasks.device import choose_device
from tasks.energy import Attention, training_flops
from tasks.model import Facts, check_safetensors, digest_of, facts_of, load_model, save_model
from tasks.tokenize import load_tokens

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

LOG = logging.getLogger("mixpool.train")

DIVERGED = 2.0
"""A mean loss so many times that of the first steps ends a training."""


class TrainConfig(Config):
    """How a model is trained."""

    steps: int = Field(ge=1)
    """Number of optimizer steps; the same for every partition, so that they can be averaged."""
    batch_size: int = Field(default=32, ge=1)
    """Blocks in one step."""
    context_length: int = Field(default=2048, ge=2)
    """Tokens predicted in each block."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Learning rate at its highest."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate moves after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero."""
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """Where cosine and linear schedules end, as a share of the learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean gradient."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the mean squared gradient."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's weight decay, on matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    optimizer_state: Literal["fresh", "carried"] = "fresh"
    """``carried`` starts from the base model's optimizer state."""
    keep_optimizer: bool = False
    """Whether the optimizer's state is stored with the model."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16`` computes matrix products in it (autocast); weights stay in float32."""
    seed: int = 0
    """Seed of the order of blocks and of dropout."""


class TrainingError(ValueError):
    """A training that cannot go on: non-finite or diverging loss, or too few tokens."""


class Blocks:
    """Blocks of context + 1 tokens from one or several token files, in a seeded order.

    Every epoch is one permutation of all blocks; ``batch(i)`` depends on (seed, i) only.
    """

    def __init__(self, files: list["np.ndarray"], context: int, batch: int, seed: int) -> None:
        counts = [max(0, (len(tokens) - 1) // context) for tokens in files]
        if not sum(counts):
            raise TrainingError(
                f"{sum(map(len, files)):,} tokens do not fill one block of {context + 1}: "
                "lower train.context_length or give more text"
            )
        self._files, self._context, self._batch, self._seed = files, context, batch, seed
        self._places = [(f, b) for f, count in enumerate(counts) for b in range(count)]
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, step: int) -> "np.ndarray":
        """Token ids of step ``step``, int64, shape (batch, context + 1)."""
        import numpy as np

        numbers = range(step * self._batch, (step + 1) * self._batch)
        return np.stack([self._block(self._place(number)) for number in numbers]).astype(np.int64)

    def _place(self, number: int) -> tuple[int, int]:
        import numpy as np

        epoch, position = divmod(number, len(self))
        if epoch != self._epoch:
            self._epoch = epoch
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._order = generator.permutation(len(self)).tolist()
        return self._places[self._order[position]]

    def _block(self, place: tuple[int, int]) -> "np.ndarray":
        file, block = place
        start = block * self._context
        return self._files[file][start : start + self._context + 1]


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of step ``step`` (from 0)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    falling = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * falling)


def build(
    config: TrainConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Train ``inputs["model"]`` on every input whose name begins with ``tokens``.

    Raises:
        TrainingError: too few tokens for one block, or a loss that is not finite or diverges.
        ValueError: the model has pickled weights only, or a shorter context.
    """
    import torch

    device = choose_device(workspace.runtime)
    check_safetensors(inputs["model"])
    torch.manual_seed(config.seed)
    model = load_model(inputs["model"], device).train()
    _check_context(model, config)
    files = [
        load_tokens(path) for name, path in sorted(inputs.items()) if name.startswith("tokens")
    ]
    blocks = Blocks(files, config.context_length, config.batch_size, config.seed)
    optimizer = _optimizer(model, config, inputs["model"], device)
    losses = _train(model, optimizer, blocks, config, workspace, device)
    return _save(model, optimizer, config, inputs["model"], output, losses, len(blocks))


def _check_context(model: "PreTrainedModel", config: TrainConfig) -> None:
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and config.context_length > longest:
        raise ValueError(
            f"train.context_length {config.context_length} is more than the model's {longest}"
        )


def _optimizer(
    model: "PreTrainedModel", config: TrainConfig, base: Path, device: str
) -> "torch.optim.AdamW":
    import torch

    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    if config.optimizer_state == "carried":
        path = base / "optimizer.safetensors"
        if not path.exists():
            raise ValueError(
                "train.optimizer_state is 'carried', but the base model has no optimizer state: set "
                "base.train.keep_optimizer, or train.optimizer_state to 'fresh'"
            )
        _load_optimizer(optimizer, path, device)
    return optimizer


def _train(
    model: "PreTrainedModel",
    optimizer: "torch.optim.AdamW",
    blocks: Blocks,
    config: TrainConfig,
    workspace: Workspace,
    device: str,
) -> list[float]:
    import torch
    import torch.nn.functional as F

    losses = _resume(model, optimizer, workspace, device)
    flops = training_flops(model.num_parameters(), 1, _attention(model, config))
    per_step = config.batch_size * config.context_length
    autocast = torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=config.precision == "bfloat16"
    )
    # The compiled function shares the model's parameters, which stay what is saved.
    forward: Any = torch.compile(model) if workspace.runtime.compile else model
    saved = time.monotonic()
    workspace.progress(len(losses) * per_step, config.steps * per_step, "tokens")
    for step in range(len(losses), config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        tokens = torch.from_numpy(blocks.batch(step)).to(device, non_blocking=True)
        with autocast:
            logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        losses.append(_checked(loss.item(), losses, step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        workspace.meter.add(tokens=per_step, flops=flops * per_step)
        workspace.progress((step + 1) * per_step, config.steps * per_step, "tokens")
        due = time.monotonic() - saved >= workspace.runtime.checkpoint_seconds
        if due and step + 1 < config.steps:
            _checkpoint(model, optimizer, losses, workspace)
            saved = time.monotonic()
    return losses


def _attention(model: "PreTrainedModel", config: TrainConfig) -> Attention:
    settings = model.config
    return Attention(settings.num_hidden_layers, settings.hidden_size, config.context_length)


def _checked(loss: float, earlier: list[float], step: int) -> float:
    recent = [*earlier[-9:], loss]
    first = earlier[:10]
    if not math.isfinite(loss):
        why = f"the loss is {loss} at step {step} (before it {earlier[-1:] or 'none'})"
    elif len(first) == 10 and sum(recent) / len(recent) > DIVERGED * sum(first) / len(first):
        why = f"the loss diverged: {sum(recent) / len(recent):.2f} nats at step {step}"
    else:
        return loss
    raise TrainingError(f"{why}: lower train.learning_rate, or add train.warmup_steps")


def _checkpoint(
    model: "PreTrainedModel",
    optimizer: "torch.optim.AdamW",
    losses: list[float],
    workspace: Workspace,
) -> None:
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=workspace.runtime.scratch) as name:
        folder = Path(name)
        save_file(dict(_weights(model)), folder / "weights.safetensors")
        _save_optimizer(optimizer, folder / "optimizer.safetensors")
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        save_file(random, folder / "random.safetensors")
        (folder / "losses.json").write_text(json.dumps(losses))
        workspace.checkpoints.save(folder, len(losses))


def _resume(
    model: "PreTrainedModel",
    optimizer: "torch.optim.AdamW",
    workspace: Workspace,
    device: str,
) -> list[float]:
    import torch
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(dir=workspace.runtime.scratch) as name:
        folder = Path(name)
        step = workspace.checkpoints.load(folder)
        if step is None:
            return []
        weights = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            for key, tensor in _weights(model):
                tensor.copy_(weights[key])
        _load_optimizer(optimizer, folder / "optimizer.safetensors", device)
        random = load_file(folder / "random.safetensors")
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])
        losses: list[float] = json.loads((folder / "losses.json").read_text())
    LOG.info("resuming at step %d", step)
    return losses


def _weights(model: "PreTrainedModel") -> list[tuple[str, "torch.Tensor"]]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor.detach()) for name, tensor in named]


def _save_optimizer(optimizer: "torch.optim.AdamW", path: Path) -> None:
    from safetensors.torch import save_file

    states = optimizer.state_dict()["state"]
    flat = {f"{i}.{name}": value for i, state in states.items() for name, value in state.items()}
    save_file({name: value.cpu().contiguous() for name, value in flat.items()}, path)


def _load_optimizer(optimizer: "torch.optim.AdamW", path: Path, device: str) -> None:
    from safetensors.torch import load_file

    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(path, device=device).items():
        number, _, field = name.partition(".")
        states.setdefault(int(number), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _save(
    model: "PreTrainedModel",
    optimizer: "torch.optim.AdamW",
    config: TrainConfig,
    base: Path,
    output: Path,
    losses: list[float],
    num_blocks: int,
) -> Mapping[str, object]:
    before = facts_of(base)
    # A base model's own training starts at random weights: it is nobody's partition model.
    facts = Facts(
        architecture=before.architecture,
        tokenizer=before.tokenizer,
        base=digest_of(base),
        steps=config.steps,
    )
    save_model(model.to("cpu"), output, facts)
    if config.keep_optimizer:
        _save_optimizer(optimizer, output / "optimizer.safetensors")
    details = {
        "num_parameters": model.num_parameters(),
        "num_blocks": num_blocks,
        "num_tokens": config.steps * config.batch_size * config.context_length,
        "repeats": config.steps * config.batch_size / num_blocks,
        "final_loss": sum(losses[-10:]) / len(losses[-10:]),
    }
    (output / "training.json").write_text(json.dumps({**details, "losses": losses}))
    return details


def training_tokens(config: TrainConfig) -> int:
    """Tokens that a training of this config predicts."""
    return config.steps * config.batch_size * config.context_length


TRAIN = Step("train", 1, "model", TrainConfig, build)
