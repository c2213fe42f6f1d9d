"""The tables of `mixpool show`: runs, partitions, models and losses of a store, and lineage."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from flows.chain.notes import AVERAGING
from flows.run.stored import RunContent
from storage.fingerprint import short
from storage.lineage import producers, run_folders, tree
from storage.store import Store
from tasks.ranking.rank import MACRO_MEAN
from tasks.training.train import TRAIN

Listing = list[dict[str, Any]]
"""Rows of a table, each with a ``folder`` relative to the store."""


def runs(store: Store) -> Listing:
    """Every run: what it trained and evaluated, and its best mixture."""
    return [_run_row(name, content) for name, content in run_folders(store).items()]


def _run_row(name: str, content: dict[str, Any] | None) -> dict[str, Any]:
    folder = f"runs/{name}"
    if content is None:
        return {"run": name, "best mixture": "(never ended)", "folder": folder}
    summary = content["summary"]
    return {
        "run": name,
        "partitions": summary["partitions"],
        "mixtures": summary["mixtures"],
        "in full": (summary.get("race") or {}).get("finalists", summary["mixtures"]),
        "trained": len(summary["trained"]),
        "evaluated": summary["losses_evaluated"],
        "best mixture": summary["best"][MACRO_MEAN]["mixture"],
        "folder": folder,
    }


def ledger_lines(summary: Mapping[str, Any], listed: Callable[[list[str]], str]) -> list[str]:
    """What was trained and evaluated now, and what came from the store.

    Args:
        summary: what ``run.json`` has under ``summary``.
        listed: names as text.
    """
    trained = summary["trained"]
    return [
        f"trained now: {len(trained)}" + (f" ({listed(trained)})" if trained else ""),
        f"trainings from the store: {len(summary['trainings_from_store'])}",
        f"losses evaluated now: {summary['losses_evaluated']:,} (mixture x evaluation set)",
        f"losses from the store: {summary['losses_from_store']:,}",
    ]


def partitions(store: Store) -> Listing:
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


def models(store: Store) -> Listing:
    """Every trained model: base, partition models, references."""
    return [
        {
            "model": record.label,
            "steps": record.config["steps"],
            "final loss": round(record.details["final_loss"], 4),
            "repeats": round(record.details["repeats"], 2),
            "seconds": round(record.cost["seconds"], 1),
            **{name: record.provenance.get("packages", {}).get(name) for name in AVERAGING},
            "key": short(record.key),
            "digest": short(record.output.digest),
            "folder": record.output.prefix,
        }
        for record in store.records(TRAIN.name)
    ]


def losses(store: Store) -> Listing:
    """Every part of every losses table."""
    return [
        {
            "table": short(PurePosixPath(path).parts[1]),
            "part": PurePosixPath(path).name,
            "bytes": info.num_bytes,
            "folder": PurePosixPath(path).parent.as_posix(),
        }
        for path, info in store.backend.list("losses").items()
        if path.endswith(".parquet")
    ]


def locations(store: Store, rows: Listing) -> Iterator[str]:
    """Lines ``name: folder`` for the folders of rows, each once, with the store's address in front."""
    named = {row["folder"]: next(iter(row.values())) for row in rows}
    for folder, name in named.items():
        yield f"{name}: {location_of(store, folder)}"


def location_of(store: Store, path: str) -> str:
    """The whole path or URL of a file or folder of the store."""
    return f"{store.url.rstrip('/')}/{path}"


def lineage(store: Store, run: RunContent) -> Iterator[str]:
    """How each partition model of a run was made, with fingerprints."""
    records = producers(store)
    for digest in run.models.values():
        yield from tree(digest, records, {})
