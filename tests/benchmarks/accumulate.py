"""What replay and batches in parts cost a training step, and what the loop of another commit takes.

Sides take one step in turn, each in a process of its own, as in ``tests.benchmarks.train``. TRAIN_BEFORE
names the folder of another checkout; without it that row is left out.
"""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from storage.step import Runtime
from tasks.training.train import build
from tests.benchmarks.measure import Ratio, ratio_of
from tests.benchmarks.tiny import NO_TOKENIZER, random_model, random_tokens, workspace
from tests.benchmarks.train import (
    CONTEXT,
    SIZES,
    WARM_UP,
    Turn,
    Turns,
    config_of,
    cpu_ratio,
    pairs_of,
    started,
)

SIDES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "replay": ({"replay": 0.5}, {}),
    "parts": ({}, {"micro_batch": 4}),
}
"""Fields of each side's config and runtime."""

JOBS = [("8M", "replay"), ("tiny", "replay"), ("1M", "parts"), ("1M", "before"), ("tiny", "before")]
"""Sizes, and what is measured there against the plain training."""

WORDS = {
    "replay": ("with train.replay=0.5", "without", "<= 1.02"),
    "parts": ("in two parts", "whole", ""),
    "before": ("in this checkout", "in the one before", "<= 1.00"),
}


def measure(repeats: int, jobs: Sequence[tuple[str, str]] = JOBS) -> list[Ratio | str]:
    """A ratio for each job, and a line on CPU seconds."""
    before = os.environ.get("TRAIN_BEFORE")
    wanted = [job for job in jobs if job[1] != "before" or before]
    return [row for job in wanted for row in _measured(*job, repeats, before)]


def _measured(name: str, what: str, repeats: int, before: str | None) -> list[Ratio | str]:
    size = SIZES[name]
    steps = WARM_UP + repeats * size.steps
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as sides:
        folder = Path(scratch)
        random_model(folder / "model", size.architecture, size.vocabulary)
        count = steps * size.batch * CONTEXT + 1
        for tokens in ("tokens", "replay"):
            random_tokens(folder / tokens, count, size.vocabulary, NO_TOKENIZER)
        if what == "before":
            assert before is not None
            # Each writes its output into the folder.
            for own in ("now", "then"):
                (folder / own).mkdir()
                for given in ("model", "tokens"):
                    (folder / own / given).symlink_to(folder / given)
            made = [
                started("ours", folder / "now", name, steps),
                started("ours", folder / "then", name, steps, root=Path(before)),
            ]
        else:
            made = [started(side, folder, name, steps, __name__) for side in (what, "plain")]
        one, other = (sides.enter_context(side) for side in made)
        phases = [(one.turn(), other.turn()) for _ in range(steps + 2)]
    ours, against, goal = WORDS[what]
    title = f"training step, {size.batch} x {CONTEXT} tokens, {size.name}, {ours}"
    first, second = ([row[side] for row in phases] for side in range(2))
    return [
        ratio_of(title, against, pairs_of(first, second, size), goal),
        f"CPU seconds of a {title}: {cpu_ratio(first, second):.3f} of those {against}.",
    ]


def _trained(side: str, folder: Path, name: str, steps: int, turn: Turn) -> None:
    fields, runtime = SIDES[side]
    output = folder / f"output-{side}"
    output.mkdir()
    quiet = workspace(folder / f"of-{side}", Runtime(device="cpu", **runtime))
    job = dataclasses.replace(quiet, progress=lambda done, total, unit: turn())
    config = config_of(SIZES[name], steps).model_copy(update=fields)
    inputs = {"model": folder / "model", "tokens": folder / "tokens", "replay": folder / "replay"}
    if not config.replay:
        del inputs["replay"]
    with job.meter:
        build(config, inputs, output, job)
    turn()


if __name__ == "__main__":
    _trained(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), Turns())
