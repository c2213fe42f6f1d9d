"""`python -m tests.benchmarks [SUITE ...]`: what we do, each as a ratio to its floor.

Both sides of a ratio are measured in alternation in one process, so that a noisy machine disturbs
both alike; shown are medians and the spread (lowest and highest) over the repetitions. Results go to
the terminal and, with ``--write FOLDER``, to a Markdown file named by the hardware and the month.
"""

import argparse
import importlib
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from storage.provenance import commit, provenance
from tests.benchmarks.measure import Ratio

SUITES = ("store", "s3", "corpus", "train", "forward", "merge", "sweep", "cached", "growth")
"""Modules beside this one; ``measure`` is given a number of repetitions and returns ratios, and text
that stands below the table. Each is imported when its turn comes, so that none weighs on another."""
ON_REQUEST = (
    "today",
    "race",
    "search",
    "tables",
    "trust",
    "phases",
    "teacher",
    "adapter",
    "forward_memory",
    "small_files",
    "plan",
    "records",
    "malformed",
    "sharpness",
    "accumulate",
    "exports",
    "probability",
)
"""Only run when named: they install packages, take many minutes, or are part of another."""


def main() -> None:
    """Run the named suites and print what each one found."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", choices=[*SUITES, *ON_REQUEST, []], help=f"default: {' '.join(SUITES)}"
    )
    parser.add_argument("--repeats", type=int, default=7, help="alternations (default 7)")
    parser.add_argument("--write", type=Path, help="folder for a Markdown file of the results")
    arguments = parser.parse_args()
    texts = []
    for name in arguments.suites or SUITES:
        measure = importlib.import_module(f"tests.benchmarks.{name}").measure
        texts.append(f"## {name}\n\n{told(measure(arguments.repeats))}")
        print(f"{texts[-1]}\n", flush=True)
    if arguments.write:
        hardware = f"{platform.machine()}-{_cpus()}cpu_{datetime.now(UTC):%Y-%m}.md"
        (arguments.write / hardware).write_text("\n\n".join([heading(), *texts]) + "\n")


def told(found: Sequence[Ratio | str]) -> str:
    """A suite's ratios as a table, and its notes below."""
    notes = [note for note in found if isinstance(note, str)]
    ratios = [ratio for ratio in found if isinstance(ratio, Ratio)]
    return "\n\n".join([table(ratios), *notes] if ratios else notes)


def table(ratios: list[Ratio]) -> str:
    """A Markdown table of the ratios."""
    lines = [
        "| what | against | ratio | spread | goal | ours | theirs |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.what} | {r.against} | {r.median:.2f} | {r.low:.2f} to {r.high:.2f} | {r.goal} "
        f"| {shown(r.ours, r.unit)} | {shown(r.floor, r.unit)} |"
        for r in ratios
    ]
    return "\n".join(lines)


def shown(value: float, unit: str) -> str:
    """A figure for people."""
    if unit in {"bytes", "tokens"}:
        return f"{value / 1e6:.1f} M{'B' if unit == 'bytes' else ' tokens'}"
    if unit == "evaluations":
        return f"{value:,.0f}"
    return f"{value:.1f} s" if value >= 10 else f"{value * 1e3:.1f} ms"


def heading() -> str:
    """Where, when, from which commit and by which command the figures come."""
    facts = provenance("cpu")
    packages = facts["packages"]
    assert isinstance(packages, dict)
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    return (
        f"# Benchmarks, {datetime.now(UTC):%Y-%m-%d}\n\n"
        f"- hardware: {_processor()}, {_cpus()} CPUs visible, no GPU\n"
        f"- commit: {commit()}\n- versions: Python {platform.python_version()}, {versions}\n"
        f"- command: `python -m tests.benchmarks {shlex.join(sys.argv[1:])}`\n\n"
        "Ratio: ours over theirs, median of alternating repetitions in one run.\n"
    )


def _cpus() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


main()
