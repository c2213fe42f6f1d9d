"""A scan that is overtaken, killed or cut off from its store changes nothing of what scans decide."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING, Any

import pytest

from storage.backends.backend import MemoryBackend
from storage.store import Store
from tasks.partitions.manifest import Manifest

if TYPE_CHECKING:
    from tests.tasks.conftest import Ground

ROOT = Path(__file__).parents[3]


def many(count: int, name: str = "text") -> list[str]:
    """Texts of 20 bytes, which are 21 tokens."""
    return [f"{name} {number:04d} ".ljust(20, ".") for number in range(count)]


@pytest.mark.parametrize("early", [True, False])
def test_of_two_scans_at_once_the_second_starts_over_from_the_first(
    ground: "Ground", early: bool
) -> None:
    """One scan is overtaken in its middle, by one that sees a file more or the same files."""
    ground.split |= {"heldout_fraction": 0.2, "base_fraction": 0.2}
    ground.put("ant/0.jsonl", many(30, "ant"))
    ground.put("bee/0.jsonl", many(30, "bee"))
    told: list[int] = []
    inner: list[Manifest] = []

    def overtake(done: int, total: int, _unit: str) -> None:
        if not told and (done == total) != early:
            told.append(done)
            if early:
                ground.put("aaa/0.jsonl", many(30, "aaa"))
            inner.append(ground.scan(ground.opened()))

    outer = ground.scan(progress=overtake)
    assert inner == [outer]
    assert len(ground.manifests()) == 1
    assert ("aaa" in outer.domains) == early


def test_scans_in_many_threads_assign_everything_once(
    ground: "Ground", new_ground: Callable[[], "Ground"]
) -> None:
    alone = new_ground()
    stores = [ground.opened() for _ in range(4)]
    for round_number in range(2):
        for where in (ground, alone):
            where.put(f"ant/{round_number}.jsonl", many(30, f"ant {round_number}"))
            where.put(f"bee/{round_number}.jsonl", many(30, f"bee {round_number}"))
        barrier = threading.Barrier(len(stores))

        def run(store: Store, barrier: threading.Barrier = barrier) -> Manifest:
            barrier.wait()
            return ground.scan(store)

        with ThreadPoolExecutor(len(stores)) as pool:
            found = list(pool.map(run, stores))
        expected = alone.scan()
        assert all(comparable(one) == comparable(expected) for one in found)
        assert len(ground.manifests()) == round_number + 1


SCAN = """
import os, sys
sys.path.insert(0, "tests/tasks")
from pathlib import Path
from conftest import Ground
from storage.backends.local import LocalBackend

class Dying(LocalBackend):
    left = int(sys.argv[2])

    def create(self, path, data):
        self.count()
        return super().create(path, data)

    def create_from(self, path, source):
        self.count()
        return super().create_from(path, source)

    def count(self):
        Dying.left -= 1
        if Dying.left == 0:
            os._exit(7)

folder = Path(sys.argv[1])
ground = Ground(folder, str(folder / "store"))
ground.split |= {"heldout_fraction": 0.2, "base_fraction": 0.2}
backend = ground.store.backend
ground.store.backend = Dying(backend.fs, backend.root)
sys.stdin.readline()
print(ground.scan().model_dump_json())
"""


def start(ground: "Ground", die_at: int = -1) -> "Popen[str]":
    """A scan in another process, which waits for a line before it begins."""
    command = [sys.executable, "-c", SCAN, str(ground.folder), str(die_at)]
    return Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)


def test_scans_in_two_processes_end_with_one_manifest(disk: "Ground") -> None:
    disk.split |= {"heldout_fraction": 0.2, "base_fraction": 0.2}
    disk.put("ant/0.jsonl", many(60))
    processes = [start(disk), start(disk)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [Manifest.model_validate_json(process.communicate()[0]) for process in processes]
    assert found == [disk.scan()] * 2
    assert len(disk.manifests()) == 1


class LostDiskError(Exception):
    """The store cannot be written any more."""


class Failing(Store):
    """A store in memory that can be written so many times, and then no more."""

    def __init__(self, ground: "Ground", writes: int) -> None:
        super().__init__(ground.url, ground.folder / "cache")
        self.backend = FailingBackend(self.backend.fs, self.backend.root)
        self.backend.left = writes


class FailingBackend(MemoryBackend):
    """Every write of new content goes through ``create``."""

    left = 0

    def create(self, path: str, data: bytes) -> bool:
        if self.left == 0:
            raise LostDiskError
        self.left -= 1
        return super().create(path, data)


@pytest.fixture
def grown(new_ground: Callable[[], "Ground"]) -> Callable[[], Iterator["Ground"]]:
    """Grounds on which one scan is done and a second has everything to do."""

    def make() -> Iterator["Ground"]:
        while True:
            ground = new_ground()
            ground.split |= {"heldout_fraction": 0.2, "base_fraction": 0.1}
            ground.put("ant/0.jsonl", many(22, "ant"))
            ground.scan()
            ground.put("ant/1.jsonl", many(22, "more"))
            ground.put("bee/0.jsonl", many(11, "bee"))
            ground.sets = [ground.own_set("own", ["own text"])]
            ground.fields["withdraw"] = [
                ground.digest(many(22, "ant")[number]) for number in (1, 9)
            ]
            yield ground

    return make


def test_a_scan_that_dies_at_any_write_leaves_a_store_that_goes_on(
    grown: Callable[[], Iterator["Ground"]],
) -> None:
    (undisturbed,) = islice(grown(), 1)
    expected = undisturbed.scan()
    names = made(undisturbed)
    for writes, ground in enumerate(grown()):
        try:
            ground.scan(Failing(ground, writes))
        except LostDiskError:
            found = ground.scan(ground.opened())
        else:
            break
        assert comparable(found) == comparable(expected)
        assert made(ground) == names
    assert writes > 20


def comparable(found: Manifest) -> dict[str, Any]:
    """A manifest without what tells where corpus and evaluation sets lie, and since when."""
    plain = found.model_dump(exclude={"created", "stamps", "base_seen"})
    plain["files"] = sorted(plain["files"])
    for entry in plain["sets"]:
        del entry["identity"], entry["seen"]
    return plain


def made(ground: "Ground") -> set[str]:
    """Every file of an artifact, but for stamps, which are another disk's."""
    stamps = {record.output.prefix for record in ground.store.records("stamps")}
    return {path for path in ground.artifacts() if not path.startswith(tuple(stamps))}


@pytest.mark.parametrize("write", [4, 15])
def test_a_killed_process_leaves_a_store_that_goes_on(
    disk: "Ground", tmp_path: Path, write: int
) -> None:
    disk.split |= {"heldout_fraction": 0.2, "base_fraction": 0.2}
    disk.put("ant/0.jsonl", many(60))
    process = start(disk, die_at=write)
    process.communicate("go\n")
    assert process.returncode == 7
    assert disk.manifests() == []
    alone = type(disk)(tmp_path / "alone", str(tmp_path / "alone" / "store"))
    alone.split = disk.split
    alone.put("ant/0.jsonl", many(60))
    assert comparable(disk.scan()) == comparable(alone.scan())
