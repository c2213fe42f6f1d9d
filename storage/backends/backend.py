"""The file operations that a store needs, on any fsspec file system.

Two matter: ``create`` (write once; exactly one of many racing writers wins, and a reader never sees
half a file) and ``put`` (replace atomically; only for ``work/`` and the index page). Disks are in
``storage.backends.local``, S3 in ``storage.backends.s3``. Any other file system must have conditional
creation, which ``Store.check`` proves.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from storage.backends.names import OutsideError, inside, is_inside

LOG = logging.getLogger("mixpool.store")


class FileInfo(NamedTuple):
    """Size in bytes and time of the last change (seconds since 1970, by the backend's clock)."""

    num_bytes: int
    modified: float


class Look(NamedTuple):
    """A file's content, and the seconds since it was written, by the clock that stamps files."""

    data: bytes
    age: float


class Backend:
    """Files below one root in any fsspec file system that has conditional creation."""

    is_remote = True
    """Whether a server decides what the backend can do, so that each start must prove it."""

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self.root = root.rstrip("/")

    def full(self, path: str) -> str:
        """The file system's own name of ``path``. Raises OutsideError where it might leave the root."""
        return f"{self.root}/{inside(path)}"

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        data: bytes = self.fs.cat_file(self.full(path))
        return data

    def read_each(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """Each path with its file's content, in order; None where there is no file."""
        for path in paths:
            try:
                yield path, self.read(path)
            except FileNotFoundError:
                yield path, None
            except OutsideError as error:  # whoever wants content finds it damaged
                LOG.warning("%s", error)
                yield path, b""

    def look(self, path: str) -> Look:
        """Content and age of a file that may change. Raises FileNotFoundError."""
        data, info = self.read(path), self.list(path.rpartition("/")[0]).get(path)
        if info is None:
            raise FileNotFoundError(path)
        return Look(data, self._now() - info.modified)

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        is_file: bool = self.fs.isfile(self.full(path))
        return is_file

    def fetch(self, path: str, target: Path) -> None:
        """Copy the file to a local one."""
        self.fs.get_file(self.full(path), str(target))

    def create(self, path: str, data: bytes) -> bool:
        """Write a new file; False, and nothing changes, where there is one already."""
        return self._once(lambda: self.fs.pipe_file(self.full(path), data, mode="create"))

    def create_from(self, path: str, source: Path) -> bool:
        """Like ``create``, from a local file."""
        return self._once(lambda: self.fs.put_file(str(source), self.full(path), mode="create"))

    def create_each(self, sources: Mapping[str, Path]) -> Sequence[str]:
        """``create_from`` for many files; the paths of those that were there before."""
        return [path for path, source in sources.items() if not self.create_from(path, source)]

    @staticmethod
    def _once(write: Callable[[], object]) -> bool:
        try:
            write()
        except FileExistsError:
            return False
        return True

    def put(self, path: str, data: bytes) -> None:
        """Write or replace a file, atomically for readers."""
        self.fs.pipe_file(self.full(path), data)

    def put_from(self, path: str, source: Path) -> None:
        """Like ``put``, from a local file."""
        self.fs.put_file(str(source), self.full(path))

    def swap(self, path: str, expected: bytes, data: bytes) -> bool:
        """Replace a file that holds ``expected``; False where it holds something else or is gone.

        Where the backend cannot do both at once, another writer may come in between.
        """
        with contextlib.suppress(FileNotFoundError):
            if self.read(path) == expected:
                self.put(path, data)
                return True
        return False

    def delete(self, path: str) -> None:
        """Remove one file; nothing happens where there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.full(path))

    def delete_each(self, paths: Iterable[str]) -> None:
        """Remove files, or what ``unfinished`` named."""
        for path in paths:
            self.delete(path)

    def list(self, prefix: str) -> dict[str, FileInfo]:
        """Every file below the folder ``prefix``, by path relative to the root, sorted.

        A name that no operation takes, because it might lead out of the root, is left out.
        """
        self.fs.invalidate_cache()
        try:
            entries = self.fs.find(self.full(prefix) if prefix else self.root, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.root) + 1
        found = {name[start:]: _info(entry) for name, entry in sorted(entries.items())}
        return {path: info for path, info in found.items() if is_inside(path)}

    def names(self, folder: str, after: str = "") -> Sequence[str]:
        """Paths of the files below ``folder`` that come behind ``after``, sorted."""
        return [path for path in self.list(folder) if path > after]

    def unfinished(self, seconds: float) -> dict[str, FileInfo]:  # noqa: ARG002
        """Files, older than so many seconds, that killed writers left and ``list`` does not show."""
        return {}

    def refuse_unwritable(self) -> None:
        """Raise PermissionError where it is known beforehand that nothing can be written."""

    def local(self, path: str) -> Path | None:  # noqa: ARG002
        """Where the file lies on this machine's disk, if it does."""
        return None

    def hurry(self) -> None:
        """The process is about to end: give up requests that wait, and wait for no others."""

    def lacks(self, folder: str) -> Sequence[str]:  # noqa: ARG002
        """What the backend cannot do and results do not need, in words; tried out in ``folder``."""
        return []

    def _now(self) -> float:
        """Seconds since 1970 by the clock that stamps ``FileInfo.modified``."""
        probe = f"work/clock/{uuid.uuid4().hex}"
        self.put(probe, b"")
        stamp = self.list("work/clock")[probe].modified
        self.delete(probe)
        return stamp


@contextlib.contextmanager
def in_threads(backend: Backend, number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of ``number`` threads for work on ``backend``; an interrupt does not wait for them."""
    with ThreadPoolExecutor(number) as pool:
        try:
            yield pool
        except BaseException as error:
            if not isinstance(error, Exception):
                pool.shutdown(wait=False, cancel_futures=True)
                backend.hurry()
            raise


def _info(entry: dict[str, Any]) -> FileInfo:
    stamp = entry.get("LastModified") or entry.get("mtime") or entry.get("created") or 0.0
    modified = stamp if isinstance(stamp, int | float) else stamp.timestamp()
    return FileInfo(int(entry["size"] or 0), float(modified))


class MemoryBackend(Backend):
    """fsspec's process-wide memory file system: for tests and notebooks.

    All that open one file share one position, files are seen while they are written, and a listing
    fails when a file vanishes meanwhile: hence whole contents only, and a lock.
    """

    is_remote = False
    _lock = threading.Lock()

    def fetch(self, path: str, target: Path) -> None:
        target.write_bytes(self.read(path))

    def create(self, path: str, data: bytes) -> bool:
        with self._lock:
            if self.fs.exists(self.full(path)):
                return False
            self.fs.pipe_file(self.full(path), data)
        return True

    def create_from(self, path: str, source: Path) -> bool:
        return self.create(path, source.read_bytes())

    def put(self, path: str, data: bytes) -> None:
        with self._lock:
            super().put(path, data)

    def put_from(self, path: str, source: Path) -> None:
        self.put(path, source.read_bytes())

    def delete(self, path: str) -> None:
        with self._lock:
            super().delete(path)

    def list(self, prefix: str) -> dict[str, FileInfo]:
        with self._lock:
            return super().list(prefix)

    def _now(self) -> float:
        return time.time()
