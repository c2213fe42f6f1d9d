"""A store that reads from one place and writes to another: what a plan tries, nobody else sees."""

from pathlib import Path

from storage.backend import Backend, FileInfo, LocalBackend, open_backend


class OverlayBackend(Backend):
    """``lower`` is only read; whatever is written goes to ``upper`` and hides it."""

    def __init__(self, lower: Backend, upper: LocalBackend) -> None:
        super().__init__(lower.fs, lower.root)
        self._lower = lower
        self._upper = upper
        self._deleted: set[str] = set()

    def _holder(self, path: str) -> Backend:
        if path in self._deleted:
            raise FileNotFoundError(path)
        return self._upper if Path(self._upper.full(path)).exists() else self._lower

    def read(self, path: str) -> bytes:
        return self._holder(path).read(path)

    def fetch(self, path: str, target: Path) -> None:
        self._holder(path).fetch(path, target)

    def _exists(self, path: str) -> bool:
        try:
            return path in self._holder(path).list(path.rpartition("/")[0])
        except FileNotFoundError:
            return False

    def create(self, path: str, data: bytes) -> bool:
        if self._exists(path):
            return False
        self._deleted.discard(path)
        return self._upper.create(path, data)

    def create_from(self, path: str, source: Path) -> bool:
        return self.create(path, source.read_bytes())

    def put(self, path: str, data: bytes) -> None:
        self._deleted.discard(path)
        self._upper.put(path, data)

    def put_from(self, path: str, source: Path) -> None:
        self.put(path, source.read_bytes())

    def delete(self, path: str) -> None:
        self._upper.delete(path)
        self._deleted.add(path)

    def list(self, prefix: str) -> dict[str, FileInfo]:
        found = self._lower.list(prefix) | self._upper.list(prefix)
        return {path: info for path, info in sorted(found.items()) if path not in self._deleted}

    def local(self, path: str) -> Path | None:
        upper = Path(self._upper.full(path))
        return upper if upper.exists() else self._lower.local(path)

    def now(self) -> float:
        return self._lower.now()


def overlay(url: str, folder: Path) -> OverlayBackend:
    """The files at ``url`` with changes kept in a local ``folder``."""
    upper = open_backend(str(folder))
    assert isinstance(upper, LocalBackend)
    return OverlayBackend(open_backend(url), upper)
