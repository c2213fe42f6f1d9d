"""A sweep, per mixture, against the same forward passes on one loaded model without any merging.

Both sides use the same batches and the same loss, so what is left is merging, switching models,
sums per document and rows. A table below shows what a batch's size does. ``SWEEP_TOKENS`` sets how
many tokens the larger model is judged by (default 100,000).
"""

import os
import tempfile
from pathlib import Path

import torch

from tasks.evaluation.forward import Scorer, default_batch, token_batches
from tasks.evaluation.onednn import has_onednn
from tasks.evaluation.window import load_windows
from tasks.machine.meter import Meter
from tasks.models.folder import load_model
from tests.benchmarks.material import (
    M1,
    M30,
    Size,
    base_model,
    full_windows,
    jobs,
    random_pool,
    sweeper,
)
from tests.benchmarks.measure import Ratio, compare, seconds

MEMBERS, CHOSEN = 8, 4
TOKENS = int(os.environ.get("SWEEP_TOKENS", "100000"))
BATCHES = (256, 512, 1024, 2048, 4096, 8192, 16384)


def measure(repeats: int) -> list[Ratio | str]:
    """Mixtures of 4 out of 8 models; 8 of them at 1M parameters, one at 30M."""
    few = min(repeats, 3)
    return [
        _against_floor(M1, 25_000, 8, repeats, "<= 1.25"),
        _against_floor(M30, TOKENS, 1, few, "<= 1.10"),
        _batch_sizes(M1, 25_000),
    ]


def _against_floor(size: Size, tokens: int, count: int, repeats: int, goal: str) -> Ratio:
    with tempfile.TemporaryDirectory() as name:
        models = random_pool(base_model(size, Path(name, "base")), MEMBERS, Path(name))
        windows = full_windows(size.vocabulary, size.context, tokens, Path(name, "windows"))
        ready, work = sweeper(models, windows), jobs(models, count, CHOSEN)
        forward = _forward(models["model-00"], windows, default_batch("cpu"))

        def ours() -> None:
            with Meter("cpu") as meter:
                ready.evaluate(work, meter, lambda *_: None)

        def floor() -> None:
            for _ in range(count):
                forward()

        what = f"sweep, {count} mixtures of {CHOSEN}, {size.name} parameters, {tokens:,} tokens"
        return compare(what, "the same forward passes, no merging", ours, floor, repeats, goal)


def _forward(model: Path, windows: Path, batch: int):  # type: ignore[no-untyped-def]
    score = Scorer(load_model(model), onednn=has_onednn())
    ready = token_batches(load_windows(windows), batch, "cpu")
    score.expect(ready)

    def forward() -> None:
        with torch.inference_mode():
            for one in ready:
                score(one)

    return forward


def _batch_sizes(size: Size, tokens: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        models = random_pool(base_model(size, Path(name, "base")), 1, Path(name))
        windows = full_windows(size.vocabulary, size.context, tokens, Path(name, "windows"))
        rows = []
        for batch in BATCHES:
            forward = _forward(models["model-00"], windows, batch)
            forward()
            rate = tokens / min(seconds(forward) for _ in range(3))
            rows.append(f"| {batch:,} | {rate:,.0f} |")
    head = f"Forward passes at {size.name} parameters by tokens in a batch, fastest of three:"
    return "\n".join([head, "", "| tokens in a batch | tokens per second |", "|---|---|", *rows])
