"""Tables of the report as text.

A frame becomes rows of finished strings here, so that the page template places text and decides
nothing.
"""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from tasks.readable import (
    Show,
    count,
    duration,
    flops,
    interval,
    joules,
    number,
    significant,
    text,
    yes,
)

if TYPE_CHECKING:
    import pandas as pd

Columns: TypeAlias = Mapping[str, tuple[str, Show]]
"""By column of a frame: the head of the column and how a value is shown."""


class Table(NamedTuple):
    """A table as text: heads, rows of cells, which columns are numbers, which rows are marked."""

    heads: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    marked: list[bool]


def table_of(frame: "pd.DataFrame", columns: Columns, mark: Iterable[bool] = ()) -> Table:
    """The ``columns`` of ``frame`` in their order; rows where ``mark`` holds are set apart.

    The column ``interval`` is made of ``low`` and ``high``.
    """
    if "interval" in columns:
        frame = frame.assign(interval=list(map(interval, frame["low"], frame["high"])))
    shown = [[show(value) for value in frame[name]] for name, (_, show) in columns.items()]
    return Table(
        heads=[head for head, _ in columns.values()],
        rows=[list(cells) for cells in zip(*shown, strict=True)],
        numeric=[show not in (text, yes) for _, show in columns.values()],
        marked=list(mark) or [False] * len(frame),
    )


def to_json(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """A frame as plain JSON rows; NaN becomes null."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows


def ranking_table(ranking: "pd.DataFrame") -> Table:
    """Rows of a ``tasks.ranking.rank.rank`` table; those tied with the best are marked."""
    return table_of(ranking, RANKING, ranking["tied"])


def pareto_columns(first_set: str, second_set: str) -> Columns:
    """Columns of ``tasks.ranking.choice.pareto`` for two sets."""
    return {
        "number": ("in the plot", count),
        "mixture": ("mixture", text),
        "k": ("k", count),
        "first": (f"{first_set}, bits per byte", number(4)),
        "second": (f"{second_set}, bits per byte", number(4)),
    }


def search_columns(best: "pd.DataFrame") -> Columns:
    """Columns of ``SearchResult.best``: the fixed ones, then each set's bits per byte."""
    first: dict[str, tuple[str, Show]] = {
        "mixture": ("mixture", text),
        "objective": ("objective", number(4)),
        "predicted": ("predicted", number(4)),
    }
    return first | {name: (str(name), number(4)) for name in best.columns if name not in first}


def present_columns(columns: Columns, frame: "pd.DataFrame") -> Columns:
    """Those of ``columns`` that a frame has."""
    return {name: column for name, column in columns.items() if name in frame}


RANKING: Columns = {
    "rank": ("rank", count),
    "mixture": ("mixture", text),
    "k": ("k", count),
    "loss": ("nats per token", number(4)),
    "perplexity": ("perplexity", number(3)),
    "bits_per_byte": ("bits per byte", number(4)),
    "word_perplexity": ("word perplexity", number(1)),
    "difference": ("behind the best", number(4)),
    "interval": ("95 % interval", str),
    "tied": ("tied", yes),
}
CHANGES: Columns = {
    "change": ("change", text),
    "partition": ("partition", text),
    "difference": ("change of loss", number(4)),
    "perplexity": ("perplexity", number(3)),
    "mixture": ("leads to", text),
}
SIZES: Columns = {
    "k": ("k", count),
    "mixture": ("best mixture", text),
    "loss": ("nats per token", number(4)),
    "perplexity": ("perplexity", number(3)),
    "bits_per_byte": ("bits per byte", number(4)),
    "difference": ("behind the best", number(4)),
    "interval": ("95 % interval", str),
    "tied": ("tied with the best", yes),
    "tied_at_size": ("tied at this k", count),
    "of_size": ("mixtures of this k", count),
}
PAIRS: Columns = {
    "first": ("partition", text),
    "second": ("and partition", text),
    "loss_first": ("loss of the first", number(4)),
    "loss_second": ("of the second", number(4)),
    "loss_both": ("of their merge", number(4)),
    "complementarity": ("gain of merging", number(4)),
    "interval": ("95 % interval", str),
    "needed": ("both are needed", yes),
}
SURROGATES: Columns = {
    "surrogate": ("surrogate", text),
    "target": ("target", text),
    "spearman": ("Spearman", number(3)),
    "pearson": ("Pearson", number(3)),
    "rmse": ("error, bits per byte", number(4)),
    "rows": ("mixtures", count),
    "chosen": ("chosen", yes),
}
EFFECTS: Columns = {
    "partition": ("partition", text),
    "mean": ("mean change of loss", number(4)),
    "interval": ("10th to 90th percentile", str),
    "count": ("pairs", count),
}
FORGETTING: Columns = {
    "mixture": ("partition", text),
    "learned": ("learned on its own set", number(4)),
    "forgotten": ("forgotten on the others", number(4)),
}
PARTITIONS: Columns = {
    "partition": ("partition", text),
    "domain": ("domain", text),
    "num_documents": ("documents", count),
    "num_tokens": ("tokens", count),
    "repeats": ("times seen", number(2)),
    "seconds": ("training", duration),
    "sharpness": ("sharpness", number(4)),
    "barrier": ("mean barrier", number(4)),
    "status": ("model", text),
    "fingerprint": ("fingerprint", text),
}
SETS: Columns = {
    "evaluation_set": ("evaluation set", text),
    "domain": ("domain", text),
    "num_documents": ("documents", count),
    "num_tokens": ("tokens", count),
    "num_bytes": ("bytes", count),
    "removed": ("removed documents", count),
}
COST: Columns = {
    "item": ("item", text),
    "seconds": ("time", duration),
    "tokens": ("tokens", count),
    "flops": ("operations", flops),
    "joules": ("energy", joules),
    "kwh": ("kWh of the facility", significant),
    "co2e_kg": ("kg CO2e", significant),
    "estimator": ("energy estimated by", text),
}
