"""Adapters beside full training: the time and memory of a step, and what is learned and forgotten over ranks.

The first table is of a Llama of 30M parameters at rank 16, each side in a process of its own, step by step in
turn (see ``tests.benchmarks.train``). The bare loop has the same arithmetic in plain torch: layers that are
written out, and torch's own clipping. Peaks are those of whole processes, torch itself included.

The second table is of the demo's text: every partition is trained by each of ``ADAPTER_RANKS`` (default
"4,16,64,full") at each of ``ADAPTER_RATES`` (default "5e-4,2e-3,8e-3"), with the further overrides of
``ADAPTER_SETTINGS``. Everything is really trained, and kept in the store of the ``trust`` benchmark, whose
base model it shares. The rate with which a rank learns most is its own: compare ranks there.
"""

import dataclasses
import os
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from flows.chain.ablation import ablate, base_losses
from flows.chain.recipe_file import override_recipe
from flows.chain.work import SweepWork, losses_of
from flows.command.demo import demo_recipe
from flows.runners.inline import InlineRunner
from storage.step import Runtime
from storage.store import Store
from tasks.models.folder import load_model
from tasks.ranking.forgetting import learned_and_forgotten
from tasks.training.adapter import AdapterConfig
from tasks.training.train import build
from tests.benchmarks.measure import Ratio, ratio_of
from tests.benchmarks.race import HOME
from tests.benchmarks.tiny import NO_TOKENIZER, random_model, random_tokens, workspace
from tests.benchmarks.train import (
    CONTEXT,
    SIZES,
    WARM_UP,
    Size,
    Turn,
    Turns,
    batches_of,
    config_of,
    pairs_of,
    started,
)
from tests.benchmarks.trust import prepare

RANK = 16
RANKS = os.environ.get("ADAPTER_RANKS", "4,16,64,full").split(",")
RATES = os.environ.get("ADAPTER_RATES", "5e-4,2e-3,8e-3").split(",")
SETTINGS = os.environ.get("ADAPTER_SETTINGS", "").split()


def measure(repeats: int) -> list[Ratio | str]:
    """Ratios of a step, then the table over ranks, in which nothing is timed."""
    return [*step_ratios(repeats), front()]


def step_ratios(repeats: int, name: str = "30M", rank: int = RANK) -> list[Ratio | str]:
    """Time and memory of a step, with and without dropout, against full training and a bare loop."""
    size = SIZES[name]
    steps = WARM_UP + repeats * size.steps
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        random_model(folder / "model", size.architecture, size.vocabulary)
        count = steps * size.batch * CONTEXT + 1
        random_tokens(folder / "tokens", count, size.vocabulary, NO_TOKENIZER)
        rules = (folder, name, steps, "tests.benchmarks.adapter")
        with (
            started(f"ours:{rank}:0.05", *rules) as ours,
            started(f"ours:{rank}:0", *rules) as without,
            started("full:0:0", *rules) as full,
            started(f"bare:{rank}:0.05", *rules) as bare,
        ):
            sides = (ours, without, full, bare)
            phases = [[side.turn() for side in sides] for _ in range(steps + 1)]
            peaks = [side.peak() for side in sides]
            phases.append([side.turn() for side in sides])
    columns = [[row[side] for row in phases] for side in range(len(sides))]
    what = f"training step, adapter of rank {rank}, {size.batch} x {CONTEXT} tokens, {size.name}"
    return [
        ratio_of(what, "full training", pairs_of(columns[0], columns[2], size), "<= 1.0"),
        ratio_of(f"{what}, no dropout", "full training", pairs_of(columns[1], columns[2], size)),
        ratio_of(what, "bare loop, the same arithmetic", pairs_of(columns[0], columns[3], size)),
        ratio_of(
            f"{what}: peak memory", "full training", [(peaks[0], peaks[2])], "<= 1.0", "bytes"
        ),
        ratio_of(f"{what}: peak memory", "bare loop", [(peaks[0], peaks[3])], "", "bytes"),
    ]


def front() -> str:
    """What is learned and forgotten at each rank and rate, means over partitions, as a Markdown table."""
    home = HOME / "trust"
    corpus = prepare(home)
    heads = ["rank", "rate", "learned on the own set", "forgotten on the others", "partitions"]
    rows = [[rank, rate, *_point(home, corpus, rank, rate)] for rank, rate in product(RANKS, RATES)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    words = (
        "Nats per token beside the base model; above 0 in the last but one column is a loss of it."
    )
    return "\n".join(lines) + f"\n\n{words}"


def _point(home: Path, corpus: Path, rank: str, rate: str) -> list[str]:
    import pandas as pd

    changes = [f"train.learning_rate={rate}", "mixtures.spaces=[{kind: subsets, sizes: [1]}]"]
    changes += ["train.batch_size=8", "train.replay=0"]
    changes += [f"train.adapter={{rank: {rank}}}"] * (rank != "full") + SETTINGS
    recipe = override_recipe(demo_recipe(str(corpus)), changes)
    run = InlineRunner(Store(str(home / "store"), create=True), Runtime(threads=1))
    outcome = ablate(run, recipe)
    work = SweepWork([], outcome.pool, outcome.windows, recipe.evaluation.evaluate)
    rows = (outcome.rows, outcome.base_rows or base_losses(run, outcome, work))
    losses, base = (losses_of(run.store, r, outcome.windows) for r in rows if r is not None)
    members = pd.DataFrame({"mixture": losses.mixtures, "partition": losses.mixtures})
    sets = pd.DataFrame(
        [(e.name, e.domain) for e in outcome.sets], columns=["evaluation_set", "domain"]
    )
    table = learned_and_forgotten(losses, base, members, outcome.domains, sets)
    return [*(f"{table[name].mean():.4f}" for name in ("learned", "forgotten")), str(len(table))]


# In the process of a side --------------------------------------------------------------------------


def _ours(folder: Path, size: Size, steps: int, turn: Turn, adapter: AdapterConfig | None) -> None:
    output = Path(tempfile.mkdtemp(dir=folder))
    (output / "model").mkdir()
    job = dataclasses.replace(workspace(output), progress=lambda done, total, unit: turn())
    inputs = {"model": folder / "model", "tokens": folder / "tokens"}
    config = config_of(size, steps).model_copy(update={"adapter": adapter})
    with job.meter:
        build(config, inputs, output / "model", job)
    turn()


class Adapted(torch.nn.Module):
    """A linear layer and its update."""

    def __init__(self, layer: torch.nn.Linear, config: AdapterConfig) -> None:
        super().__init__()
        self.layer, self.config = layer, config
        self.a = torch.nn.Parameter(torch.randn(config.rank, layer.in_features))
        self.b = torch.nn.Parameter(torch.zeros(layer.out_features, config.rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W' + scale * dropout(x) A' B'."""
        seen = F.dropout(x, self.config.dropout)
        update = F.linear(F.linear(seen, self.a), self.b)
        output: torch.Tensor = self.layer(x) + self.config.scale * update
        return output


def _bare(folder: Path, size: Size, steps: int, turn: Turn, adapter: AdapterConfig) -> None:
    model: Any = load_model(folder / "model").train().requires_grad_(False)
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, layer in [*part.named_children()]:
                if isinstance(layer, torch.nn.Linear):
                    setattr(part, name, Adapted(layer, adapter))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), fused=True)
    batches = batches_of(folder, size, steps)
    turn()
    for batch in batches:
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turn()
    turn()


if __name__ == "__main__":
    side, rank, dropout = sys.argv[1].split(":")
    chosen = None if side == "full" else AdapterConfig(rank=int(rank), dropout=float(dropout))
    arguments = (Path(sys.argv[2]), SIZES[sys.argv[3]], int(sys.argv[4]), Turns())
    if side == "bare":
        assert chosen is not None
        _bare(*arguments, chosen)
    else:
        _ours(*arguments, chosen)
