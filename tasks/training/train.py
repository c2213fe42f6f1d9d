"""Step: train a model for a fixed number of steps on the blocks of one or several token files.

One loop, top to bottom: a batch, its gradients, an update of what is trained. The batch at step i is a
pure function of (seed, i). So a training that was killed goes on from its resume point (weights,
optimizer, random state, position) and ends, on a CPU, bit by bit where it would have ended. Base model,
partition models and references are all trained here; they differ in config and inputs only. Several
token files are shuffled together (the paper's SEQ).

Nothing in the loop waits for a GPU or for a store: a loss is read when the next step is under way,
and a thread uploads resume points.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from storage.artifact import describe
from storage.checkpoint import BackgroundSaves
from storage.step import Meter, Runtime, Step, Workspace
from tasks.machine.device import choose_device
from tasks.machine.flops import Attention, training_flops
from tasks.machine.memory import kept_heap
from tasks.models.facts import Facts, facts_of
from tasks.models.folder import check_context, load_model, save_model
from tasks.tokens.tokenize import load_tokens
from tasks.training import resume
from tasks.training.accumulate import Accumulation
from tasks.training.adapter import Adapter
from tasks.training.blocks import Batches, Drawn
from tasks.training.config import OPTIONS, TrainConfig, training_tokens
from tasks.training.divergence import REMEDY, LossHistory, TrainingError
from tasks.training.gradients import GradientsOf, clip, loss_function, moved
from tasks.training.layers import choose
from tasks.training.lead import STATE, STEP, Lead, Orders
from tasks.training.shards import PartGradients, Place, shard, shard_devices
from tasks.training.sharpness import flat, passes
from tasks.training.teacher import Distillation, split_off

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of step ``step`` (from 0) of this phase."""
    step, steps = config.begins_at + step, config.of or config.steps
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    falling = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * falling)


def build(
    config: TrainConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Train ``inputs["model"]`` on every input whose name begins with ``tokens``, and on ``replay``.

    ``inputs["norms"]`` says which layers stand out, where some are chosen. Inputs whose names begin with
    ``teacher-`` are its teachers (``tasks.training.teacher``).

    Raises:
        TrainingError: too few tokens for one block, or a loss that is not finite or diverges.
        ValueError: the model has pickled weights only, or a shorter context, or the tokens were made
            by another tokenizer, or no layer stands out, or a teacher does not fit, or the runtime.
    """
    check_runtime(config, workspace.runtime)
    devices = shard_devices(workspace.runtime, config.batch_size)
    job = Job(config, inputs, workspace.runtime)
    with Lead(_follow, job, devices, workspace.runtime.scratch) as lead:
        training = _prepared(job, lead.place, lead.meet)
        gradients_of, details = _wrapped(training, job, workspace.meter)
        training = training._replace(gradients_of=gradients_of)
        losses = _train(training, lead, config, workspace)
        training = _in_one_process(training, lead, job)
    details |= _parts(training, lead.place.size, config)
    return _save(training, config, inputs["model"], output, losses, details)


UNTRIED = {"adapter": ("compile",), "teacher": ("compile", "micro_batch"), "layers": ("compile",)}
"""Fields of the runtime that nobody has tried with an option; ``shards`` with none."""


def check_runtime(config: TrainConfig, runtime: Runtime, field: str = "train") -> None:
    """Raise ValueError where a training cannot be spread as the runtime asks, or nobody has tried it."""
    for option in OPTIONS:
        for name in (*UNTRIED.get(option, ()), "shards"):
            value = getattr(runtime, name)
            is_given = value != Runtime.model_fields[name].default
            if getattr(config, option) is not None and is_given:
                raise ValueError(
                    f"runtime.{name} is {str(value).lower()} and {field}.{option} is given, which nobody has "
                    "tried together: leave one of them out"
                )
    if runtime.shards > 1:
        shard_devices(runtime, config.batch_size)


class Job(NamedTuple):
    """What a training's processes are given."""

    config: TrainConfig
    inputs: Mapping[str, Path]
    runtime: Runtime


class Training(NamedTuple):
    """What each process of a training has."""

    model: "PreTrainedModel"
    parameters: "list[torch.nn.Parameter]"
    """Those that are trained, in the model's order."""
    optimizer: "torch.optim.AdamW"
    batches: Batches
    gradients_of: GradientsOf
    accumulation: Accumulation
    adapter: Adapter | None = None
    rate_shares: Mapping[str, float] = {}
    """The share of the learning rate of each layer, where some are chosen."""


def _prepared(job: Job, place: Place, meet: Callable[[], None]) -> Training:
    """What a process needs; ``meet`` is called when only what all do together is left."""
    import torch

    config, inputs, runtime = job
    is_alone = place.size == 1
    device = choose_device(runtime.model_copy(update={"device": place.device}))
    base = inputs["model"]
    model = load_model(base, device if is_alone else "cpu").train()
    check_context(model, config.context_length, "train.context_length")
    others = ("model", "norms")
    folders = {name: path for name, path in sorted(inputs.items()) if name not in others}
    split_off(folders)
    check_tokenizer(facts_of(base), folders)
    replay = [load_tokens(folders.pop("replay"))] if config.replay else []
    batches = Batches(config, [load_tokens(folder) for folder in folders.values()], replay)
    meet()
    if not is_alone:
        shard(model, place.device)
    adapter = None if config.adapter is None else Adapter(model, config.adapter, config.seed)
    rates = choose(model, config.layers.mode, inputs["norms"]) if config.layers else ({}, {})
    optimizer = _optimizer(model, config, base, rates[0])
    torch.manual_seed(config.seed)
    loss_of = loss_function(model, config.precision, compiled=runtime.compile)
    accumulation = Accumulation(loss_of, model, runtime.micro_batch, may_halve=is_alone)
    gradients_of = accumulation if is_alone else PartGradients(accumulation, place, config.seed)
    rest = (batches, gradients_of, accumulation, adapter, rates[1])
    return Training(model, _trained(model), optimizer, *rest)


def _wrapped(training: Training, job: Job, meter: Meter) -> tuple[GradientsOf, dict[str, object]]:
    """What makes a batch's gradients with the options of the config, and what these have to tell."""
    config, inputs, _ = job
    gradients_of, told = training.gradients_of, dict[str, object]()
    if training.rate_shares:
        told["layers"] = training.rate_shares
    if config.teacher is not None:
        teachers, base = split_off({**inputs}), inputs["model"]
        taught = Distillation(config, training.model, base, teachers, gradients_of, meter)
        gradients_of, told["teacher_passes"] = taught, taught.passes
    if config.sharpness is not None:
        gradients_of = flat(gradients_of, training.parameters, config.sharpness)
    return gradients_of, told


def _follow(job: Job, place: Place, orders: Orders) -> None:
    """Do in another process what its leader does; it ends when the leader closes the line."""
    training = _prepared(job, place, orders.meet)
    with kept_heap(training.model.device.type):
        for what, *given in orders:
            if what == STEP:
                _take_step(training, job.config, *given)
            elif what == STATE:
                resume.take_part(training.model, training.optimizer)
            else:
                resume.put(training.model, training.optimizer, resume.read(*given))
                orders.ready()


def _in_one_process(training: Training, lead: Lead, job: Job) -> Training:
    """The training with its whole model and optimizer in this process."""
    if lead.place.size == 1:
        return training
    lead.tell(STATE)
    state = resume.snapshot(training.model, training.optimizer)
    model = load_model(job.inputs["model"])
    optimizer = _optimizer(model, job.config, job.inputs["model"], {})
    resume.put(model, optimizer, state)
    return training._replace(model=model, optimizer=optimizer)


def _parts(training: Training, size: int, config: TrainConfig) -> Mapping[str, object]:
    """How a batch was cut, for the record; a training of whole batches has nothing to tell."""
    blocks = training.accumulation.micro_batch
    is_cut = blocks is not None and blocks < config.batch_size // size
    told = {"micro_batch": blocks if is_cut else None, "shards": size if size > 1 else None}
    return {name: value for name, value in told.items() if value is not None}


def check_tokenizer(facts: Facts, folders: Mapping[str, Path]) -> None:
    """Raise ValueError where a folder of tokens was not made by the model's tokenizer."""
    for name, folder in folders.items():
        tokenizer = json.loads((folder / "tokens.json").read_text())["tokenizer"]
        if tokenizer != facts.tokenizer:
            raise ValueError(
                f"{name} was made by the tokenizer {tokenizer[:10]}, and the model knows the ids of "
                f"{facts.tokenizer[:10]}: tokenize the documents with the model's tokenizer"
            )


def _trained(model: "PreTrainedModel") -> list["torch.nn.Parameter"]:
    return [p for p in model.parameters() if p.requires_grad]


def _optimizer(
    model: "PreTrainedModel",
    config: TrainConfig,
    base: Path,
    shares: Mapping["torch.nn.Parameter", float],
) -> "torch.optim.AdamW":
    """AdamW over what is trained; ``shares`` of the learning rate are 1 where none is given."""
    import torch

    share_of = {p: shares.get(p, 1.0) for p in _trained(model)}
    groups: list[dict[str, object]] = []
    for share in sorted({*share_of.values()}):
        matrices = [p for p in share_of if share_of[p] == share and p.dim() >= 2]
        others = [p for p in share_of if share_of[p] == share and p.dim() < 2]
        groups += [
            {"params": matrices, "weight_decay": config.weight_decay, "share": share},
            {"params": others, "weight_decay": 0.0, "share": share},
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
        resume.load_optimizer(optimizer, path)
    return optimizer


def _take_step(training: Training, config: TrainConfig, step: int) -> "torch.Tensor":
    """Update what is trained by one batch; its loss."""
    model, optimizer = training.model, training.optimizer
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step) * group["share"]
    loss = training.gradients_of(moved(training.batches[step], model.device), step)
    clip(training.parameters, config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def _train(
    training: Training, lead: Lead, config: TrainConfig, workspace: Workspace
) -> list[float]:
    runtime, model, optimizer = workspace.runtime, training.model, training.optimizer
    earlier = resume.load_state(model, optimizer, workspace, lead.put)
    losses = LossHistory(earlier, math.log(model.config.get_text_config().vocab_size))
    start = len(losses.read())
    attention = Attention.of(model, config.context_length)
    frozen = model.num_parameters() - model.num_parameters(only_trainable=True)
    flops = training_flops(model.num_parameters(), 1, attention, frozen) * passes(config)
    per_step = config.batch_size * config.context_length
    saves = BackgroundSaves(workspace.checkpoints, runtime.scratch, resume.PATIENT_SECONDS)
    saved = time.monotonic()
    workspace.progress(start * per_step, training_tokens(config), "tokens")
    with saves, kept_heap(model.device.type):
        for step in range(start, config.steps):
            lead.tell(STEP, step)
            losses.add(_take_step(training, config, step))
            workspace.meter.add(tokens=per_step, flops=flops * per_step)
            try:
                workspace.progress((step + 1) * per_step, training_tokens(config), "tokens")
            except BaseException:  # a stopped training, or an interrupt, ends here
                if saves.longest <= resume.PATIENT_SECONDS:
                    lead.tell(STATE)
                    resume.save_last(model, optimizer, losses.read(), saves)
                raise
            # The next step does not wait for an upload, unless each step is to be kept.
            is_free = not saves.is_saving or runtime.checkpoint_seconds == 0
            is_due = time.monotonic() - saved >= runtime.checkpoint_seconds
            if is_free and is_due and step + 1 < config.steps:
                saves.wait()  # before the copy: host memory need not hold two
                lead.tell(STATE)
                resume.save_state(model, optimizer, losses.read(), saves)
                saved = time.monotonic()
        return losses.read()


def _save(
    training: Training,
    config: TrainConfig,
    base: Path,
    output: Path,
    losses: list[float],
    told: Mapping[str, object],
) -> Mapping[str, object]:
    model, batches = training.model, training.batches
    if not all(bool(p.isfinite().all()) for p in _trained(model)):
        raise TrainingError(f"weights are not finite after the last step: {REMEDY}")
    # A base model's own training starts at random weights: it is nobody's partition model.
    of_training = {"base": describe("model", base).digest, "steps": config.steps}
    facts = facts_of(base).model_copy(update=of_training)
    model.to("cpu")
    if training.adapter is not None:
        training.adapter.save(output)
    save_model(model, output, facts)
    if config.keep_optimizer:
        resume.save_optimizer(training.optimizer, output / "optimizer.safetensors")
    replayed = batches.replayed(config.steps) if config.replay < 1 else 0
    details = {
        "num_parameters": model.num_parameters(),
        "num_blocks": len(batches.own),
        "num_tokens": training_tokens(config),
        "repeats": (config.steps * config.batch_size - replayed) / len(batches.own),
        "final_loss": sum(losses[-10:]) / len(losses[-10:]),
        **({"sources": batches.own.sources} if isinstance(batches.own, Drawn) else {}),
        **told,
    }
    (output / "training.json").write_text(json.dumps({**details, "losses": losses}))
    return details


TRAIN = Step("train", 1, "model", TrainConfig, build, on_device=True)
