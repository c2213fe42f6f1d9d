"""Files of a store on a disk.

Creating and replacing go through a temporary name and ``os.link`` or ``os.replace``, with fsync, because
fsspec's own "create" mode on a disk is check-then-write, and a reader could see half a file.
"""

import contextlib
import itertools
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from storage.backends.backend import Backend, FileInfo

TEMPORARY = ".tmp-"


class LocalBackend(Backend):
    """A folder on a local (or POSIX network) disk."""

    is_remote = False

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
        temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        _touch(temporary)
        try:
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
        finally:
            temporary.unlink(missing_ok=True)
        return True

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

    def names(self, folder: str, after: str = "") -> Sequence[str]:
        try:
            with os.scandir(self.full(folder)) as entries:
                # Asking for size and time of each is what makes listing a long chain slow.
                paths = [f"{folder}/{entry.name}" for entry in entries if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        hidden = f"{folder}/{TEMPORARY}"
        return sorted(path for path in paths if path > after and not path.startswith(hidden))

    def unfinished(self, seconds: float) -> dict[str, FileInfo]:
        files = self._walk("", lambda name: name.startswith(TEMPORARY))
        return {p: info for p, info in files.items() if time.time() - info.modified > seconds}

    def _walk(self, prefix: str, is_wanted: Callable[[str], bool]) -> dict[str, FileInfo]:
        files = {}
        for folder, _, names in os.walk(self.full(prefix), onerror=_raise_unless_gone):
            for name in filter(is_wanted, names):
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    relative = path.relative_to(self.root).as_posix()
                    files[relative] = FileInfo(status.st_size, status.st_mtime)
        return dict(sorted(files.items()))

    def local(self, path: str) -> Path | None:
        return Path(self.full(path))

    def exists(self, path: str) -> bool:
        return Path(self.full(path)).is_file()


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
