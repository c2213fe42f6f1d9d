"""What sharpness-aware training costs, and what is left of its models when they are pruned.

Speed: a step with a quarter of the batch on the way up against a step without, and against a bare loop of the
same arithmetic, in one process and step by step in turn; and by how much a first step of each lets the
process grow. ``SHARPNESS_SIZES`` (default "1M,30M") chooses from ``SIZES`` of the training benchmark.

Pruning: the demo's base model, trained on the demo's text for ``SHARPNESS_STEPS`` (1760) steps with each of
``SHARPNESS_SEEDS`` (2) seeds at each of ``SHARPNESS_RHOS`` ("0,0.05,0.2"; 0 is without), then cut to 50 and
30 % of the entries of all matrices by their size (global magnitude pruning), and evaluated. Models are kept
below ``MIXPOOL_BENCHMARKS``. Either part is left out where its list is empty.
"""

import functools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from flows.chain.ablation import base_model, base_tokens, scan_corpus, wanted_sets, window
from flows.chain.recipe_file import override_recipe
from flows.command.demo import demo_recipe
from flows.runners.inline import InlineRunner
from storage.step import Call, Handle, Runtime
from storage.store import Store
from tasks.evaluation.uphill import BLOCKS, FLATNESS, FlatnessConfig
from tasks.evaluation.window import load_windows
from tasks.models.folder import load_model
from tasks.tokens.tokenize import load_tokens
from tasks.training.accumulate import Accumulation
from tasks.training.blocks import Batches
from tasks.training.config import Sharpness, TrainConfig
from tasks.training.gradients import GradientsOf, clip, loss_function
from tasks.training.sharpness import flat
from tests.benchmarks.measure import Ratio, peak_growth, ratio_of
from tests.benchmarks.race import HOME
from tests.benchmarks.tiny import NO_TOKENIZER, random_model, random_tokens
from tests.benchmarks.train import CONTEXT, SIZES, Phase, Size
from tests.benchmarks.trust import prepare

NAMES = [name for name in os.environ.get("SHARPNESS_SIZES", "1M,30M").split(",") if name]
STEPS = os.environ.get("SHARPNESS_STEPS", "1760")
RHOS = [float(rho) for rho in os.environ.get("SHARPNESS_RHOS", "0,0.05,0.2").split(",") if rho]
SEEDS = int(os.environ.get("SHARPNESS_SEEDS", "2"))
SPARSITIES = (0.0, 0.5, 0.7)
WARM_UP = 2
MEASURED = 0.05
"""Distance uphill of the sharpness in the table."""

Turn = Callable[[torch.Tensor], object]


def measure(repeats: int) -> list[Ratio | str]:
    """Ratios of time and memory for each size, and the table of pruned models."""
    found = [row for name in NAMES for row in speed(SIZES[name], repeats)]
    return [*found, pruned(HOME / "sharpness")] if RHOS else found


# Speed ---------------------------------------------------------------------------------------------


def speed(size: Size, repeats: int) -> list[Ratio | str]:
    """A step uphill against one without, and against a bare loop."""
    settings = Sharpness()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        random_model(folder / "model", size.architecture, size.vocabulary)
        steps = WARM_UP + repeats * size.steps
        count = steps * size.batch * CONTEXT + 1
        random_tokens(folder / "tokens", count, size.vocabulary, NO_TOKENIZER)
        config = TrainConfig(
            steps=steps, batch_size=size.batch, context_length=CONTEXT, learning_rate=1e-3
        )
        batches = Batches(config, [load_tokens(folder / "tokens")], [])
        rows = [torch.from_numpy(batches[step]) for step in range(steps)]
        _ours(folder, None)(rows[0])  # what libraries keep after their first step is nobody's
        sides = [_ours(folder, settings), _ours(folder, None), _bare(folder, settings)]
        growth = [peak_growth(functools.partial(side, rows[0])) for side in sides]
        for side in sides:
            side(rows[1])
        times = [[_timed(side, row) for side in sides] for row in rows[WARM_UP:]]
    up, without, bare = (
        [
            statistics.median(turn[side].wall for turn in times[start : start + size.steps])
            for start in range(0, len(times), size.steps)
        ]
        for side in range(3)
    )
    cpu = [statistics.median(turn[side].cpu for turn in times) for side in range(3)]
    what = f"step uphill, {size.batch} x {CONTEXT} tokens, {size.name}"
    return [
        ratio_of(what, "step without", list(zip(up, without, strict=True)), "<= 1.3"),
        ratio_of(what, "bare loop of the same", list(zip(up, bare, strict=True)), "<= 1.03"),
        ratio_of(f"memory of a {what}", "step without", [(growth[0], growth[1])], unit="bytes"),
        ratio_of(f"memory of a {what}", "bare loop", [(growth[0], growth[2])], unit="bytes"),
        f"CPU seconds of a step uphill at {size.name}, which others' load disturbs least: "
        f"{cpu[0] / cpu[1]:.2f} of a step without, {cpu[0] / cpu[2]:.2f} of the bare loop.",
    ]


def _timed(side: Turn, rows: torch.Tensor) -> Phase:
    wall, cpu = time.perf_counter(), time.process_time()
    side(rows)
    return Phase(time.perf_counter() - wall, time.process_time() - cpu)


def _ours(folder: Path, settings: Sharpness | None) -> Turn:
    model = load_model(folder / "model").train()
    parameters, optimizer = [*model.parameters()], _optimizer(model)
    gradients_of: GradientsOf = Accumulation(loss_function(model, "float32", compiled=False), model)
    if settings:
        gradients_of = flat(gradients_of, parameters, settings)

    def step(rows: torch.Tensor) -> None:
        gradients_of(rows, 0)
        clip(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _bare(folder: Path, settings: Sharpness) -> Turn:
    model: Any = load_model(folder / "model").train()
    optimizer = _optimizer(model)

    def gradients(rows: torch.Tensor) -> None:
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]

    def step(rows: torch.Tensor) -> None:
        gradients(rows[: math.ceil(len(rows) * settings.ascent_fraction)])
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        before = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p.add_(p.grad.mul_(settings.rho / (norm + 1e-12)))
        optimizer.zero_grad(set_to_none=True)
        gradients(rows)
        with torch.no_grad():
            for p, weights in zip(model.parameters(), before, strict=True):
                p.copy_(weights)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)


# Pruning -------------------------------------------------------------------------------------------


def pruned(home: Path) -> str:
    """A row for each distance uphill and seed: perplexity of the dense and the pruned models."""
    heads = ["rho", "seed", f"sharpness at {MEASURED:g}", "dense"]
    for sparsity in SPARSITIES[1:]:
        heads += [f"{sparsity:.0%} pruned", "over dense"]
    run = InlineRunner(Store(str(home / "store"), create=True), Runtime(threads=1))
    rows = [_row(run, rho, seed) for rho, seed in product(RHOS, range(SEEDS))]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    words = (
        f"Perplexity of the demo's base model after {STEPS} steps: exp of the mean over evaluation sets of "
        "nats per token; sharpness in nats per token on its own text."
    )
    return "\n".join([*lines, "", words])


def _row(run: InlineRunner, rho: float, seed: int) -> list[str]:
    changes = [f"base.train.steps={STEPS}", f"base.train.seed={seed}"]
    changes += [f"base.train.sharpness={{rho: {rho}}}"] if rho else []
    recipe = override_recipe(demo_recipe(str(prepare(HOME / "trust"))), changes)
    corpus = scan_corpus(run, recipe)
    tokenizer = Handle("tokenizer", "tokenizer", corpus.tokenizer)
    tokens = base_tokens(run, recipe, corpus, tokenizer)
    assert tokens is not None
    model = base_model(run, recipe, tokenizer, tokens)
    config = FlatnessConfig(rho=MEASURED, context_length=CONTEXT, blocks=BLOCKS, seed=0)
    (rise,) = run.map([Call(FLATNESS, config, {"model": model, "tokens": tokens}, "base")])
    sets = run.map([window(recipe, entry, tokenizer) for entry in wanted_sets(corpus, recipe)])
    windows = [run.store.fetch(handle.built) for handle in sets]
    folder = run.store.fetch(model.built)
    losses = [statistics.fmean(_losses(folder, windows, sparsity)) for sparsity in SPARSITIES]
    assert rise.record is not None
    cells = [
        f"{rho:g}",
        str(seed),
        f"{rise.record.details['sharpness']:.4f}",
        f"{math.exp(losses[0]):.2f}",
    ]
    for loss in losses[1:]:
        cells += [f"{math.exp(loss):.2f}", f"{math.exp(loss - losses[0]):.3f}"]
    return cells


def _losses(folder: Path, sets: list[Path], sparsity: float) -> list[float]:
    """Nats per token on each set, of a model of which so much is set to zero."""
    model: Any = load_model(folder)
    prune(model, sparsity)
    found = []
    for path in sets:
        windows = load_windows(path)
        inputs, targets = (
            torch.from_numpy(ids.astype("int64")) for ids in (windows.inputs, windows.targets)
        )
        places = torch.arange(inputs.shape[1])
        first, length = (torch.from_numpy(n)[:, None] for n in (windows.first, windows.length))
        scored = (first <= places) & (places < length)
        with torch.inference_mode():
            logits = [model(input_ids=part).logits for part in torch.split(inputs, 16)]
        nats = F.cross_entropy(torch.cat(logits)[scored].float(), targets[scored], reduction="sum")
        found.append(nats.item() / int(scored.sum()))
    return found


def prune(model: torch.nn.Module, sparsity: float) -> None:
    """Set the smallest ``sparsity`` of the entries of all matrices to zero, ranked over all of them."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    sizes = torch.cat([p.detach().abs().flatten() for p in matrices])
    if count := int(sparsity * len(sizes)):
        threshold = sizes.kthvalue(count).values
        with torch.no_grad():
            for p in matrices:
                p[p.abs() <= threshold] = 0
