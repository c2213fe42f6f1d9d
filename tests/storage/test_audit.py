"""``verify`` tells damage from trouble, and ``repair`` takes away what is damaged and nothing else."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.artifact import Record, describe, seal, step_key
from storage.audit import Fault, repair, verify
from storage.backends.backend import Backend
from storage.backends.local import LocalBackend
from storage.backends.urls import open_backend
from storage.stamp import PLACEHOLDER, stamp
from storage.store import Store

REPORT = b"<html></html>"


def _commit(store: Store, folder: Path, number: int, text: str, kind: str = "text") -> Record:
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text(text)
    config = {"number": number}
    record = Record(
        step="step",
        version=1,
        key=step_key("step", 1, config, {}),
        label="label",
        config=config,
        inputs={},
        output=describe(kind, folder),
    )
    return store.commit(record, folder)


def _verify(store: Store) -> list[Fault]:
    return verify(store, lambda done, total, unit: None)


@pytest.fixture
def record(backend: Backend, tmp_path: Path) -> Record:
    """The record of a small store in which everything is named by something."""
    store = Store("a store", backend=backend)
    made = _commit(store, tmp_path / "made", 1, "content")
    manifest = {"chain": "chain", "number": 0, "index": [made.output]}
    backend.create("manifests/chain/000000.json", seal(manifest))
    backend.create("losses/key/evaluation.json", seal({"version": 1}))
    backend.create("losses/key/000000.parquet", stamp(PLACEHOLDER.encode()))
    backend.create("runs/run/report.html", REPORT)
    run = {
        "name": "run",
        "files": {"report.html": hashlib.sha256(REPORT).hexdigest()},
        "records": [made.path],
        "manifests": ["manifests/chain/000000.json"],
    }
    backend.create("runs/run/run.json", seal(run))
    return made


@pytest.fixture
def store(backend: Backend, record: Record) -> Store:
    """The store with that record."""
    del record
    return Store("a store", backend=backend)


def test_nothing_is_wrong_with_what_was_written(store: Store) -> None:
    said: list[tuple[int, int, str]] = []
    assert verify(store, lambda *progress: said.append(progress)) == []
    assert said == [(n + 1, 6, "files") for n in range(6)]


def test_files_that_are_not_checked_do_no_harm(store: Store) -> None:
    for path in ("work/step/key/checkpoint.json", "runs/killed/recipe.yaml"):
        store.backend.put(path, b"anything")
    assert _verify(store) == []


Change = Callable[[Backend, str], None]


def _flip(backend: Backend, path: str) -> None:
    data = bytearray(backend.read(path))
    data[len(data) // 2] ^= 4
    backend.put(path, bytes(data))


def _cut(backend: Backend, path: str) -> None:
    backend.put(path, backend.read(path)[:-1])


def _empty(backend: Backend, path: str) -> None:
    backend.put(path, b"")


@pytest.mark.parametrize("change", [_flip, _cut, _empty])
@pytest.mark.parametrize("top", ["records", "manifests", "losses", "artifacts", "runs"])
def test_every_damaged_file_is_found(
    store: Store, record: Record, top: str, change: Change
) -> None:
    for path in store.backend.list(top):
        before = store.backend.read(path)
        change(store.backend, path)
        blamed = {fault.path for fault in _verify(store) if fault.is_damage}
        assert blamed == {record.path if top == "artifacts" else path}
        store.backend.put(path, before)
    assert _verify(store) == []


def test_every_deleted_file_that_something_names_is_found(store: Store, record: Record) -> None:
    named = [f"{record.output.prefix}/file", record.path]
    named += ["manifests/chain/000000.json", "runs/run/report.html"]
    for path in named:
        before = store.backend.read(path)
        store.backend.delete(path)
        assert _verify(store)
        store.backend.put(path, before)
    assert _verify(store) == []


def test_repair_sets_aside_what_is_damaged(store: Store, record: Record) -> None:
    file = f"{record.output.prefix}/file"
    for path in (file, "losses/key/000000.parquet", "losses/key/evaluation.json"):
        _flip(store.backend, path)
    damaged = {record.path, *store.backend.list("losses")}
    assert {*repair(store, _verify(store))} == damaged
    assert store.find("step", record.key) is None
    assert store.backend.list("artifacts") == store.backend.list("losses") == {}
    assert len(store.backend.list("work/set-aside")) == 3


def test_repair_leaves_manifests_and_runs_for_a_person(store: Store, record: Record) -> None:
    for path in ("manifests/chain/000000.json", "runs/run/run.json", "runs/run/report.html"):
        _flip(store.backend, path)
    before = store.backend.list("")
    assert repair(store, _verify(store)) == []
    assert store.backend.list("") == before
    assert store.find("step", record.key) == record


def test_a_damaged_record_goes_and_its_artifact_stays(store: Store, record: Record) -> None:
    _flip(store.backend, record.path)
    faults = _verify(store)
    assert [fault.path for fault in faults if fault.is_damage] == [record.path]
    assert repair(store, faults) == [record.path]
    assert [*store.backend.list("artifacts")] == [f"{record.output.prefix}/file"]


def test_every_record_of_a_damaged_artifact_goes(
    store: Store, record: Record, tmp_path: Path
) -> None:
    twin = _commit(store, tmp_path / "made", 2, "content")
    other = _commit(store, tmp_path / "other", 3, "other content")
    _flip(store.backend, f"{record.output.prefix}/file")
    assert sorted(repair(store, _verify(store))) == sorted([record.path, twin.path])
    assert [*store.records()] == [other]


def test_equal_files_of_two_kinds_are_both_looked_at(
    store: Store, record: Record, tmp_path: Path
) -> None:
    twin = _commit(store, tmp_path / "made", 2, "content", kind="another")
    assert twin.output.digest == record.output.digest
    for one in (record, twin):
        _flip(store.backend, f"{one.output.prefix}/file")
        assert [fault.path for fault in _verify(store)] == [one.path]
        _flip(store.backend, f"{one.output.prefix}/file")


def test_a_stray_file_in_an_artifact_is_set_aside_alone(store: Store, record: Record) -> None:
    stray = f"{record.output.prefix}/deep/.DS_Store"
    store.backend.put(stray, b"of a file manager")
    faults = _verify(store)
    assert [fault.path for fault in faults] == [stray]
    assert repair(store, faults) == [stray]
    assert _verify(store) == []
    assert store.find("step", record.key) == record


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("manifests/chain/000000.json", {}),
        ("manifests/chain/000000.json", []),
        (
            "manifests/chain/000000.json",
            {"chain": "chain", "number": 0, "x": {"kind": "x", "digest": "../..", "files": {}}},
        ),
        ("runs/run/run.json", {"name": "run"}),
        ("runs/run/run.json", "run"),
        ("runs/run/run.json", {"name": "run", "files": [], "records": [], "manifests": []}),
    ],
    ids=str,
)
def test_what_is_intact_and_of_another_make_is_a_fault(
    store: Store, path: str, content: object
) -> None:
    store.backend.put(path, seal(content))
    (fault,) = _verify(store)
    assert fault.path == path
    assert "is intact, but not what mixpool writes under such a name" in fault.what


def test_a_run_cannot_have_a_file_outside_looked_at(store: Store) -> None:
    run = {"name": "run", "files": {"../../x": "0" * 64}, "records": [], "manifests": []}
    store.backend.put("runs/run/run.json", seal(run))
    (fault,) = _verify(store)
    assert "the name 'runs/run/../../x' leads out of its folder" in fault.what


def test_a_manifest_that_names_other_files_than_the_digest_says(
    store: Store, record: Record
) -> None:
    forged = record.output.model_copy(update={"files": {}})
    manifest = {"chain": "chain", "number": 0, "index": [forged]}
    store.backend.put("manifests/chain/000000.json", seal(manifest))
    (fault,) = _verify(store)
    assert fault.what == f"names {record.output.prefix}, which is not the digest of its files"
    assert repair(store, [fault]) == []


class TroubledBackend(LocalBackend):
    """A disk that may not be looked at in some places."""

    closed = "nothing"

    def read(self, path: str) -> bytes:
        if path.startswith(self.closed):
            raise PermissionError(13, "Permission denied", path)
        return super().read(path)

    def local(self, path: str) -> Path | None:
        if path.startswith(self.closed):
            raise PermissionError(13, "Permission denied", path)
        return super().local(path)


@pytest.mark.parametrize("closed", ["artifacts", "records", "losses", "manifests", "runs"])
def test_what_cannot_be_looked_at_is_said_and_never_taken_away(tmp_path: Path, closed: str) -> None:
    backend = TroubledBackend(open_backend(str(tmp_path)).fs, str(tmp_path / "store"))
    store = Store("a store", backend=backend)
    _commit(store, tmp_path / "made", 1, "content")
    backend.create("losses/key/000000.parquet", stamp(PLACEHOLDER.encode()))
    backend.create("manifests/chain/000000.json", seal({"chain": "chain", "number": 0}))
    run: dict[str, object] = {"name": "run", "files": {}, "records": [], "manifests": []}
    backend.create("runs/run/run.json", seal(run))
    before = backend.list("")
    backend.closed = closed
    (fault,) = _verify(store)
    assert "cannot be read: [Errno 13] Permission denied" in fault.what
    assert not fault.is_damage
    assert repair(store, [fault]) == []
    assert backend.list("") == before


def test_a_record_of_a_newer_version_is_no_damage(store: Store, record: Record) -> None:
    newer = record.model_copy(update={"format": 99})
    store.backend.put(record.path, seal(newer))
    faults = [fault for fault in _verify(store) if fault.path == record.path]
    assert ["upgrade mixpool" in fault.what for fault in faults] == [True]
    assert repair(store, faults) == []
    assert record.path in store.backend.list("records")


class VanishingBackend(LocalBackend):
    """Lists a file that another client has just set aside."""

    def read(self, path: str) -> bytes:
        if path.startswith("losses/") and (Path(self.full(path))).exists():
            self.delete(path)
        return super().read(path)


def test_what_another_client_sets_aside_meanwhile_is_no_fault(tmp_path: Path) -> None:
    backend = VanishingBackend(open_backend(str(tmp_path)).fs, str(tmp_path / "store"))
    store = Store("a store", backend=backend)
    backend.create("losses/key/000000.parquet", b"")
    assert _verify(store) == []


def test_a_run_and_a_manifest_whose_records_are_gone_say_so(store: Store, record: Record) -> None:
    store.retract(record.output)
    faults = _verify(store)
    assert {fault.path for fault in faults} == {
        "manifests/chain/000000.json",
        "runs/run/run.json",
    }
    assert all("run the recipe again" in fault.what for fault in faults)
    assert repair(store, faults) == []
