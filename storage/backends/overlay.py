"""Two backends as one: reads come from a store, writes go to a scratch folder. A plan uses it."""

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from storage.backends.backend import Backend, FileInfo
from storage.backends.local import LocalBackend
from storage.backends.urls import file_system, open_backend


class ScratchBackend(LocalBackend):
    """A folder of one process that is thrown away: a file is neither synced nor named twice.

    Nobody else can write there, so no symbolic links are looked for.
    """

    def full(self, path: str) -> str:
        return Backend.full(self, path)

    def _publish(
        self, path: str, write: Callable[[Path], object], *, replace: bool = False
    ) -> bool:
        target = Path(self.full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.touch(exist_ok=replace)
        except FileExistsError:
            return False
        write(target)
        return True


class OverlayBackend(Backend):
    """``lower`` is only read; files are written to ``upper`` and hide those of ``lower``."""

    is_remote = False

    def __init__(self, lower: Backend, upper: LocalBackend) -> None:
        super().__init__(lower.fs, lower.root)
        self._lower = lower
        self._upper = upper
        self._deleted: set[str] = set()

    def _is_above(self, path: str) -> bool:
        return Path(self._upper.full(path)).exists()

    def _holder(self, path: str) -> Backend:
        if path in self._deleted:
            raise FileNotFoundError(path)
        return self._upper if self._is_above(path) else self._lower

    def read(self, path: str) -> bytes:
        return self._holder(path).read(path)

    def read_each(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        waiting = iter(paths)
        while batch := list(itertools.islice(waiting, 256)):
            above = {path for path in batch if self._is_above(path) or path in self._deleted}
            below = dict(self._lower.read_each(path for path in batch if path not in above))
            for path in batch:
                yield from super().read_each([path]) if path in above else [(path, below[path])]

    def exists(self, path: str) -> bool:
        return path not in self._deleted and (self._is_above(path) or self._lower.exists(path))

    def fetch(self, path: str, target: Path) -> None:
        self._holder(path).fetch(path, target)

    def create(self, path: str, data: bytes) -> bool:
        return self._is_free(path) and self._upper.create(path, data)

    def create_from(self, path: str, source: Path) -> bool:
        return self._is_free(path) and self._upper.create_from(path, source)

    def _is_free(self, path: str) -> bool:
        if path in self._deleted:
            self._deleted.discard(path)
            return True
        return not self.exists(path)

    def put(self, path: str, data: bytes) -> None:
        self._upper.put(path, data)
        self._deleted.discard(path)

    def put_from(self, path: str, source: Path) -> None:
        self._upper.put_from(path, source)
        self._deleted.discard(path)

    def delete(self, path: str) -> None:
        self._deleted.add(path)
        self._upper.delete(path)

    def take(self, folder: Path, prefix: str, *, spare: bool) -> None:
        """Take a whole folder of files in, as ``prefix``, unless a change has made that already.

        Args:
            spare: the folder is moved; else it is copied.
        """
        self._deleted = {path for path in self._deleted if not path.startswith(f"{prefix}/")}
        if not (target := Path(self._upper.full(prefix))).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.move if spare else shutil.copytree)(str(folder), str(target))

    def list(self, prefix: str) -> dict[str, FileInfo]:
        files = self._lower.list(prefix) | self._upper.list(prefix)
        return {path: info for path, info in sorted(files.items()) if path not in self._deleted}

    def refuse_unwritable(self) -> None:
        self._lower.refuse_unwritable()

    def local(self, path: str) -> Path | None:
        """Path on the disk; None for a folder of which each of the two has a part."""
        hidden = self._deleted | self._upper.list(path).keys()
        if self._is_above(path) and self._lower.list(path).keys() - hidden - {path}:
            return None
        is_below = path not in self._deleted and not self._is_above(path)
        return self._lower.local(path) if is_below else Path(self._upper.full(path))

    def _now(self) -> float:
        # The clock of ``lower`` may be read by writing a file there.
        return self._upper._now()


def overlay(url: str, folder: Path) -> OverlayBackend:
    """The files at ``url`` with changes kept in a local ``folder``."""
    return OverlayBackend(open_backend(url), ScratchBackend(*file_system(str(folder))))
