"""`python -m tests.benchmarks [store] [s3] [train] [sweep]`: each as a ratio to its floor.

Both sides of a ratio are measured in alternation in one process, so that a noisy machine disturbs
both alike; shown are medians and the spread (lowest and highest) over the repetitions. Results go to
the terminal and, with ``--write FOLDER``, to a Markdown file named by the hardware and the month.
"""

import argparse
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from storage.provenance import commit, provenance
from tests.benchmarks import s3, store, sweep, train
from tests.benchmarks.measure import Ratio

SUITES = {"store": store.measure, "s3": s3.measure, "train": train.measure, "sweep": sweep.measure}


def main() -> None:
    """Run the named suites and print one table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=7, help="alternations (default 7)")
    parser.add_argument("--write", type=Path, help="folder for a Markdown file of the results")
    arguments = parser.parse_args()
    ratios = [
        ratio for name in arguments.suites or SUITES for ratio in SUITES[name](arguments.repeats)
    ]
    text = table(ratios)
    print(text)
    if arguments.write:
        name = f"{platform.machine()}-{_cpus()}cpu_{datetime.now(UTC):%Y-%m}.md"
        (arguments.write / name).write_text(f"{heading()}\n{text}\n")


def table(ratios: list[Ratio]) -> str:
    """A Markdown table of the ratios."""
    lines = [
        "| what | against (the floor) | ratio | spread | ours | floor |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.what} | {r.against} | {r.median:.2f} | {r.low:.2f} to {r.high:.2f} "
        f"| {r.ours * 1e3:.1f} ms | {r.floor * 1e3:.1f} ms |"
        for r in ratios
    ]
    return "\n".join(lines)


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
        "Ratio: our time over the floor's, median of alternating repetitions in one process.\n"
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
