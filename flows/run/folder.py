"""The report in a run's folder: write its tables and page, and read them back.

``ranking``, ``losses`` and ``members`` are Parquet files beside the page, all other tables are under
``tables/``; texts are in ``run.json`` under ``report``. So a report can be made again from the run's
folder alone, by a newer mixpool or as pictures and tables for a paper. Rankings are then computed anew
from the losses.
"""

import functools
import hashlib
import io
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.run.stored import RunContent
from storage.artifact import hash_file
from storage.store import Store
from tasks.evaluation.losses import Losses
from tasks.evaluation.predicted import MERGE
from tasks.ranking.race_result import Screening
from tasks.ranking.rank import rank_all
from tasks.report.data import LADDER_TABLES, SEARCH_TABLES, ReportData
from tasks.report.page import write_report
from tasks.search.result import SearchResult

if TYPE_CHECKING:
    import pandas as pd

    from tasks.trust.ladder import Ladder
    from tasks.trust.verdict import Trust


BESIDE = ("validation", "references", "screened")
"""Tables that lie beside the page; the others are under ``tables/``."""


def write_files(store: Store, folder: str, report: ReportData) -> dict[str, str]:
    """Write the run's tables and page; sha256 of each by name."""
    writers: dict[str, Callable[[Path], object]] = {
        "ranking.parquet": lambda path: write_tables(path, report.rankings.values()),
        "losses.parquet": report.losses.write,
        "members.parquet": lambda path: write_tables(path, [report.members]),
    }
    for name, frame in report.frames().items():
        writers[_file_name(name)] = functools.partial(write_tables, frames=[frame])
    writers["report.html"] = lambda path: write_report(path, report)
    return {name: _write(store, f"{folder}/{name}", write) for name, write in writers.items()}


def _file_name(name: str) -> str:
    return f"{name}.parquet" if name in BESIDE else f"tables/{name}.parquet"


def _write(store: Store, path: str, write: Callable[[Path], object]) -> str:
    with tempfile.TemporaryDirectory() as name:
        local = Path(name) / "file"
        write(local)
        store.backend.create_from(path, local)
        return hash_file(local).sha256


def texts_of(report: ReportData) -> dict[str, Any]:
    """The texts of a report, as plain JSON."""
    race, trust, search = report.race, report.validation, report.search
    return {
        "title": report.title,
        "created": report.created,
        "notes": report.notes,
        "lineage": report.lineage,
        "provenance": dict(report.provenance),
        "race": None if race is None else {"words": race.words, "mixtures": race.mixtures},
        "validation": None if trust is None else trust.words,
        "ladder": None if report.ladder is None else report.ladder.words,
        "search": None if search is None else search.words,
        "cost": list(report.cost_words),
        "corpus": list(report.corpus_words),
        "ranked_by": report.ranked_by,
    }


def read_report(store: Store, run: RunContent) -> ReportData:
    """The report of a finished run, from its folder alone.

    Raises:
        ValueError: the run is of a version that kept no texts, or a file is not what was written.
    """
    texts = run.content.get("report")
    if texts is None:
        raise ValueError(
            f"run {run.name} was made by an earlier version, which did not keep all that a report "
            "needs: run its recipe again (what is in the store is not computed again)"
        )
    read = _Tables(store, run)
    race, search = texts["race"], None
    if (words := texts["search"]) is not None:
        tables = {name: read(_file_name(f"search-{name}")) for name in SEARCH_TABLES}
        search = SearchResult(words, **tables)
    losses, members = Losses.of(read("losses.parquet")), read("members.parquet")
    return ReportData(
        **{name: texts[name] for name in ("title", "created", "notes", "lineage", "provenance")},
        losses=losses,
        members=members,
        rankings=rank_all(losses, members, is_screened=race is not None),
        partitions=read(_file_name("partitions")),
        sets=read(_file_name("sets")),
        cost=read(_file_name("cost")),
        validation=_trust(read, texts["validation"]),
        ladder=_ladder(read, texts.get("ladder")),
        race=None if race is None else Screening(**race, exits=read(_file_name("screened"))),
        search=search,
        forgetting=read(name) if (name := _file_name("forgetting")) in read.files else None,
        cost_words=texts["cost"],
        corpus_words=texts.get("corpus", ()),
        ranked_by=texts.get("ranked_by", MERGE),
    )


class _Tables:
    """Tables of a run's folder by the name of their file, as they were written."""

    def __init__(self, store: Store, run: RunContent) -> None:
        self._store = store
        self._folder = f"runs/{run.name}"
        self.files: Mapping[str, str] = run.content["files"]

    def __call__(self, name: str) -> "pd.DataFrame":
        import pandas as pd

        path = f"{self._folder}/{name}"
        data = self._store.backend.read(path)
        if hashlib.sha256(data).hexdigest() != self.files[name]:
            raise ValueError(f"{path} is not what was written: run the recipe again")
        return pd.read_parquet(io.BytesIO(data))


def _trust(read: _Tables, words: list[str] | None) -> "Trust | None":
    if words is None:
        return None
    from tasks.trust.verdict import Trust

    noise, named = _file_name("validation-noise"), _file_name("validation-named")
    return Trust(
        words=words,
        table=read(_file_name("validation")),
        pairs=read(_file_name("references")),
        noise=read(noise) if noise in read.files else None,
        barriers=read(_file_name("validation-barriers")),
        named=read(named) if named in read.files else None,
    )


def _ladder(read: _Tables, words: list[str] | None) -> "Ladder | None":
    if words is None:
        return None
    from tasks.trust.ladder import Ladder

    return Ladder(words, **{name: read(_file_name(f"ladder-{name}")) for name in LADDER_TABLES})


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
