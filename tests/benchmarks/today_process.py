"""The processes of the comparison with today's tools, and what each one costs.

A cost is wall time and processor time (user and system, of the process and its threads): on a
machine that others use too, the second says more. The other side's environment is made once and
again when its requirements change; each process runs without a model hub and with its own caches.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.today_setup import TASK, Request

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("compare-requirements.txt")


@dataclass(frozen=True)
class Cost:
    """What some work took."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds, summed over threads."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.processor + other.processor)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.wall - other.wall, self.processor - other.processor)

    def __truediv__(self, count: int) -> "Cost":
        return Cost(self.wall / count, self.processor / count)


class Judged(NamedTuple):
    """Mixtures that were judged, and the cost of all of them."""

    cost: Cost
    bits_per_byte: list[float]


class Sweep(NamedTuple):
    """Our side: one process."""

    fixed: Cost
    """All but the mixtures: start of Python, imports, windows, reading the pool, the end."""
    mixtures: Judged


def compare_python() -> Path:
    """Python of the other environment, which is made if it is missing or has other requirements."""
    folder = Path(os.environ.get("TODAY_VENV", ROOT / ".venv-compare")).absolute()
    installed = folder / REQUIREMENTS.name
    python = folder / "bin" / "python"
    if not installed.exists() or installed.read_text() != REQUIREMENTS.read_text():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS], check=True
        )
        shutil.copyfile(REQUIREMENTS, installed)
    return python


def run(command: Sequence[str | Path], folder: Path) -> Cost:
    """Run a process in ``folder`` to its end.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    environment = os.environ | offline | {"PYTHONPATH": str(ROOT)}
    before, start = _children(), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    cost = Cost(time.perf_counter() - start, _children() - before)
    if done.returncode:
        said = done.stdout.decode(errors="replace")[-2000:]
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {said}")
    return cost


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_ours(request: Request) -> Sweep:
    """Our process: one sweep."""
    path = request.write(request.folder / "ours.json")
    whole = run([sys.executable, "-m", "tests.benchmarks.today_ours", path], request.folder)
    answer = json.loads(request.result.read_text())
    judged = _judged(answer)
    return Sweep(whole - judged.cost, judged)


def run_resident(request: Request, python: Path) -> dict[int, Judged]:
    """Both packages in one process: for each batch size of the request."""
    path = request.write(request.folder / "theirs.json")
    run([python, Path(__file__).with_name("today_theirs.py"), path], request.folder)
    answers = json.loads(request.result.read_text())
    return {int(batch): _judged(answer) for batch, answer in answers.items()}


def _judged(answer: dict[str, Any]) -> Judged:
    return Judged(Cost(answer["wall"], answer["processor"]), answer["bits_per_byte"])


def run_programs(request: Request, python: Path, names: list[str], batch: int) -> Judged:
    """One mixture as people do it: a process that merges, a process that evaluates."""
    folder = request.folder
    plan = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [
            {"model": str(request.models[name]), "parameters": {"weight": 1.0}} for name in names
        ],
    }
    # Every JSON document is a YAML document.
    (folder / "merge.yaml").write_text(json.dumps(plan))
    merge = run([python.with_name("mergekit-yaml"), "merge.yaml", "merged"], folder)
    evaluate = run(
        [
            python.with_name("lm_eval"),
            *("--model", "hf", "--model_args", "pretrained=merged,dtype=float32"),
            *("--tasks", TASK, "--include_path", request.task),
            *("--batch_size", str(batch), "--device", "cpu", "--output_path", "found"),
        ],
        folder,
    )
    (found,) = (folder / "found").rglob("results_*.json")
    bits = json.loads(found.read_text())["results"][TASK]["bits_per_byte,none"]
    for name in ("merged", "found"):
        shutil.rmtree(folder / name)
    return Judged(merge + evaluate, [bits])
