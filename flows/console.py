"""What a person sees in a terminal: bars while work goes on, then tables."""

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from storage.cache import Progress as Report
from tasks import tables
from tasks.ranking import MACRO_MEAN

if TYPE_CHECKING:
    import pandas as pd

    from flows.run import RunResult


class TerminalReporter:
    """Progress bars with rates and time left; on a pipe, one line for each piece of work."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False)
        self._lock = threading.Lock()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def task(self, name: str) -> Report:
        """A bar for a piece of work; it appears when the work starts and leaves one line."""
        bar = _Bar(self, name)
        return bar.show

    def say(self, message: str) -> None:
        """One line that stays."""
        self.console.print(message, markup=False)


class _Bar:
    def __init__(self, reporter: TerminalReporter, name: str) -> None:
        self._reporter = reporter
        self._progress = reporter._progress
        self._name = name
        self._task: TaskID | None = None
        self._is_done = False

    def show(self, done: int, total: int, unit: str) -> None:
        with self._reporter._lock:
            if self._is_done:
                return
            if self._task is None:
                self._task = self._progress.add_task(self._name, total=total or None, amount="")
            rate = self._progress.tasks[self._progress.task_ids.index(self._task)].speed
            amount = f"{done:,}/{total:,} {unit}" if total else f"{done:,} {unit}"
            amount += f", {rate:,.0f}/s" if rate else ""
            self._progress.update(self._task, completed=done, total=total or None, amount=amount)
            if total and done >= total:
                self._finish(total, unit)

    def _finish(self, total: int, unit: str) -> None:
        assert self._task is not None
        self._is_done = True
        task = self._progress.tasks[self._progress.task_ids.index(self._task)]
        seconds = task.elapsed or 0.0
        self._progress.remove_task(self._task)
        if seconds >= 0.5:
            rate = f", {total / seconds:,.0f}/s" if seconds else ""
            self._reporter.say(f"  {self._name}: {total:,} {unit} in {seconds:.1f} s{rate}")


def show_result(console: Console, result: "RunResult", top: int = 10) -> None:
    """Print what a run found, did and cost."""
    rankings = result.report.rankings
    console.print()
    console.print(_ranking_table(rankings[MACRO_MEAN], top))
    console.print(_best_by_set(result))
    if len(result.changes):
        console.print(_changes_table(result.changes))
    if result.validation is not None:
        console.print(_validation_table(result.validation.table))
    console.print(_cost_table(result.report.cost))
    for note in result.report.notes:
        console.print(f"note: {note}", markup=False)
    show_ledger(console, result)


def show_ledger(console: Console, result: "RunResult") -> None:
    """Say what was trained and evaluated now, and what came from the store."""
    summary = result.summary
    trained, stored = summary["trained"], summary["trainings_from_store"]
    lines = [
        f"trained now: {len(trained)}" + (f" ({', '.join(trained)})" if trained else ""),
        f"trainings from the store: {len(stored)}",
        f"losses evaluated now: {summary['losses_evaluated']:,} (mixture x evaluation set)",
        f"losses from the store: {summary['losses_from_store']:,}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _ranking_table(ranking: "pd.DataFrame", top: int) -> Table:
    table = Table(
        title=f"Best mixtures by macro mean ({len(ranking):,} judged)", title_justify="left"
    )
    for name, justify in (("rank", "right"), ("mixture", "left"), ("k", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("perplexity", "bits/byte", "above best", "95 % interval"):
        table.add_column(name, justify="right")
    for row in _rows(ranking.head(top)):
        table.add_row(
            f"{row['rank']}{'=' if row['tied'] else ''}",
            row["mixture"],
            str(row["k"]),
            f"{row['perplexity']:.3f}",
            f"{row['bits_per_byte']:.4f}",
            f"{row['difference']:.4f}",
            tables.interval(row["low"], row["high"]),
        )
    table.caption = "= not told apart from the best; differences in nats per token"
    return table


def _best_by_set(result: "RunResult") -> Table:
    table = Table(title="Best mixture for each evaluation set", title_justify="left")
    table.add_column("evaluation set")
    table.add_column("best mixture")
    table.add_column("perplexity", justify="right")
    table.add_column("tied with it", justify="right")
    for name, ranking in result.report.rankings.items():
        if name != MACRO_MEAN:
            best = ranking.iloc[0]
            ties = int(ranking["tied"].sum()) - 1
            table.add_row(
                name, str(best["mixture"]), f"{best['perplexity']:.3f}", str(max(0, ties))
            )
    return table


def _changes_table(changes: "pd.DataFrame") -> Table:
    table = Table(title="Single changes to the best mixture", title_justify="left")
    for name in ("change", "partition", "to"):
        table.add_column(name)
    table.add_column("nats per token", justify="right")
    for row in _rows(changes):
        table.add_row(row["change"], row["partition"], row["mixture"], f"{row['difference']:+.4f}")
    return table


def _validation_table(figures: "pd.DataFrame") -> Table:
    table = Table(title="Merged models against really trained ones", title_justify="left")
    table.add_column("evaluation set")
    for name in ("k", "references", "Pearson", "Spearman", "Pearson of means", "Spearman of means"):
        table.add_column(name, justify="right")
    columns = ("pearson", "spearman", "pearson_individual", "spearman_individual")
    for row in _rows(figures):
        shown = [tables.number(2)(row[name]) for name in columns]
        table.add_row(row["evaluation_set"], row["k"], str(row["references"]), *shown)
    table.caption = (
        "of log-perplexity; means: mean loss of the single partition models (no merging)"
    )
    return table


def _cost_table(cost: "pd.DataFrame") -> Table:
    table = Table(title="Cost", title_justify="left")
    table.add_column("item")
    for name in ("time", "tokens", "FLOPs", "energy"):
        table.add_column(name, justify="right")
    table.add_column("energy by")
    for row in _rows(cost):
        table.add_row(
            row["item"],
            tables.duration(row["seconds"]),
            tables.count(row["tokens"]),
            tables.flops(row["flops"]),
            tables.joules(row["joules"]),
            row["estimator"],
        )
    return table


def _rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
