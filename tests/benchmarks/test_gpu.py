"""The GPU's program works at tiny size on a CPU, also where there is no Prefect."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

CALLS = {
    "every part": ["train-130M", "train-1B", "sweep-16", "merge", "--size", "tiny", "--write"],
    "compiled": ["train-130M-compiled", "--size", "tiny"],
    "full size": ["merge"],
    "unknown part": ["trains"],
}

WITHOUT_PREFECT = """
import contextlib, functools, io, json, runpy, sys, torch
sys.modules["prefect"] = None
# Only the compiler behind the front end is another: the usual one takes half a minute.
torch.compile = functools.partial(torch.compile, backend="aot_eager")
done, calls = {}, json.loads(sys.argv[1])
for name, arguments in calls.items():
    sys.argv, status = ["gpu", *arguments], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module("tests.benchmarks.gpu", run_name="__main__")
        except SystemExit as ended:
            status = ended.code
    done[name] = [status, out.getvalue(), err.getvalue()]
print(json.dumps(done))
"""


class Done(NamedTuple):
    """How a call of the program ended."""

    status: int
    out: str
    err: str


class Calls(NamedTuple):
    """What each call did, and the folder for results."""

    done: dict[str, Done]
    folder: Path


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    """The program at tiny size, where no GPU is seen: all calls in one process."""
    folder = tmp_path_factory.mktemp("results")
    wanted = {**CALLS, "every part": [*CALLS["every part"], str(folder)]}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PREFECT, json.dumps(wanted)],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {name: Done(*ended) for name, ended in json.loads(done.stdout).items()}
    return Calls(found, folder)


def test_every_part_fills_its_table(calls: Calls) -> None:
    done = calls.done["every part"]
    assert done.status == 0, done.err
    (written,) = calls.folder.glob("cpu_*.md")
    text = written.read_text()
    assert text == done.out.removesuffix("\n")
    assert all(head in text for head in ("| training |", "| sweep |", "| merge |", "commit: "))
    widths = {
        line.split("|")[1].strip(): line.count("|") for line in text.splitlines() if "|" in line
    }
    for kind, columns in (("training", 13), ("sweep", 8), ("merge", 7)):
        assert widths[kind] == columns
    assert text.count("| tiny (") == 2
    assert "-130M-train-1B-sweep-16-merge" in written.name


def test_compiled(calls: Calls) -> None:
    done = calls.done["compiled"]
    assert done.status == 0, done.err
    assert "| on |" in done.out


def test_full_size_needs_a_gpu(calls: Calls) -> None:
    done = calls.done["full size"]
    assert done.status == 2
    assert "there is no GPU: --size tiny" in done.err


def test_unknown_part(calls: Calls) -> None:
    assert "invalid choice: 'trains'" in calls.done["unknown part"].err
