"""What a disk says before anything is written."""

import os
import tempfile
from pathlib import Path

import pytest

from storage.backends.names import OutsideError
from storage.backends.urls import open_backend
from storage.store import CorruptArtifactError, Store
from tests.storage.contract import Client, assert_refused
from tests.storage.test_store import LocalDoor

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a moment")
@pytest.mark.parametrize("name", ["", "records", "records/train", "new"])
def test_a_store_that_cannot_be_written_is_refused_by_folder_owner_and_mode(name: str) -> None:
    # Not in tmp_path, into which other users cannot look.
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        store = Path(parent) / "store"
        (store / "records" / "train").mkdir(parents=True)
        for folder in store.glob("**/"):
            folder.chmod(0o777)
        there = Path(parent) if name == "new" else store / name
        there.chmod(0o755)
        (store / "runs" / "another's").mkdir(parents=True)  # of which nobody else needs to write
        (store / "runs").chmod(0o777)
        (store / "runs" / "another's").chmod(0o755)
        backend = open_backend(str(Path(parent) / "new" if name == "new" else store))
        backend.refuse_unwritable()
        assert store.owner() == store.group() == "root"  # imports what another user may not read
        os.seteuid(NOBODY)
        try:
            with pytest.raises(PermissionError) as refused:
                backend.refuse_unwritable()
            if name != "new":
                os.seteuid(0)
                there.chmod(0o777)
                os.seteuid(NOBODY)
                backend.refuse_unwritable()
        finally:
            os.seteuid(0)
    assert f" {there} belongs to root:root, mode drwxr-xr-x;" in str(refused.value)


def _neighbours(tmp_path: Path) -> tuple[Path, Path]:
    """A store's folder, behind a link as it may be, and a folder beside it."""
    for name in ("real", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "store").symlink_to("real")
    return tmp_path / "store", tmp_path / "outside"


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A store with links that lead out of it: to a folder, to a file, through another link."""
    store, outside = _neighbours(tmp_path)
    (store / "records" / "step").mkdir(parents=True)
    (store / "records" / "step" / "link").symlink_to(outside / "file")
    (store / "out").symlink_to(outside)
    (store / "in").symlink_to(".")
    return store


@pytest.mark.parametrize("name", ["out/file", "out/new", "in/out/file"])
def test_nothing_is_done_behind_a_link_that_leads_out(
    linked: Path, tmp_path: Path, name: str
) -> None:
    assert_refused(open_backend(str(linked)), name, tmp_path / "mine")
    assert [path.read_text() for path in (tmp_path / "outside").iterdir()] == ["outside"]


def test_a_link_that_leads_out_is_listed_and_deleted_and_not_read(
    linked: Path, tmp_path: Path
) -> None:
    backend, name = open_backend(str(linked)), "records/step/link"
    assert [*backend.list("records")] == [*backend.names("records/step")] == [name]
    with pytest.raises(OutsideError, match=r"leads through the symbolic link .*: remove the link"):
        backend.read(name)
    with pytest.raises(OutsideError):
        backend.put(name, b"1")
    assert [*backend.read_each([name])] == [(name, b"")]
    backend.delete(name)
    assert backend.list("records") == {}
    assert (tmp_path / "outside" / "file").read_text() == "outside"


def test_a_record_and_an_artifact_behind_links_are_damaged(linked: Path, tmp_path: Path) -> None:
    store = Store(str(linked))
    client = Client(str(linked), LocalDoor(linked), tmp_path / "room")
    made = client.made()
    made.commit(store)
    (tmp_path / "outside" / "record").write_bytes(store.backend.read(made.record.path))
    record, file = linked / made.record.path, linked / made.record.output.prefix / "tail"
    record.unlink()
    record.symlink_to(tmp_path / "outside" / "record")
    assert Store(str(linked)).find("train", made.record.key) is None
    assert not os.path.lexists(record)
    made.commit(Store(str(linked)))
    file.unlink()
    file.symlink_to(tmp_path / "outside" / "record")
    with pytest.raises(CorruptArtifactError, match="behind a symbolic link that leads out"):
        Store(str(linked)).fetch(made.record.output)
    assert {p.name for p in (tmp_path / "outside").iterdir()} == {"file", "record"}
    assert made.commit(Store(str(linked))) == made.record


def test_a_link_inside_the_store_is_read_and_nothing_is_deleted_behind_it(tmp_path: Path) -> None:
    store, _ = _neighbours(tmp_path)
    backend = open_backend(str(store))
    backend.create("a/file", b"1")
    (store / "b").symlink_to("a")
    assert backend.read("b/file") == b"1"
    with pytest.raises(OutsideError):
        backend.delete("b/file")
    assert backend.read("a/file") == b"1"


def test_a_pipe_is_not_listed_and_so_nobody_waits_for_it(tmp_path: Path) -> None:
    backend = open_backend(str(tmp_path))
    backend.put("runs/x/run.json", b"{}")
    (tmp_path / "runs" / "y").mkdir()
    os.mkfifo(tmp_path / "runs" / "y" / "run.json")
    assert [*backend.list("runs")] == ["runs/x/run.json"]
