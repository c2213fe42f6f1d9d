"""Prefect artifacts of a flow run: its plan, ranking, costs and links.

All of it is in the store as well, and nothing is read back from Prefect. So an artifact that Prefect
does not take is only a warning: it must not end a run whose work is done and kept.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.prefect.links import is_clickable, link
from flows.run.stored import RunContent, ranked_by, ranking
from flows.run.views import ledger_lines
from flows.runners.planner import Plan
from storage.artifact import dashed
from storage.audit import Fault, promise
from storage.garbage import Garbage
from storage.store import Store
from tasks import readable
from tasks.ranking.rank import MACRO_MEAN
from tasks.report import tables
from tasks.shown import fenced, line, markdown
from tasks.training.train import TRAIN

LOG = logging.getLogger("mixpool.run")

SHOWN = 50
"""Rows of a table at most."""
MOST_NAMES = 12


def only_warns(leave: Callable[..., None]) -> Callable[..., None]:
    """The function with its errors logged, not raised: the work that it shows is done."""

    @functools.wraps(leave)
    def attempt(*arguments: Any) -> None:
        try:
            leave(*arguments)
        except Exception as error:  # of httpx, of Prefect, of the store
            LOG.warning("%s: Prefect shows less than there is (%s)", leave.__name__, error)

    return attempt


# Plan --------------------------------------------------------------------------------------------


@only_warns
def leave_plan(name: str, plan: Plan) -> None:
    """Show what a run of the recipe called ``name`` will do."""
    LOG.info(plan_line(plan))
    page = "\n".join(plan_page(name, plan))
    create_markdown_artifact(page, dashed(name, "plan"), plan_line(plan))


def plan_line(plan: Plan) -> str:
    """One line: how much is to be computed and how long it may take."""
    trainings = len(plan.to_build(TRAIN))
    if not plan.to_build() and not plan.pairs_missing:
        return "Nothing to compute: everything is in the store."
    cost = (
        "no earlier record says how long it takes"
        if plan.seconds is None
        else f"about {readable.duration(plan.seconds)}"
    )
    return (
        f"{trainings} trainings of {plan.training_tokens:,} tokens and {plan.pairs_missing:,} losses "
        f"to compute{plan.then}; {cost}."
    )


def plan_page(name: str, plan: Plan) -> Iterator[str]:
    """Markdown: what is cached, what will be built, why, at what cost."""
    yield f"# Plan of {markdown(name)}"
    yield f"{plan.partitions} partitions, {plan.mixtures:,} mixtures. {plan_line(plan)}"
    yield ""
    rows = [
        [
            step.name,
            str(len(plan.cached(step))),
            str(len(build)),
            _names(call.label for call in build),
        ]
        for step in plan.steps
        for build in [plan.to_build(step)]
    ]
    rows.append(["losses", f"{plan.pairs_known:,}", f"{plan.pairs_missing:,}", ""])
    yield from markdown_table(["step", "in the store", "to build", "which"], rows)
    yield from ["", *(f"- {markdown(each)}" for each in plan.lines)]
    if plan.explanations:
        why = [str(explanation) for explanation in plan.explanations[:MOST_NAMES]]
        if (more := len(plan.explanations) - MOST_NAMES) > 0:
            why.append(f"and {more} more")
        yield from ["", "## Why", fenced("\n".join(why))]
    if plan.notes:
        yield from _notes(plan.notes)


# Ranking -----------------------------------------------------------------------------------------


@only_warns
def leave_ranking(store: Store, run: RunContent) -> None:
    """Show a finished run; artifacts of one recipe follow one another under one key."""
    import pandas as pd

    name, best = run.content["recipe"], run.content["summary"]["best"][MACRO_MEAN]
    frame = ranking(store, run, MACRO_MEAN)
    create_table_artifact(
        _rows(tables.ranking_table(frame.head(SHOWN))),
        dashed(name, "ranking"),
        f"Best {min(SHOWN, len(frame))} of {len(frame):,} mixtures by macro mean ({ranked_by(run)}).",
    )
    report = link(store.url, f"runs/{run.name}/report.html")
    if is_clickable(report):
        create_link_artifact(report, "report.html", dashed(name, "report"), "The report.")
    create_table_artifact(
        _rows(tables.table_of(pd.DataFrame(run.content["summary"]["cost"]), tables.COST)),
        dashed(name, "cost"),
        "What was spent now, what the store saved, what training every mixture would have cost.",
    )
    create_markdown_artifact(
        "\n".join(summary_page(store, run)),
        dashed(name, "summary"),
        f"Best mixture: {markdown(best['mixture'])}, perplexity {best['perplexity']:.3f}.",
    )


def summary_page(store: Store, run: RunContent) -> Iterator[str]:
    """Markdown: where things lie, what was trained, what the store had, best mixtures, notes."""
    summary = run.content["summary"]
    yield f"# {markdown(run.content['recipe'])}"
    yield (
        f"{summary['partitions']} partitions, {summary['mixtures']:,} mixtures, "
        f"{summary['evaluation_sets']} evaluation sets"
    )
    yield ""
    yield from (f"- {markdown(each)}" for each in summary.get("corpus", []))
    yield from (f"- {each}" for each in ledger_lines(summary, _names))
    if race := summary.get("race"):
        yield from ["", "## Screened", *(markdown(sentence) for sentence in race["words"])]
    for heading, field in (("Can it be trusted?", "verdict"), ("Search", "search")):
        if words := summary.get(field):
            yield from ["", f"## {heading}", *(f"- {markdown(sentence)}" for sentence in words)]
    yield from ["", "## Open", *_links(store, run)]
    rows = [
        [markdown(name), markdown(row["mixture"]), f"{row['perplexity']:.3f}"]
        for name, row in summary["best"].items()
    ]
    heads = ["evaluation set", "best mixture", "perplexity"]
    yield from ["", "## Best mixture for each evaluation set", *markdown_table(heads, rows)]
    if notes := summary["problems"]:
        yield from _notes(notes)


def _notes(notes: Iterable[str]) -> Iterator[str]:
    yield from ["", "## Notes", *(f"- {markdown(note)}" for note in notes)]


def _links(store: Store, run: RunContent) -> Iterator[str]:
    folder = f"runs/{run.name}"
    yield f"- report: {_anchor(store, f'{folder}/report.html')}"
    yield f"- ranking as a table: {_anchor(store, f'{folder}/ranking.parquet')}"
    yield f"- everything in the store: {_anchor(store, 'index.html')}"
    yield f"- this run's folder: {_anchor(store, folder + '/', is_folder=True)}"
    for name, digest in list(run.models.items())[:SHOWN]:
        anchor = _anchor(store, f"artifacts/model/{digest}/", is_folder=True)
        yield f"- model of {markdown(name)}: {anchor}"


def _anchor(store: Store, path: str, *, is_folder: bool = False) -> str:
    url = link(store.url, path, is_folder=is_folder)
    return f"[{path}]({url})" if is_clickable(url) else f"`{url}`"


# The store ---------------------------------------------------------------------------------------


@only_warns
def leave_faults(store: Store, faults: Sequence[Fault], aside: Sequence[str]) -> None:
    """Show the faults of a store, and which files were set aside."""
    rows: list[dict[str, Any]] = [
        {"file": line(fault.path), "fault": line(fault.what), "set aside": fault.path in {*aside}}
        for fault in faults[:SHOWN]
    ]
    create_table_artifact(
        rows or [{"file": store.url, "fault": "none", "set aside": False}],
        dashed("verify"),
        f"{len(faults)} faults in {markdown(store.url)}; {len(aside)} files were set aside. {promise()}",
    )


@only_warns
def leave_garbage(store: Store, garbage: Garbage, deleted: bool) -> None:
    """Show how much garbage there is or was deleted."""
    kinds = {kind: paths for kind, paths in garbage._asdict().items() if isinstance(paths, list)}
    create_table_artifact(
        [{"kind": kind, "files or folders": len(paths)} for kind, paths in kinds.items()],
        dashed("garbage"),
        f"{garbage.num_bytes:,} bytes {'deleted' if deleted else 'could be deleted'} in "
        f"{markdown(store.url)}.",
    )


# Text --------------------------------------------------------------------------------------------


def markdown_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows]]


def _rows(table: tables.Table) -> list[dict[str, Any]]:
    """A table as Prefect draws it: heads of columns, and values as a person reads them."""
    return [dict(zip(table.heads, cells, strict=True)) for cells in table.rows]


def _names(names: Iterable[str]) -> str:
    return readable.listed(map(markdown, names), MOST_NAMES)
