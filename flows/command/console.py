"""Terminal output: progress bars, or plain lines on a pipe; tables and JSON.

Names of domains and files come from data, so nothing printed here is read as markup.
"""

import json
import os
import time
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from tasks import shown

if TYPE_CHECKING:
    from storage.step import Progress as Report

PIPE_WIDTH = 120
"""Columns where there is no terminal to ask."""
WORTH_A_LINE = 0.5
"""Seconds above which finished work leaves a line."""


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        texts = (shown.line(item) if isinstance(item, str) else item for item in objects)
        super().print(*texts, **options)


def make_console(*, stderr: bool = False) -> Console:
    """A console that reads no markup and shows only what prints; wide where it is no terminal."""
    console = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        columns = os.environ.get("COLUMNS", "")
        console.width = int(columns) if columns.isdecimal() else PIPE_WIDTH
    return console


def print_json(document: object) -> None:
    """One JSON document on stdout, for a program to read."""
    print(json.dumps(document, indent=1, allow_nan=False))


def print_rows(console: Console, rows: list[dict[str, Any]]) -> None:
    """A table of rows that may lack some of the columns; floats with four decimals."""
    table = Table()
    for name in dict.fromkeys(name for row in rows for name in row):
        numeric = all(isinstance(row.get(name, 0), int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(str(column.header), "")) for column in table.columns))
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else shown.line(value)


class TerminalReporter:
    """Progress bars with rates and time left; on a pipe, one line for each piece of long work."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console(stderr=True)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[amount]}", markup=False),
            _TimeLeftColumn(),
            console=self.console,
            transient=True,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self._bar: _TerminalBar | None = None

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None and kind is None:
            self._bar.end()
        self.progress.stop()

    def task(self, name: str) -> "Report":
        """A bar for a piece of work, which leaves one line; one follows the other."""
        # Work whose size is not known says nothing when it ends.
        if self._bar is not None:
            self._bar.end()
        self._bar = _TerminalBar(self, shown.line(name))
        return self._bar.show

    def say(self, message: str) -> None:
        """One line that stays."""
        self.console.print(message, soft_wrap=True)


class _TimeLeftColumn(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        return Text.assemble(super().render(task), " left") if task.total else Text()


class _TerminalBar:
    """One piece of work; its time counts from its first report, after its modules were loaded."""

    def __init__(self, reporter: TerminalReporter, name: str) -> None:
        self._reporter = reporter
        self._name = name
        self._task: TaskID | None = reporter.progress.add_task(name, total=None, amount="")
        self._done, self._unit = 0, ""
        self._since: float | None = None
        self._is_done = False

    def show(self, done: int, total: int, unit: str) -> None:
        """Show how far it is; it ends when all is done."""
        if self._is_done:
            return
        progress, size = self._reporter.progress, total or None
        if self._task is None:  # other work came in between
            self._task = progress.add_task(self._name, total=size, amount="")
        if self._since is None:
            self._since = time.monotonic()
            progress.reset(self._task, total=size)
        self._done, self._unit = done, unit
        progress.update(self._task, completed=done, total=size)
        amount = f"{done:,}/{total:,} {unit}" if total else f"{done:,} {unit}"
        rate = progress.tasks[progress.task_ids.index(self._task)].speed
        progress.update(self._task, amount=amount + (f", {_rate(rate)}" if rate else ""))
        if total and done >= total:
            self._is_done = True
            self.end()

    def end(self) -> None:
        """Take the bar away; long work leaves a line."""
        if self._task is None:
            return
        self._reporter.progress.remove_task(self._task)
        self._task = None
        seconds = 0.0 if self._since is None else time.monotonic() - self._since
        if self._done and seconds >= WORTH_A_LINE:
            self._reporter.say(
                f"  {self._name}: {self._done:,} {self._unit} in {seconds:.1f} s, "
                f"{_rate(self._done / seconds)}"
            )


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"
