"""One run: carry out a recipe, rank, and leave a folder that tells what it used and said.

``runs/<time>-<recipe>/`` holds ``recipe.yaml`` (written first), ``ranking.parquet``, ``losses.parquet``,
``report.html`` and, written last, ``run.json``: records, manifest and losses that were used, which is
what ``gc`` keeps, and a summary that programs read. Then the store's index page is written again.
"""

import contextlib
import hashlib
import itertools
import logging
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.ablation import Outcome, ablate, scan_corpus
from flows.costs import cost_frame, to_json
from flows.frames import losses_of, write_tables
from flows.index import refresh_index
from flows.recipe import Recipe, to_yaml
from flows.runners import POLL_SECONDS, Entry, Runner
from flows.validation import Validation, validate
from storage.artifact import hash_file, seal, slug
from storage.fingerprint import short
from storage.lease import Busy
from storage.lineage import collector, tree
from storage.provenance import now, provenance
from storage.store import Store
from tasks import manifest
from tasks.losses import evaluation_key
from tasks.ranking import MACRO_MEAN, best_changes
from tasks.report import ReportData, write_report

if TYPE_CHECKING:
    import pandas as pd

LOG = logging.getLogger("mixpool.run")


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run has found and where it is kept."""

    folder: str
    """Folder in the store."""
    outcome: Outcome
    report: ReportData
    validation: Validation | None
    summary: dict[str, Any]
    """What ``run.json`` has under ``summary``: plain JSON."""
    content: dict[str, Any]
    """All that ``run.json`` has."""

    @property
    def changes(self) -> "pd.DataFrame":
        """Best single additions and removals for the macro mean."""
        return best_changes(self.report.rankings[MACRO_MEAN], self.report.members)


def execute(
    run: Runner,
    recipe: Recipe,
    *,
    with_references: bool = False,
    announce: Callable[[], None] | None = None,
) -> RunResult:
    """Carry out a recipe and write the run's folder.

    Args:
        with_references: also train references and compare (``mixpool validate``).
        announce: called once new data has been read, and before anything else is computed.

    Raises:
        ValueError: data or recipe cannot be used; everything committed stays.
    """
    with _folder(run.store, recipe) as folder:
        corpus = scan_corpus(run, recipe)
        if announce is not None:
            announce()
        outcome = ablate(run, recipe, corpus)
        validation = validate(run, recipe, outcome) if with_references else None
        report = _report(run, recipe, outcome, validation)
        summary = _summary(run, outcome, report, validation)
        files = _write_files(run.store, folder, report, validation)
        files["recipe.yaml"] = hashlib.sha256(to_yaml(recipe).encode()).hexdigest()
        content = {
            "name": folder.rpartition("/")[2],
            "recipe": recipe.name,
            "created": now(),
            "manifests": [manifest.path_of(outcome.manifest)],
            "records": sorted({e.record.path for e in run.ledger.entries if e.record}),
            "unread": outcome.manifest.unread,
            "losses": [evaluation_key(recipe.evaluation.evaluate)],
            "models": {name: handle.digest for name, handle in outcome.pool.items()},
            "domains": outcome.domains,
            "files": files,
            "best": _best_parts(outcome, report),
            "summary": summary,
        }
        run.store.backend.create(f"{folder}/run.json", seal(content))
        refresh_index(run.store)
    return RunResult(folder, outcome, report, validation, summary, content)


@contextlib.contextmanager
def _folder(store: Store, recipe: Recipe) -> Iterator[str]:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = f"{stamp}-{slug(recipe.name)}"
    with contextlib.ExitStack() as held:
        for name in (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1)):
            with contextlib.suppress(Busy):
                # While a run holds this, gc deletes nothing; one that began before is waited for.
                held.enter_context(store.lease(f"run/{name}"))
                while holder := collector(store):
                    LOG.warning("%s is deleting garbage; waiting for it", holder)
                    time.sleep(POLL_SECONDS)
                if store.backend.create(f"runs/{name}/recipe.yaml", to_yaml(recipe).encode()):
                    break
                held.close()
        yield f"runs/{name}"


def _report(
    run: Runner, recipe: Recipe, outcome: Outcome, validation: Validation | None
) -> ReportData:
    assert outcome.rows is not None
    trainings = _trainings(run, outcome)
    return ReportData(
        title=recipe.name,
        created=now(),
        losses=losses_of(run.store, outcome.rows, outcome.windows),
        members=_members(outcome),
        partitions=_partitions(outcome, trainings),
        sets=_sets(outcome),
        cost=cost_frame(run.ledger, outcome.mixtures, trainings),
        validation=None if validation is None else validation.table,
        notes=_notes(outcome),
        lineage=_lineage(run, outcome),
        provenance=provenance(run.runtime.device),
        race=None if outcome.race is None else outcome.race.screening(outcome.mixtures),
    )


def _best_parts(outcome: Outcome, report: ReportData) -> dict[str, int]:
    """Parts of the best mixture: a label is for people, and names may be such that it has two readings."""
    best = report.rankings[MACRO_MEAN].iloc[0]["mixture"]
    return dict(next(m for m in outcome.mixtures if m.label == best).parts)


def _trainings(run: Runner, outcome: Outcome) -> dict[str, Entry]:
    return {
        entry.label: entry
        for entry in run.ledger.entries
        if entry.step == "train" and entry.label in outcome.pool
    }


def _members(outcome: Outcome) -> "pd.DataFrame":
    import pandas as pd

    mixtures: list[str] = []
    partitions: list[str] = []
    weights = array("d")
    for mixture in outcome.judged:
        total = mixture.total
        mixtures += [mixture.label] * mixture.size
        partitions += mixture.members
        weights.extend(part / total for _, part in mixture.parts)
    # Text as Python's own: one object for all rows that name it.
    named = {"mixture": mixtures, "partition": partitions}
    texts = {name: pd.Series(column, dtype=object) for name, column in named.items()}
    return pd.DataFrame({**texts, "weight": weights})


def _partitions(outcome: Outcome, trainings: dict[str, Entry]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "partition": entry.name,
                "domain": entry.domain,
                "num_documents": entry.num_documents,
                "num_tokens": entry.num_tokens,
                "repeats": _repeats(trainings[entry.name]),
                "seconds": trainings[entry.name].cost.get("seconds"),
                "fingerprint": short(outcome.pool[entry.name].digest),
                "status": "trained now" if trainings[entry.name].built else "from the store",
            }
            for entry in outcome.partitions
        ]
    )


def _repeats(entry: Entry) -> float:
    assert entry.record is not None
    return float(entry.record.details["repeats"])


def _sets(outcome: Outcome) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for entry in outcome.sets:
        record = outcome.windows[entry.name].record
        details = record.details if record is not None else {}
        rows.append(
            {
                "evaluation_set": entry.name,
                "domain": entry.domain,
                "num_documents": entry.num_documents,
                "num_tokens": details["num_tokens"],
                "num_bytes": details["num_bytes"],
                "removed": entry.removed,
            }
        )
    return pd.DataFrame(rows)


def _notes(outcome: Outcome) -> list[str]:
    notes = list(outcome.manifest.problems)
    if outcome.race is not None and not outcome.race.result.exits:
        notes += outcome.race.words
    if left_out := outcome.manifest.counts.get("left out", 0):
        notes.append(
            f"{left_out:,} documents are left out: their domains have as many partitions as "
            "corpus.split.partitions_per_domain allows"
        )
    for entry in outcome.sets:
        if entry.removed:
            notes.append(
                f"evaluation set {entry.name!r} lost {entry.removed} documents that training data "
                "already held"
            )
    return notes


def _lineage(run: Runner, outcome: Outcome) -> str:
    made = {e.record.output.digest: e.record for e in run.ledger.entries if e.record is not None}
    names = {entry.documents.digest: f"documents of {entry.name}" for entry in outcome.partitions}
    names |= {entry.documents.digest: f"evaluation set {entry.name}" for entry in outcome.sets}
    names[outcome.manifest.tokenizer.digest] = "tokenizer"
    if outcome.manifest.base_documents is not None:
        names[outcome.manifest.base_documents.digest] = "documents of the base model"
    lines: list[str] = []
    for handle in outcome.pool.values():
        assert handle.digest is not None
        lines += tree(handle.digest, made, names)
    return "\n".join(lines)


def _summary(
    run: Runner, outcome: Outcome, report: ReportData, validation: Validation | None
) -> dict[str, Any]:
    ledger = run.ledger
    top = ["rank", "mixture", "k", "loss", "perplexity", "bits_per_byte", "low", "high", "tied"]
    return {
        "partitions": len(outcome.partitions),
        "mixtures": len(outcome.mixtures),
        "evaluation_sets": len(outcome.sets),
        "trained": [entry.label for entry in ledger.built("train")],
        "trainings_from_store": [entry.label for entry in ledger.cached("train")],
        "losses_evaluated": ledger.num_evaluated,
        "losses_from_store": ledger.num_known,
        "best": {n: to_json(table[top].head(1))[0] for n, table in report.rankings.items()},
        "cost": to_json(report.cost),
        "race": None if outcome.race is None else outcome.race.to_json(),
        "validation": None if validation is None else to_json(validation.table),
        "problems": report.notes,
    }


def _write_files(
    store: Store, folder: str, report: ReportData, validation: Validation | None
) -> dict[str, str]:
    """Write the run's tables and page; sha256 of each by name."""
    writers: dict[str, Callable[[Path], object]] = {
        "ranking.parquet": lambda path: write_tables(path, report.rankings.values()),
        "losses.parquet": report.losses.write,
        "members.parquet": lambda path: write_tables(path, [report.members]),
    }
    if validation is not None:
        table, pairs = validation.table, validation.pairs
        writers["validation.parquet"] = lambda path: write_tables(path, [table])
        writers["references.parquet"] = lambda path: write_tables(path, [pairs])
    if report.race is not None:
        exits = report.race.exits
        writers["screened.parquet"] = lambda path: write_tables(path, [exits])
    writers["report.html"] = lambda path: write_report(path, report)
    return {name: _write(store, f"{folder}/{name}", write) for name, write in writers.items()}


def _write(store: Store, path: str, write: Callable[[Path], object]) -> str:
    with tempfile.TemporaryDirectory() as name:
        local = Path(name) / "file"
        write(local)
        store.backend.create_from(path, local)
        return hash_file(local).sha256
