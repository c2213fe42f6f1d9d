"""Carry out many malformed inputs in nurseries, and sum up how they ended."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from storage import ROOT


class End(NamedTuple):
    """How a case ended."""

    kind: str
    seed: int
    number: int
    """Which of the cases of its kind and seed."""
    name: str
    words: list[str]
    """The command line."""
    code: int
    """Exit code; negative where a signal ended it."""
    seconds: float
    cpu: float
    """Seconds of a processor."""
    megabytes: int
    """Most memory that was held at once."""
    said: str
    """What it printed last."""
    origin: str
    """Where the error was raised; begins with LIB where that is no module of ours."""
    fault: str | None
    """What is wrong with this end; None where nothing is."""

    def __str__(self) -> str:
        again = f"tests.malformed.nursery {self.seed} {self.kind}={self.number + 1}"
        return (
            f"{self.fault}: {self.name}\n  {self.origin}\n  {self.said[-300:]!r}\n"
            f"  python -m {again} --first {self.number} --keep"
        )


def carry_out(folder: Path, seed: int, counts: Mapping[str, int], nurseries: int = 1) -> list[End]:
    """Carry out ``counts[kind]`` cases of each kind, in an empty folder.

    Raises:
        CalledProcessError: the ground could not be made, or a generator failed.
    """
    words = [f"{kind}={count}" for kind, count in counts.items()]
    # A credential of ours, or a server that answers, would make the same case end otherwise.
    kept = {"PATH", "HOME", "LANG", "LC_ALL", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
    environment = {name: os.environ[name] for name in kept & os.environ.keys()}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for first in map(str, range(nurseries)):
            (folder / first).mkdir()
            command = [sys.executable, "-m", "tests.malformed.nursery", str(seed), *words]
            command += ["--first", first, "--step", str(nurseries)]
            with (folder / first / "ends.jsonl").open("w") as file:
                started.append(
                    subprocess.Popen(command, cwd=folder / first, env=environment, stdout=file)
                )
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    if any(codes):
        raise subprocess.CalledProcessError(max(codes), "tests.malformed.nursery")
    paths = [folder / str(first) / "ends.jsonl" for first in range(nurseries)]
    lines = [line for path in paths for line in path.read_text("utf-8").splitlines()]
    return [End(**json.loads(line)) for line in lines]


def summary(ends: Iterable[End]) -> str:
    """Markdown: how many cases of each kind ended how, and every one that ended wrongly."""
    ends = list(ends)
    codes = {0: "carried out", 1: "refused (1)", 2: "refused (2)"}
    counts = Counter((end.kind, end.fault or codes[end.code]) for end in ends)
    lines = ["| kind | end | cases |", "|---|---|---|"]
    lines += [f"| {kind} | {end} | {count:,} |" for (kind, end), count in sorted(counts.items())]
    wrong = [str(end) for end in ends if end.fault is not None]
    cost = f"{len(ends):,} cases in {sum(end.cpu for end in ends):,.0f} s of a processor"
    most = max((end.megabytes for end in ends), default=0)
    return "\n".join([*lines, "", f"{cost}, at most {most:,} MB", "", *wrong])
