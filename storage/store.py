"""The store: immutable artifacts, create-only records, verified reads, one mutable place for work.

An artifact exists when, and only when, a record names it: files first, record last. A crash leaves
files that no record names, which ``gc`` finds. Nothing else is ever overwritten, so readers need no
locks; of two writers of one key the first wins, and the second is given what is there.
"""

import logging
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from storage import verify
from storage.artifact import (
    FORMAT,
    Artifact,
    CorruptError,
    Record,
    digest_of,
    seal,
    unseal,
)
from storage.backend import Backend, open_backend
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
        backend: the files themselves, where they are not simply those at ``url``.
    """

    def __init__(
        self,
        url: str,
        cache: Path | None = None,
        *,
        create: bool = True,
        backend: Backend | None = None,
    ) -> None:
        self.url = url
        self.backend = backend or open_backend(url)
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

    def has(self, step: str, key: str) -> bool:
        """Whether some record has this key, by name alone: one listing for any number of keys."""
        with self._lock:
            if step not in self._names:
                self._names[step] = self._list_names(step)
            return key in self._names[step]

    def _list_names(self, step: str) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for path in self.backend.list(f"records/{step}"):
            if path.endswith(".json"):
                names.setdefault(path.split(".")[-2], []).append(path)
        return names

    def read_record(self, path: str) -> Record:
        """The record at ``path``. Raises CorruptError, StoreFormatError, FileNotFoundError."""
        content = unseal(self.backend.read(path), path)
        found = content.get("format") if isinstance(content, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise StoreFormatError(f"{path} was written by a newer mixpool: upgrade mixpool")
        try:
            record = Record.model_validate(content)
        except ValidationError as error:
            raise CorruptError(f"{path} is not a record: {error.errors()[0]['msg']}") from error
        if record.recomputed_key() != record.key or record.key not in path:
            raise CorruptError(f"{path} does not belong to its key")
        if digest_of(record.output.files) != record.output.digest:
            raise CorruptError(f"{path} names an output that is not the digest of its files")
        return record

    def records(self, step: str = "") -> Iterator[Record]:
        """Every readable record, of one step or of all; damaged ones are reported and skipped."""
        return (record for _, record in self._records(step))

    def _records(self, step: str = "") -> Iterator[tuple[str, Record]]:
        for path in self.backend.list(f"records/{step}".rstrip("/")):
            try:
                if path.endswith(".json"):
                    yield path, self.read_record(path)
            except CorruptError as error:
                LOG.warning("%s", error)
            except FileNotFoundError:  # set aside by another client since it was listed
                continue

    def commit(self, record: Record, folder: Path) -> Record:
        """Store ``folder`` as the record's output, then the record; returns the one that stands.

        Raises:
            NotCanonicalError: the record holds a value without a canonical form; nothing is stored.
        """
        sealed = seal(record)
        self._upload(record.output, folder)
        # The record of a key may have another label, and so another name, which create cannot see.
        if (standing := self.find(record.step, record.key, fresh=True)) is not None:
            return standing
        if self.backend.create(record.path, sealed):
            with self._lock:
                if record.step in self._names:
                    self._names[record.step].setdefault(record.key, []).append(record.path)
            return record
        LOG.info("%s was committed by another run; using that", record.path)
        standing = self.find(record.step, record.key, fresh=True)
        if standing is None:
            raise CorruptError(f"{record.path} was written and cannot be read back")
        return standing

    def retract(self, artifact: Artifact) -> list[str]:
        """Set aside every record that names ``artifact``, then delete its files."""
        paths = [path for path, r in self._records() if r.output.prefix == artifact.prefix]
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
            if verify.fault(self.backend, path, entry):
                LOG.warning("%s is damaged; replacing it", path)
                self.backend.put_from(path, folder / name)

    def faults(self, artifact: Artifact) -> list[str]:
        """What is wrong with the artifact's files in the store, in words; re-hashes all of them."""
        return verify.faults(self.backend, artifact)

    def fetch(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, verified (once in each process).

        Raises:
            CorruptArtifactError: a file is missing or differs; the artifact's records are set
                aside first, so that the next run makes it anew.
            OSError: the disk or the network fails; nothing is set aside.
        """
        local = self.backend.local(artifact.prefix)
        folder = local or self.cache / artifact.kind / artifact.digest
        if artifact.prefix in self._verified and folder.exists():
            return folder
        faults = self.faults(artifact) if local else verify.fill(self.backend, artifact, folder)
        if faults:
            self.retract(artifact)
            raise CorruptArtifactError(artifact, faults)
        self._verified.add(artifact.prefix)
        return folder

    def delete_artifact(self, prefix: str) -> int:
        """Delete every file below ``prefix``; the number of bytes freed."""
        files = self.backend.list(prefix)
        for path in files:
            self.backend.delete(path)
        self._verified.discard(prefix)
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
        found = (p for p in self.backend.list(folder) if PurePosixPath(p).stem.isdigit())
        return sorted(found, key=number_of)

    def lease(self, name: str) -> Lease:
        """An advisory lease in ``work/<name>``."""
        return Lease(self.backend, f"work/{name}")

    def __repr__(self) -> str:
        return f"Store({self.url!r})"


def number_of(path: str) -> int:
    """The number that a file of a chain claimed."""
    return int(PurePosixPath(path).stem)


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mixpool"
