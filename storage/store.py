"""The store: immutable artifacts, create-only records, verified reads, one mutable place for work.

An artifact exists when, and only when, a record names it: files first, record last. A crash leaves
files that no record names, which ``gc`` finds. Nothing else is ever overwritten, so readers need no
locks; of two writers of one key the first wins, and the second is given what is there.
"""

import json
import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from storage.artifact import (
    FORMAT,
    Artifact,
    CorruptError,
    Record,
    describe,
    hash_file,
    seal,
    unseal,
)
from storage.backend import open_backend
from storage.lease import Lease

LOG = logging.getLogger("mixpool.store")


class StoreFormatError(ValueError):
    """The store was written by a newer mixpool, or the folder is no store."""


class CorruptArtifactError(CorruptError):
    """Files of an artifact are missing or are not what was written."""

    def __init__(self, artifact: Artifact, faults: list[str]) -> None:
        self.artifact = artifact
        super().__init__(
            f"artifact {artifact.prefix} is damaged: {'; '.join(faults)}. Its records were set aside; "
            "run again, and it is made anew"
        )


class Store:
    """Artifacts and records at one fsspec URL.

    Args:
        url: where; ``file://``, a plain path, ``memory://`` or any fsspec URL.
        cache: local folder for verified copies of remote artifacts.
        create: make a new store where there is none; otherwise that is an error.
    """

    def __init__(self, url: str, cache: Path | None = None, *, create: bool = True) -> None:
        self.url = url
        self.backend = open_backend(url)
        self.cache = cache or _default_cache()
        self._names: dict[str, dict[str, list[str]]] = {}
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        self._open(create)

    def _open(self, create: bool) -> None:
        try:
            content = unseal(self.backend.read("store.json"), f"{self.url}/store.json")
        except FileNotFoundError:
            if not create:
                raise StoreFormatError(
                    f"there is no store at {self.url}: check the URL, or make one with `mixpool run`"
                ) from None
            self.check()
            self.backend.create("store.json", seal({"format": FORMAT}))
            return
        found = content["format"] if isinstance(content, dict) else None
        if not isinstance(found, int) or found > FORMAT:
            raise StoreFormatError(
                f"the store at {self.url} has format {found}; this mixpool reads up to {FORMAT}: "
                "upgrade mixpool"
            )

    def check(self) -> None:
        """Prove that of 16 racing creates exactly one wins and its content stands.

        Raises:
            StoreFormatError: the backend lets a second writer through; concurrent runs would
                corrupt each other's results.
        """
        path = f"work/check/{uuid.uuid4().hex}"
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda n: self.backend.create(path, b"%d" % n), range(16)))
        stands = self.backend.read(path)
        self.backend.delete(path)
        if won.count(True) != 1 or stands != b"%d" % won.index(True):
            raise StoreFormatError(
                f"the backend of {self.url} does not refuse a second create ({won.count(True)} of "
                "16 racing writers were told they won): mixpool cannot keep results right there"
            )

    # Records -----------------------------------------------------------------------------------

    def find(self, step: str, key: str, *, fresh: bool = False) -> Record | None:
        """The record of a key, or None. ``fresh`` lists the store again first.

        A record that does not hold what was written is set aside (see ``retract``) and reported,
        and counts as none. Where two writers used different labels, the first name stands.
        """
        with self._lock:
            if fresh or step not in self._names:
                self._names[step] = self._list_names(step)
            paths = list(self._names[step].get(key, ()))
        for path in paths:
            try:
                return self.read_record(path)
            except FileNotFoundError:
                continue
            except CorruptError as error:
                LOG.warning("%s; it is set aside and made anew", error)
                self.set_aside(path)
        return None

    def _list_names(self, step: str) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for path in self.backend.list(f"records/{step}"):
            names.setdefault(path.split(".")[-2], []).append(path)
        return names

    def read_record(self, path: str) -> Record:
        """The record at ``path``. Raises CorruptError, StoreFormatError, FileNotFoundError."""
        content = unseal(self.backend.read(path), path)
        if isinstance(content, dict) and int(str(content.get("format", 0))) > FORMAT:
            raise StoreFormatError(f"{path} was written by a newer mixpool: upgrade mixpool")
        try:
            record = Record.model_validate(content)
        except ValidationError as error:
            raise CorruptError(f"{path} is not a record: {error.errors()[0]['msg']}") from error
        if record.recomputed_key() != record.key or record.key not in path:
            raise CorruptError(f"{path} does not belong to its key")
        return record

    def records(self, step: str = "") -> Iterator[Record]:
        """Every readable record, of one step or of all; damaged ones are reported and skipped."""
        for path in self.backend.list(f"records/{step}".rstrip("/")):
            try:
                yield self.read_record(path)
            except CorruptError as error:
                LOG.warning("%s", error)

    def commit(self, record: Record, folder: Path) -> Record:
        """Store ``folder`` as the record's output, then the record; returns the one that stands."""
        self._upload(record.output, folder)
        if not self.backend.create(record.path, seal(record)):
            LOG.info("%s was committed by another run; using that", record.path)
        standing = self.find(record.step, record.key, fresh=True)
        if standing is None:
            raise CorruptError(f"{record.path} was written and cannot be read back")
        return standing

    def retract(self, artifact: Artifact) -> list[str]:
        """Set aside every record that names ``artifact``, then delete its files."""
        paths = [r.path for r in self.records() if r.output.digest == artifact.digest]
        for path in paths:
            self.set_aside(path)
        self.delete_artifact(artifact.prefix)
        return paths

    def set_aside(self, path: str) -> None:
        """Move a record out of use, to ``work/set-aside/``, so that its step runs again."""
        name = f"work/set-aside/{PurePosixPath(path).name}.{uuid.uuid4().hex[:8]}"
        try:
            self.backend.put(name, self.backend.read(path))
        except FileNotFoundError:
            return
        self.backend.delete(path)
        with self._lock:
            self._names.clear()

    # Artifacts ---------------------------------------------------------------------------------

    def _upload(self, artifact: Artifact, folder: Path) -> None:
        for name, entry in artifact.files.items():
            path = f"{artifact.prefix}/{name}"
            if self.backend.create_from(path, folder / name):
                continue
            # The name is the digest of the content, so what is there is the same, unless it rotted.
            if self._fault(path, entry.sha256):
                LOG.warning("%s is damaged; replacing it", path)
                self.backend.put_from(path, folder / name)

    def _fault(self, path: str, sha256: str) -> str | None:
        local = self.backend.local(path)
        try:
            if local is not None:
                return None if hash_file(local).sha256 == sha256 else f"{path} has other content"
            with tempfile.TemporaryDirectory() as scratch:
                target = Path(scratch) / "file"
                self.backend.fetch(path, target)
                return None if hash_file(target).sha256 == sha256 else f"{path} has other content"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read: {error}"

    def faults(self, artifact: Artifact) -> list[str]:
        """What is wrong with the artifact's files in the store, in words; re-hashes all of them."""
        found = (self._fault(f"{artifact.prefix}/{n}", e.sha256) for n, e in artifact.files.items())
        return [fault for fault in found if fault]

    def fetch(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, verified (once in each process).

        Raises:
            CorruptArtifactError: a file is missing or differs; the artifact's records are set
                aside first, so that the next run makes it anew.
        """
        local = self.backend.local(artifact.prefix)
        folder = local or self._cached(artifact)
        if artifact.digest in self._verified:
            return folder
        faults = self.faults(artifact) if local else _faults_in(artifact, folder)
        if faults and local is None:
            shutil.rmtree(folder)
            folder = self._cached(artifact)
            faults = _faults_in(artifact, folder)
        if faults:
            self.retract(artifact)
            raise CorruptArtifactError(artifact, faults)
        self._verified.add(artifact.digest)
        return folder

    def _cached(self, artifact: Artifact) -> Path:
        target = self.cache / artifact.kind / artifact.digest
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
            folder = Path(scratch) / "artifact"
            for name in artifact.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    self.backend.fetch(f"{artifact.prefix}/{name}", folder / name)
                except FileNotFoundError:
                    LOG.warning("%s/%s is missing", artifact.prefix, name)
            try:
                folder.rename(target)
            except OSError:
                if not target.exists():
                    raise
        return target

    def delete_artifact(self, prefix: str) -> int:
        """Delete every file below ``prefix``; the number of bytes freed."""
        files = self.backend.list(prefix)
        for path in files:
            self.backend.delete(path)
        self._verified.discard(prefix.rpartition("/")[2])
        return sum(info.num_bytes for info in files.values())

    # Chains, work and leases -------------------------------------------------------------------

    def append(self, folder: str, suffix: str, content: bytes) -> str:
        """Claim the next number in ``folder`` for ``content``; the path it got."""
        number = max((number_of(path) for path in self.chain(folder)), default=-1) + 1
        while not self.backend.create(path := f"{folder}/{number:06d}{suffix}", content):
            number += 1
        return path

    def chain(self, folder: str) -> list[str]:
        """The numbered files of ``folder`` in order."""
        return sorted(p for p in self.backend.list(folder) if PurePosixPath(p).stem.isdigit())

    def lease(self, name: str) -> Lease:
        """An advisory lease in ``work/<name>``."""
        return Lease(self.backend, f"work/{name}")

    def __repr__(self) -> str:
        return f"Store({self.url!r})"


def number_of(path: str) -> int:
    """The number that a file of a chain claimed."""
    return int(PurePosixPath(path).stem)


def _faults_in(artifact: Artifact, folder: Path) -> list[str]:
    try:
        found = describe(artifact.kind, folder).files
    except ValueError:
        found = {}
    return [
        f"{artifact.prefix}/{name} {'has other content' if name in found else 'is missing'}"
        for name, entry in artifact.files.items()
        if found.get(name) != entry
    ]


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mixpool"


def read_json(path: Path) -> dict[str, object]:
    """A JSON object in a local file of an artifact."""
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content
