"""A training step against a bare loop of the same model, batch and optimizer, and against `Trainer`.

Every side has a process of its own, with the allocator and the threads that it has in life, and takes
one step when it is its turn, so that a noisy machine disturbs all alike. Each step is forward, loss,
backward, clipping and AdamW in float32; batches are in memory. A repetition is the median of some steps,
one by one in turn; loading and saving do not count, except in the row that says so. CPU seconds are
told as well: others' load shows least in them. Each side has OMP_NUM_THREADS threads, by default one:
two that wait for each other on a machine with other load measure that load.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from storage import ROOT
from tasks.models.folder import load_model
from tasks.models.initialise import LlamaArchitecture
from tasks.tokens.tokenize import load_tokens
from tasks.training.blocks import Batches
from tasks.training.config import TrainConfig
from tasks.training.train import build
from tests.benchmarks.measure import Ratio, kilobytes, ratio_of
from tests.benchmarks.tiny import NO_TOKENIZER, random_model, random_tokens, workspace

CONTEXT = 128
WARM_UP = 2
"""Steps of each side that are not counted: the first allocate the gradients and the moments."""

Turn = Callable[[], None]
"""Ends a phase (loading, one step, saving) and waits for the next turn."""


class Size(NamedTuple):
    """A model, a batch, and how many steps are one repetition."""

    name: str
    architecture: LlamaArchitecture
    vocabulary: int
    batch: int
    steps: int
    goal: str
    """Against `Trainer`."""


SIZES = {
    "tiny": Size(
        "8k parameters",
        LlamaArchitecture(
            hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, context_length=CONTEXT
        ),
        300,
        1,
        2,
        "",
    ),
    "1M": Size(
        "0.7M parameters",
        LlamaArchitecture(
            hidden_size=128,
            num_layers=3,
            num_heads=4,
            intermediate_size=344,
            context_length=CONTEXT,
        ),
        1024,
        8,
        8,
        "<= 0.91",
    ),
    "8M": Size(
        "8M parameters",
        LlamaArchitecture(
            hidden_size=256,
            num_layers=8,
            num_heads=4,
            intermediate_size=688,
            context_length=CONTEXT,
        ),
        8192,
        4,
        2,
        "",
    ),
    "30M": Size(
        "30M parameters",
        LlamaArchitecture(
            hidden_size=384,
            num_layers=10,
            num_heads=6,
            intermediate_size=1024,
            context_length=CONTEXT,
        ),
        32_000,
        4,
        1,
        "<= 1.00",
    ),
}


class Phase(NamedTuple):
    """What one turn of a side took, in seconds."""

    wall: float
    cpu: float


def measure(repeats: int, names: Sequence[str] = ("1M", "30M")) -> list[Ratio | str]:
    """Three ratios for each size, and a line on CPU seconds."""
    return [row for name in names for row in _measured(name, repeats)]


def _measured(name: str, repeats: int) -> list[Ratio | str]:
    size = SIZES[name]
    steps = WARM_UP + repeats * size.steps
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        random_model(folder / "model", size.architecture, size.vocabulary)
        count = steps * size.batch * CONTEXT + 1
        random_tokens(folder / "tokens", count, size.vocabulary, NO_TOKENIZER)
        with (
            started("ours", folder, name, steps) as ours,
            started("bare", folder, name, steps) as bare,
            started("trainer", folder, name, steps) as trainer,
        ):
            phases = [[side.turn() for side in (ours, bare, trainer)] for _ in range(steps + 2)]
    one, floor, today = ([row[side] for row in phases] for side in range(3))
    what = f"training step, {size.batch} x {CONTEXT} tokens, {size.name}"
    return [
        ratio_of(what, "bare loop", pairs_of(one, floor, size), "<= 1.03"),
        ratio_of(what, "transformers' Trainer", pairs_of(one, today, size), size.goal),
        ratio_of(
            f"training of {steps} steps, {size.name}, model loaded and saved, meter, progress",
            "bare loop, model loaded, not saved",
            [(sum(p.wall for p in one), sum(p.wall for p in floor))],
        ),
        f"CPU seconds of a training step at {size.name}: "
        f"{cpu_ratio(one, floor):.3f} of the bare loop's, {cpu_ratio(one, today):.3f} of Trainer's.",
    ]


def pairs_of(ours: list[Phase], theirs: list[Phase], size: Size) -> list[tuple[float, float]]:
    """Seconds of a step in each repetition."""
    starts = range(1 + WARM_UP, len(ours) - 1, size.steps)
    return [
        (
            statistics.median(p.wall for p in ours[start : start + size.steps]),
            statistics.median(p.wall for p in theirs[start : start + size.steps]),
        )
        for start in starts
    ]


def cpu_ratio(ours: list[Phase], theirs: list[Phase]) -> float:
    """Median CPU seconds of a step, ours over theirs."""
    counted = slice(1 + WARM_UP, -1)
    return statistics.median(p.cpu for p in ours[counted]) / statistics.median(
        p.cpu for p in theirs[counted]
    )


class Side:
    """A process that waits for its turns."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def turn(self) -> Phase:
        """Let it do its next phase."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"{self._process.args!r} has ended before its turn; see what it printed"
            )
        return Phase(*map(float, answer.split()))

    def peak(self) -> int:
        """Bytes of its resident memory at its highest, so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return kilobytes(status, "VmHWM") * 1024


@contextmanager
def started(
    side: str, folder: Path, size: str, steps: int, module: str = __name__, root: Path = ROOT
) -> Iterator[Side]:
    """The process of a side, as the module of a checkout at ``root`` defines it."""
    command = [sys.executable, "-m", module, side, str(folder), size, str(steps)]
    with subprocess.Popen(
        command,
        cwd=root,
        env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Side(process)
        finally:
            process.kill()


# In the process of a side --------------------------------------------------------------------------


class Turns:
    """The other end of ``Side``: every call tells what the phase before it took."""

    def __init__(self) -> None:
        # Whatever libraries print must not be taken for a measurement.
        self._answers = sys.stdout
        sys.stdout = sys.stderr
        self._wait()

    def __call__(self) -> None:
        now = Phase(time.perf_counter(), time.process_time())
        print(
            now.wall - self._began.wall, now.cpu - self._began.cpu, file=self._answers, flush=True
        )
        self._wait()

    def _wait(self) -> None:
        sys.stdin.readline()
        self._began = Phase(time.perf_counter(), time.process_time())


def _ours(folder: Path, size: Size, steps: int, turn: Turn) -> None:
    (folder / "output").mkdir()
    quiet = workspace(folder)
    job = dataclasses.replace(quiet, progress=lambda done, total, unit: turn())
    inputs = {"model": folder / "model", "tokens": folder / "tokens"}
    with job.meter:
        build(config_of(size, steps), inputs, folder / "output", job)
    turn()


def _bare(folder: Path, size: Size, steps: int, turn: Turn) -> None:
    model = load_model(folder / "model").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    batches = batches_of(folder, size, steps)
    turn()
    for batch in batches:
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turn()
    turn()


def _trainer(folder: Path, size: Size, steps: int, turn: Turn) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Turning(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: object, **__: object) -> None:
            turn()

        def on_step_end(self, *_: object, **__: object) -> None:
            turn()

    rows = batches_of(folder, size, steps)[:, :, :-1].flatten(0, 1)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=size.batch,
        max_steps=steps,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.1,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    model = load_model(folder / "model")
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Turning()]).train()
    turn()


def config_of(size: Size, steps: int) -> TrainConfig:
    """The training that all sides do."""
    return TrainConfig(
        steps=steps, batch_size=size.batch, context_length=CONTEXT, learning_rate=1e-3
    )


def batches_of(folder: Path, size: Size, steps: int) -> torch.Tensor:
    """The batches of a training, shape (steps, batch, context + 1)."""
    batches = Batches(config_of(size, steps), [load_tokens(folder / "tokens")], [])
    return torch.stack([torch.from_numpy(batches[step]) for step in range(steps)])


SIDES = {"ours": _ours, "bare": _bare, "trainer": _trainer}


if __name__ == "__main__":
    SIDES[sys.argv[1]](Path(sys.argv[2]), SIZES[sys.argv[3]], int(sys.argv[4]), Turns())
