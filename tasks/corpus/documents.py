"""Documents as an artifact: one Parquet file, written and read as a stream.

Columns: ``digest`` (sha256 of the text), ``domain``, ``origin`` (file and row it was first seen in),
``num_tokens`` (end-of-text included; 0 where nothing counted them), ``text``. Rows keep the order in
which documents were assigned, so that a partition made again has the same bytes.
"""

import functools
import marshal
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

FILE = "documents.parquet"
ROW_GROUP_BYTES = 8 << 20
SPOOL_BYTES = 64 << 10


class StoredDocument(NamedTuple):
    """One row of ``documents.parquet``."""

    digest: str
    domain: str
    origin: str
    num_tokens: int
    text: str


@functools.cache
def _schema() -> "pa.Schema":
    import pyarrow as pa

    text = {"digest": pa.string(), "domain": pa.string(), "origin": pa.string()}
    return pa.schema({**text, "num_tokens": pa.int64(), "text": pa.large_string()})


class DocumentWriter:
    """Collects documents; ``close`` makes ``folder/documents.parquet`` of them.

    Until then they lie in memory, and those above 64 KiB in a file beside ``folder``, which is opened
    only to append to it: thousands of domains fill at once, with no open file. The file is in Python's own
    format, which is the quickest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_documents = self.num_tokens = self.num_bytes = 0
        self._spool = folder.with_name(f"{folder.name}.spool")
        self._rows: list[bytes] = []
        self._pending = 0

    def add(self, document: StoredDocument) -> None:
        """Append one document."""
        self.num_documents += 1
        self.num_tokens += document.num_tokens
        self.num_bytes += len(document.text.encode())
        row = marshal.dumps(tuple(document))
        self._rows.append(row)
        self._pending += len(row)
        if self._pending >= SPOOL_BYTES:
            self._spill()

    def _spill(self) -> None:
        with self._spool.open("ab") as file:
            file.writelines(self._rows)
        self._rows.clear()
        self._pending = 0

    def close(self) -> None:
        """Write the Parquet file; memory holds one row group."""
        groups = batches(self.documents(), ROW_GROUP_BYTES, lambda row: len(row.text.encode()))
        self.folder.mkdir(exist_ok=True)
        write_rows(self.folder / FILE, _schema(), groups)
        self._spool.unlink(missing_ok=True)

    def documents(self) -> Iterator[StoredDocument]:
        """What was added so far, in order; not after ``close``."""
        if spilled := self.num_documents - len(self._rows):
            with self._spool.open("rb") as file:
                yield from (StoredDocument(*marshal.load(file)) for _ in range(spilled))
        yield from (StoredDocument(*marshal.loads(row)) for row in self._rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()


def write_rows(path: Path, schema: "pa.Schema", groups: Iterable[Sequence[Sequence[Any]]]) -> None:
    """Write a Parquet file, with one row group for each group of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        pa.OSFile(str(path), "wb") as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for rows in groups:
            columns = zip(*rows, strict=True)
            arrays = [_array(column, f.type) for column, f in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _array(values: Sequence[Any], kind: "pa.DataType") -> "pa.Array":
    """What ``pa.array`` makes of values without None; it imports pandas, which takes half a second."""
    import pyarrow as pa

    if pa.types.is_integer(kind):
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(array("q", values))])
    data = [value.encode() for value in values]
    is_short = pa.types.is_string(kind)
    if is_short and sum(map(len, data)) >= 1 << 31:  # in several chunks
        return pa.array(values, kind)
    ends = array("i" if is_short else "q", accumulate(map(len, data), initial=0))
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def read_columns(folder: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of an artifact as dictionaries, streamed."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(folder / FILE) as file:
        for batch in file.iter_batches(batch_size=512, columns=columns):
            yield from batch.to_pylist()


def batches(
    items: Iterable[T],
    most: int,
    size: Callable[[T], int] = lambda item: 1,
    most_items: int | None = None,
) -> Iterator[list[T]]:
    """Items in lists: of ``most_items``, or of fewer whose sizes are ``most`` together, or a little more."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= most or len(batch) == most_items:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def read_all(folder: Path) -> Iterator[StoredDocument]:
    """Every document of an artifact, streamed."""
    return (StoredDocument(**row) for row in read_columns(folder))
