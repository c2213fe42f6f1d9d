"""Which documents are known, what they are for, and where they went: a set that lives on disk.

A corpus may have more documents than fit in memory, so the set is a temporary SQLite table, filled
from the index artifacts of earlier scans. Rows written by the present scan become the next one.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILE = "index.parquet"


class Role:
    """What a document is for; the first role it gets is the one it keeps."""

    TRAIN = "train"
    BASE = "base"
    HELDOUT = "heldout"
    EVALUATION = "evaluation"
    WITHDRAWN = "withdrawn"
    LEFT_OUT = "left out"


class Known(NamedTuple):
    """A row of the index."""

    digest: str
    role: str
    place: str
    """Name of the partition (or ``<domain>/open``), of the evaluation set, or of the domain."""
    origin: str
    """File and row where it was first seen."""


class Seen:
    """The documents known so far; ``folder`` is scratch space."""

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "seen.sqlite", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute(
            "CREATE TABLE seen (digest BLOB PRIMARY KEY, role TEXT, place TEXT, origin TEXT, "
            "number INTEGER, new INTEGER) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")
        self._count = 0

    def load(self, folder: Path) -> None:
        """Take over the rows of an index artifact; later ones replace earlier ones."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(folder / FILE) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    self._write(Known(**row), new=False)

    def role(self, digest: str) -> str | None:
        """What the document is for, or None where it is new."""
        found = self._database.execute(
            "SELECT role FROM seen WHERE digest = ?", (bytes.fromhex(digest),)
        ).fetchone()
        return None if found is None else str(found[0])

    def find(self, name: str) -> Known | None:
        """The document with this digest or origin, or None."""
        column, value = ("digest", bytes.fromhex(name)) if is_digest(name) else ("origin", name)
        found = self._database.execute(
            f"SELECT digest, role, place, origin FROM seen WHERE {column} = ?", (value,)
        ).fetchone()
        return None if found is None else Known(found[0].hex(), *found[1:])

    def write(self, known: Known) -> None:
        """Add or replace a row of the present scan."""
        self._write(known, new=True)

    def _write(self, known: Known, *, new: bool) -> None:
        self._count += 1
        self._database.execute(
            "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?)",
            (bytes.fromhex(known.digest), *known[1:], self._count, new),
        )

    def place(self, role: str, place: str) -> Iterator[Known]:
        """The documents that went to one place, in the order in which they were assigned."""
        yield from self._select("role = ? AND place = ?", role, place)

    def new(self) -> Iterator[Known]:
        """Rows of the present scan in the order in which they were written."""
        yield from self._select("new = 1")

    def _select(self, condition: str, *values: str) -> Iterator[Known]:
        rows = self._database.execute(
            f"SELECT digest, role, place, origin FROM seen WHERE {condition} ORDER BY number",
            values,
        )
        for digest, *rest in rows:
            yield Known(digest.hex(), *rest)

    def save_new(self, folder: Path) -> int:
        """Write the present scan's rows as ``index.parquet``; their number."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from tasks.tokenize import batched

        folder.mkdir()
        schema = pa.schema({name: pa.string() for name in Known._fields})
        written = 0
        with pq.ParquetWriter(folder / FILE, schema, compression="zstd") as writer:
            for rows in batched(self.new(), 65536):
                written += len(rows)
                columns = dict(zip(Known._fields, map(list, zip(*rows, strict=True)), strict=True))
                writer.write_table(pa.table(columns, schema=schema))
        return written

    def close(self) -> None:
        """Let go of the scratch file."""
        self._database.close()


def is_digest(name: str) -> bool:
    """Whether ``name`` is a sha256 in hex."""
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def open_place(domain: str) -> str:
    """The place of a domain's documents that wait for their partition to fill."""
    return f"{domain}/open"


def domain_of(known: Known) -> str:
    """The domain of a document that is or was in training or held out."""
    if known.place.endswith("/open"):
        return known.place.removesuffix("/open")
    is_partition = known.role in {Role.TRAIN, Role.WITHDRAWN}
    return known.place.rpartition("-")[0] if is_partition else known.place
