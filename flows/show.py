"""What is in a store, as rows that are printed as a table or as JSON."""

import io
from collections.abc import Iterator
from typing import Any

from flows.export import RunContent
from storage.artifact import Record
from storage.fingerprint import short
from storage.lineage import producers, run_folders, tree
from storage.store import Store
from tasks.ranking import MACRO_MEAN

Rows = list[dict[str, Any]]


def runs(store: Store) -> Rows:
    """Every run: what it trained and evaluated, and its best mixture."""
    return [_run_row(name, content) for name, content in run_folders(store).items()]


def _run_row(name: str, content: dict[str, Any] | None) -> dict[str, Any]:
    if content is None:
        return {"run": name, "best mixture": "(never ended)"}
    summary = content["summary"]
    return {
        "run": name,
        "partitions": summary["partitions"],
        "mixtures": summary["mixtures"],
        "trained": len(summary["trained"]),
        "evaluated": summary["losses_evaluated"],
        "best mixture": summary["best"][MACRO_MEAN]["mixture"],
    }


def partitions(store: Store) -> Rows:
    """Every partition of every chain."""
    return [
        {
            "partition": record.label,
            "domain": record.details["domain"],
            "documents": record.details["num_documents"],
            "tokens": record.details["num_tokens"],
            "digest": short(record.output.digest),
            "folder": record.output.prefix,
        }
        for record in store.records("partition")
    ]


def models(store: Store) -> Rows:
    """Every trained model: base, partition models, references."""
    return [_model_row(record) for record in store.records("train")]


def _model_row(record: Record) -> dict[str, Any]:
    return {
        "model": record.label,
        "steps": record.config["steps"],
        "final loss": round(record.details["final_loss"], 4),
        "repeats": round(record.details["repeats"], 2),
        "seconds": round(record.cost["seconds"], 1),
        "key": short(record.key),
        "digest": short(record.output.digest),
        "folder": record.output.prefix,
    }


def ranking(store: Store, run: RunContent, objective: str) -> Rows:
    """The ranking that a run left, for one objective.

    Raises:
        ValueError: the run has no such objective.
    """
    import pandas as pd

    data = store.backend.read(f"runs/{run.name}/ranking.parquet")
    frame = pd.read_parquet(io.BytesIO(data))
    chosen = frame[frame["objective"] == objective]
    if chosen.empty:
        known = ", ".join(map(str, frame["objective"].unique()))
        raise ValueError(f"run {run.name} has no objective {objective!r}; it has: {known}")
    rows = chosen.drop(columns="objective").to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def lineage(store: Store, run: RunContent) -> Iterator[str]:
    """How each partition model of a run was made, with fingerprints."""
    made = producers(store)
    for digest in run.models.values():
        yield from tree(digest, made, {})
