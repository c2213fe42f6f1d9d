"""The GPU's program works at tiny size on a CPU, also where there is no Prefect."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WITHOUT_PREFECT = """
import runpy, sys
sys.modules["prefect"] = None
sys.argv[0] = "gpu"
runpy.run_module("tests.benchmarks.gpu", run_name="__main__")
"""


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The program at tiny size, where no GPU is seen."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_PREFECT, *arguments],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_part_fills_its_table(tmp_path: Path) -> None:
    parts = ["train-130M", "train-1B", "sweep-16", "merge"]
    done = run(*parts, "--size", "tiny", "--write", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("cpu_*.md")
    text = written.read_text()
    assert text == done.stdout.removesuffix("\n")
    assert all(head in text for head in ("| training |", "| sweep |", "| merge |", "commit: "))
    widths = {
        line.split("|")[1].strip(): line.count("|") for line in text.splitlines() if "|" in line
    }
    for kind, columns in (("training", 13), ("sweep", 8), ("merge", 7)):
        assert widths[kind] == columns
    assert text.count("| tiny (") == 2
    assert "-130M-train-1B-sweep-16-merge" in written.name


@pytest.mark.slow
def test_compiled() -> None:
    done = run("train-130M-compiled", "--size", "tiny")
    assert done.returncode == 0, done.stderr
    assert "| on |" in done.stdout


def test_full_size_needs_a_gpu() -> None:
    done = run("merge")
    assert done.returncode == 2
    assert "there is no GPU: --size tiny" in done.stderr


def test_unknown_part() -> None:
    assert "invalid choice: 'trains'" in run("trains").stderr
