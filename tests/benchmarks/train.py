"""A training step against a bare loop of the same model, batch and optimizer, and nothing else."""

import itertools
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from tasks.model import load_model
from tasks.train import TrainConfig, build
from tests.benchmarks.measure import Ratio, compare
from tests.benchmarks.tiny import CONTEXT, prepare, tokens, workspace

STEPS = 60
BATCH = 8


def measure(repeats: int) -> list[Ratio]:
    """60 steps of 1,024 tokens at 0.9M parameters, loading and saving of the model included."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer, model = prepare(folder)
        data = tokens(folder / "tokens", 40_000, tokenizer)
        config = TrainConfig(
            steps=STEPS, batch_size=BATCH, context_length=CONTEXT, learning_rate=1e-3
        )
        numbers = itertools.count()

        def ours() -> None:
            output = folder / f"output-{next(numbers)}"
            output.mkdir()
            job = workspace(folder)
            with job.meter:
                build(config, {"model": model, "tokens": data}, output, job)

        return [
            compare(
                f"training, {STEPS} steps of {BATCH} x {CONTEXT} tokens, 0.9M parameters",
                "bare loop, batches in memory, model loaded, not saved",
                ours,
                lambda: _bare(model),
                repeats,
            )
        ]


def _bare(folder: Path) -> None:
    model = load_model(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    batches = torch.randint(0, 1024, (STEPS, BATCH, CONTEXT + 1))
    for batch in batches:
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
