"""Model FLOPs utilisation of our training loop, bfloat16, at its steady rate.

From the first counted step to the last: loading, compiling, and saving are not in it; batches, clipping,
AdamW, the check of every loss, meter and progress are. The device is waited for twice, at both ends. The
batch is the largest power of two that fits.
"""

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from storage.backends.local import LocalBackend
from storage.checkpoint import Checkpoints
from storage.step import Runtime, Workspace
from tasks.machine.flops import Attention, training_flops
from tasks.machine.memory import free_memory
from tasks.machine.meter import EnergySource, Meter, energy_source
from tasks.models.initialise import LlamaArchitecture
from tasks.training.config import TrainConfig
from tasks.training.train import build
from tests.benchmarks.gpu_device import joules, matrix_rate, peak, wait
from tests.benchmarks.tiny import NO_TOKENIZER, random_model, random_tokens

WARM_UP = 4
"""Steps that are not counted: they compile, and find the fastest kernels."""


class Shape(NamedTuple):
    """A model and how it is trained here."""

    name: str
    architecture: LlamaArchitecture
    vocabulary: int
    largest_batch: int
    """Sequences in the first batch that is tried; then half as many, and so on."""
    steps: int
    """Steps that are counted."""
    goal: float
    """Utilisation to reach, of the data sheet's rate, attention not counted."""


class Mark(NamedTuple):
    """A moment: seconds, and joules where there is a counter."""

    seconds: float
    joules: float | None


def training(shape: Shape, device: str, *, compiled: bool) -> dict[str, str]:
    """One row: rate, utilisation, energy and memory.

    Raises:
        torch.OutOfMemoryError: not even one sequence fits.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_model(folder / "model", shape.architecture, shape.vocabulary)
        batch = shape.largest_batch
        while True:
            try:
                return _row(shape, batch, device, compiled, folder)
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
            batch //= 2
            torch._dynamo.reset()
            free_memory()


def _row(shape: Shape, batch: int, device: str, compiled: bool, folder: Path) -> dict[str, str]:
    source = energy_source(device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    start, end, details = _run(shape, batch, device, compiled, folder, source)
    tokens = shape.steps * batch * shape.architecture.context_length
    rate = tokens / (end.seconds - start.seconds)
    num_parameters = int(details["num_parameters"])
    a = shape.architecture
    attention = Attention(a.num_layers, a.hidden_size, a.context_length)
    plain = training_flops(num_parameters, 1) * rate
    whole = training_flops(num_parameters, 1, attention) * rate
    return {
        "training": f"{shape.name} ({num_parameters / 1e6:,.0f}M), {a.context_length} tokens",
        "compile": "on" if compiled else "off",
        "batch": str(batch),
        "tokens/s": f"{rate:,.0f}",
        "s per step": f"{(end.seconds - start.seconds) / shape.steps:.3f}",
        "MFU (6N)": _share(plain, peak(device)),
        "goal": f">= {shape.goal:.0%}",
        "MFU with attention": _share(whole, peak(device)),
        "of matrix product, with attention": _share(whole, matrix_rate(device)),
        "tokens/J": _per_joule(tokens, start, end),
        "peak memory": _peak_memory(device),
        "energy by": source.name,
    }


def _run(
    shape: Shape, batch: int, device: str, compiled: bool, folder: Path, source: EnergySource
) -> tuple[Mark, Mark, Any]:
    context, steps = shape.architecture.context_length, WARM_UP + shape.steps
    config = TrainConfig(
        steps=steps, batch_size=batch, context_length=context, precision="bfloat16"
    )
    marks = []

    def progress(done: int, total: int, unit: str) -> None:  # noqa: ARG001
        if done in (WARM_UP * batch * context, total):
            wait(device)
            marks.append(Mark(time.perf_counter(), joules(source)))

    runtime = Runtime(device=device, compile=compiled, checkpoint_seconds=1e9)
    tokens, output = folder / f"tokens-{batch}", folder / f"output-{batch}"
    random_tokens(tokens, steps * batch * context + 1, shape.vocabulary, NO_TOKENIZER)
    output.mkdir()
    backend = LocalBackend(None, str(folder / "store"))
    job = Workspace(runtime, Checkpoints(backend, "work/benchmark"), Meter(device), progress)
    with job.meter:
        details = build(config, {"model": folder / "model", "tokens": tokens}, output, job)
    return *marks, details  # type: ignore[return-value]


def _share(rate: float, whole: float | None) -> str:
    return "-" if whole is None else f"{rate / whole:.1%}"


def _per_joule(tokens: int, start: Mark, end: Mark) -> str:
    if start.joules is None or end.joules is None or end.joules <= start.joules:
        return "-"
    return f"{tokens / (end.joules - start.joules):,.1f}"


def _peak_memory(device: str) -> str:
    if not device.startswith("cuda"):
        return "-"
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
