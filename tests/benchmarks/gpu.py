"""`python -m tests.benchmarks.gpu [PART ...] [--size tiny] [--write FOLDER]`: what a GPU is made of.

Model FLOPs utilisation, energy and memory of the training loop; a sweep against its forward passes;
merges against a copy. Parts run alone by name, each in a few minutes, and ask for no Prefect. Without a
GPU, ``--size tiny`` shows that the program works, and its figures mean nothing.
"""

import argparse
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from storage.provenance import commit
from tasks.models.initialise import LlamaArchitecture
from tests.benchmarks.gpu_device import device_name, matrix_rate, peak
from tests.benchmarks.gpu_sweep import SweepShape, merging, sweeping
from tests.benchmarks.gpu_train import Shape, training

Row = dict[str, str]


def llama(width: int, layers: int, heads: int, between: int, context: int) -> LlamaArchitecture:
    """A Llama-like model with tied embeddings; a head for keys and values for 64 columns or more."""
    return LlamaArchitecture(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads if heads < 32 else heads // 8,
        intermediate_size=between,
        context_length=context,
    )


SMALL = llama(768, 12, 12, 2304, 2048)
LARGE = llama(2048, 24, 32, 5632, 2048)
TINY = llama(32, 2, 2, 48, 32)

TRAINED = {
    "full": {
        "130M": Shape("130M", SMALL, 50_304, 32, 60, 0.35),
        "1B": Shape("1.1B", LARGE, 32_000, 16, 24, 0.45),
    },
    "tiny": {
        "130M": Shape("tiny", TINY, 300, 4, 3, 0.35),
        "1B": Shape("tiny", TINY, 300, 2, 3, 0.45),
    },
}
SWEPT = {
    "full": SweepShape("130M", SMALL, 50_304, 64, 16, 3),
    "tiny": SweepShape("tiny", TINY, 300, 16, 2, 1),
}
MERGED = {"full": 130_000_000, "tiny": 100_000}


def _train(size: str, device: str, name: str, compiled: bool) -> list[Row]:
    return [training(TRAINED[size][name], device, compiled=compiled)]


def _sweep(size: str, device: str, members: int) -> list[Row]:
    found = sweeping(SWEPT[size], device, members)
    return [
        {
            "sweep": found.what,
            "against": found.against,
            "ratio": f"{found.median:.3f}",
            "spread": f"{found.low:.3f} to {found.high:.3f}",
            "goal": found.goal,
            "ours, s": f"{found.ours:.3f}",
            "floor, s": f"{found.floor:.3f}",
        }
    ]


PARTS: dict[str, Callable[[str, str], Sequence[Row]]] = {
    "train-130M": lambda size, device: _train(size, device, "130M", False),
    "train-130M-compiled": lambda size, device: _train(size, device, "130M", True),
    "train-1B": lambda size, device: _train(size, device, "1B", False),
    "train-1B-compiled": lambda size, device: _train(size, device, "1B", True),
    "sweep-16": lambda size, device: _sweep(size, device, 16),
    "sweep-64": lambda size, device: _sweep(size, device, 64),
    "merge": lambda size, device: merging(MERGED[size], device),
}
"""Each is given a size and a device and returns rows of a table."""


def main() -> None:
    """Run the named parts and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--write", type=Path, help="folder for a Markdown file of the results")
    arguments = parser.parse_args()
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and arguments.size == "full":
        parser.error("there is no GPU: --size tiny shows on a CPU that the program works")
    rows: list[Row] = []
    for name in arguments.parts or PARTS:
        rows += PARTS[name](arguments.size, device)
        print(f"{name}: {rows[-1]}", file=sys.stderr, flush=True)
    text = f"{heading(device)}\n{tables(rows)}\n"
    print(text)
    if arguments.write:
        parts = "-".join(arguments.parts or ["all"])
        name = re.sub(r"\W+", "-", device_name(device).lower())
        (arguments.write / f"{name}_{datetime.now(UTC):%Y-%m}_{parts}.md").write_text(text)


def tables(rows: Sequence[Row]) -> str:
    """One Markdown table for all rows with the same columns."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault(tuple(row), []).append(row)
    return "\n".join(_table(columns, found) for columns, found in kinds.items())


def _table(columns: Sequence[str], rows: list[Row]) -> str:
    lines = [columns, ["---"] * len(columns), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def heading(device: str) -> str:
    """Where, when, from which commit, by which versions and command the figures come."""
    sheet = peak(device)
    packages = ("torch", "transformers", "safetensors", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"# Benchmarks on {device_name(device)}, {datetime.now(UTC):%Y-%m-%d}\n\n"
        f"- commit: {commit() or 'not known'}\n"
        f"- versions: Python {platform.python_version()}, {versions}, CUDA {torch.version.cuda}\n"
        f"- command: `python -m tests.benchmarks.gpu {shlex.join(sys.argv[1:])}`\n"
        f"- dense bfloat16: {'not known' if sheet is None else f'{sheet / 1e12:,.0f} TFLOP/s'} by "
        f"the data sheet, {matrix_rate(device) / 1e12:,.1f} measured in one large matrix product\n"
    )


if __name__ == "__main__":
    main()
