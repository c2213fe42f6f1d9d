"""One run: carry out a recipe, rank the mixtures, and write the run's folder.

``runs/<time>-<recipe>/`` holds ``recipe.yaml`` (written first), the tables and the page of the report
(see ``flows.run.folder``) and, written last, ``run.json``. That has the records, manifest and losses that
were used (which ``gc`` keeps), a summary for programs, and the texts of the report. Then the store's
index page is written again.
"""

import contextlib
import functools
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.chain.ablation import Outcome, ablate, scan_corpus
from flows.chain.ladder import climbed, rungs_of
from flows.chain.predicted import scaled_by
from flows.chain.recipe import Recipe
from flows.chain.recipe_file import to_yaml
from flows.chain.runner import POLL_SECONDS, Runner
from flows.chain.search import search
from flows.chain.validation import refuse_early, train_references, validate
from flows.run.folder import texts_of, write_files
from flows.run.index import refresh_index
from flows.run.report_data import rank_judged, report_of, summary_of
from flows.run.unforeseen import is_unforeseen, leave_traceback
from flows.run.views import location_of
from storage.artifact import record_path, seal, slug
from storage.garbage import collector
from storage.lease import Busy
from storage.lineage import VALIDATION
from storage.provenance import now
from storage.step import Call
from storage.store import Store
from tasks.evaluation.losses_table import EvaluateConfig, evaluation_key
from tasks.partitions import manifest
from tasks.partitions.manifest import Manifest
from tasks.ranking.effects import best_changes
from tasks.ranking.rank import MACRO_MEAN
from tasks.report.data import ReportData

if TYPE_CHECKING:
    import pandas as pd

LOG = logging.getLogger("mixpool.run")


@dataclass(frozen=True, eq=False)
class RunResult:
    """The results of a run, and the folder that has them."""

    folder: str
    """Folder in the store."""
    outcome: Outcome
    report: ReportData
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
    with_search: bool = False,
    announce: Callable[[Manifest], None] | None = None,
) -> RunResult:
    """Carry out a recipe and write the run's folder.

    Args:
        with_references: also train references and compare (``mixpool validate``).
        with_search: look for the best mixture instead of judging all (``mixpool search``).
        announce: called with the corpus once new data has been read, and before anything else is
            computed.

    Raises:
        ValueError: data or recipe cannot be used; everything committed stays.
    """
    if with_references:
        rungs_of(recipe)  # told by the recipe alone: a run that it refuses leaves no folder
    with _folder(run.store, recipe) as folder:
        corpus = scan_corpus(run, recipe)
        for note in corpus.problems:
            run.reporter.say(f"note: {note}")
        if announce is not None:
            announce(corpus)
        if with_references:
            refuse_early(run, recipe, corpus)
        searched = search(run, recipe, corpus) if with_search else None
        outcome = ablate(run, recipe, corpus) if searched is None else searched.outcome
        trust = ladder = None
        if with_references:
            begin = functools.partial(_protect, run, recipe, outcome, folder)
            references = train_references(run, recipe, outcome, begin)
            trust = validate(run, recipe, outcome, references)
            ladder = climbed(run, recipe, outcome, references)
        ranked = rank_judged(run.store, outcome)
        report = report_of(
            run, recipe, outcome, ranked, trust, searched and searched.result, ladder
        )
        summary = summary_of(run, outcome, report)
        files = write_files(run.store, folder, report)
        files["recipe.yaml"] = hashlib.sha256(to_yaml(recipe).encode()).hexdigest()
        content = {
            "name": folder.rpartition("/")[2],
            "recipe": recipe.name,
            "created": now(),
            **_needs(run, recipe, outcome),
            "unread": outcome.manifest.unread,
            "models": {name: handle.digest for name, handle in outcome.pool.items()},
            "domains": outcome.domains,
            "files": files,
            "best": _best_parts(outcome, report),
            "summary": summary,
            "report": texts_of(report),
        }
        run.store.backend.create(f"{folder}/run.json", seal(content))
        refresh_index(run.store)
    return RunResult(folder, outcome, report, summary, content)


def _needs(run: Runner, recipe: Recipe, outcome: Outcome) -> dict[str, list[str]]:
    """What ``gc`` keeps for the run."""
    return {
        "manifests": [manifest.path_of(outcome.manifest)],
        "records": sorted({e.record.path for e in run.ledger.entries if e.record}),
        "losses": [evaluation_key(config) for config in _evaluations(recipe)],
    }


def _evaluations(recipe: Recipe) -> Iterator[EvaluateConfig]:
    """The ways of evaluating whose losses a run of the recipe may use."""
    evaluate = recipe.evaluation.evaluate
    yield evaluate
    yield from (scaled for n in recipe.evaluation.others if (scaled := scaled_by(n, evaluate)))


def _protect(
    run: Runner, recipe: Recipe, outcome: Outcome, folder: str, references: Sequence[Call[Any]]
) -> None:
    """Let ``gc`` know what a validation needs, before its first reference is trained."""
    needs = _needs(run, recipe, outcome)
    needs["records"] += [record_path(c.step.name, c.label, c.key) for c in references if c.key]
    run.store.backend.create(f"{folder}/{VALIDATION}", seal(needs))


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
        folder = f"runs/{name}"
        try:
            yield folder
        except BaseException as error:
            if is_unforeseen(error):
                with contextlib.suppress(Exception):  # the error may be the store's
                    leave_traceback(
                        error, functools.partial(_keep, store, f"{folder}/traceback.txt")
                    )
            raise


def _keep(store: Store, path: str, data: bytes) -> str:
    store.backend.create(path, data)
    return location_of(store, path)


def _best_parts(outcome: Outcome, report: ReportData) -> dict[str, int]:
    """Parts of the best mixture of a search, else of the best for the macro mean.

    A label is for people, and names may be such that it has two readings.
    """
    found = report.search
    ranking = report.rankings[MACRO_MEAN] if found is None or found.best.empty else found.best
    best = ranking.iloc[0]["mixture"]
    return dict(next(m for m in outcome.mixtures if m.label == best).parts)
