"""What teachers cost and what they are worth: one of three at random, and the mean of three.

Time and memory: our training with one of three teachers drawn at each step, ours without, and a bare loop of
the same model, batches, teachers, loss and optimizer. Sides have processes of their own and take one step in
turn (see ``tests.benchmarks.train``).

Worth: on three domains of the demo's text, with its base model, partition models and the model of all three
domains together are trained without teachers, with one of the three partitions' models at random at each
step, and with the mean of all three; in ``TEACHER_STEPS`` (default "37,148") steps, with each of
``TEACHER_SEEDS`` (default "0,1,2"); ``TEACHER_SETTINGS`` gives further overrides. All of it is kept below
``MIXPOOL_BENCHMARKS`` (default ``~/.cache/mixpool-benchmarks``).
"""

import dataclasses
import math
import os
import statistics
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from flows.chain.ablation import BASE, Outcome, ablate, train
from flows.chain.recipe import Recipe
from flows.chain.recipe_file import override_recipe
from flows.chain.work import SweepWork, losses_of
from flows.command.demo import demo_recipe
from flows.runners.inline import InlineRunner
from storage.step import Handle, Runtime
from storage.store import Store
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.mixtures.mixture import Mixture
from tasks.models.folder import load_model
from tasks.tokens.tokenize import load_tokens
from tasks.training.blocks import Batches
from tasks.training.config import TeacherConfig, TrainConfig
from tasks.training.teacher import PREFIX, drawn
from tasks.training.train import build
from tests.benchmarks.measure import Ratio, ratio_of
from tests.benchmarks.race import HOME
from tests.benchmarks.tiny import NO_TOKENIZER, random_model, random_tokens, workspace
from tests.benchmarks.train import (
    CONTEXT,
    SIZES,
    WARM_UP,
    Phase,
    Size,
    Turn,
    Turns,
    started,
)
from tests.benchmarks.trust import prepare

STEPS = os.environ.get("TEACHER_STEPS", "37,148").split(",")
SEEDS = os.environ.get("TEACHER_SEEDS", "0,1,2").split(",")
SETTINGS = os.environ.get("TEACHER_SETTINGS", "").split()
DOMAINS = ("cpp", "javascript", "services")
VARIANTS = {
    "no teacher": "null",
    "one of three at random": "{from: pool}",
    "mean of three": "{from: pool, choice: mean}",
}
TEACHERS = 3
RULES = TeacherConfig()


def measure(repeats: int) -> list[Ratio | str]:
    """Four ratios for each size, and the table of what teachers are worth."""
    rows = [row for name in ("1M", "30M") for row in cost(name, repeats)]
    return [*rows, *worth(HOME / "teacher", prepare(HOME / "trust"))]


# What they cost ------------------------------------------------------------------------------------


def cost(name: str, repeats: int) -> list[Ratio | str]:
    """Time of the steps that have a teacher, of the whole training, and memory."""
    size = SIZES[name]
    taught = WARM_UP + repeats * size.steps
    steps = int(taught / Fraction(str(RULES.stop)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in range(TEACHERS):
            architecture = size.architecture.model_copy(update={"seed": number})
            random_model(folder / f"{PREFIX}{number}", architecture, size.vocabulary)
        count = steps * size.batch * CONTEXT + 1
        random_tokens(folder / "tokens", count, size.vocabulary, NO_TOKENIZER)
        rules = (folder, name, steps, "tests.benchmarks.teacher")
        with (
            started("taught", *rules) as ours,
            started("alone", *rules) as alone,
            started("bare", *rules) as bare,
        ):
            sides = (ours, alone, bare)
            phases = [[side.turn() for side in sides] for _ in range(steps + 2)]
            peaks = [side.peak() for side in sides]
    one, without, floor = ([row[side] for row in phases] for side in range(3))
    what = f"{size.batch} x {CONTEXT} tokens, {size.name}"
    counted = slice(1 + WARM_UP, 1 + taught)
    first, whole = f"step with one of {TEACHERS} teachers, {what}", f"training of {steps} steps"
    against = "the same without teachers"
    return [
        ratio_of(first, against, _walls(one[counted], without[counted])),
        ratio_of(first, "bare loop, same arithmetic", _walls(one[counted], floor[counted])),
        ratio_of(
            f"{whole}, {taught} with teachers, {size.name}",
            against,
            [_sums(one, without)],
            "<= 1.4",
        ),
        ratio_of(
            f"peak memory, {size.name} and {TEACHERS} teachers",
            against,
            [(peaks[0], peaks[1])],
            unit="bytes",
        ),
        ratio_of(
            f"peak memory, {size.name} and {TEACHERS} teachers",
            "bare loop",
            [(peaks[0], peaks[2])],
            unit="bytes",
        ),
        f"CPU seconds of a step with a teacher at {size.name}: "
        f"{_cpu(one[counted], without[counted]):.3f} of those without, "
        f"{_cpu(one[counted], floor[counted]):.3f} of the bare loop's.",
    ]


def _walls(ours: list[Phase], theirs: list[Phase]) -> list[tuple[float, float]]:
    return [(one.wall, other.wall) for one, other in zip(ours, theirs, strict=True)]


def _sums(ours: list[Phase], theirs: list[Phase]) -> tuple[float, float]:
    """Seconds of all steps but the first, with loading of teachers and without that of the model."""
    return sum(p.wall for p in ours[1:-1]), sum(p.wall for p in theirs[1:-1])


def _cpu(ours: list[Phase], theirs: list[Phase]) -> float:
    return statistics.median(p.cpu for p in ours) / statistics.median(p.cpu for p in theirs)


# What they are worth -------------------------------------------------------------------------------


class Worth(NamedTuple):
    """What one variant came to with one seed; losses are macro means in nats per token."""

    passes: float
    flops: float
    joules: float
    seconds: float
    alone: float
    merged: float
    together: float


def worth(home: Path, corpus: Path) -> list[Ratio | str]:
    """Loss against cost, means over seeds and the standard deviation of differences."""
    run = InlineRunner(Store(str(home / "store"), create=True), Runtime(threads=1))
    heads = ["steps", "teachers", "passes", "FLOPs", "joules", "seconds", "partition models"]
    heads += ["their average", "trained on all three"]
    lines = [heads, ["---"] * len(heads)]
    for steps in STEPS:
        found = {
            name: [_worth(run, corpus, steps, seed, name) for seed in SEEDS] for name in VARIANTS
        }
        lines += [[steps, name, *_cells(rows, found["no teacher"])] for name, rows in found.items()]
    told = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    words = (
        "Passes, FLOPs, joules and seconds are those of one partition's training, its teachers' own "
        "trainings left out; joules by the meter's estimator on this machine. Losses are macro means over "
        f"all evaluation sets in nats per token, means over {len(SEEDS)} seeds; in parentheses the mean "
        "difference from no teacher and the standard deviation of that difference over the seeds. Of the "
        f"base model: {_base(run, corpus):.4f}."
    )
    return [told, words]


def _cells(rows: list[Worth], others: list[Worth]) -> list[str]:
    costs = np.mean([row[:4] for row in rows], axis=0)
    cells = [f"{costs[0]:g}", f"{costs[1]:.3e}", f"{costs[2]:.0f}", f"{costs[3]:.1f}"]
    for field in ("alone", "merged", "together"):
        losses = np.array([getattr(row, field) for row in rows])
        gains = losses - [getattr(row, field) for row in others]
        spread = f" ± {gains.std(ddof=1):.4f}" if len(gains) > 1 else ""
        cells.append(f"{losses.mean():.4f} ({gains.mean():+.4f}{spread})")
    return cells


def _recipe(corpus: Path, steps: str, seed: str, variant: str) -> Recipe:
    changes = [f"corpus.source.include_domains=[{', '.join(DOMAINS)}]", *SETTINGS]
    changes += [f"train.steps={steps}", f"train.seed={seed}", f"train.teacher={VARIANTS[variant]}"]
    changes += ["train.batch_size=8", "train.replay=0"]
    changes.append("mixtures.spaces=[{kind: subsets, sizes: [1, 3]}]")
    return override_recipe(demo_recipe(str(corpus)), changes)


def _worth(run: InlineRunner, corpus: Path, steps: str, seed: str, variant: str) -> Worth:
    recipe = _recipe(corpus, steps, seed, variant)
    outcome = ablate(run, recipe)
    names = sorted(outcome.pool)
    inputs = {f"tokens.{number}": outcome.tokens[name] for number, name in enumerate(names)}
    (all_three,) = run.map(
        [train(recipe, outcome.base, inputs | outcome.further, "all three", len(names))]
    )
    *alone, merged = _losses(
        run, outcome, outcome.pool, [*map(_one, names), Mixture.uniform(names)]
    )
    (together,) = _losses(run, outcome, {"all three": all_three}, [_one("all three")])
    records = [model.record for model in outcome.pool.values() if model.record is not None]
    costs = [
        [
            record.details.get("teacher_passes", 0),
            record.cost["flops"],
            record.cost["joules"] or 0.0,
            record.cost["seconds"],
        ]
        for record in records
    ]
    losses = [statistics.mean(alone), merged, together]
    return Worth._make([*np.mean(costs, axis=0).tolist(), *losses])


def _one(name: str) -> Mixture:
    return Mixture.uniform([name])


def _base(run: InlineRunner, corpus: Path) -> float:
    outcome = ablate(run, _recipe(corpus, STEPS[0], SEEDS[0], "no teacher"))
    return _losses(run, outcome, {BASE: outcome.base}, [_one(BASE)])[0]


def _losses(
    run: InlineRunner, outcome: Outcome, models: dict[str, Handle], mixtures: list[Mixture]
) -> list[float]:
    """Macro mean of each mixture's loss, in nats per token."""
    work = SweepWork(mixtures, models, outcome.windows, EvaluateConfig())
    losses = losses_of(run.store, run.sweep(work), outcome.windows)
    tokens = [counts.num_tokens for counts in losses.counts]
    means = dict(zip(losses.mixtures, (losses.nll / tokens).mean(axis=1).tolist(), strict=True))
    return [means[mixture.label] for mixture in mixtures]


# In the process of a side --------------------------------------------------------------------------


def _ours(folder: Path, size: Size, steps: int, turn: Turn, rules: TeacherConfig | None) -> None:
    output = folder / f"output-{rules is None}"
    output.mkdir()
    quiet = workspace(output)
    job = dataclasses.replace(quiet, progress=lambda done, total, unit: turn())
    inputs = {"model": folder / f"{PREFIX}0", "tokens": folder / "tokens"}
    if rules is not None:
        inputs |= {f"{PREFIX}{number}": folder / f"{PREFIX}{number}" for number in range(TEACHERS)}
    with job.meter:
        build(_config(size, steps, rules), inputs, output, job)
    turn()


def _taught(folder: Path, size: Size, steps: int, turn: Turn) -> None:
    _ours(folder, size, steps, turn, RULES)


def _alone(folder: Path, size: Size, steps: int, turn: Turn) -> None:
    _ours(folder, size, steps, turn, None)


def _bare(folder: Path, size: Size, steps: int, turn: Turn) -> None:
    model = load_model(folder / f"{PREFIX}0").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    batches = Batches(_config(size, steps, RULES), [load_tokens(folder / "tokens")], [])
    turn()
    teachers = [load_model(folder / f"{PREFIX}{number}") for number in range(TEACHERS)]
    taught = math.ceil(Fraction(str(RULES.stop)) * steps)
    for step in range(steps):
        batch = torch.from_numpy(batches[step])
        read, targets = batch[:, :-1], batch[:, 1:].flatten()
        logits = model(input_ids=read, use_cache=False).logits.flatten(0, 1)
        loss = F.cross_entropy(logits, targets)
        if step < taught:
            with torch.no_grad():
                teacher = teachers[drawn(0, step, TEACHERS)]
                target = teacher(input_ids=read, use_cache=False).logits.flatten(0, 1).softmax(-1)
            divergence = F.kl_div(F.log_softmax(logits, -1), target, reduction="batchmean")
            loss = (1 - RULES.share) * loss + RULES.share * divergence
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turn()
    turn()


def _config(size: Size, steps: int, rules: TeacherConfig | None) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=size.batch,
        context_length=CONTEXT,
        learning_rate=1e-3,
        teacher=rules,
    )


SIDES = {"taught": _taught, "alone": _alone, "bare": _bare}


if __name__ == "__main__":
    SIDES[sys.argv[1]](Path(sys.argv[2]), SIZES[sys.argv[3]], int(sys.argv[4]), Turns())
