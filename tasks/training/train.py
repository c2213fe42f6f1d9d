"""Step: train a model for a fixed number of steps on the blocks of one or several token files.

One loop, top to bottom. The batch at step i is a pure function of (seed, i). So a training that was
killed goes on from its resume point (weights, optimizer, random state, position) and ends, on a
CPU, bit by bit where it would have ended. Base model, partition models and references are all
trained here; they differ in config and inputs only. Several token files are shuffled together (the
paper's SEQ).

Nothing in the loop waits for a GPU or for a store: a loss is read when the next step is under way,
and a thread uploads resume points.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from storage.artifact import describe
from storage.checkpoint import BackgroundSaves
from storage.step import Step, Workspace
from tasks.machine.device import choose_device
from tasks.machine.flops import Attention, training_flops
from tasks.machine.memory import kept_heap
from tasks.models.facts import Facts, facts_of
from tasks.models.folder import check_context, load_model, save_model
from tasks.tokens.tokenize import load_tokens
from tasks.training import resume
from tasks.training.blocks import Blocks
from tasks.training.config import TrainConfig, training_tokens
from tasks.training.divergence import REMEDY, LossHistory, TrainingError
from tasks.training.gradients import clip, loss_function, moved

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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
        ValueError: the model has pickled weights only, or a shorter context, or the tokens were made
            by another tokenizer.
    """
    import torch

    device = choose_device(workspace.runtime)
    base = inputs["model"]
    model = load_model(base, device).train()
    check_context(model, config.context_length, "train.context_length")
    folders = {name: path for name, path in sorted(inputs.items()) if name.startswith("tokens")}
    _check_tokenizer(facts_of(base), folders)
    files = [load_tokens(folder) for folder in folders.values()]
    blocks = Blocks(files, config.context_length, config.batch_size, config.seed)
    optimizer = _optimizer(model, config, base)
    torch.manual_seed(config.seed)
    losses = _train(model, optimizer, blocks, config, workspace)
    return _save(model, optimizer, config, base, output, losses, len(blocks))


def _check_tokenizer(facts: Facts, folders: Mapping[str, Path]) -> None:
    for name, folder in folders.items():
        tokenizer = json.loads((folder / "tokens.json").read_text())["tokenizer"]
        if tokenizer != facts.tokenizer:
            raise ValueError(
                f"{name} was made by the tokenizer {tokenizer[:10]}, and the model knows the ids of "
                f"{facts.tokenizer[:10]}: tokenize the documents with the model's tokenizer"
            )


def _optimizer(model: "PreTrainedModel", config: TrainConfig, base: Path) -> "torch.optim.AdamW":
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
        resume.load_optimizer(optimizer, path, model.device)
    return optimizer


def _train(
    model: "PreTrainedModel",
    optimizer: "torch.optim.AdamW",
    blocks: Blocks,
    config: TrainConfig,
    workspace: Workspace,
) -> list[float]:
    runtime, device = workspace.runtime, model.device
    earlier = resume.load_state(model, optimizer, workspace)
    losses = LossHistory(earlier, math.log(model.config.vocab_size))
    start = len(losses.read())
    flops = training_flops(model.num_parameters(), 1, Attention.of(model, config.context_length))
    per_step = config.batch_size * config.context_length
    loss_of = loss_function(model, config.precision, compiled=runtime.compile)
    parameters = list(model.parameters())
    saves = BackgroundSaves(workspace.checkpoints, runtime.scratch, resume.PATIENT_SECONDS)
    saved = time.monotonic()
    workspace.progress(start * per_step, training_tokens(config), "tokens")
    with saves, kept_heap(device.type):
        for step in range(start, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            loss = loss_of(moved(blocks.batch(step), device))
            loss.backward()  # type: ignore[no-untyped-call]
            clip(parameters, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.add(loss)
            workspace.meter.add(tokens=per_step, flops=flops * per_step)
            try:
                workspace.progress((step + 1) * per_step, training_tokens(config), "tokens")
            except BaseException:  # a stopped training, or an interrupt, ends here
                if saves.longest <= resume.PATIENT_SECONDS:
                    resume.save_last(model, optimizer, losses.read(), saves)
                raise
            # The next step does not wait for an upload, unless each step is to be kept.
            is_free = not saves.is_saving or runtime.checkpoint_seconds == 0
            is_due = time.monotonic() - saved >= runtime.checkpoint_seconds
            if is_free and is_due and step + 1 < config.steps:
                resume.save_state(model, optimizer, losses.read(), saves)
                saved = time.monotonic()
        values = losses.read()
    if not all(bool(p.isfinite().all()) for p in parameters):
        raise TrainingError(f"weights are not finite after the last step: {REMEDY}")
    return values


def _save(
    model: "PreTrainedModel",
    optimizer: "torch.optim.AdamW",
    config: TrainConfig,
    base: Path,
    output: Path,
    losses: list[float],
    num_blocks: int,
) -> Mapping[str, object]:
    # A base model's own training starts at random weights: it is nobody's partition model.
    of_training = {"base": describe("model", base).digest, "steps": config.steps}
    facts = facts_of(base).model_copy(update=of_training)
    save_model(model.to("cpu"), output, facts)
    if config.keep_optimizer:
        resume.save_optimizer(optimizer, output / "optimizer.safetensors")
    details = {
        "num_parameters": model.num_parameters(),
        "num_blocks": num_blocks,
        "num_tokens": training_tokens(config),
        "repeats": config.steps * config.batch_size / num_blocks,
        "final_loss": sum(losses[-10:]) / len(losses[-10:]),
    }
    (output / "training.json").write_text(json.dumps({**details, "losses": losses}))
    return details


TRAIN = Step("train", 1, "model", TrainConfig, build, on_device=True)
