"""The flow that Prefect shows, schedules and starts from a form.

A flow run does what ``mixpool run`` does, into the same store, and leaves in Prefect what a person
wants to see there: the ranking, what was trained and what it cost, and where the report lies. All of
it is in the store as well; nothing is read back from Prefect.
"""

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.prefect_settings import set_defaults

set_defaults()  # before the import of Prefect, which reads them

from prefect import flow  # noqa: E402
from prefect.artifacts import (  # noqa: E402
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from flows.costs import to_json  # noqa: E402
from flows.prefect_runner import PrefectRunner  # noqa: E402
from flows.recipe import Recipe  # noqa: E402
from flows.run import RunResult, execute  # noqa: E402
from storage.cache import Runtime  # noqa: E402
from storage.store import Store  # noqa: E402
from tasks import tables  # noqa: E402
from tasks.ranking import MACRO_MEAN  # noqa: E402

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_RUNTIME = Runtime()
SHOWN = 50
"""Mixtures in the table artifact."""
COLUMNS = ["rank", "mixture", "k", "loss", "perplexity", "bits_per_byte", "low", "high", "tied"]


def _threads(workers: int) -> Any:
    return ThreadPoolTaskRunner(max_workers=workers)


@flow(
    name="ablate",
    flow_run_name="{recipe.name}",
    # Trainings share one device, and a step on the CPU uses all cores by itself.
    task_runner=_threads(1),
    persist_result=False,
)
def ablate_flow(
    recipe: Recipe,
    store: str,
    runtime: Runtime = DEFAULT_RUNTIME,
    with_references: bool = False,
) -> dict[str, Any]:
    """Train what is missing, evaluate what is missing, rank every mixture.

    Args:
        recipe: Everything that can change a result.
        store: Where results are kept: a folder or fsspec URL.
        runtime: How it is computed, never what.
        with_references: Also train a sample of mixtures for real, to see how far the ranking holds.
    """
    runner = PrefectRunner(Store(store), runtime)
    result = execute(runner, recipe, with_references=with_references)
    leave_artifacts(recipe, store, result)
    return {"run": result.folder, **result.summary}


def run_with_prefect(
    recipe: Recipe,
    store: str,
    runtime: Runtime = DEFAULT_RUNTIME,
    *,
    with_references: bool = False,
    workers: int = 1,
) -> dict[str, Any]:
    """Run the flow here, recorded by the server that ``PREFECT_API_URL`` names or a temporary one.

    Args:
        workers: task runs at a time; look-ups and tokenization overlap, trainings never do.

    Returns:
        ``run``, the folder in the store, and the summary that its ``run.json`` holds.

    Raises:
        ValueError: data or recipe cannot be used; everything committed stays.
    """
    run = ablate_flow.with_options(task_runner=_threads(workers))
    return run(recipe, store, runtime, with_references)


def leave_artifacts(recipe: Recipe, store: str, result: RunResult) -> None:
    """Show a run's outcome in Prefect; artifacts of one recipe follow one another under one key."""
    name = artifact_key(recipe.name)
    report = address(store, f"{result.folder}/report.html")
    ranking = result.report.rankings[MACRO_MEAN]
    best = ranking.iloc[0]
    create_link_artifact(report, "report.html", f"{name}-report", "The run's report.")
    create_table_artifact(
        to_json(ranking[COLUMNS].head(SHOWN)),
        f"{name}-ranking",
        f"Best {min(SHOWN, len(ranking))} of {len(ranking):,} mixtures by macro mean.",
    )
    create_markdown_artifact(
        summary_page(recipe, result, report),
        f"{name}-summary",
        f"Best mixture: {best['mixture']}, perplexity {best['perplexity']:.3f}.",
    )


def artifact_key(name: str) -> str:
    """``name`` as Prefect wants keys: lower case letters, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "recipe"


def address(store: str, path: str) -> str:
    """Where a file of the store lies, as a URL."""
    if "://" in store:
        return f"{store.rstrip('/')}/{path}"
    return (Path(store).expanduser().resolve() / path).as_uri()


def summary_page(recipe: Recipe, result: RunResult, report: str) -> str:
    """Markdown: what was trained, what the store had, what it cost."""
    summary = result.summary
    trained = ", ".join(map(_text, summary["trained"]))
    lines = [
        f"# {_text(recipe.name)}",
        f"{summary['partitions']} partitions, {summary['mixtures']:,} mixtures, "
        f"{summary['evaluation_sets']} evaluation sets",
        "",
        f"- trained now: {len(summary['trained'])}" + (f" ({trained})" if trained else ""),
        f"- trainings from the store: {len(summary['trainings_from_store'])}",
        f"- losses evaluated now: {summary['losses_evaluated']:,} (mixture x evaluation set)",
        f"- losses from the store: {summary['losses_from_store']:,}",
        f"- report: `{report}`",
        "",
        "## Best mixture for each evaluation set",
        *_best_rows(summary["best"]),
        "",
        "## Cost",
        *_cost_rows(result.report.cost),
    ]
    if result.report.notes:
        lines += ["", "## Notes", *(f"- {_text(note)}" for note in result.report.notes)]
    return "\n".join(lines)


def _best_rows(best: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        [_text(name), _text(row["mixture"]), f"{row['perplexity']:.3f}"]
        for name, row in best.items()
    ]
    return _markdown_table(["evaluation set", "best mixture", "perplexity"], rows)


def _cost_rows(cost: "pd.DataFrame") -> list[str]:
    table = tables.table_of(cost, tables.COST)
    return _markdown_table(table.heads, [[_text(cell) for cell in row] for row in table.rows])


def _markdown_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows]]


def _text(value: str) -> str:
    """Names come from data: they may hold what Markdown or a browser would read as markup."""
    return re.sub(r"([\\`*_{}\[\]|])", r"\\\1", html.escape(value, quote=False))
