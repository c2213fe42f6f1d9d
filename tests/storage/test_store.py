"""The contract of a store on a disk and in memory, what only a disk can show, and URLs."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from flows.chain.recipe_file import load_recipe
from storage.artifact import describe
from storage.backends.backend import Backend, MemoryBackend
from storage.backends.local import TEMPORARY, LocalBackend
from storage.backends.urls import file_system, open_backend
from storage.records import StoreFormatError
from storage.store import Store
from tests.storage.contract import (
    FILES,
    BackDoor,
    Client,
    RemoteContract,
    StoreContract,
    content,
    no_more_open_files,
)


class LocalDoor:
    """The files of a store on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)

    def delete(self, path: str) -> None:
        (self.root / path).unlink()

    def paths(self) -> list[str]:
        return sorted(content(self.root)) if self.root.exists() else []


class MemoryDoor:
    """The entries of fsspec's process-wide memory file system."""

    def __init__(self, url: str) -> None:
        self.start = f"/{url.removeprefix('memory://')}/"

    def read(self, path: str) -> bytes:
        return bytes(MemoryFileSystem.store[self.start + path].getvalue())

    def write(self, path: str, data: bytes) -> None:
        MemoryFileSystem().pipe_file(self.start + path, data)

    def delete(self, path: str) -> None:
        del MemoryFileSystem.store[self.start + path]

    def paths(self) -> list[str]:
        names = [name for name in MemoryFileSystem.store if name.startswith(self.start)]
        return sorted(name.removeprefix(self.start) for name in names)


class TestMemoryStore(RemoteContract):
    @pytest.fixture
    def url(self, memory_url: str) -> str:
        return memory_url

    @pytest.fixture
    def door(self, url: str) -> BackDoor:
        return MemoryDoor(url)

    def test_a_backend_that_overwrites_is_named_plainly(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = client.open()
        store.backend = Overwriting(store.backend.fs, store.backend.root)
        with pytest.raises(StoreFormatError, match="does not refuse a second create") as caught:
            store.check()
        assert "16 of 16 racing writers won" in str(caught.value)
        assert "MIXPOOL_ALONE=1" in str(caught.value)
        monkeypatch.setenv("MIXPOOL_ALONE", "1")
        (lacking,) = store.check()
        assert "only one process at a time may use it" in lacking

    def test_a_server_is_looked_at_by_every_run_and_a_disk_once(self, client: Client) -> None:
        for is_remote, number in ((True, 2), (False, 1)):
            backend = Counting(open_backend(f"{client.url}/{is_remote}").fs, f"/x/{is_remote}")
            backend.is_remote = is_remote
            for create in (True, True, False):
                Store("some store", client.room, create=create, backend=backend)
            assert backend.checks == number


class Overwriting(MemoryBackend):
    """A backend without conditional creation."""

    def create(self, path: str, data: bytes) -> bool:
        self.put(path, data)
        return True


class Counting(MemoryBackend):
    """Counts how often somebody asks what it lacks."""

    checks = 0

    def lacks(self, folder: str) -> Sequence[str]:
        self.checks += 1
        return super().lacks(folder)


RACE = """
import pathlib, sys, time
from storage.backends.urls import file_system, open_backend
url, number, start = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
backend = open_backend(url)
print("ready", flush=True)
while not start.exists():
    time.sleep(0.001)
for turn in range(20):
    if backend.create(f"race/{turn}", b"%d" % number * 5000):
        print(turn, flush=True)
"""


class PowerCutError(Exception):
    """The machine went off."""


class Dying(LocalBackend):
    """A disk on a machine that goes off after so many new files."""

    changes_left = 0

    def create(self, path: str, data: bytes) -> bool:
        self._change()
        return super().create(path, data)

    def create_from(self, path: str, source: Path) -> bool:
        self._change()
        return super().create_from(path, source)

    def _change(self) -> None:
        if self.changes_left == 0:
            raise PowerCutError
        self.changes_left -= 1


class TestLocalStore(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "the store")

    @pytest.fixture
    def door(self, url: str) -> BackDoor:
        return LocalDoor(Path(url))

    def test_of_8_racing_processes_exactly_one_creates(
        self, client: Client, python: Callable[..., "Popen[str]"], tmp_path: Path
    ) -> None:
        start = tmp_path / "start"
        racers = [python(RACE, client.url, number, start) for number in range(8)]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        start.touch()
        won = {
            int(turn): number
            for number, racer in enumerate(racers)
            for turn in racer.communicate()[0].split()
        }
        claims = [client.door.read(f"race/{turn}") for turn in range(20)]
        assert claims == [b"%d" % won[turn] * 5000 for turn in range(20)]
        assert sorted(client.door.paths()) == sorted(f"race/{turn}" for turn in range(20))

    def test_a_folder_that_is_removed_meanwhile_does_not_stop_a_write(
        self, backend: Backend
    ) -> None:
        stop = threading.Event()

        def sweep() -> None:
            while not stop.is_set():
                for folder in ("work/a/b", "work/a", "work"):
                    with contextlib.suppress(OSError):
                        Path(backend.full(folder)).rmdir()
                    time.sleep(0.0001)

        with ThreadPoolExecutor(2) as pool:
            sweeping = [pool.submit(sweep) for _ in range(2)]
            try:
                for turn in range(600):
                    assert backend.create(f"work/a/b/{turn}", b"x")
                    backend.delete(f"work/a/b/{turn}")
            finally:
                stop.set()
        assert [sweeper.result() for sweeper in sweeping] == [None, None]

    @pytest.mark.parametrize("changes", range(len(FILES) + 1))
    def test_after_a_crash_at_any_moment_there_is_no_record(
        self, client: Client, changes: int
    ) -> None:
        made, store = client.made(), client.open()
        dying = Dying(store.backend.fs, store.backend.root)
        dying.changes_left, store.backend = changes, dying
        with pytest.raises(PowerCutError):
            made.commit(store)
        assert len([path for path in client.door.paths() if "artifacts" in path]) == changes
        assert client.open().find("train", made.record.key) is None
        assert made.commit(client.open()) == made.record
        assert content(client.open().fetch(made.record.output)) == FILES

    def test_an_unfinished_write_is_invisible_and_does_no_harm(self, client: Client) -> None:
        made, store = client.made(), client.open()
        client.door.write("records/train/.tmp-0123", b"{")
        client.door.write(f"{made.record.output.prefix}/.tmp-0123", b"half")
        made.commit(store)
        assert client.open().find("train", made.record.key) == made.record
        assert content(client.made().folder) == FILES
        assert set(client.open().backend.list("artifacts")) == {
            f"{made.record.output.prefix}/{name}" for name in FILES
        }

    def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(self, client: Client) -> None:
        made = client.made()
        made.commit(client.open())
        store = client.open()
        with no_more_open_files(), pytest.raises(OSError, match="Too many open files"):
            store.find("train", made.record.key)
        assert store.find("train", made.record.key) == made.record

    def test_artifacts_are_read_in_place(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        assert store.fetch(made.record.output) == Path(client.url) / made.record.output.prefix
        assert not (client.room / "cache").exists()

    def test_plain_paths_and_file_urls_are_the_same_store(self, client: Client) -> None:
        made = client.made()
        made.commit(client.open())
        for url in (f"file://{client.url}", f"local://{client.url}", f"{client.url}/"):
            assert Store(url, create=False).find("train", made.record.key) == made.record


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAEXAMPLE:hunter2@bucket/store",
        "s3://AKIAEXAMPLE:hunt/er2@bucket/store",
        "https://token-hunter2@host/store",
        "simplecache::s3://me:hunter2@bucket/x",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave them to the environment") as caught:
        Store(url, tmp_path)
    assert "hunt" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "names no bucket"),
        ("s3a:///", "names no bucket"),
        ("s3://bucket/store?versionId=abc", "give a plain address"),
        ("s3://AKIA:hunter2@bucket/recipe.yaml", "leave them to the environment"),
    ],
)
def test_addresses_that_cannot_be_meant(url: str, words: str) -> None:
    for opened in (open_backend, file_system, load_recipe):
        with pytest.raises(ValueError, match=words) as caught:
            opened(url)
        assert "hunter2" not in str(caught.value)


def test_a_folder_may_be_called_as_a_protocol_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not Store("s3").backend.is_remote
    assert (tmp_path / "s3" / "store.json").exists()


def test_an_unknown_protocol_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense://x"):
        Store("nonsense://x", tmp_path)


def test_an_at_sign_elsewhere_is_no_credential(tmp_path: Path) -> None:
    assert open_backend(f"{tmp_path}/me@here").root.endswith("/me@here")
    assert open_backend(f"file://{tmp_path}/me@here").root.endswith("/me@here")
    assert open_backend("memory://place/a@b").root == "/place/a@b"


def test_what_a_killed_writer_left_is_no_part_of_an_artifact(tmp_path: Path) -> None:
    """Models name the model that they come from by its folder, in which such a file may lie."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1234")
    whole = describe("model", tmp_path / "model")
    (tmp_path / "model" / f"{TEMPORARY}899950f1").write_bytes(b"12")
    assert describe("model", tmp_path / "model") == whole
