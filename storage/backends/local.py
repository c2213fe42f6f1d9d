"""Files of a store on a disk.

Creating and replacing go through a temporary name and ``os.link`` or ``os.replace``, with fsync, because
fsspec's own "create" mode on a disk is check-then-write, and a reader could see half a file.
"""

import contextlib
import errno
import itertools
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from storage.backends.backend import Backend, FileInfo
from storage.backends.names import is_inside, refuse_links

TEMPORARY = ".tmp-"


class LocalBackend(Backend):
    """A folder on a local (or POSIX network) disk."""

    is_remote = False

    def full(self, path: str) -> str:
        place = super().full(path)
        refuse_links(self.root, path)
        return place

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
        target = Path(super().full(path))
        if above := path.rpartition("/")[0]:
            refuse_links(self.root, above, all_of_them=True)
        target.unlink(missing_ok=True)  # of a link itself, not of what it names
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
        shown = (path for path in paths if path > after and not path.startswith(hidden))
        return sorted(filter(is_inside, shown))

    def unfinished(self, seconds: float) -> dict[str, FileInfo]:
        files = self._walk("", lambda name: name.startswith(TEMPORARY))
        return {p: info for p, info in files.items() if time.time() - info.modified > seconds}

    def _walk(self, prefix: str, is_wanted: Callable[[str], bool]) -> dict[str, FileInfo]:
        files = {}
        top = self.full(prefix) if prefix else self.root
        for folder, _, names in os.walk(top, onerror=_raise_unless_gone):
            inside_root = f"{folder}/"[len(self.root) + 1 :]
            for name in filter(is_wanted, names):
                # Text, as objects for paths take most of the time where there are thousands.
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(f"{folder}/{name}")
                    # A pipe, which anybody can plant, would let who reads it wait for ever.
                    is_file = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
                    if is_file and is_inside(path := f"{inside_root}{name}"):
                        files[path] = FileInfo(status.st_size, status.st_mtime)
        return dict(sorted(files.items()))

    def refuse_unwritable(self) -> None:
        root = Path(self.root)
        there = next(folder for folder in (root, *root.parents) if folder.exists())
        # A run writes into folders that others made: records/<step>, artifacts/<kind>, and the like.
        # A folder of runs/ is its own run's alone.
        inside = [*root.glob("*/"), *(f for f in root.glob("*/*/") if f.parent.name != "runs")]
        for folder in [there, *inside]:
            if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
                raise PermissionError(
                    errno.EACCES,
                    f"the store at {self.root} cannot be written: {folder} belongs to {_owner(folder)}; "
                    "have its owner make it writable for a group that you are in (docs/store.md)",
                )

    def local(self, path: str) -> Path | None:
        return Path(self.full(path))

    def exists(self, path: str) -> bool:
        return Path(self.full(path)).is_file()


def _owner(folder: Path) -> str:
    """Owner, group and mode of a folder, in words."""
    status = folder.stat()
    owner, group = str(status.st_uid), str(status.st_gid)
    with contextlib.suppress(KeyError):  # a number without a name, as in many containers
        owner, group = folder.owner(), folder.group()
    return f"{owner}:{group}, mode {stat.filemode(status.st_mode)}"


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
