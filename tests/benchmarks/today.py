"""A sweep against what people use today: a process of mergekit and one of lm-evaluation-harness each.

Not part of the default set, because it installs packages: `python -m tests.benchmarks today` makes
an environment of ``compare-requirements.txt`` (1.8 GB, some minutes) in ``TODAY_VENV`` (default
``.venv-compare`` at the root). Both sides get the same models, documents, context and threads. Ours
is one process for the whole sweep, so its start, windows and reading of the pool are shared by the
sweep's mixtures; theirs is measured on a few of them. Every figure is per mixture.

``TODAY_SIZES``: model sizes, default ``1M,8M,30M``; a repetition of all takes about an hour of two
cores, so choose ``--repeats``. ``TODAY_MIXTURES``: mixtures of theirs in a repetition, default 2.
``TODAY_SWEEP``: mixtures that ours runs, default the whole sweep; with fewer, the fixed part is
still shared by as many as the sweep has. ``TODAY_BYTES``: bytes of text, default 200000.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.measure import Ratio, ratio_of
from tests.benchmarks.today_process import (
    Cost,
    compare_python,
    run_ours,
    run_programs,
    run_resident,
)
from tests.benchmarks.today_setup import TEXT_BYTES, Request, Size, prepare

SIZES = (
    Size("1M", 4096, 128, 3, 344, 256, mixtures=64, end_to_end=25, in_process=4),
    Size("8M", 8192, 256, 8, 640, 512, mixtures=64, end_to_end=4, in_process=2),
    Size("30M", 16384, 512, 7, 1376, 512, mixtures=16, end_to_end=2, in_process=None),
)
BATCH_SIZES = [1, 8, 16]
"""Windows per forward pass of the harness; what is fastest on one mixture is used."""
TOLERANCE = 1e-5
"""Largest relative difference of bits per byte."""


class Round(NamedTuple):
    """One repetition: costs per mixture, and bits per byte of mixtures that both sides judged."""

    ours: Cost
    """The whole process."""
    ours_resident: Cost
    """Once the pool is in memory."""
    theirs: Cost
    """mergekit-yaml and lm_eval, a process each."""
    theirs_resident: Cost
    """Both packages in one warm process, models in memory."""
    bits_per_byte: list[tuple[float, float]]
    """Ours and theirs; first the programs', then the warm process's."""


def measure(repeats: int) -> list[Ratio | str]:
    """Ratios of wall and of processor time at each model size, then what they mean as a table.

    Raises:
        ValueError: ``TODAY_SIZES`` names an unknown size.
    """
    sizes = {size.name: size for size in SIZES}
    chosen = os.environ.get("TODAY_SIZES", ",".join(sizes)).split(",")
    if unknown := set(chosen) - set(sizes):
        raise ValueError(f"TODAY_SIZES names {sorted(unknown)}: choose from {list(sizes)}")
    python = compare_python()
    found: list[Ratio | str] = []
    lines: list[str] = []
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            ratios, line = compare_at(sizes[name], Path(folder), python, repeats)
        found += ratios
        lines.append(line)
    return [*found, "\n".join([*HEADING, *lines]), versions(python)]


def compare_at(size: Size, folder: Path, python: Path, repeats: int) -> tuple[list[Ratio], str]:
    """All ratios at one model size, and its line of the table.

    Raises:
        AssertionError: bits per byte differ by more than ``TOLERANCE``.
    """
    request = prepare(folder, size, int(os.environ.get("TODAY_BYTES", TEXT_BYTES)))
    batch = better_batch(request, python)
    rounds = [one_round(size, request, python, batch, number) for number in range(repeats)]
    pairs = [pair for r in rounds for pair in r.bits_per_byte]
    apart = max(abs(one / other - 1) for one, other in pairs)
    assert apart <= TOLERANCE, f"bits per byte (ours, theirs) differ by {apart:.1e}: {pairs}"
    ratios = ratios_of(size, rounds)
    return ratios, line_of(size, ratios, batch, pairs[0], apart)


def better_batch(request: Request, python: Path) -> int:
    """The harness's fastest batch size on the first mixture; finding it also fills its caches."""
    update = {"mixtures": request.mixtures[:1], "batch_sizes": BATCH_SIZES}
    judged = run_resident(request.model_copy(update=update), python)
    return min(BATCH_SIZES, key=lambda batch: judged[batch].cost.processor)


def one_round(size: Size, request: Request, python: Path, batch: int, number: int) -> Round:
    """Theirs on the next few mixtures, ours on the sweep, theirs in one process."""
    count = int(os.environ.get("TODAY_MIXTURES", "2"))
    swept = min(int(os.environ.get("TODAY_SWEEP", size.mixtures)), size.mixtures)
    chosen = [(number * count + step) % swept for step in range(count)]
    few = [request.mixtures[n] for n in chosen]
    programs = [run_programs(request, python, names, batch) for names in few]
    ours = run_ours(request.model_copy(update={"mixtures": request.mixtures[:swept]}))
    update = {"mixtures": few, "batch_sizes": [batch]}
    resident = run_resident(request.model_copy(update=update), python)[batch]
    mine = [ours.mixtures.bits_per_byte[n] for n in chosen]
    theirs = [bits for judged in (*programs, resident) for bits in judged.bits_per_byte]
    return Round(
        ours.fixed / size.mixtures + ours.mixtures.cost / swept,
        ours.mixtures.cost / swept,
        sum((judged.cost for judged in programs), Cost(0, 0)) / count,
        resident.cost / count,
        list(zip(mine * 2, theirs, strict=True)),
    )


def ratios_of(size: Size, rounds: list[Round]) -> list[Ratio]:
    """Wall and processor time, end to end and in one process."""
    programs = [(r.ours, r.theirs) for r in rounds]
    resident = [(r.ours_resident, r.theirs_resident) for r in rounds]
    sides = (
        ("end to end", "mergekit-yaml, then lm_eval", programs, size.end_to_end),
        ("in process", "merge_state_dicts, then simple_evaluate", resident, size.in_process),
    )
    return [
        ratio_of(
            f"a mixture {what}, {size.name} parameters, {clock} time",
            against,
            [(getattr(ours, clock), getattr(theirs, clock)) for ours, theirs in pairs],
            f"<= {1 / times:.2f}" if times and clock == "wall" else "",
        )
        for what, against, pairs, times in sides
        for clock in ("wall", "processor")
    ]


HEADING = (
    "| parameters | vocabulary, context | harness's batch | end to end: times faster (processor time)"
    " | wanted | in process | wanted | bits per byte, ours and theirs | largest difference |",
    "|---|---|---|---|---|---|---|---|---|",
)


def line_of(
    size: Size, ratios: list[Ratio], batch: int, bits: tuple[float, float], apart: float
) -> str:
    """A model size's line of the table: how many times faster we are."""
    wall, processor, resident_wall, resident_processor = (1 / ratio.median for ratio in ratios)
    wanted = f"{size.in_process}x" if size.in_process else ""
    return (
        f"| {size.name} | {size.vocabulary}, {size.context} | {batch} "
        f"| {wall:.1f}x ({processor:.1f}x) | {size.end_to_end}x "
        f"| {resident_wall:.1f}x ({resident_processor:.1f}x) | {wanted} "
        f"| {bits[0]:.7f}, {bits[1]:.7f} | {apart:.0e} |"
    )


def versions(python: Path) -> str:
    """What the other environment has, and how many threads both sides had."""
    import torch

    code = (
        "from importlib.metadata import version as v;"
        "print(', '.join(f'{n} {v(n)}' for n in "
        "('mergekit', 'lm_eval', 'torch', 'transformers', 'tokenizers', 'datasets', 'numpy')))"
    )
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return f"Theirs: {found.stdout.strip()}. Threads of either side: {torch.get_num_threads()}."
