"""The store's index page: links to every run, report, model, partition and part of losses.

A bucket served over HTTP lists no folders, so ``index.html`` at the store's root names the files in
them. It holds no result: it is the one file outside ``work/`` that is written again, by each run and
each ``gc``. A lost page comes back with the next run. All its addresses are relative, as a store does
not know its own address.

Runs that end together each write a page, and the page that is put last may be the older one. So a
writer lists the runs once more after it has put its page, and begins anew where they have changed.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from flows.run import stored, views
from storage.artifact import Record
from storage.backends.backend import FileInfo
from storage.lineage import run_folders
from storage.provenance import now
from storage.store import Store
from tasks import readable
from tasks.ranking.rank import MACRO_MEAN
from tasks.report.page import page_environment
from tasks.training.train import TRAIN

LOG = logging.getLogger("mixpool.run")

INDEX = "index.html"

MOST_RUNS, MOST_RANKINGS, MOST_MODELS, MOST_PARTITIONS, MOST_PARTS = 200, 20, 500, 500, 200
"""Of each kind the page shows this many of the newest."""
TOP = 10
"""Mixtures of a ranking that are shown."""

Runs = Mapping[str, dict[str, Any] | None]
"""What ``storage.lineage.run_folders`` gives."""


class Link(NamedTuple):
    """A file of the store, and what to call it."""

    name: str
    path: str
    num_bytes: int | None = None


class Newest(NamedTuple):
    """What is shown of a kind, and the number of older ones that are left out."""

    rows: list[dict[str, Any]]
    left_out: int

    @classmethod
    def of(
        cls, rows: Iterable[dict[str, Any]], most: int, age: str, num_older: int = 0
    ) -> "Newest":
        """The ``most`` rows with the greatest value of ``age``, the newest first.

        Args:
            num_older: rows that are older than all of these.
        """
        ordered = sorted(rows, key=lambda row: str(row[age]), reverse=True)
        return cls(ordered[:most], max(0, len(ordered) - most) + num_older)

    def by(self, name: str) -> "Newest":
        """The same in the order of a column; the newest of equal ones first."""
        return self._replace(rows=sorted(self.rows, key=lambda row: str(row[name])))


def refresh_index(store: Store) -> None:
    """``write_index`` for callers whose work is done and kept: where it fails they only warn."""
    try:
        write_index(store)
    except Exception as error:
        page = views.location_of(store, INDEX)
        LOG.warning("the page %s is out of date, as it could not be written: %s", page, error)


def write_index(store: Store) -> None:
    """Write ``index.html`` at the store's root, until it has every run that has ended.

    Raises:
        CorruptError: a ``run.json`` is damaged.
        StoreFormatError: a record was written by a newer mixpool.
        OSError: the store cannot be read or written.
    """
    while True:
        files = store.backend.list("runs")
        store.backend.put(INDEX, _page(store, files).encode())
        if _ended(store.backend.list("runs")) == _ended(files):
            return


def _ended(files: Iterable[str]) -> set[str]:
    return {path for path in files if PurePosixPath(path).name == "run.json"}


def _page(store: Store, files: Iterable[str]) -> str:
    """The page; of a run only those ``files`` are linked that were there when it was begun."""
    runs = run_folders(store)
    losses = store.backend.list("losses")
    # Of thousands of records those are not read that the page does not show.
    models, older_models = store.newest(TRAIN.name, MOST_MODELS)
    partitions, older_partitions = store.newest("partition", MOST_PARTITIONS)
    environment = page_environment(Path(__file__).parent)
    environment.filters |= FILTERS
    return environment.get_template("index.html.jinja").render(
        created=now(),
        runs=Newest.of(_runs(runs, set(files)), MOST_RUNS, "name"),
        rankings=_rankings(store, runs),
        models=Newest.of(map(_model, models), MOST_MODELS, "when", older_models).by("label"),
        partitions=Newest.of(
            map(_partition, partitions), MOST_PARTITIONS, "when", older_partitions
        ).by("label"),
        parts=Newest.of(_parts(losses), MOST_PARTS, "when").by("path"),
        evaluations={path for path in losses if path.endswith("/evaluation.json")},
    )


# Runs and rankings -------------------------------------------------------------------------------

LINKED = ("report.html", "ranking.parquet", "losses.parquet", "recipe.yaml", "run.json")


def _runs(runs: Runs, files: set[str]) -> Iterator[dict[str, Any]]:
    for name, content in runs.items():
        paths = [f"runs/{name}/{file}" for file in LINKED]
        links = [Link(PurePosixPath(path).name, path) for path in paths if path in files]
        shown = {"name": name, "links": links, "ended": content is not None}
        yield shown if content is None else shown | _summary_row(content)


def _summary_row(content: Mapping[str, Any]) -> dict[str, Any]:
    summary = content["summary"]
    return {
        "when": content["created"],
        "partitions": summary["partitions"],
        "mixtures": summary["mixtures"],
        "trained": len(summary["trained"]),
        "evaluated": summary["losses_evaluated"],
        "best": summary["best"][MACRO_MEAN],
    }


def _rankings(store: Store, runs: Runs) -> Newest:
    """The newest finished run of each recipe; only the rankings that are shown are read."""
    newest = {content["recipe"]: name for name, content in runs.items() if content is not None}
    rows = [{"recipe": recipe, "run": name} for recipe, name in newest.items()]
    chosen = Newest.of(rows, MOST_RANKINGS, "run")
    for row in chosen.rows:
        content = runs[row["run"]]
        assert content is not None
        best = {name: top for name, top in content["summary"]["best"].items() if name != MACRO_MEAN}
        row |= {"top": _top(store, stored.RunContent(row["run"], content)), "sets": best}
    return chosen


def _top(store: Store, run: stored.RunContent) -> list[dict[Any, Any]]:
    """The best mixtures by macro mean; none where the run's table cannot be read."""
    try:
        ranking = stored.ranking(store, run, MACRO_MEAN, TOP)
    except (OSError, ValueError) as error:
        LOG.warning("the ranking of run %s cannot be read: %s", run.name, error)
        return []
    return ranking.to_dict("records")


# Models, partitions and losses -------------------------------------------------------------------


def _model(record: Record) -> dict[str, Any]:
    return _record(record) | {
        "steps": record.config["steps"],
        "loss": record.details["final_loss"],
        "seconds": record.cost.get("seconds"),
    }


def _partition(record: Record) -> dict[str, Any]:
    return _record(record) | {
        "domain": record.details["domain"],
        "documents": record.details["num_documents"],
        "tokens": record.details["num_tokens"],
    }


def _record(record: Record) -> dict[str, Any]:
    return {
        "label": record.label,
        "when": record.provenance.get("created", ""),
        "record": Link("record", record.path),
        "folder": record.output.prefix,
        "files": [
            Link(name, f"{record.output.prefix}/{name}", entry.num_bytes)
            for name, entry in sorted(record.output.files.items())
        ],
    }


def _parts(files: Mapping[str, FileInfo]) -> Iterator[dict[str, Any]]:
    for path, info in files.items():
        if path.endswith(".parquet"):
            when = datetime.fromtimestamp(info.modified, UTC).isoformat(timespec="milliseconds")
            folder, _, name = path.rpartition("/")
            file = Link(name, path, info.num_bytes)
            yield {"table": folder, "path": path, "when": when, "file": file}


# Numbers for people ------------------------------------------------------------------------------


FILTERS: dict[str, Callable[[Any], str]] = {
    "minute": lambda when: when[:16].replace("T", " ") or "–",
    "size": lambda num_bytes: readable.count(num_bytes, " kMGTPE", "B"),
    "count": readable.count,
    "duration": readable.duration,
    "digits3": readable.number(3),
    "digits4": readable.number(4),
}
