"""The few file operations the store stands on, for any fsspec URL.

Two matter: ``create`` (write once; exactly one of many racing writers wins, and a reader never sees
half a file) and ``put`` (replace atomically; only for ``work/``). On a local disk both go through a
temporary name and ``os.link`` or ``os.replace``, with fsync, because fsspec's own "create" mode there
is check-then-write. Object stores do it with a conditional request, which ``Store.check`` proves.
"""

import contextlib
import itertools
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

TEMPORARY = ".tmp-"

# The second form: a secret key may hold a slash; digits before a slash are a port.
CREDENTIALS = re.compile(r"://[^/]*@|://[^/:]*:(?!\d+/)[^@]*@")


class FileInfo(NamedTuple):
    """Size in bytes and time of the last change (seconds since 1970, by the backend's clock)."""

    num_bytes: int
    modified: float


class Backend:
    """Files below one root in any fsspec file system that has conditional creation."""

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self.root = root.rstrip("/")

    def full(self, path: str) -> str:
        """The file system's own name of ``path``."""
        return f"{self.root}/{path}" if path else self.root

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        data: bytes = self.fs.cat_file(self.full(path))
        return data

    def fetch(self, path: str, target: Path) -> None:
        """Copy the file to a local one."""
        self.fs.get_file(self.full(path), str(target))

    def create(self, path: str, data: bytes) -> bool:
        """Write a new file; False, and nothing changes, where there is one already."""
        return self._once(lambda: self.fs.pipe_file(self.full(path), data, mode="create"))

    def create_from(self, path: str, source: Path) -> bool:
        """Like ``create``, from a local file."""
        return self._once(lambda: self.fs.put_file(str(source), self.full(path), mode="create"))

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

    def delete(self, path: str) -> None:
        """Remove one file; nothing happens where there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.full(path))

    def list(self, prefix: str) -> dict[str, FileInfo]:
        """Every file below the folder ``prefix``, by path relative to the root, sorted."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(self.full(prefix), detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.fs._strip_protocol(self.root)) + 1
        return {name[start:]: _info(entry) for name, entry in sorted(found.items())}

    def unfinished(self, seconds: float) -> dict[str, FileInfo]:  # noqa: ARG002
        """Files, older than so many seconds, that killed writers left and ``list`` does not show."""
        return {}

    def local(self, path: str) -> Path | None:  # noqa: ARG002
        """Where the file lies on this machine's disk, if it does."""
        return None

    def now(self) -> float:
        """Seconds since 1970 by the clock that stamps ``FileInfo.modified``."""
        probe = f"work/clock/{uuid.uuid4().hex}"
        self.put(probe, b"")
        stamp = self.list("work/clock")[probe].modified
        self.delete(probe)
        return stamp


def _info(entry: dict[str, Any]) -> FileInfo:
    stamp = entry.get("LastModified") or entry.get("mtime") or entry.get("created") or 0.0
    modified = stamp if isinstance(stamp, int | float) else stamp.timestamp()
    return FileInfo(int(entry["size"] or 0), float(modified))


class LocalBackend(Backend):
    """A folder on a local (or POSIX network) disk."""

    def read(self, path: str) -> bytes:
        return Path(self.full(path)).read_bytes()

    def fetch(self, path: str, target: Path) -> None:
        shutil.copyfile(self.full(path), target)

    def create(self, path: str, data: bytes) -> bool:
        return self._publish(path, lambda temporary: temporary.write_bytes(data))

    def create_from(self, path: str, source: Path) -> bool:
        return self._publish(path, lambda temporary: shutil.copyfile(source, temporary))

    def put(self, path: str, data: bytes) -> None:
        self._publish(path, lambda temporary: temporary.write_bytes(data), replace=True)

    def put_from(self, path: str, source: Path) -> None:
        self._publish(path, lambda temporary: shutil.copyfile(source, temporary), replace=True)

    def _publish(
        self, path: str, write: Callable[[Path], object], *, replace: bool = False
    ) -> bool:
        target = Path(self.full(path))
        if not replace and target.exists():
            return False
        with self._temporary(target) as temporary:
            write(temporary)
            _sync(temporary)
            if replace:
                temporary.replace(target)
            else:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    return False
            _sync(target.parent)
        return True

    @contextlib.contextmanager
    def _temporary(self, target: Path) -> Iterator[Path]:
        temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        _touch(temporary)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, path: str) -> None:
        target = Path(self.full(path))
        target.unlink(missing_ok=True)
        for folder in target.parents:
            if folder == Path(self.root):
                break
            try:
                folder.rmdir()
            except OSError:
                break

    def list(self, prefix: str) -> dict[str, FileInfo]:
        return self._walk(prefix, lambda name: not name.startswith(TEMPORARY))

    def unfinished(self, seconds: float) -> dict[str, FileInfo]:
        found = self._walk("", lambda name: name.startswith(TEMPORARY))
        return {p: info for p, info in found.items() if time.time() - info.modified > seconds}

    def _walk(self, prefix: str, is_wanted: Callable[[str], bool]) -> dict[str, FileInfo]:
        found = {}
        for folder, _, names in os.walk(self.full(prefix), onerror=_raise_unless_gone):
            for name in filter(is_wanted, names):
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    relative = path.relative_to(self.root).as_posix()
                    found[relative] = FileInfo(status.st_size, status.st_mtime)
        return dict(sorted(found.items()))

    def local(self, path: str) -> Path | None:
        return Path(self.full(path))


def _touch(path: Path) -> None:
    for attempt in itertools.count(1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except (FileNotFoundError, FileExistsError):
            # A concurrent deletion removed a still empty folder of the path: once more.
            if attempt == 100:
                raise
        else:
            return


def _raise_unless_gone(error: OSError) -> None:
    # A folder that cannot be listed must not look like an empty one: results would be made again.
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class MemoryBackend(Backend):
    """fsspec's process-wide memory file system: for tests and notebooks.

    All that open one file share one position, files are seen while they are written, and a listing
    fails when a file vanishes meanwhile: hence whole contents only, and a lock.
    """

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

    def now(self) -> float:
        return time.time()


def open_backend(url: str) -> Backend:
    """The backend for ``url`` (``file://``, a plain path, ``memory://``, or any other fsspec URL).

    Raises:
        ValueError: fsspec knows no such protocol, or the URL carries a user name or password.
    """
    if CREDENTIALS.search(url):
        raise ValueError(
            "the store's URL carries credentials: leave them to the environment, a profile or a role"
        )
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise ValueError(f"the store's URL {url!r} cannot be opened: {error}") from error
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    if protocol in {"file", "local"}:
        return LocalBackend(fs, str(Path(root).resolve()))
    return MemoryBackend(fs, root) if protocol == "memory" else Backend(fs, root)
