"""`mixpool report`: make a run's report again, with pictures and tables for use elsewhere."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flows.command.options import (
    DEFAULT_STORE,
    CsvRaw,
    RunName,
    StoreUrl,
    faults,
    local,
    open_store,
    out,
)


def report(
    store: StoreUrl = DEFAULT_STORE,
    run: RunName = None,
    output: Annotated[
        Path | None,
        typer.Option(help="New folder for it; by default one named after the run.", callback=local),
    ] = None,
    pareto: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="The two evaluation sets of the Pareto front; else those that conflict most."
        ),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Also write the pictures in dark.")] = False,
    csv_raw: CsvRaw = False,
) -> None:
    """Make a run's report again: the page, its plots as PNG, its tables as Parquet and CSV."""
    with faults():
        from flows.run.folder import read_report
        from flows.run.pictures import write_folder
        from flows.run.stored import find_run

        opened = open_store(store)
        finished = find_run(opened, run)
        data = replace(read_report(opened, finished), pareto_sets=pareto or None)
        folder = Path(finished.name) if output is None else output
        written = write_folder(data, folder, dark=dark, csv_raw=csv_raw)
        pictures = sum(path.suffix == ".png" for path in written)
        tables = sum(path.suffix == ".parquet" for path in written)
        out.print(
            f"report of {finished.name}: {folder / 'report.html'}, {pictures} plots and {tables} tables",
            soft_wrap=True,
        )
