"""Rows of the losses table stay: beside other writers, after other runs, and not if a bit flips."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from storage.artifact import CorruptError
from storage.backends.local import LocalBackend
from storage.fingerprint import canonical, fingerprint
from storage.stamp import is_intact
from storage.store import Store
from tasks.evaluation.losses import LossRow
from tasks.evaluation.losses_file import decode, encode, part_facts
from tasks.evaluation.losses_table import VERSION, EvaluateConfig, LossesTable, identity
from tasks.mixtures.mixture import Mixture

pytest_plugins = ["tests.tasks.tiny_models"]

ROOT = Path(__file__).parents[3]

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
LOSS = st.floats(0, 1e12)
ROWS = st.lists(
    st.builds(LossRow, TEXT, TEXT, TEXT, TEXT, LOSS, st.lists(LOSS, max_size=4)), max_size=5
)


def row(mixture: str, windows: str = "w", nll: float = 1.5) -> LossRow:
    """A row with two groups."""
    return LossRow(mixture, windows, f"label of {mixture}", f"set {windows}", nll, [nll, 0.0])


def part_of(store: Store, number: int = 0) -> str:
    """Path of a part of the only table."""
    (found,) = [p for p in store.backend.list("losses") if p.endswith(f"{number:06d}.parquet")]
    return found


@cases(ROWS)
def test_rows_come_back(rows: list[LossRow]) -> None:
    data = encode(rows, {"cost": {"seconds": 1.0}})
    assert is_intact(data)
    assert decode(data) == rows
    assert part_facts(data) == {"cost": {"seconds": 1.0}}


def test_append_and_read_back(memory_store: Store) -> None:
    table = LossesTable(memory_store, EvaluateConfig())
    assert len(table) == 0
    table.append([row("a"), row("b")], {"seconds": 2.0, "device": "cpu"})
    table.append([row("a", "v", 3.0)], {"seconds": 1.0})
    for found in (table, LossesTable(memory_store, EvaluateConfig())):
        assert len(found) == 3
        assert found["a", "v"] == row("a", "v", 3.0)
        assert ("b", "w") in found
        assert ("b", "v") not in found
        assert [cost["seconds"] for cost in found.costs()] == [2.0, 1.0]


def test_the_first_row_of_a_pair_stands(memory_store: Store) -> None:
    table = LossesTable(memory_store, EvaluateConfig())
    late = LossesTable(memory_store, EvaluateConfig())
    table.append([row("a", nll=1.0)], {})
    late.append([row("a", nll=2.0), row("b", nll=2.0)], {})
    table.refresh()
    for found in (table, late, LossesTable(memory_store, EvaluateConfig())):
        assert found["a", "w"].nll == 1.0
        assert found["b", "w"].nll == 2.0


def test_parts_are_read_once(memory_store: Store) -> None:
    table = LossesTable(memory_store, EvaluateConfig())
    table.append([row("a")], {})
    path = part_of(memory_store)
    memory_store.backend.put(path, b"rubbish")
    table.refresh()
    assert path in memory_store.backend.list("losses")
    assert ("a", "w") in table


def test_other_ways_of_evaluating_have_other_tables(memory_store: Store) -> None:
    configs = [
        EvaluateConfig(),
        EvaluateConfig(average="float32"),
        EvaluateConfig(precision="bfloat16"),
    ]
    tables = [LossesTable(memory_store, config) for config in configs]
    tables[0].append([row("a")], {})
    assert len({table.key for table in tables}) == 3
    assert [len(LossesTable(memory_store, config)) for config in configs] == [1, 0, 0]
    pre_image = {"version": VERSION, "config": canonical(configs[0])}
    assert tables[0].key == fingerprint("evaluation", pre_image)


def test_a_part_of_another_way_of_evaluating_is_not_taken(memory_store: Store) -> None:
    other = LossesTable(memory_store, EvaluateConfig(precision="bfloat16"))
    other.append([row("a")], {"seconds": 1.0})
    table = LossesTable(memory_store, EvaluateConfig())
    moved = memory_store.backend.read(f"losses/{other.key}/000000.parquet")
    memory_store.backend.create(f"losses/{table.key}/000000.parquet", moved)
    table.refresh()
    assert len(table) == 0
    assert memory_store.chain(f"losses/{table.key}") == []


def test_identity_is_members_and_proportions() -> None:
    assert identity(Mixture.of({"a": 2, "b": 2})) == identity(Mixture.of({"b": 1, "a": 1}))
    assert identity(Mixture.of({"a": 2, "b": 1})) != identity(Mixture.of({"a": 1, "b": 2}))
    assert identity(Mixture.uniform(["a"])) != identity(Mixture.uniform(["b"]))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_two_writers_lose_nothing(kind: str, memory_store: Store, tmp_path: Path) -> None:
    store = memory_store if kind == "memory" else Store(str(tmp_path))

    def write(writer: int) -> None:
        table = LossesTable(store, EvaluateConfig())
        for number in range(8):
            table.append([row(f"{writer} {number}"), row("both", nll=float(writer))], {})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    tables = [LossesTable(store, EvaluateConfig()) for _ in range(2)]
    assert len(tables[0]) == 4 * 8 + 1
    assert len(tables[0].costs()) == 4 * 8
    assert tables[0]["both", "w"] == tables[1]["both", "w"]
    numbers = [int(Path(path).stem) for path in store.chain(f"losses/{tables[0].key}")]
    assert numbers == list(range(4 * 8))


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    script = """
import sys
from storage.store import Store
from tasks.evaluation.losses_table import EvaluateConfig, LossesTable, LossRow
table = LossesTable(Store(sys.argv[1]), EvaluateConfig())
for number in range(10):
    table.append([LossRow(f"{sys.argv[2]} {number}", "w", "l", "s", 1.0, [1.0])], {})
"""
    Store(str(tmp_path))
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name], cwd=ROOT)
        for name in "ab"
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    table = LossesTable(Store(str(tmp_path)), EvaluateConfig())
    assert len(table) == 20
    assert all((f"{name} {number}", "w") in table for name in "ab" for number in range(10))


PART = encode([row("a"), row("b")], {"cost": {"seconds": 1.0}})


@cases(st.integers(0, 8 * len(PART) - 1))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    data = bytearray(PART)
    data[bit // 8] ^= 1 << bit % 8
    assert not is_intact(bytes(data))


@cases(st.integers(0, len(PART) - 1))
def test_a_part_that_was_cut_is_noticed(size: int) -> None:
    assert not is_intact(PART[:size])


@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_part_is_set_aside_and_made_anew(
    number: int, memory_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Also by the run that found it, whose next part may get the number that became free."""
    table = LossesTable(memory_store, EvaluateConfig())
    for name in ("a", "b"):
        table.append([row(name)], {})
    path = part_of(memory_store, number)
    data = bytearray(memory_store.backend.read(path))
    data[len(data) // 2] ^= 4
    memory_store.backend.put(path, bytes(data))
    with caplog.at_level(logging.WARNING):
        again = LossesTable(memory_store, EvaluateConfig())
    lost, kept = ("a", "b") if number == 0 else ("b", "a")
    assert path in caplog.text
    assert (lost, "w") not in again
    assert (kept, "w") in again
    assert path not in memory_store.backend.list("losses")
    (aside,) = memory_store.backend.list("work/set-aside")
    assert memory_store.backend.read(aside) == bytes(data)
    again.append([row(lost, nll=7.0)], {})
    for found in (again, LossesTable(memory_store, EvaluateConfig())):
        assert found[lost, "w"].nll == 7.0
        assert found[kept, "w"].nll == 1.5


def test_a_part_can_be_read_by_anybody(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    LossesTable(store, EvaluateConfig()).append([row("a"), row("b", nll=2.5)], {})
    frame = pd.read_parquet(tmp_path / part_of(store))
    assert frame["nll"].tolist() == [1.5, 2.5]
    assert frame["label"].tolist() == ["label of a", "label of b"]
    assert [list(values) for values in frame["group_nll"]] == [[1.5, 0.0], [2.5, 0.0]]


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_rows_of_any_mixtures_and_sets(kind: str, memory_store: Store, tmp_path: Path) -> None:
    """In the order asked for, under the names asked for, from parts in any order."""
    store = memory_store if kind == "memory" else Store(str(tmp_path))
    table = LossesTable(store, EvaluateConfig())
    for part in (["b", "a"], ["c"], ["a", "d"]):
        rows = [row(name, w, ord(name) + len(w)) for name in part for w in ("w", "vv")]
        table.append(rows, {"seconds": 1.0})
    names, labels = ["c", "a", "b", "a"], ["C", "A", "B", "again"]
    for found in (table, LossesTable(store, EvaluateConfig())):
        read = found.rows(names, labels, {"second": "vv", "first": "w"}, str(tmp_path))
        assert list(read) == [
            LossRow(name, w, label, s, ord(name) + len(w), [ord(name) + len(w), 0.0])
            for name, label in zip(names, labels, strict=True)
            for s, w in (("second", "vv"), ("first", "w"))
        ]
        assert len(read) == 8
        assert found.lacking(["e", "a", "d"], ["w", "vv"]) == [0]
        assert found.lacking(["a"], ["w", "other"]) == [0]
        assert found.lacking(["a"], ["vv"]) == []
        with pytest.raises(KeyError, match=r"E.*first"):
            found.rows(["a", "e"], ["A", "E"], {"first": "w"})


def test_first_row_of_a_pair_stands_within_a_part(memory_store: Store) -> None:
    table = LossesTable(memory_store, EvaluateConfig())
    table.append([row("a", nll=1.0), row("b"), row("a", nll=2.0)], {})
    assert len(table) == 2
    assert table["a", "w"].nll == 1.0
    assert table.rows(["a"], ["A"], {"s": "w"}).nll.tolist() == [[1.0]]


def test_a_part_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    table = LossesTable(store, EvaluateConfig())
    table.append([row("a")], {})
    store.backend.put(part_of(store), b"rubbish")
    with pytest.raises(CorruptError, match=r"000000\.parquet was changed while this run used it"):
        table.rows(["a"], ["A"], {"s": "w"})


def test_rows_with_other_groups_are_refused(memory_store: Store) -> None:
    table = LossesTable(memory_store, EvaluateConfig())
    table.append([row("a"), row("b")._replace(group_nll=[1.5])], {})
    with pytest.raises(ValueError, match="1 and 2 groups of documents"):
        table.rows(["a", "b"], ["A", "B"], {"s": "w"})


class Counting(LocalBackend):
    """Remembers which parts were read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(fsspec.filesystem("file"), str(folder))
        self.told: list[str] = []

    def read(self, path: str) -> bytes:
        self.told.append(path)
        return super().read(path)


def test_what_a_run_writes_itself_is_not_read_back(tmp_path: Path) -> None:
    backend = Counting(tmp_path)
    table = LossesTable(Store(str(tmp_path), backend=backend), EvaluateConfig())
    for number in range(5):
        table.append([row(str(number))], {})
        table.refresh()
    assert not [path for path in backend.told if path.endswith(".parquet")]
    assert len(table) == 5


def test_a_part_that_vanishes_while_it_is_read(memory_store: Store) -> None:
    """Another run sets a damaged part aside between this run's listing and its reading."""
    table = LossesTable(memory_store, EvaluateConfig())
    table.append([row("a")], {})
    path = part_of(memory_store)
    chain = memory_store.chain

    def listed_before(folder: str, *, after: int = -1) -> list[str]:
        found = chain(folder, after=after)
        memory_store.backend.delete(path)
        return found

    memory_store.chain = listed_before  # type: ignore[method-assign]
    assert len(LossesTable(memory_store, EvaluateConfig())) == 0
