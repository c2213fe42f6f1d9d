"""Documents as an artifact: one Parquet file, written and read as a stream.

Columns: ``digest`` (sha256 of the text), ``domain``, ``origin`` (file and row it was first seen in),
``num_tokens`` (end-of-text included; 0 where nothing counted them), ``text``. Rows keep the order in
which documents were assigned, so that a partition made again has the same bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "documents.parquet"
ROW_GROUP_BYTES = 8 << 20


class StoredDocument(NamedTuple):
    """One row of ``documents.parquet``."""

    digest: str
    domain: str
    origin: str
    num_tokens: int
    text: str


def _schema() -> "pa.Schema":
    import pyarrow as pa

    text = {"digest": pa.string(), "domain": pa.string(), "origin": pa.string()}
    return pa.schema({**text, "num_tokens": pa.int64(), "text": pa.large_string()})


class DocumentWriter:
    """Streams documents into ``folder/documents.parquet``; memory holds one row group."""

    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.num_documents = self.num_tokens = self.num_bytes = 0
        self._rows: list[StoredDocument] = []
        self._pending = 0
        self._writer = pq.ParquetWriter(folder / FILE, _schema(), compression="zstd")

    def add(self, document: StoredDocument) -> None:
        """Append one document."""
        size = len(document.text.encode())
        self._rows.append(document)
        self.num_documents += 1
        self.num_tokens += document.num_tokens
        self.num_bytes += size
        self._pending += size
        if self._pending >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = list(zip(*self._rows, strict=True)) or [()] * len(StoredDocument._fields)
        arrays = {n: list(c) for n, c in zip(StoredDocument._fields, columns, strict=True)}
        self._writer.write_table(pa.table(arrays, schema=_schema()))
        self._rows.clear()
        self._pending = 0

    def close(self) -> None:
        """Write what is pending and the file's footer."""
        if self._rows or not self.num_documents:
            self._flush()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read(folder: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of an artifact as dictionaries, streamed."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(folder / FILE) as file:
        for batch in file.iter_batches(batch_size=512, columns=columns):
            yield from batch.to_pylist()


def read_all(folder: Path) -> Iterator[StoredDocument]:
    """Every document of an artifact, streamed."""
    return (StoredDocument(**row) for row in read(folder))
