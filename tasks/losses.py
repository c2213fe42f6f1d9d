"""The losses table: one row per (mixture, evaluation set), append-only, in Parquet.

``losses/<evaluation key>/<n>.parquet`` holds sums of nats, never means, per set and per group of
documents; counts belong to the set. The first row of a pair stands. A mixture is named by the
digests of its models and their parts, a set by the digest of its windows, so a row is valid for ever
and a table can be read by anybody with ``pandas.read_parquet``.
"""

import io
import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from storage.artifact import seal
from storage.fingerprint import Config, canonical, fingerprint
from storage.provenance import provenance
from storage.stamp import PLACEHOLDER, is_intact, stamp
from storage.store import Store
from tasks.mixture import Mixture

if TYPE_CHECKING:
    import pandas as pd

LOG = logging.getLogger("mixpool.losses")

VERSION = 1
"""Raised by hand when the same models and windows should give other losses."""


class EvaluateConfig(Config):
    """How mixtures are averaged and evaluated: part of every loss's identity."""

    average: Literal["float64", "float32"] = "float64"
    """Precision in which weights are summed; the average itself is float32."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; the cross-entropy is always float32."""


class Row(NamedTuple):
    """Sums of one mixture on one evaluation set."""

    mixture: str
    """Identity: fingerprint of model digests and parts."""
    windows: str
    """Digest of the set's windows."""
    label: str
    """The mixture as people call it."""
    evaluation_set: str
    """The set as people call it."""
    nll: float
    """Sum of negative log-likelihoods over the set, in nats."""
    group_nll: list[float]
    """The same for each group of documents."""


def identity(mixture: Mixture) -> str:
    """Name of a mixture whose members are digests of models."""
    return fingerprint("mixture", mixture.config())


def evaluation_key(config: EvaluateConfig) -> str:
    """Name of the losses table of one way of evaluating."""
    return fingerprint("evaluation", {"version": VERSION, "config": canonical(config)})


class LossesTable:
    """The rows of one way of evaluating; read once, then kept up to date by ``append``."""

    def __init__(self, store: Store, config: EvaluateConfig) -> None:
        self._store = store
        self.key = evaluation_key(config)
        self._folder = f"losses/{self.key}"
        self._config = config
        self._rows: dict[tuple[str, str], Row] = {}
        self._read: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take in parts that other runs have added."""
        unread = (path for path in self._store.chain(self._folder) if path not in self._read)
        for path, data in self._store.backend.read_each(unread):
            if data is not None:  # else another run set it aside meanwhile
                self._take(path, data)

    def _take(self, path: str, data: bytes) -> None:
        # A part moved here from another way of evaluating is intact and would give wrong losses.
        if not is_intact(data) or facts_of(data)["evaluation"] != self.key:
            LOG.warning("%s was changed after it was written; its rows are evaluated anew", path)
            # Its number may be claimed again, so it does not count as read.
            self._store.set_aside(path)
            return
        self._read.add(path)
        for row in decode(data):
            self._rows.setdefault((row.mixture, row.windows), row)

    def __contains__(self, pair: tuple[str, str]) -> bool:
        return pair in self._rows

    def __getitem__(self, pair: tuple[str, str]) -> Row:
        return self._rows[pair]

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, rows: list[Row], cost: Mapping[str, Any]) -> None:
        """Write rows as the next part; rows that another run wrote first stand."""
        config = {"version": VERSION, "config": canonical(self._config)}
        self._store.backend.create(f"{self._folder}/evaluation.json", seal(config))
        made_by = provenance(str(cost.get("device", "")))
        data = encode(rows, {"evaluation": self.key, "cost": cost, "provenance": made_by})
        self._store.append(self._folder, ".parquet", data)
        self.refresh()

    def costs(self) -> list[dict[str, Any]]:
        """What evaluating the rows of each part cost."""
        parts = self._store.backend.read_each(self._store.chain(self._folder))
        return [facts_of(data)["cost"] for _, data in parts if data is not None]


def encode(rows: Iterable[Row], facts: Mapping[str, Any]) -> bytes:
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


def decode(data: bytes) -> list[Row]:
    """Rows of Parquet bytes."""
    import pyarrow.parquet as pq

    # read_table would import pyarrow.dataset, which takes as long as a small table.
    return [Row(**row) for row in pq.ParquetFile(io.BytesIO(data)).read().to_pylist()]


def facts_of(data: bytes) -> dict[str, Any]:
    """The facts in the metadata of Parquet bytes: evaluation key, cost, provenance."""
    import pyarrow.parquet as pq

    found: dict[str, Any] = json.loads(pq.read_metadata(io.BytesIO(data)).metadata[b"mixpool"])
    return found


def to_frame(rows: Iterable[Row], counts: Mapping[str, Mapping[str, Any]]) -> "pd.DataFrame":
    """Rows as the frame that rankings are made of.

    Args:
        rows: any rows.
        counts: for each windows digest ``num_tokens``, ``num_bytes``, ``num_words`` (totals) and
            ``group_tokens``, ``group_bytes`` (arrays of shape (G,)).
    """
    import numpy as np
    import pandas as pd

    return pd.DataFrame(
        {
            "mixture": row.label,
            "evaluation_set": row.evaluation_set,
            "nll": row.nll,
            "group_nll": np.array(row.group_nll),
            **counts[row.windows],
        }
        for row in rows
    )
