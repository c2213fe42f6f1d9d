"""The results of a run as tables in a terminal, in the words of the report.

The answer of a search stands first, before the ranking of what it evaluated.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, OverflowMethod
from rich.table import Table

from flows.run.views import ledger_lines
from tasks import readable
from tasks.evaluation.predicted import MERGE
from tasks.ranking.rank import MACRO_MEAN
from tasks.readable import number, text
from tasks.report import tables, trust_tables
from tasks.report.tables import Columns
from tasks.shown import line

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import OverflowMethod

    from flows.run.execute import RunResult
    from tasks.search.result import SearchResult

RANKING: Columns = {
    "rank": ("rank", str),
    **{name: tables.RANKING[name] for name in ("mixture", "k", "perplexity", "bits_per_byte")},
    **{name: tables.RANKING[name] for name in ("difference", "interval")},
}
CHANGES: Columns = {
    name: tables.CHANGES[name] for name in ("change", "partition", "mixture", "difference")
}
BEST: Columns = {
    "objective": ("evaluation set", text),
    "mixture": ("best mixture", text),
    "perplexity": ("perplexity", number(3)),
    "ties": ("tied with it", str),
}
OF_PEARSON = (
    "by number of partitions (references); 95 % intervals; at fixed k: each k's mean taken off"
)


def show_result(console: Console, result: "RunResult", top: int = 10) -> None:
    """Print the results and costs of a run."""
    rankings = result.report.rankings
    judged = f"Best mixtures by {MACRO_MEAN} ({len(rankings[MACRO_MEAN]):,} judged{_by(result)})"
    if result.report.search is not None:
        _show_search_result(console, result.report.search)
    console.print()
    console.print(ranking_table(judged, rankings[MACRO_MEAN].head(top)))
    if result.report.race is None:
        console.print(_table("Best mixture for each evaluation set", _best(rankings), BEST))
    else:
        for sentence in result.report.race.words:
            console.print(sentence, soft_wrap=True)
    if len(result.changes):
        console.print(_table("Single changes to the best mixture", result.changes, CHANGES))
    if result.report.validation is not None:
        _show_words(console, "Trust", result.report.validation.words)
        title = "Merged models against really trained ones: Pearson for the macro mean"
        shown = trust_tables.predictors_table(result.report.validation.table)
        console.print(_drawn(title, shown, OF_PEARSON))
        if (named := result.report.validation.named) is not None:
            macro = named[named["evaluation_set"] == MACRO_MEAN]
            title = f"Mixtures that were named, really trained ({MACRO_MEAN}, nats per token)"
            console.print(_table(title, macro, trust_tables.NAMED, overflow="fold"))
    if (climbed := result.report.ladder) is not None:
        _show_words(console, "Ladder", climbed.words)
        shown = trust_tables.ladder_table(climbed.orders)
        console.print(_drawn(f"Orders from rung to rung ({MACRO_MEAN})", shown, overflow="fold"))
    cost = result.report.cost
    console.print(_table("Cost", cost, tables.present_columns(tables.COST, cost)))
    for note in [*result.report.notes, *result.report.remarks]:
        console.print(f"note: {note}", soft_wrap=True)
    show_ledger(console, result.summary)


def _by(result: "RunResult") -> str:
    name = result.report.ranked_by
    return "" if name == MERGE else f" by {name}"


def show_ledger(console: Console, summary: Mapping[str, Any]) -> None:
    """Say how the corpus goes on, what was trained and evaluated now, and what came from the store.

    Args:
        summary: what ``run.json`` has under ``summary``.
    """
    for sentence in [*summary.get("corpus", []), *ledger_lines(summary, ", ".join)]:
        console.print(sentence, soft_wrap=True)


def ranking_table(title: str, ranking: "pd.DataFrame") -> Table:
    """A ``tasks.ranking.rank.rank`` table; mixtures tied with the best have ``=`` behind their rank."""
    marks = ["=" if tied else "" for tied in ranking["tied"]]
    ranking = ranking.assign(
        rank=[f"{rank}{mark}" for rank, mark in zip(ranking["rank"], marks, strict=True)],
        interval=list(map(readable.interval, ranking["low"], ranking["high"])),
    )
    caption = "= not told apart from the best; differences in nats per token"
    return _table(title, ranking, RANKING, caption)


def _show_search_result(console: Console, search: "SearchResult") -> None:
    _show_words(console, "Search", search.words)
    columns = ["mixture", "objective", "predicted"]
    show_frame(console, "Best mixtures by the objective of the search", search.best[columns])
    title = "Surrogates, cross-validated (mean over the objective's sets)"
    show_frame(console, title, by_surrogate(search.surrogates))


def by_surrogate(surrogates: "pd.DataFrame") -> "pd.DataFrame":
    """One row per surrogate: means over the targets by their ``share`` in the objective."""
    figures = ["spearman", "pearson", "rmse"]
    if surrogates.empty:
        return surrogates
    counted = surrogates[surrogates["share"] > 0]
    weighted = counted.assign(**{name: counted[name] * counted["share"] for name in figures})
    groups = weighted.groupby("surrogate", sort=False)
    means = groups[figures].sum().div(groups["share"].sum(), axis=0)
    chosen = groups["chosen"].first().map({True: "yes", False: ""})
    return means.assign(rows=groups["rows"].first(), chosen=chosen).reset_index()


def show_frame(console: Console, title: str, frame: "pd.DataFrame") -> None:
    """Print any table that has rows."""
    from pandas.api.types import is_float_dtype

    if frame.empty:
        return
    columns = {
        str(name): (str(name), figure if is_float_dtype(column) else text)
        for name, column in frame.items()
    }
    console.print(_drawn(title, tables.table_of(frame, columns), overflow="fold"))


def figure(value: float) -> str:
    """Five decimals, for losses of good mixtures differ in the fifth; five digits where the number is
    so small or large that decimals would not show it."""
    if value == 0 or not math.isfinite(value) or 1e-4 <= abs(value) < 1e6:
        return number(5)(value)
    return f"{value:.5g}".replace("-", "−")


def _best(rankings: "Mapping[str, pd.DataFrame]") -> "pd.DataFrame":
    import pandas as pd

    sets = [table for name, table in rankings.items() if name != MACRO_MEAN]
    best = pd.concat([table.head(1) for table in sets])
    return best.assign(ties=[max(0, int(table["tied"].sum()) - 1) for table in sets])


def _show_words(console: Console, title: str, words: list[str]) -> None:
    console.print()
    console.print(title, style="italic")
    for sentence in words:
        console.print(sentence, soft_wrap=True, markup=False)


def _table(
    title: str,
    frame: "pd.DataFrame",
    columns: Columns,
    caption: str = "",
    overflow: OverflowMethod = "ellipsis",
) -> Table:
    return _drawn(title, tables.table_of(frame, columns), caption, overflow)


def _drawn(
    title: str, shown: tables.Table, caption: str = "", overflow: OverflowMethod = "ellipsis"
) -> Table:
    table = Table(title=line(title), title_justify="left", caption=caption, caption_justify="left")
    for head, numeric in zip(shown.heads, shown.numeric, strict=True):
        table.add_column(line(head), justify="right" if numeric else "left", overflow=overflow)
    for row in shown.rows:
        table.add_row(*row)
    return table
