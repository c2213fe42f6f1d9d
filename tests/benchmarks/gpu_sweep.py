"""A sweep against its floor on one device, and merges against the device's copy.

The floor is the same forward passes with the same loss on one loaded model, at the best of several batch
sizes, with no merging. A merge must read its members once and write once: its floor is that many bytes
at the rate of a copy on the same device.
"""

import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from storage.step import Runtime
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.evaluation.sweep import Job
from tasks.evaluation.window import Windows, load_windows
from tasks.machine.meter import Meter
from tasks.merging.average import fused_sum, weighted_sum
from tasks.mixtures.mixture import Mixture
from tasks.models.folder import load_model
from tasks.models.initialise import LlamaArchitecture
from tests.benchmarks.gpu_device import copy_rate, seconds_of, wait
from tests.benchmarks.material import full_windows, random_pool, sweeper
from tests.benchmarks.measure import Ratio, compare
from tests.benchmarks.tiny import random_model

BATCHES = (1, 2, 4, 8, 16)
"""Windows in one forward pass of the floor; the fastest counts."""


class SweepShape(NamedTuple):
    """A model, an evaluation set of full windows, and mixtures."""

    name: str
    architecture: LlamaArchitecture
    vocabulary: int
    windows: int
    mixtures: int
    repeats: int


def sweeping(shape: SweepShape, device: str, members: int) -> Ratio:
    """Seconds of a sweep over seconds of its floor, with a pool of so many models."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = random_model(folder / "base", shape.architecture, shape.vocabulary)
        models = random_pool(base, members, folder, device)
        context = shape.architecture.context_length
        windows = full_windows(
            shape.vocabulary, context, shape.windows * context, folder / "windows"
        )
        runtime = Runtime(device=device, batch_tokens=max(BATCHES) * context)
        ready = sweeper(models, windows, runtime, EvaluateConfig(precision="bfloat16"))
        jobs = [_job(number, list(models)) for number in range(shape.mixtures)]
        passes = _Passes(base, load_windows(windows), device)

        def ours() -> None:
            with Meter(device) as meter:
                ready.evaluate(jobs, meter, lambda done, total, unit: None)
            wait(device)

        def floor() -> None:
            for _ in jobs:
                passes.run(passes.best)
            wait(device)

        what = (
            f"sweep of {len(jobs)} mixtures of 4 to 8 from {members} models, {shape.name}, "
            f"{shape.windows} windows of {context}"
        )
        against = f"forward passes alone, {passes.best} windows each"
        return compare(what, against, ours, floor, shape.repeats, "<= 1.05")


class _Passes:
    """The forward passes of one mixture on a loaded model."""

    def __init__(self, model: Path, windows: Windows, device: str) -> None:
        self._model = load_model(model, device)
        tokens = np.concatenate([windows.inputs, windows.targets[:, -1:]], axis=1)
        self._tokens = torch.from_numpy(tokens.astype(np.int64)).to(device)
        self._device = device
        seconds = {b: seconds_of(lambda b=b: self.run(b), device, 2) for b in BATCHES}  # type: ignore[misc]
        self.best = min(seconds, key=seconds.__getitem__)

    def run(self, batch: int) -> torch.Tensor:
        """Nats of every token, in bfloat16 but for the loss."""
        kind = self._device.partition(":")[0]
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16):
            parts = [self._losses(tokens) for tokens in torch.split(self._tokens, batch)]
        return torch.cat(parts).double().cpu()

    def _losses(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self._model(input_ids=tokens[:, :-1], use_cache=False).logits.flatten(0, 1)
        return F.cross_entropy(logits.float(), tokens[:, 1:].flatten(), reduction="none")


def _job(number: int, names: list[str]) -> Job:
    lots = random.Random(number)
    return Job(Mixture.uniform(lots.sample(names, lots.randint(4, 8))), str(number), ("set",))


def merging(num_parameters: int, device: str, members: int = 8) -> list[dict[str, str]]:
    """One row for each way in which weights are summed."""
    tensors = [torch.randn(num_parameters, device=device) for _ in range(members)]
    floor = 4 * num_parameters * (members + 1) / copy_rate(device, 4 * num_parameters)
    parts, target = [number + 1 for number in range(members)], torch.empty_like(tensors[0])
    ways: dict[str, Callable[[], object]] = {
        "sums in float32": lambda: weighted_sum(tensors, parts, torch.float32),
        "sums in float64": lambda: weighted_sum(tensors, parts, torch.float64),
    }
    if device != "cpu" or shutil.which("c++"):
        ways["sums in float64, compiled"] = lambda: fused_sum(target, tensors, parts)
    rows = []
    for way, work in ways.items():
        taken = seconds_of(work, device, 5)
        rows.append(
            {
                "merge": f"{members} models of {num_parameters / 1e6:,.0f}M, {way}",
                "ms": f"{taken * 1e3:.2f}",
                "floor, ms": f"{floor * 1e3:.2f}",
                "ratio": f"{taken / floor:.2f}",
                "goal": "<= 1.3",
                "GB/s": f"{4e-9 * num_parameters * (members + 1) / taken:,.0f}",
            }
        )
    return rows
