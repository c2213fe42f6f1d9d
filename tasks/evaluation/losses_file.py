"""One file of the losses table: Parquet with its own digest and a record of how it was made.

A sweep writes rows. A few rows are read back as rows. All rows are read as columns with texts as
numbers, so that hundreds of thousands of them make no text and no list each.
"""

import io
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.stamp import PLACEHOLDER, stamp
from tasks.arrays import Ints
from tasks.evaluation.losses import LossRow, LossRows

if TYPE_CHECKING:
    import pyarrow as pa


def encode(rows: Iterable[LossRow], facts: Mapping[str, Any]) -> bytes:
    """Rows as stamped Parquet bytes, with ``facts`` as JSON in the file's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = {name: pa.string() for name in ("mixture", "windows", "label", "evaluation_set")}
    schema = pa.schema({**text, "nll": pa.float64(), "group_nll": pa.list_(pa.float64())})
    table = pa.Table.from_pylist([row._asdict() for row in rows], schema=schema)
    buffer = io.BytesIO()
    # Without the copy of the schema the metadata, and so the placeholder, stands in the file once.
    with pq.ParquetWriter(buffer, schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"mixpool": json.dumps(facts), "digest": PLACEHOLDER})
    return stamp(buffer.getvalue())


def decode(data: bytes) -> list[LossRow]:
    """Rows of Parquet bytes."""
    import pyarrow.parquet as pq

    # read_table would import pyarrow.dataset, which takes as long as a small table.
    return [LossRow(**row) for row in pq.ParquetFile(io.BytesIO(data)).read().to_pylist()]


def columns(data: bytes, names: list[str]) -> "pa.Table":
    """Some columns of Parquet bytes; texts as numbers into the distinct ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["mixture", "windows"]
    return pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts).read(names)


def part_facts(data: bytes) -> dict[str, Any]:
    """The facts in the metadata of Parquet bytes: evaluation key, cost, provenance."""
    import pyarrow.parquet as pq

    facts: dict[str, Any] = json.loads(pq.read_metadata(io.BytesIO(data)).metadata[b"mixpool"])
    return facts


def pick(data: bytes, rows: Ints, places: Ints, target: LossRows) -> None:
    """Copy ``rows`` of a part to ``places`` in the order of mixtures and then of sets."""
    table = columns(data, ["nll", "group_nll"])
    target.nll.reshape(-1)[places] = table["nll"].to_numpy()[rows]
    lists = table["group_nll"].combine_chunks()
    starts, values = lists.offsets.to_numpy(), lists.values.to_numpy()
    mixtures, sets = np.divmod(places, len(target.sets))
    for number in np.unique(sets).tolist():
        inside = np.flatnonzero(sets == number)
        inside = inside[np.argsort(mixtures[inside])]
        row = rows[inside]
        widths = starts[row + 1] - starts[row]
        for width in np.unique(widths).tolist():
            same = widths == width
            sums = values[starts[row[same], None] + np.arange(width)]
            target.sums.write(number, mixtures[inside[same]], sums)
