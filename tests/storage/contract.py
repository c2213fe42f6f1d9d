"""One contract for every kind of store, and a back door that does not use the code under test.

``StoreContract`` holds the tests; a kind of store is a subclass that gives a URL and a back door.
"""

import contextlib
import dataclasses
import json
import logging
import random
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import pytest

from storage import audit
from storage.artifact import FORMAT, CorruptError, Record, describe, digest_of, seal, step_key
from storage.backends.backend import Backend
from storage.backends.names import OutsideError
from storage.backends.urls import open_backend
from storage.records import StoreFormatError
from storage.store import CorruptArtifactError, Store

FILES = {"config.json": b'{"a": 1}', "sub/weights.bin": bytes(range(256)) * 8, "tail": b"end"}
CONFIG = {"rate": 1.5e300, "name": "größe", "deep": [{"on": True, "none": None}], "steps": 10}


class BackDoor(Protocol):
    """Reads and damages the bytes of a store without the code under test."""

    def read(self, path: str) -> bytes: ...

    def write(self, path: str, data: bytes) -> None: ...

    def delete(self, path: str) -> None: ...

    def paths(self) -> list[str]: ...


@dataclasses.dataclass
class Client:
    """What a test works with: a store, the back door to it, and room for folders."""

    url: str
    door: BackDoor
    room: Path

    def open(self, cache: str = "cache", *, create: bool = True) -> Store:
        return Store(self.url, self.room / cache, create=create)

    def folder(self, name: str, files: dict[str, bytes]) -> Path:
        for path, data in files.items():
            target = self.room / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return self.room / name

    def made(self, name: str = "made", files: dict[str, bytes] = FILES, **more: Any) -> "Made":
        folder = self.folder(name, files)
        return Made(record_of(folder, **more), folder)


@dataclasses.dataclass
class Made:
    """A step's output and the record of it, before they are committed."""

    record: Record
    folder: Path

    def commit(self, store: Store) -> Record:
        return store.commit(self.record, self.folder)


def record_of(
    folder: Path, label: str = "a label", config: Any = CONFIG, kind: str = "model"
) -> Record:
    inputs = {"tokens": "cd" * 32}
    return Record(
        step="train",
        version=1,
        key=step_key("train", 1, config, inputs),
        label=label,
        config=config,
        inputs=inputs,
        output=describe(kind, folder),
        cost={"seconds": 12.5},
    )


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


DAMAGES: dict[str, Callable[[BackDoor, str], None]] = {
    "first bit": lambda door, path: door.write(path, flipped(door.read(path), 0)),
    "last bit": lambda door, path: door.write(
        path, flipped(door.read(path), 8 * len(door.read(path)) - 1)
    ),
    "truncated": lambda door, path: door.write(path, door.read(path)[:-1]),
    "extended": lambda door, path: door.write(path, door.read(path) + b"\0"),
    "emptied": lambda door, path: door.write(path, b""),
    "deleted": lambda door, path: door.delete(path),
}


OUTSIDE = [
    "../outside",
    "/outside",
    "a/../../outside",
    "a//b",
    "a/.",
    "./a",
    "..",
    ".",
    "a\\b",
    "a\0b",
]
"""Names that lead out of a folder somewhere."""


def assert_refused(backend: Backend, name: str, file: Path) -> None:
    """Every operation refuses the name, and ``file`` is not written."""
    file.write_bytes(b"mine")
    operations: list[Callable[[], object]] = [
        lambda: backend.read(name),
        lambda: backend.look(name),
        lambda: backend.exists(name),
        lambda: backend.fetch(name, file),
        lambda: backend.create(name, b"1"),
        lambda: backend.create_from(name, file),
        lambda: backend.create_each({name: file}),
        lambda: backend.put(name, b"1"),
        lambda: backend.put_from(name, file),
        lambda: backend.swap(name, b"", b"1"),
        lambda: backend.delete(name),
        lambda: backend.delete_each([name]),
        lambda: backend.list(name),
        lambda: backend.names(name),
    ]
    if backend.local("x") is not None:
        operations.append(lambda: backend.local(name))
    for operation in operations:
        with pytest.raises(OutsideError):
            operation()
    assert file.read_bytes() == b"mine"


class StoreContract:
    """What every store must do, whatever lies under it."""

    stride = 1
    """Of the many edits of a record, every so-manieth is tried."""

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def door(self, url: str) -> BackDoor:
        raise NotImplementedError

    @pytest.fixture
    def client(self, url: str, door: BackDoor, tmp_path: Path) -> Client:
        return Client(url, door, tmp_path / "room")

    @pytest.fixture
    def backend(self, url: str) -> Backend:
        return open_backend(url)

    # The few operations under it ---------------------------------------------------------------

    def test_of_16_racing_threads_exactly_one_creates(
        self, backend: Backend, door: BackDoor, tmp_path: Path
    ) -> None:
        for turn in range(5):
            start = threading.Barrier(16)

            def attempt(number: int, path: str = f"race/{turn}", start: Any = start) -> bool:
                source = tmp_path / str(number)
                source.write_bytes(b"%d" % number * 10_000)
                start.wait()
                if number % 2:
                    return backend.create(path, source.read_bytes())
                return backend.create_from(path, source)

            with ThreadPoolExecutor(16) as pool:
                won = list(pool.map(attempt, range(16)))
            assert won.count(True) == 1
            assert door.read(f"race/{turn}") == b"%d" % won.index(True) * 10_000

    def test_a_second_create_changes_nothing(
        self, backend: Backend, door: BackDoor, tmp_path: Path
    ) -> None:
        (tmp_path / "other").write_bytes(b"other")
        assert backend.create("x/y", b"")
        assert not backend.create("x/y", b"other")
        assert not backend.create_from("x/y", tmp_path / "other")
        assert door.read("x/y") == b""

    def test_a_reader_never_sees_half_of_a_put(self, backend: Backend, tmp_path: Path) -> None:
        size = 1 << 20
        for letter in "ab":
            (tmp_path / letter).write_bytes(letter.encode() * size)
        backend.put("big", b"a" * size)
        stop = threading.Event()

        def read() -> set[tuple[int, bytes]]:
            seen = set()
            while not stop.is_set():
                data = backend.read("big")
                seen.add((len(data), bytes(sorted(set(data[:: size // 64] + data[-1:])))))
                backend.fetch("big", tmp_path / "copy")
                data = (tmp_path / "copy").read_bytes()
                seen.add((len(data), bytes(sorted(set(data[:: size // 64] + data[-1:])))))
            return seen

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            for turn in range(40):
                letter = "ab"[turn % 2]
                backend.put_from("big", tmp_path / letter)
                backend.put("big", letter.encode() * size)
            stop.set()
        assert reading.result() <= {(size, b"a"), (size, b"b")}

    def test_many_threads_fetch_one_file_at_once(self, backend: Backend, tmp_path: Path) -> None:
        data = bytes(range(256)) * 40_000
        backend.create("big", data)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: backend.fetch("big", tmp_path / str(n)), range(16)))
        assert all((tmp_path / str(n)).read_bytes() == data for n in range(16))

    def test_listing_is_sorted_relative_and_only_of_the_folder(self, backend: Backend) -> None:
        for path in ("a/b/2", "a/b/1", "a/bc", "b/1"):
            backend.create(path, path.encode())
        assert list(backend.list("a/b")) == ["a/b/1", "a/b/2"]
        assert list(backend.list("a")) == ["a/b/1", "a/b/2", "a/bc"]
        assert [info.num_bytes for info in backend.list("a").values()] == [5, 5, 4]
        assert backend.list("nothing") == {}

    def test_names_are_listed_from_one_on(self, backend: Backend) -> None:
        paths = [f"a/{number:06d}.x" for number in (1, 2, 10)]
        for path in ("ab/1", *paths):
            backend.create(path, b"")
        assert [*backend.names("a")] == paths
        assert [*backend.names("a", "a/000001.x")] == paths[1:]
        assert [*backend.names("a", "a/000002")] == paths[1:]
        assert [*backend.names("a", "a/000010.x")] == []
        assert [*backend.names("nothing", "nothing/1")] == []

    def test_what_is_not_there(self, backend: Backend, tmp_path: Path) -> None:
        backend.delete("none")
        with pytest.raises(FileNotFoundError):
            backend.read("none")
        with pytest.raises(FileNotFoundError):
            backend.fetch("none", tmp_path / "copy")
        assert backend.list("") == {}

    def test_the_age_of_a_file_is_told_by_the_clock_that_stamps_it(self, backend: Backend) -> None:
        backend.put("x", b"1")
        young = backend.look("x")
        assert young.data == b"1"
        assert -1.5 <= young.age <= 1.5
        time.sleep(2.2)
        assert 1 <= backend.look("x").age - young.age <= 4.5
        assert set(backend.list("")) == {"x"}
        with pytest.raises(FileNotFoundError):
            backend.look("y")

    def test_only_what_is_expected_is_swapped(self, backend: Backend, door: BackDoor) -> None:
        assert not backend.swap("x", b"1", b"2")
        backend.create("x", b"1")
        assert not backend.swap("x", b"0", b"2")
        assert door.read("x") == b"1"
        assert backend.swap("x", b"1", b"2")
        assert backend.swap("x", b"2", b"2")
        assert door.read("x") == b"2"
        backend.delete("x")
        assert not backend.swap("x", b"2", b"2")
        assert not backend.exists("x")

    def test_many_files_at_once(self, backend: Backend, door: BackDoor, tmp_path: Path) -> None:
        names = [f"many/{n} %20ü" for n in range(300)]
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(name.encode())
        backend.create(names[7], b"first")
        assert backend.create_each({name: tmp_path / name for name in names}) == [names[7]]
        backend.delete_each([names[8], "never there"])
        expected = {name: name.encode() for name in names} | {names[7]: b"first", names[8]: None}
        asked = [*names[::-1], "none"]
        assert [*backend.read_each(asked)] == [(name, expected.get(name)) for name in asked]
        assert sorted(door.paths()) == sorted({*names} - {names[8]})
        assert backend.exists(names[7])
        assert not backend.exists(names[8])
        assert not backend.exists("many")

    def test_creating_listing_and_deleting_do_not_disturb_each_other(
        self, backend: Backend
    ) -> None:
        def work(number: int) -> None:
            for turn in range(40):
                path = f"work/a/b/{number}.{turn}"
                assert backend.create(path, b"x")
                assert path in backend.list("work")
                backend.delete(path)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert backend.list("") == {}

    @pytest.mark.parametrize("name", OUTSIDE)
    def test_no_operation_takes_a_name_that_might_lead_out(
        self, backend: Backend, door: BackDoor, tmp_path: Path, name: str
    ) -> None:
        backend.create("x/y", b"1")
        assert_refused(backend, name, tmp_path / "file")
        assert door.paths() == ["x/y"]

    # Opening -----------------------------------------------------------------------------------

    def test_a_missing_store_is_made_or_is_an_error(self, client: Client) -> None:
        with pytest.raises(StoreFormatError, match="there is no store at"):
            client.open(create=False)
        assert client.door.paths() == []
        client.open()
        client.open(create=False)
        assert client.door.paths() == ["store.json"]

    def test_a_store_of_a_newer_format_is_refused(self, client: Client) -> None:
        client.open()
        client.door.write("store.json", seal({"format": FORMAT + 1}))
        with pytest.raises(StoreFormatError, match="upgrade mixpool"):
            client.open()

    def test_an_edited_store_file_is_refused(self, client: Client) -> None:
        client.open()
        edited = client.door.read("store.json").replace(b'"format": 1', b'"format": 0')
        client.door.write("store.json", edited)
        with pytest.raises(CorruptError, match=r"store\.json was changed"):
            client.open()

    def test_the_backend_refuses_a_second_create(self, client: Client) -> None:
        client.open().check()

    # Commit and find ---------------------------------------------------------------------------

    def test_what_was_committed_is_found_by_every_client(self, client: Client) -> None:
        made, store, early = client.made(), client.open(), client.open()
        key = made.record.key
        assert store.find("train", key) is early.find("train", key) is None
        assert made.commit(store) == made.record
        for other in (store, client.open()):
            assert other.find("train", key) == made.record
            assert content(other.fetch(made.record.output)) == FILES
        assert early.find("train", key, fresh=True) == made.record
        assert list(store.records("train")) == list(store.records()) == [made.record]

    def test_files_lie_as_documented_and_hold_what_was_given(self, client: Client) -> None:
        made = client.made()
        made.commit(client.open())
        prefix = f"artifacts/model/{made.record.output.digest}"
        for name, data in FILES.items():
            assert client.door.read(f"{prefix}/{name}") == data
        record = f"records/train/a-label.{made.record.key}.json"
        assert json.loads(client.door.read(record))["content"]["config"] == CONFIG
        assert sorted(client.door.paths()) == sorted(
            [*(f"{prefix}/{name}" for name in FILES), record, "store.json"]
        )

    @pytest.mark.parametrize("label", ["a label", "zebra", "0 sorts first"])
    def test_the_second_committer_gets_the_first_ones_record(
        self, client: Client, label: str
    ) -> None:
        first, second = client.made("1"), client.made("2", {"x": b"other"}, label=label)
        assert first.record.key == second.record.key
        first.commit(client.open())
        assert second.commit(client.open()) == first.record
        assert client.open().find("train", first.record.key) == first.record
        assert content(client.open().fetch(first.record.output)) == FILES

    def test_of_racing_committers_with_different_labels_one_stands_for_all(
        self, client: Client
    ) -> None:
        made = [client.made(str(n), {"x": b"%d" % n}, label=f"label {n}") for n in range(8)]
        start = threading.Barrier(8)

        def commit(one: Made) -> None:
            store = client.open()
            start.wait()
            one.commit(store)

        client.open()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(commit, made))
        found = [client.open().find("train", made[0].record.key) for _ in range(3)]
        assert found[0] in [one.record for one in made]
        assert found[0] == found[1] == found[2]

    def test_a_record_that_cannot_be_written_leaves_no_artifact(self, client: Client) -> None:
        made, store = client.made(), client.open()
        bad = made.record.model_copy(update={"details": {"loss": float("nan")}})
        with pytest.raises(TypeError, match=r"details\.loss is nan"):
            store.commit(bad, made.folder)
        assert client.door.paths() == ["store.json"]

    def test_a_stray_file_among_the_records_does_no_harm(self, client: Client) -> None:
        made, store = client.made(), client.open()
        client.door.write("records/train/README", b"mine")
        client.door.write("records/train/.DS_Store", b"\0")
        made.commit(store)
        assert client.open().find("train", made.record.key) == made.record
        assert list(client.open().records()) == [made.record]

    # Damage ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_file_is_never_handed_out(
        self, client: Client, damage: str, name: str
    ) -> None:
        made = client.made()
        made.commit(client.open())
        artifact = made.record.output
        DAMAGES[damage](client.door, f"{artifact.prefix}/{name}")
        with pytest.raises(CorruptArtifactError, match="run again") as caught:
            client.open().fetch(artifact)
        named = [other for other in FILES if f"{artifact.prefix}/{other} " in str(caught.value)]
        assert named == [name]
        self.assert_set_aside_and_made_anew(client, made)

    def test_two_swapped_files_are_noticed(self, client: Client) -> None:
        made = client.made()
        made.commit(client.open())
        one, other = (f"{made.record.output.prefix}/{name}" for name in ("config.json", "tail"))
        first, second = client.door.read(one), client.door.read(other)
        client.door.write(one, second)
        client.door.write(other, first)
        with pytest.raises(CorruptArtifactError) as caught:
            client.open().fetch(made.record.output)
        assert f"{one} has other content" in str(caught.value)
        assert f"{other} has other content" in str(caught.value)
        self.assert_set_aside_and_made_anew(client, made)

    @staticmethod
    def assert_set_aside_and_made_anew(client: Client, made: Made) -> None:
        store = client.open("another cache")
        assert store.find("train", made.record.key) is None
        kept = [path for path in client.door.paths() if path.startswith("work/set-aside/")]
        assert [client.door.read(path) for path in kept] == [seal(made.record)]
        assert not [path for path in client.door.paths() if path.startswith("artifacts/")]
        assert made.commit(store) == made.record
        assert content(store.fetch(made.record.output)) == FILES

    def test_all_faults_are_told(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        assert store.faults(made.record.output) == []
        client.door.delete(f"{made.record.output.prefix}/tail")
        client.door.write(f"{made.record.output.prefix}/config.json", b"")
        faults = store.faults(made.record.output)
        assert [fault.rpartition("/")[2] for fault in faults] == [
            "config.json has other content",
            "tail is missing",
        ]

    def test_committing_again_heals_a_rotten_file(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = client.made()
        made.commit(client.open())
        path = f"{made.record.output.prefix}/sub/weights.bin"
        client.door.write(path, b"rot")
        assert made.commit(client.open()) == made.record
        assert client.door.read(path) == FILES["sub/weights.bin"]
        assert f"{path} is damaged; replacing it" in caplog.text
        assert content(client.open().fetch(made.record.output)) == FILES

    def test_committing_again_heals_a_rotten_record(self, client: Client) -> None:
        made = client.made()
        made.commit(client.open())
        client.door.write(made.record.path, b"rot")
        assert made.commit(client.open()) == made.record
        assert client.open().find("train", made.record.key) == made.record

    def test_a_failing_disk_or_network_is_no_damage(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        before, fresh = client.door.paths(), client.open("fresh cache")
        with no_more_open_files(), pytest.raises(OSError, match="Too many open files"):
            fresh.fetch(made.record.output)
        assert client.door.paths() == before
        assert content(client.open("fresh cache").fetch(made.record.output)) == FILES

    def test_an_artifact_of_another_kind_with_equal_files_stays(self, client: Client) -> None:
        model = client.made()
        other = client.made(kind="documents", config={"other": 1})
        for made in (model, other):
            made.commit(client.open())
        store = client.open()
        assert content(store.fetch(other.record.output)) == FILES
        client.door.write(f"{model.record.output.prefix}/tail", b"END")
        with pytest.raises(CorruptArtifactError):
            store.fetch(model.record.output)
        assert store.find("train", model.record.key) is None
        assert store.find("train", other.record.key) == other.record
        assert content(store.fetch(other.record.output)) == FILES

    def test_retract_sets_aside_every_record_of_an_artifact(self, client: Client) -> None:
        one, other = client.made(), client.made(config={"other": 1})
        store = client.open()
        assert one.commit(store).output == other.commit(store).output
        paths = store.retract(one.record.output)
        assert sorted(paths) == sorted([one.record.path, other.record.path])
        assert list(client.open().records()) == []

    def test_a_record_that_somebody_renamed_is_found_and_retracted(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        renamed = f"records/train/a-better-name.{made.record.key}.json"
        client.door.write(renamed, client.door.read(made.record.path))
        client.door.delete(made.record.path)
        assert client.open().find("train", made.record.key) == made.record
        assert store.retract(made.record.output) == [renamed]
        assert client.open().find("train", made.record.key) is None

    def test_an_edited_record_is_never_taken_for_another(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        whole, chance = client.door.read(made.record.path), random.Random(0)
        for _ in range(0, 100, self.stride):
            place, byte = chance.randrange(len(whole)), chance.randrange(256)
            self.assert_refused_or_equal(client, store, made, place, byte)
            client.door.write(made.record.path, whole)

    def test_no_byte_of_a_record_may_change(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        whole = client.door.read(made.record.path)
        for place, byte in [*enumerate(whole)][:: self.stride]:
            # Among these edits: 1.5e300 to 1.5e900, which is infinity.
            other = ord("9") if chr(byte).isdigit() else byte ^ 0x20
            self.assert_refused_or_equal(client, store, made, place, other)
            client.door.write(made.record.path, whole)

    @staticmethod
    def assert_refused_or_equal(
        client: Client, store: Store, made: Made, place: int, byte: int
    ) -> None:
        whole = client.door.read(made.record.path)
        edited = whole[:place] + bytes([byte]) + whole[place + 1 :]
        client.door.write(made.record.path, edited)
        with contextlib.suppress(CorruptError):
            assert store.read_record(made.record.path) == made.record

    def test_an_edited_record_is_set_aside_and_reported(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = client.made()
        made.commit(client.open())
        edited = client.door.read(made.record.path).replace(b"12.5", b"13.5")
        client.door.write(made.record.path, edited)
        store = client.open()
        assert list(store.records()) == []
        assert store.find("train", made.record.key) is None
        assert f"{made.record.path} was changed after it was written" in caplog.text
        kept = [path for path in client.door.paths() if path.startswith("work/set-aside/")]
        assert [client.door.read(path) for path in kept] == [edited]

    def test_a_record_under_another_key_is_not_taken_for_it(self, client: Client) -> None:
        made = client.made()
        made.commit(client.open())
        wrong = step_key("train", 1, {"other": 1}, {})
        client.door.write(f"records/train/x.{wrong}.json", client.door.read(made.record.path))
        assert client.open().find("train", wrong) is None
        assert client.open().find("train", made.record.key) == made.record

    @pytest.mark.parametrize(
        "change",
        [{"config": {"forged": 1}}, {"step": "score"}, {"inputs": {}}, {"key": "0" * 64}],
        ids=str,
    )
    def test_a_forged_record_does_not_fit_its_key(
        self, client: Client, change: dict[str, Any]
    ) -> None:
        made, store = client.made(), client.open()
        client.door.write(made.record.path, seal(made.record.model_copy(update=change)))
        with pytest.raises(CorruptError, match="does not belong to its key"):
            store.read_record(made.record.path)

    def test_an_output_that_is_not_its_files_is_refused(self, client: Client) -> None:
        made, store = client.made(), client.open()
        files = {"config.json": made.record.output.files["tail"]}
        output = made.record.output.model_copy(update={"files": files})
        client.door.write(made.record.path, seal(made.record.model_copy(update={"output": output})))
        with pytest.raises(CorruptError, match="not the digest of its files"):
            store.read_record(made.record.path)

    @pytest.mark.parametrize("name", OUTSIDE)
    def test_an_output_that_leads_out_of_its_folder_is_refused(
        self, client: Client, name: str
    ) -> None:
        made, store = client.made(), client.open()
        files = {name: made.record.output.files["tail"]}
        output = made.record.output.model_copy(update={"files": files, "digest": digest_of(files)})
        client.door.write(made.record.path, seal(made.record.model_copy(update={"output": output})))
        with pytest.raises(
            CorruptError, match=r"output\.files: the name .* leads out of its folder"
        ):
            store.read_record(made.record.path)

    @pytest.mark.parametrize(
        ("change", "where"),
        [
            ({"output": {"digest": "../.."}}, r"output\.digest"),
            ({"output": {"digest": "A" * 64}}, r"output\.digest"),
            ({"output": {"digest": ""}}, r"output\.digest"),
            ({"output": {"kind": ".."}}, r"output\.kind"),
            ({"output": {"files": {"tail": {"sha256": "..", "num_bytes": 1}}}}, "sha256"),
            ({"inputs": {"tokens": "../.."}}, r"inputs\.tokens"),
            ({"step": ".."}, "step"),
            ({"key": "../" * 20}, "key"),
        ],
    )
    def test_a_record_with_a_name_that_is_none_is_damaged(
        self, client: Client, change: dict[str, Any], where: str
    ) -> None:
        made = client.made()
        made.commit(client.open())
        tree = json.loads(made.record.model_dump_json())
        output = tree["output"] | change.get("output", {})
        client.door.write(made.record.path, seal(tree | change | {"output": output}))
        with pytest.raises(
            CorruptError, match=f"is not a record: .*{where}.*: String should match"
        ):
            client.open().read_record(made.record.path)
        assert client.open().find("train", made.record.key) is None
        assert [*client.open().backend.list("records")] == []

    def test_a_planted_record_deletes_nothing_of_another(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        # The same call with another output, under a name of its own: neither is the other.
        forged = client.made("forged", {"x": b"forged"}).record
        planted = f"records/train/0.{made.record.key}.json"
        client.door.write(planted, seal(forged))
        before = {path for path in client.door.paths() if path.startswith("artifacts/")}
        faults = [fault for fault in audit.verify(store, lambda *_: None) if fault.is_damage]
        assert [fault.path for fault in faults] == [planted]
        assert audit.repair(client.open(), faults) == [planted]
        assert before <= {*client.door.paths()}
        assert client.open().find("train", made.record.key) == made.record

    def test_what_no_record_names_is_not_retracted(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        client.door.delete(made.record.path)
        before = client.door.paths()
        assert store.retract(made.record.output) == []
        assert client.door.paths() == before

    def test_other_files_than_the_digest_says_are_never_handed_out(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        assert store.fetch(made.record.output)
        other = client.made("other", {"x": b"other"}).record.output
        forged = other.model_copy(update={"digest": made.record.output.digest})
        before = client.door.paths()
        for one in (store, client.open()):
            with pytest.raises(CorruptError, match="files that do not have this digest"):
                one.fetch(forged)
        assert client.door.paths() == before

    def test_a_file_beside_those_of_an_artifact_is_not_handed_out(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        assert content(store.fetch(made.record.output)) == FILES
        stray = f"{made.record.output.prefix}/sub/adapter_config.json"
        client.door.write(stray, b"{}")
        for one in (store, client.open()):
            assert content(one.fetch(made.record.output)) == FILES
        assert client.door.read(stray) == b"{}"

    def test_a_record_of_a_newer_format_is_refused(self, client: Client) -> None:
        made, store = client.made(), client.open()
        newer = {**made.record.model_dump(), "format": FORMAT + 1, "unheard of": 1}
        client.door.write(made.record.path, seal(newer))
        with pytest.raises(StoreFormatError, match="upgrade mixpool"):
            store.find("train", made.record.key)

    # Chains ------------------------------------------------------------------------------------

    def test_racing_appends_claim_every_number_once(self, client: Client) -> None:
        store = client.open()
        with ThreadPoolExecutor(16) as pool:
            paths = list(
                pool.map(lambda n: store.append("losses/x", ".part", b"%d" % n), range(32))
            )
        assert store.chain("losses/x") == sorted(paths)
        assert sorted(paths) == [f"losses/x/{number:06d}.part" for number in range(32)]
        assert sorted(int(client.door.read(path)) for path in paths) == list(range(32))

    def test_a_chain_from_a_number_on(self, client: Client) -> None:
        store = client.open()
        paths = [store.append("losses/x", ".part", b"") for _ in range(4)]
        assert store.chain("losses/x", after=1) == paths[2:]
        assert store.chain("losses/x", after=3) == []
        assert store.append("losses/x", ".part", b"", after=1) == "losses/x/000004.part"

    def test_a_long_chain_stays_in_order(self, client: Client) -> None:
        store = client.open()
        client.door.write("losses/x/999999.part", b"")
        path = store.append("losses/x", ".part", b"")
        assert store.chain("losses/x") == ["losses/x/999999.part", path]
        assert store.append("losses/x", ".part", b"") == "losses/x/1000001.part"
        assert store.chain("losses/x", after=999_999) == [path, "losses/x/1000001.part"]
        assert store.chain("losses/x", after=99) == store.chain("losses/x")


class RemoteContract(StoreContract):
    """A store without files on this machine's disk: artifacts are read through a local copy."""

    def copy(self, client: Client, made: Made) -> Path:
        return client.room / "cache" / "model" / made.record.output.digest

    def test_an_artifact_is_downloaded_once(self, client: Client) -> None:
        made = client.made()
        made.commit(client.open())
        assert client.open().fetch(made.record.output) == self.copy(client, made)
        for name in FILES:
            client.door.delete(f"{made.record.output.prefix}/{name}")
        assert content(client.open().fetch(made.record.output)) == FILES

    @pytest.mark.parametrize("damage", ["flipped", "deleted", "emptied"])
    def test_a_damaged_copy_is_fetched_again(self, client: Client, damage: str) -> None:
        made = client.made()
        made.commit(client.open())
        path = client.open().fetch(made.record.output) / "sub/weights.bin"
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes(flipped(path.read_bytes(), 77) if damage == "flipped" else b"")
        assert content(client.open().fetch(made.record.output)) == FILES
        assert client.open().find("train", made.record.key) == made.record

    def test_threads_that_find_a_damaged_copy_all_get_a_good_one(self, client: Client) -> None:
        made = client.made()
        made.commit(client.open())
        for _ in range(10):
            store = client.open()
            (store.fetch(made.record.output) / "tail").write_bytes(b"rot")
            store = client.open()
            with ThreadPoolExecutor(8) as pool:
                folders = list(
                    pool.map(lambda _: store.fetch(made.record.output), range(8))  # noqa: B023
                )
            assert all(
                (folder / name).read_bytes() == FILES[name] for folder in folders for name in FILES
            )
            assert client.open().find("train", made.record.key) == made.record

    def test_an_interrupted_download_is_completed(self, client: Client) -> None:
        made = client.made()
        made.commit(client.open())
        half = {"config.json": FILES["config.json"], "sub/weights.bin": b"\0\1\2"}
        for name, data in half.items():
            (self.copy(client, made) / name).parent.mkdir(parents=True, exist_ok=True)
            (self.copy(client, made) / name).write_bytes(data)
        assert content(client.open().fetch(made.record.output)) == FILES

    def test_a_copy_that_was_cleared_is_fetched_again(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        shutil.rmtree(store.fetch(made.record.output))
        assert content(store.fetch(made.record.output)) == FILES


@contextlib.contextmanager
def no_more_open_files() -> Iterator[None]:
    """A passing trouble of the machine: no further file can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    logging.disable()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        logging.disable(logging.NOTSET)
