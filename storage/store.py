"""The store: immutable artifacts, create-only records, verified reads, one mutable place for work.

An artifact exists when, and only when, a record names it: its files are written first, the record last.
A crash leaves files that no record names, which ``gc`` deletes. Only the index page is ever overwritten,
so readers need no locks. Of two writers of one key the first wins, and the second gets its record.
"""

import errno
import heapq
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path, PurePosixPath

from storage import verify
from storage.artifact import (
    FORMAT,
    Artifact,
    CorruptError,
    Record,
    UnsignedError,
    digest_of,
    seal,
    unseal,
)
from storage.backends.backend import Backend, in_threads
from storage.backends.overlay import overlay
from storage.backends.urls import open_backend
from storage.fingerprint import KEY
from storage.lease import Lease
from storage.records import NoStoreError, Records, StoreFormatError

LOG = logging.getLogger("mixpool.store")


class CorruptArtifactError(CorruptError):
    """Files of an artifact are missing or are not what was written."""

    def __init__(self, artifact: Artifact, faults: list[str]) -> None:
        self.artifact = artifact
        super().__init__(
            f"artifact {artifact.prefix} is damaged: {'; '.join(faults)}. Its records were set aside; "
            "run again, and it is made anew"
        )


class Store(Records):
    """Artifacts and records at one fsspec URL.

    Args:
        url: where; ``file://``, a plain path, ``memory://`` or any fsspec URL.
        cache: local folder for verified copies of remote artifacts.
        create: make a new store where there is none; otherwise that is an error.
        backend: where the files are read and written; None opens ``url``.
        believes_unsigned: do not look at signatures, although there is a key.
    """

    def __init__(
        self,
        url: str,
        cache: Path | None = None,
        *,
        create: bool = True,
        backend: Backend | None = None,
        believes_unsigned: bool = False,
    ) -> None:
        self.url = url
        super().__init__(backend or open_backend(url))
        self.believes_unsigned = believes_unsigned
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.cache = cache or Path(caches) / "mixpool"
        self._verified: set[tuple[str, Path | None]] = set()
        self._open(create)

    def _open(self, create: bool) -> None:
        try:
            data = self.backend.read("store.json")
            name = f"{self.url}/store.json"
            content = unseal(data, name, believes_unsigned=self.believes_unsigned)
        except FileNotFoundError:
            if not create:
                raise NoStoreError(
                    f"there is no store at {self.url}: check the URL, or make one with `mixpool run`"
                ) from None
            self.check()
            self.backend.create("store.json", seal({"format": FORMAT}))
            return
        if create and self.backend.is_remote:
            self.check()
        if create and b'"signature"' in data and not os.environ.get(KEY):
            raise UnsignedError(
                f"the store at {self.url} is signed, and who has the key would not believe what is "
                f"written without it: set {KEY}, or run into a store of your own"
            )
        version = content.get("format")
        if not isinstance(version, int) or version > FORMAT:
            raise StoreFormatError(
                f"the store at {self.url} has format {version}; this mixpool reads up to {FORMAT}: "
                "upgrade mixpool"
            )

    def check(self) -> list[str]:
        """Prove that of 16 racing creates exactly one wins.

        Returns:
            What else the backend lacks, in words; each is logged as a warning.

        Raises:
            StoreFormatError: the backend lets a second writer through, so concurrent runs would
                corrupt each other's results. With MIXPOOL_ALONE=1, a promise that there is never a
                second run or process, that is only a warning.
        """
        path = f"work/check/{uuid.uuid4().hex}"
        with in_threads(self.backend, 16) as pool:
            won = list(pool.map(lambda n: self.backend.create(path, b"%d" % n), range(16)))
        stands = self.backend.read(path)
        self.backend.delete(path)
        lacking = [*self.backend.lacks("work/check")]
        if won.count(True) != 1 or stands != b"%d" % won.index(True):
            fault = (
                f"the backend of {self.url} does not refuse a second create ({won.count(True)} of "
                "16 racing writers won)"
            )
            if os.environ.get("MIXPOOL_ALONE") != "1":
                raise StoreFormatError(
                    f"{fault}: mixpool cannot keep results right there, unless you promise with "
                    "MIXPOOL_ALONE=1 that one process at a time uses it"
                )
            lacking.append(
                f"a second create that fails: {fault}; only one process at a time may use it"
            )
        for words in lacking:
            LOG.warning("the backend of %s lacks %s", self.url, words)
        return lacking

    # Commit and retract ------------------------------------------------------------------------

    def commit(self, record: Record, folder: Path, *, spare: bool = False) -> Record:  # noqa: ARG002
        """Store ``folder`` as the record's output, then the record; returns the record that counts.

        Args:
            spare: nobody needs the folder any more, so that it may be gone afterwards.

        Raises:
            NotCanonicalError: the record holds a value without a canonical form; nothing is stored.
        """
        sealed = seal(record)
        self._upload(record.output, folder)
        return self._add(record, sealed)

    def retract(self, artifact: Artifact) -> list[str]:
        """Set aside every record that names ``artifact``, then delete its files.

        Where no record names it, nothing is deleted: committing it again heals its files.
        """
        paths = [path for path, r in self.named_records() if r.output.prefix == artifact.prefix]
        for path in paths:
            self.set_aside(path)
        if paths:
            self.delete_artifact(artifact.prefix)
        return paths

    # Artifacts ---------------------------------------------------------------------------------

    def _upload(self, artifact: Artifact, folder: Path) -> None:
        sources = {f"{artifact.prefix}/{name}": folder / name for name in artifact.files}
        for path in self.backend.create_each(sources):
            # The name is the digest of the content, so what is there is the same, unless it rotted.
            entry = artifact.files[path.removeprefix(f"{artifact.prefix}/")]
            if verify.fault(self.backend, path, entry):
                LOG.warning("%s is damaged; replacing it", path)
                self.backend.put_from(path, sources[path])

    def faults(self, artifact: Artifact) -> list[str]:
        """What is wrong with the artifact's files in the store, in words; re-hashes all of them."""
        return verify.faults(self.backend, artifact)

    def strays(self, artifact: Artifact) -> list[str]:
        """Paths of files that lie in the artifact's folder and are no part of it."""
        files = {f"{artifact.prefix}/{name}" for name in artifact.files}
        return [path for path in self.backend.list(artifact.prefix) if path not in files]

    def fetch(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, verified (once in each process), and no others.

        Raises:
            CorruptArtifactError: a file is missing or differs; the artifact's records are set
                aside first, so that the next run makes it anew.
            CorruptError: ``artifact`` has other files than its digest says; nothing is set aside.
            OSError: the disk or the network fails; nothing is set aside.
        """
        if digest_of(artifact.files) != artifact.digest:
            raise CorruptError(
                f"{artifact.prefix} is asked for with files that do not have this digest: what names "
                "it was not written by mixpool; `mixpool verify` finds it"
            )
        local = self.backend.local(artifact.prefix)
        # Where somebody has put another file beside them, a reader of the folder might take it in.
        if local and any("/." not in path for path in self.strays(artifact)):
            local = None
        folder = local or self.cache / artifact.kind / artifact.digest
        if (artifact.prefix, local) in self._verified and folder.exists():
            return folder
        faults = self.faults(artifact) if local else verify.fill(self.backend, artifact, folder)
        if faults:
            self.retract(artifact)
            raise CorruptArtifactError(artifact, faults)
        self._verified.add((artifact.prefix, local))
        return folder

    def delete_artifact(self, prefix: str) -> int:
        """Delete every file below ``prefix``; the number of bytes freed."""
        files = self.backend.list(prefix)
        self.backend.delete_each(files)
        self._verified = {known for known in self._verified if known[0] != prefix}
        return sum(info.num_bytes for info in files.values())

    # Chains, work and leases -------------------------------------------------------------------

    def append(self, folder: str, suffix: str, content: bytes, *, after: int = -1) -> str:
        """Write ``content`` under the next free number in ``folder``; its path.

        Args:
            after: a number that is known to be taken, so that not all are listed again.
        """
        taken = (number_of(path) for path in self.chain(folder, after=after))
        number = max(taken, default=after) + 1
        while not self.backend.create(path := f"{folder}/{number:06d}{suffix}", content):
            number += 1
        return path

    def chain(self, folder: str, *, after: int = -1) -> list[str]:
        """The numbered files of ``folder`` with a number above ``after``, in order."""
        # Names have six digits, or more from a million on: then their order is not that of numbers.
        start = f"{folder}/{after:06d}" if 0 <= after < 100_000 else ""
        paths = self.backend.names(folder, start)
        numbered = (path for path in paths if PurePosixPath(path).stem.isdigit())
        return sorted((path for path in numbered if number_of(path) > after), key=number_of)

    def lease(self, name: str) -> Lease:
        """An advisory lease in ``work/<name>``."""
        return Lease(self.backend, f"work/{name}")

    def __repr__(self) -> str:
        return f"Store({self.url!r})"


def number_of(path: str) -> int:
    """The number of a file of a chain."""
    return int(PurePosixPath(path).stem)


class ReadOnlyStore(Store):
    """A store that may only be read, with what a run writes in a scratch folder; it builds nothing."""

    def lease(self, name: str) -> Lease:
        """A lease of a run itself. Raises PermissionError for that of a result, which is lacking."""
        step, _, _ = name.partition("/")
        if step == "run":
            return super().lease(name)
        raise PermissionError(
            errno.EACCES,
            f"the store at {self.url} cannot be written, and a result of {step!r} that this run needs is "
            "not in it: have somebody who may write there run the recipe, or use a store of your own",
        )


@contextmanager
def store_for_run(url: str) -> Iterator[Store]:
    """The store at ``url``, made where there is none; a ``ReadOnlyStore`` where it cannot be written."""
    try:
        store = Store(url)
        probe = f"work/check/{uuid.uuid4().hex}"
        store.backend.create(probe, b"")
        store.backend.delete(probe)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        try:
            Store(url, create=False)
        except NoStoreError:
            raise error from None
    else:
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="mixpool-read-") as name:
        yield ReadOnlyStore(url, backend=overlay(url, Path(name)))


class ScratchStore(Store):
    """A store whose changes are thrown away with ``folder``; records are neither sealed nor written."""

    def __init__(self, url: str, folder: Path) -> None:
        self._changes = overlay(url, folder)
        self._kept: dict[str, Record] = {}
        super().__init__(url, backend=self._changes)

    def find(self, step: str, key: str, *, fresh: bool = False) -> Record | None:
        """As in a store."""
        return self._kept.get(key) or super().find(step, key, fresh=fresh)

    def has(self, step: str, key: str) -> bool:
        """As in a store."""
        return key in self._kept or super().has(step, key)

    def named_records(self, step: str = "") -> Iterator[tuple[str, Record]]:
        """As in a store."""
        kept = sorted((r.path, r) for r in self._kept.values() if step in {"", r.step})
        return heapq.merge(super().named_records(step), kept, key=itemgetter(0))

    def commit(self, record: Record, folder: Path, *, spare: bool = False) -> Record:
        """As in a store; a folder that is spare is moved."""
        if (standing := self.find(record.step, record.key)) is None:
            self._changes.take(folder, record.output.prefix, spare=spare)
            self._kept[record.key] = standing = record
        return standing


@contextmanager
def scratch_store(url: str) -> Iterator[Store]:
    """A store whose changes are thrown away; ``url`` need not hold one yet."""
    with tempfile.TemporaryDirectory(prefix="mixpool-plan-") as name:
        yield ScratchStore(url, Path(name))
