"""Export a report as files: the page, every plot as PNG, every table as Parquet and CSV.

A run leaves the page alone, because drawing the pictures takes longer than a run whose results are all
stored. Pictures are for papers and slides: they have a plain background, light unless dark is asked for
as well, and the names of the page's plots.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from storage.artifact import slug
from tasks.report.data import ReportData
from tasks.report.page import write_report
from tasks.report.specs import plot_specs
from tasks.report.vega import drawn, png
from tasks.shown import write_csv

if TYPE_CHECKING:
    import pandas as pd


def write_folder(
    report: ReportData, folder: Path, *, dark: bool = False, csv_raw: bool = False
) -> list[Path]:
    """Write ``report.html``, ``plots/*.png``, ``tables/*.parquet`` and ``tables/*.csv``.

    Args:
        folder: new, or empty.
        dark: also write ``plots/*-dark.png``.
        csv_raw: text that a spreadsheet takes for a formula stays as it is.

    Returns:
        What was written.

    Raises:
        ValueError: the folder is not empty, or there is no such set for the Pareto front.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a new folder with --output")
    plots, frames = plot_specs(report), dict(_tables(report))
    for name in ("plots", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_report(folder / "report.html", report)
    written = [folder / "report.html"]
    for name, spec in plots.items():
        for is_dark in (False, True) if dark else (False,):
            stem = _file_name(name, report) + ("-dark" if is_dark else "")
            picture = drawn(stem, spec, functools.partial(png, dark=is_dark))
            if picture is not None:
                written.append(folder / "plots" / f"{stem}.png")
                written[-1].write_bytes(picture)
    for name, frame in frames.items():
        paths = [folder / "tables" / f"{name}.{ending}" for ending in ("parquet", "csv")]
        frame.to_parquet(paths[0], index=False)
        # A cell of a CSV file has no place for a list.
        write_csv(frame.drop(columns="values", errors="ignore"), paths[1], raw=csv_raw)
        written += paths
    return written


def _tables(report: ReportData) -> "Iterator[tuple[str, pd.DataFrame]]":
    import pandas as pd

    yield "ranking", pd.concat(report.rankings.values(), ignore_index=True)
    yield "losses", report.losses.frame(report.losses.mixtures)
    yield "members", report.members
    yield from report.frames().items()


def _file_name(plot: str, report: ReportData) -> str:
    """A plot's name; behind that of a set's plot, which has a number, the set's."""
    stem, _, number = plot.rpartition("-")
    if not number.isdigit():
        return plot
    name = sorted(report.losses.sets)[int(number) - 1]
    return f"{stem}-{number}-{slug(name)}"
