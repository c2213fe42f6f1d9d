"""What is shown while work goes on: lines on a pipe, bars in a terminal, data never as markup."""

import io

import pytest
from rich.console import Console

from flows.command import console
from flows.command.console import TerminalReporter, make_console, print_rows


def written(is_terminal: bool) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=is_terminal,
        width=100,
        highlight=False,
        markup=False,
        emoji=False,
        _environ={},
    )


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_on_a_pipe_long_work_leaves_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "WORTH_A_LINE", 0.0)
    pipe = written(is_terminal=False)
    with TerminalReporter(pipe) as reporter:
        report = reporter.task("train [/red] :bug:")
        for done in (0, 500, 1000, 1000):
            report(done, 1000, "tokens")
    (line,) = text_of(pipe).splitlines()
    assert line.startswith("  train [/red] :bug:: 1,000 tokens in 0.0 s, ")
    assert line.endswith("/s")


def test_on_a_pipe_short_work_leaves_nothing() -> None:
    pipe = written(is_terminal=False)
    with TerminalReporter(pipe) as reporter:
        reporter.task("window law")(5, 5, "documents")
    assert text_of(pipe) == ""


def test_in_a_terminal_bars_show_amount_and_name() -> None:
    terminal = written(is_terminal=True)
    with TerminalReporter(terminal) as reporter:
        report = reporter.task("train [/red]")
        report(500, 1000, "tokens")
        reporter.progress.refresh()
        reporter.say("a line that stays")
    shown = text_of(terminal)
    assert "train [/red]" in shown
    assert "500/1,000 tokens" in shown
    assert "a line that stays\n" in shown


def test_tables_show_names_as_they_are() -> None:
    pipe = written(is_terminal=False)
    rows = [{"name": "[bold]x[/red] :bug:", "tokens": 12345}, {"name": "y", "loss": 1.5}]
    print_rows(pipe, rows)
    shown = text_of(pipe)
    assert "[bold]x[/red] :bug:" in shown
    assert "12,345" in shown
    assert "1.5000" in shown


def test_width_on_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console().width == 120
    monkeypatch.setenv("COLUMNS", "70")
    assert make_console().width == 70
