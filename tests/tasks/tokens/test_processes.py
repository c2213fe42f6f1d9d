"""Processes that encode give what this process would give, in order, and none is needed."""

import gc
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tasks.tokens import processes
from tasks.tokens.processes import Encoders, text_batches
from tasks.tokens.vocabulary import shared

if TYPE_CHECKING:
    from tests.tasks.conftest import Ground

pytest_plugins = ["tests.tasks.tiny_models"]

ROOT = Path(__file__).parents[3]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes are started for the first text, and are gone afterwards."""
    monkeypatch.setattr(processes, "START_CHARACTERS", 0)
    processes.encoder_pool.cache_clear()
    yield
    processes.encoder_pool.cache_clear()
    latest = time.monotonic() + 10
    while gc.collect() >= 0 and started():  # what was sent may still be worked at
        assert time.monotonic() < latest, "processes outlive their pool"
        time.sleep(0.05)


def started() -> list[int]:
    """Processes that encode."""
    return [
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and processes._ENTRY in child.cmdline()
    ]


def ready(tokenizer: Path) -> Encoders:
    """Encoders whose processes have been started."""
    found = Encoders(tokenizer, threads=2)
    assert found._pool is not None
    latest = time.monotonic() + 30
    while not found._pool.takes(["text"]):
        assert time.monotonic() < latest, "processes do not start"
        time.sleep(0.02)
    return found


@pytest.fixture
def groups(prose: Callable[..., list[str]]) -> list[list[str]]:
    """Batches of some texts, one of them empty."""
    return [prose(seed, num_documents=seed % 4) for seed in range(12)]


@pytest.mark.usefixtures("at_once")
def test_processes_give_the_same_in_the_same_order(
    tokenizer: Path, groups: list[list[str]]
) -> None:
    pooled = ready(tokenizer)
    here = shared(pooled.vocabulary)
    assert list(pooled.count(groups)) == [here.count(texts) for texts in groups]
    assert list(pooled.encode(groups)) == [here.encode(texts) for texts in groups]
    assert len(started()) == 2
    again = Encoders(tokenizer, threads=2)
    assert list(again.encode(groups)) == [here.encode(texts) for texts in groups]
    assert len(started()) == 2, "the next step has the same processes"


@pytest.mark.usefixtures("at_once")
def test_only_a_few_batches_are_taken_ahead(
    tokenizer: Path, prose: Callable[..., list[str]]
) -> None:
    taken = itertools.count(1)
    endless = (prose(number, num_documents=1) for number in taken)
    found = ready(tokenizer).count(endless)
    for _ in range(20):
        next(found)
    assert next(taken) <= 20 + 2 * 2 + 2


@pytest.mark.usefixtures("at_once")
def test_a_lost_process_is_replaced_by_this_one(
    tokenizer: Path, groups: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    pooled = ready(tokenizer)
    here = shared(pooled.vocabulary)
    with caplog.at_level(logging.WARNING):
        for number, counts in enumerate(pooled.count(groups)):
            assert counts == here.count(groups[number])
            if number == 3:
                for pid in started():
                    os.kill(pid, signal.SIGKILL)
        assert list(pooled.count(groups)) == [here.count(texts) for texts in groups]
    assert {record.name for record in caplog.records} == {"mixpool.encoders"}
    assert 1 <= len(caplog.records) <= 2, "each is told once"


@pytest.mark.usefixtures("at_once")
def test_a_process_that_went_home_is_started_again(
    tokenizer: Path,
    groups: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    entry = "import tasks.tokens.vocabulary as ids; ids.IDLE_SECONDS = 0; ids.serve()"
    monkeypatch.setattr(processes, "_ENTRY", entry)
    pooled = ready(tokenizer)
    expected = [shared(pooled.vocabulary).count(texts) for texts in groups]
    with caplog.at_level(logging.WARNING):
        assert list(pooled.count(groups)) == expected
    assert not caplog.records


def test_little_text_and_one_thread_start_nothing(
    tokenizer: Path, groups: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(Encoders(tokenizer, threads=2).count(groups))
    monkeypatch.setattr(processes, "START_CHARACTERS", 0)
    list(Encoders(tokenizer, threads=1).count(groups))
    assert not started()


def test_a_program_needs_no_guard_and_ends(tokenizer: Path, tmp_path: Path) -> None:
    """As multiprocessing's own processes need one, because they import the main module."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom tasks.tokens import processes\n"
        "processes.START_CHARACTERS = 0\n"
        "found = processes.Encoders(Path(sys.argv[1]), threads=2)\n"
        "print(sum(map(sum, found.count([['some text']] * 9))))\n"
    )
    command = [sys.executable, str(program), str(tokenizer)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    expected = 9 * shared(Encoders(tokenizer).vocabulary).count(["some text"])[0]
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_batches_are_cut_by_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BATCH_CHARACTERS", 5)
    assert list(text_batches(["abc", "de", "f", "ghijkl", "m"], str)) == [
        ["abc", "de"],
        ["f", "ghijkl"],
        ["m"],
    ]
    assert list(text_batches([], str)) == []


def test_counting_ahead_changes_nothing_that_is_stored(
    new_ground: Callable[[], "Ground"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents that stand twice, that are held out and that are left out among them."""
    found = []
    for ahead in (1, 10**9):
        monkeypatch.setattr(processes, "BATCH_CHARACTERS", ahead)
        ground = new_ground()
        ground.split |= {"partitions_per_domain": 2, "heldout_fraction": 0.2}
        for name in ("ant/0.jsonl", "bee/0.jsonl", "ant/1.jsonl"):
            ground.put(name, [f"{name[:4]} {n % 23} {'z' * (n % 7)}" for n in range(60)])
        first = ground.scan()
        ground.put("bee/1.jsonl", [f"{n} of a later file" for n in range(20)] * 2)
        of_time = {"files", "stamps", "created"}
        manifests = [seen.model_dump(exclude=of_time) for seen in (first, ground.scan())]
        kept = {path for path in ground.artifacts() if not path.endswith("stamps.json.gz")}
        found.append((manifests, kept))
    assert found[0] == found[1]
    assert first.counts["left out"]
    assert first.counts["known as train"]
