"""The records of a store: look one up by step and key, read many at once, set damaged ones aside.

A record's name ends in its key, so one listing of a step's folder answers for any number of keys. The
listing is kept. Another client may have written a record since, and ``fresh`` lists again.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import ValidationError

from storage.artifact import FORMAT, CorruptError, Record, digest_of, first_fault, unseal
from storage.backends.backend import Backend
from storage.backends.names import OutsideError

LOG = logging.getLogger("mixpool.store")

RECENT = 5.0
"""Seconds for which a commit believes a listing. Two runs that make one key under two labels without a
lease, within this time, leave two records, of which the first by name stands."""


class StoreFormatError(ValueError):
    """The store was written by a newer mixpool, or the folder is no store."""


class NoStoreError(StoreFormatError):
    """There is no store at that address yet."""


class _Listing(NamedTuple):
    """Names of a step's records by key, and when they were listed."""

    names: dict[str, list[str]]
    time: float


class Records:
    """The folder ``records/`` of a store."""

    believes_unsigned = False
    """Whether signatures are not looked at, as where a store is adopted."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._listings: dict[str, _Listing] = {}
        self._ahead: dict[str, dict[str, bytes]] = {}
        self._lock = threading.Lock()

    def find(self, step: str, key: str, *, fresh: bool = False) -> Record | None:
        """The record of a key, or None. ``fresh`` lists the store again first.

        A damaged record is set aside (see ``set_aside``), logged, and counts as none. Where two
        writers used different labels, the first by name counts.
        """
        ahead = self._ahead.pop(key, {})
        # In a list of their own: records may be set aside meanwhile.
        for path in [*self._names(step, fresh=fresh).get(key, ())]:
            try:
                return self._record(path, None if fresh else ahead.get(path))
            except FileNotFoundError:
                continue
            except CorruptError as error:
                LOG.warning("%s; it is set aside and made anew", error)
                self.set_aside(path)
        return None

    def _record(self, path: str, ahead: bytes | None) -> Record:
        if ahead is not None:
            # What was damaged then may have been made anew since.
            with contextlib.suppress(CorruptError):
                return self._parsed(path, ahead)
        return self.read_record(path)

    def has(self, step: str, key: str) -> bool:
        """Whether some record has this key, by name alone: one listing for any number of keys."""
        return key in self._names(step)

    def look_ahead(self, step: str, keys: Iterable[str]) -> None:
        """Read the records of many keys at once; the next ``find`` of each uses what was read."""
        names, contents = self._names(step), {key: dict[str, bytes]() for key in keys}
        owners = {path: key for key in contents for path in names.get(key, ())}
        for path, data in self.backend.read_each(owners):
            if data is not None:
                contents[owners[path]][path] = data
        self._ahead |= contents

    def _names(self, step: str, *, fresh: bool = False) -> dict[str, list[str]]:
        with self._lock:
            if fresh or step not in self._listings:
                names: dict[str, list[str]] = {}
                # Every build lists the folder once, so that must not ask for size and time of each.
                for path in self.backend.names(f"records/{step}"):
                    if path.endswith(".json"):
                        names.setdefault(path.split(".")[-2], []).append(path)
                self._listings[step] = _Listing(names, time.monotonic())
            return self._listings[step].names

    def read_record(self, path: str) -> Record:
        """The record at ``path``. Raises CorruptError, StoreFormatError, FileNotFoundError."""
        return self._parsed(path, self.backend.read(path))

    def _parsed(self, path: str, data: bytes) -> Record:
        content = unseal(data, path, believes_unsigned=self.believes_unsigned)
        version = content.get("format")
        if isinstance(version, int) and version > FORMAT:
            raise StoreFormatError(f"{path} was written by a newer mixpool: upgrade mixpool")
        try:
            record = Record.model_validate(content)
        except ValidationError as error:
            raise CorruptError(f"{path} is not a record: {first_fault(error)}") from error
        is_its_key = record.recomputed_key() == record.key
        folder, _, name = path.rpartition("/")
        if not (
            is_its_key and folder == f"records/{record.step}" and f".{record.key}.json" in name
        ):
            raise CorruptError(f"{path} does not belong to its key")
        if digest_of(record.output.files) != record.output.digest:
            raise CorruptError(f"{path} names an output that is not the digest of its files")
        return record

    def records(self, step: str = "") -> Iterator[Record]:
        """Every readable record, of one step or of all; damaged ones are reported and skipped."""
        return (record for _, record in self.named_records(step))

    def newest(self, step: str, most: int) -> tuple[list[Record], int]:
        """Readable ones of the ``most`` records of a step that were written last; how many are older."""
        files = self.backend.list(f"records/{step}")
        paths = [path for path in files if path.endswith(".json")]
        paths.sort(key=lambda path: (files[path].modified, path), reverse=True)
        return [record for _, record in self._readable(paths[:most])], len(paths[most:])

    def named_records(self, step: str = "") -> Iterator[tuple[str, Record]]:
        """As ``records``, each with its path."""
        paths = self.backend.list(f"records/{step}".rstrip("/"))
        return self._readable(path for path in paths if path.endswith(".json"))

    def _readable(self, paths: Iterable[str]) -> Iterator[tuple[str, Record]]:
        for path, data in self.backend.read_each(paths):
            try:
                if data is not None:  # else set aside by another client since it was listed
                    yield path, self._parsed(path, data)
            except CorruptError as error:
                LOG.warning("%s", error)

    def _add(self, record: Record, sealed: bytes) -> Record:
        """Write a record; returns the one that counts for its key."""
        # What was read ahead may be gone by now, and then this record must be written.
        self._ahead.pop(record.key, None)
        with self._lock:
            listing = self._listings.get(record.step)
        is_recent = listing is not None and time.monotonic() - listing.time < RECENT
        # The record of a key may have another label, and so another name, which create cannot see.
        if (standing := self.find(record.step, record.key, fresh=not is_recent)) is not None:
            return standing
        for _ in range(2):  # once more where what is there is damaged and so set aside
            if self.backend.create(record.path, sealed):
                with self._lock:
                    if (listing := self._listings.get(record.step)) is not None:
                        listing.names.setdefault(record.key, []).append(record.path)
                return record
            LOG.info("%s was committed by another run; using that", record.path)
            if (standing := self.find(record.step, record.key, fresh=True)) is not None:
                return standing
        raise CorruptError(f"{record.path} was written and cannot be read back")

    def set_aside(self, path: str) -> None:
        """Move a record out of use, to ``work/set-aside/``, so that its step runs again."""
        name = f"work/set-aside/{PurePosixPath(path).name}.{uuid.uuid4().hex[:8]}"
        try:
            self.backend.put(name, self.backend.read(path))
        except FileNotFoundError:
            return
        except OutsideError as error:  # nothing to keep: what the link names is not the store's
            LOG.warning("%s; it is deleted", error)
        self.backend.delete(path)
        with self._lock:
            self._listings.clear()
            self._ahead.clear()
