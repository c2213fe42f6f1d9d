"""From the chain's results to the losses that rankings are made of, and from frames to Parquet."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flows.sweeping import artifact_of
from storage.cache import Handle
from storage.store import Store
from tasks.rows import Counts, Losses, Rows
from tasks.window import load_windows

if TYPE_CHECKING:
    import pandas as pd


def losses_of(store: Store, rows: Rows, windows: Mapping[str, Handle]) -> Losses:
    """Rows with the counts of their sets."""
    artifacts = [artifact_of(handle) for handle in windows.values()]
    return rows.counted({a.digest: _counts(store.fetch(a)) for a in artifacts})


def _counts(folder: Path) -> Counts:
    windows = load_windows(folder)
    return Counts(
        num_tokens=int(windows.num_tokens.sum()),
        num_bytes=int(windows.num_bytes.sum()),
        num_words=int(windows.num_words.sum()),
        group_tokens=windows.num_tokens,
        group_bytes=windows.num_bytes,
    )


ROWS = 10_000
"""Rows of a table that are written at once."""


def write_tables(path: Path, frames: "Iterable[pd.DataFrame]") -> None:
    """Write frames of the same columns as one Parquet table, piece by piece."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for frame in frames:
        schema = pa.Schema.from_pandas(frame, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, schema)
        for start in range(0, max(1, len(frame)), ROWS):
            piece = frame.iloc[start : start + ROWS]
            writer.write_table(pa.Table.from_pandas(piece, writer.schema, preserve_index=False))
    assert writer is not None, "there is no table to write"
    writer.close()
