"""The index of documents: what each known document is for, and where it went.

A corpus may have more documents than fit in memory, so the index is a temporary SQLite table,
filled from the index artifacts of earlier scans. Rows that the present scan writes become the next
index artifact.
"""

import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.corpus.documents import batches, write_rows

FILE = "index.parquet"
BATCH = 8192
CACHE_KIB = 32 << 10


class Role:
    """What a document is for. It changes by a withdrawal only, or while the document is in no artifact."""

    TRAIN = "train"
    BASE = "base"
    HELDOUT = "heldout"
    EVALUATION = "evaluation"
    WITHDRAWN = "withdrawn"
    LEFT_OUT = "left out"


class IndexEntry(NamedTuple):
    """What the index knows about a document: which partition or set it went to."""

    digest: str
    role: str
    place: str
    """Name of the partition (or ``<domain>/open``), of the evaluation set, or of the domain whose
    held-out set it is in; empty for a document that is in no artifact."""
    origin: str
    """File and row where it was first seen."""


class DocumentIndex:
    """All documents that the chain knows so far; ``folder`` is scratch space."""

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "seen.sqlite", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        self._database.execute(
            "CREATE TABLE seen (digest BLOB PRIMARY KEY, role TEXT, place TEXT, origin TEXT, "
            "number INTEGER, new INTEGER) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")
        self._numbers = itertools.count()

    def load(self, folder: Path) -> None:
        """Take over the rows of an index artifact; later ones replace earlier ones."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(folder / FILE) as file:
            for batch in file.iter_batches(BATCH):
                columns = [batch.column(name).to_pylist() for name in IndexEntry._fields]
                self._write(map(IndexEntry, *columns), new=False)

    def write(self, entry: IndexEntry) -> None:
        """Add or replace a row of the present scan."""
        self._write([entry], new=True)

    def _write(self, entries: Iterable[IndexEntry], *, new: bool) -> None:
        self._database.executemany(
            "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?)",
            ((bytes.fromhex(d), *rest, next(self._numbers), new) for d, *rest in entries),
        )

    def get(self, digest: str) -> IndexEntry | None:
        """The document with this digest, or None where it is new."""
        return next(self._select("digest = ?", bytes.fromhex(digest)), None)

    def forget(self, digest: str) -> None:
        """Have a document that is in no artifact be a new one."""
        self._database.execute("DELETE FROM seen WHERE digest = ?", (bytes.fromhex(digest),))

    def __contains__(self, digest: str) -> bool:
        query = "SELECT 1 FROM seen WHERE digest = ?"
        return self._database.execute(query, (bytes.fromhex(digest),)).fetchone() is not None

    def find(self, name: str) -> list[IndexEntry]:
        """The document with this digest, or all that were first seen at this origin."""
        if is_digest(name):
            return list(self._select("digest = ?", bytes.fromhex(name)))
        self._database.execute("CREATE INDEX IF NOT EXISTS by_origin ON seen (origin)")
        return list(self._select("origin = ? ORDER BY number", name))

    def place(self, role: str, place: str) -> Iterator[IndexEntry]:
        """The documents that went to one place, in the order in which they were assigned."""
        self._database.execute("CREATE INDEX IF NOT EXISTS by_place ON seen (place, number)")
        return self._select("role = ? AND place = ? ORDER BY number", role, place)

    def each(self) -> Iterator[IndexEntry]:
        """Every document in the order in which it was written."""
        return self._select("1 ORDER BY number")

    def new(self) -> Iterator[IndexEntry]:
        """Rows of the present scan in the order in which they were written."""
        return self._select("new = 1 ORDER BY number")

    def _select(self, condition: str, *values: object) -> Iterator[IndexEntry]:
        query = f"SELECT digest, role, place, origin FROM seen WHERE {condition}"
        rows = self._database.execute(query, values)
        return (IndexEntry(digest.hex(), *rest) for digest, *rest in rows)

    def save_new(self, folder: Path) -> int:
        """Write the present scan's rows as ``index.parquet``; their number."""
        import pyarrow as pa

        schema = pa.schema({name: pa.string() for name in IndexEntry._fields})
        write_rows(folder / FILE, schema, batches(self.new(), BATCH))
        (count,) = self._database.execute("SELECT count(*) FROM seen WHERE new = 1").fetchone()
        return int(count)

    def close(self) -> None:
        """Let go of the scratch file."""
        self._database.close()


def is_digest(name: str) -> bool:
    """Whether ``name`` is a sha256 in hex."""
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def open_place(domain: str) -> str:
    """The place of a domain's documents that wait for their partition to fill."""
    return f"{domain}/open"
