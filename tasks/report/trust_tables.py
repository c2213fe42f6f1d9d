"""The figures of a validation as tables for people.

The long table of ``tasks.trust.agreement`` has a row for each set, scope, size and predictor. A
person compares two things: the merged model with predictors that need no merging, and figures at a
fixed number of partitions with pooled ones, which are too high. So predictors are rows here and
sizes are columns, and every figure has its interval behind it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.ranking.rank import MACRO_MEAN
from tasks.readable import count, interval, number, text, yes
from tasks.report.tables import Columns, Table, table_of
from tasks.trust.agreement import POOLED, PROXY, WITHIN
from tasks.trust.predictors import in_words

if TYPE_CHECKING:
    import pandas as pd

_AT_ONCE = ("nearest", "tokens", "regression", "stacked")
"""Predictors whose figures by set are in ``validation.parquet`` alone."""
FIXED = "at fixed k"
"""What people read for ``WITHIN``."""
SCOPES = {"all": "all", "in": "that hold its domain", "out": "without its domain"}
MEASURES = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "pairs_right": "pairs ordered right",
}
REGRETS: Columns = {
    "regret_1": ("regret of the first", number(4)),
    "regret_3": ("regret of the first 3", number(4)),
}
BARRIERS: Columns = {
    "evaluation_set": ("evaluation set", text),
    "pair": ("partitions", text),
    "loss_first": ("loss of the first", number(4)),
    "loss_second": ("of the second", number(4)),
    "midpoint": ("of their merge", number(4)),
    "base": ("of the base model", number(4)),
    "barrier": ("above the worse", number(4)),
    "broken": ("merging breaks", yes),
}
NOISE: Columns = {
    "evaluation_set": ("evaluation set", text),
    "mixture": ("mixture", text),
    "runs": ("trainings", count),
    "sd": ("spread, nats per token", number(4)),
    "sd_bits": ("spread, bits per byte", number(4)),
    "ceiling": ("largest Pearson possible", number(2)),
}
NAMED: Columns = {
    "mixture": ("mixture", text),
    "k": ("k", count),
    "evaluation_set": ("evaluation set", text),
    "proxy": ("merged model", number(4)),
    "reference": ("really trained", number(4)),
    "proxy_rank": ("rank by merging", count),
    "reference_rank": ("rank by training", count),
    "even": ("among even ones", count),
    "best_even": ("best even one", text),
    "difference": ("above it", number(4)),
    "interval": ("95 % interval", text),
}

LADDER: Columns = {
    "first_rung": ("from", text),
    "first": ("its", text),
    "second_rung": ("to", text),
    "second": ("its ", text),
    "mixtures": ("mixtures", count),
    "spearman": ("Spearman, at fixed k", number(2)),
    "pairs": ("pairs of one k", count),
    "held": ("keep their order", count),
    "flipped": ("flip", count),
    "unsure": ("not told apart", count),
}
FLIPS: Columns = {
    **{name: LADDER[name] for name in ("first_rung", "first", "second_rung", "second")},
    "better": ("first better", text),
    "worse": ("then worse", text),
    "first_difference": ("ahead", number(4)),
    "first_interval": ("95 % interval", text),
    "second_difference": ("then ahead", number(4)),
    "second_interval": ("95 % interval ", text),
}


def ladder_table(orders: "pd.DataFrame") -> Table:
    """Of every two rungs, for the macro mean, how many orders hold and flip."""
    macro = orders[orders["evaluation_set"] == MACRO_MEAN]
    return table_of(macro, LADDER, macro["flipped"] > macro["held"])


def flips_table(flips: "pd.DataFrame", most: int) -> Table:
    """The ``most`` clearest pairs of mixtures whose order flips."""
    rows = flips.head(most)
    for side in ("first", "second"):
        ends = map(interval, rows[f"{side}_low"], rows[f"{side}_high"])
        rows = rows.assign(**{f"{side}_interval": list(ends)})
    return table_of(rows, FLIPS)


def sizes_of(table: "pd.DataFrame") -> list[str]:
    """Values of ``k`` in their order: numbers, then within and pooled."""
    sizes = set(table["k"])
    numbers = sorted((k for k in sizes if k not in {WITHIN, POOLED}), key=int)
    return [*numbers, *(k for k in (WITHIN, POOLED) if k in sizes)]


def predictors_table(table: "pd.DataFrame") -> Table:
    """Pearson for the macro mean: predictors as rows, sizes as columns."""
    macro = table[(table["evaluation_set"] == MACRO_MEAN) & (table["scope"] == "all")]
    sizes = sizes_of(macro)
    named = macro["predictor"].unique()
    rows = [[in_words(name), *_cells(macro[macro["predictor"] == name], sizes)] for name in named]
    heads = ["predicted by", *(_head(macro, k) for k in sizes)]
    marked = [name == PROXY for name in named]
    return Table(heads, rows, [False, *(True for _ in sizes)], marked)


def sets_table(table: "pd.DataFrame") -> Table:
    """Pearson of the proxy for each set and scope: sizes as columns; then others at fixed k."""
    chosen = table[table["evaluation_set"] != MACRO_MEAN]
    sizes = sizes_of(table)
    others = [by for by in chosen["predictor"].unique() if by not in {PROXY, *_AT_ONCE}]
    rows = []
    for (name, scope), of_set in chosen.groupby(["evaluation_set", "scope"], sort=True):
        cells = _cells(of_set[of_set["predictor"] == PROXY], sizes)
        for by in others:
            cells += _cells(of_set[of_set["predictor"] == by], [WITHIN])
        rows.append([str(name), SCOPES[str(scope)], *cells])
    heads = ["evaluation set", "mixtures", *(_head(None, k) for k in sizes)]
    heads += [f"{FIXED}, by {in_words(by)}" for by in others]
    return Table(heads, rows, [False, False, *(True for _ in heads[2:])], [False] * len(rows))


def measures_table(table: "pd.DataFrame") -> Table:
    """Every measure for the macro mean, by predictor and size."""
    macro = table[(table["evaluation_set"] == MACRO_MEAN) & (table["scope"] == "all")]
    order = {k: place for place, k in enumerate(sizes_of(macro))}
    rank = {name: place for place, name in enumerate(macro["predictor"].unique())}
    macro = macro.assign(by=macro["predictor"].map(rank), at=macro["k"].map(order))
    return _measured(macro.sort_values(["by", "at"]), {"words": ("predicted by", text)})


def regrets_table(table: "pd.DataFrame") -> Table:
    """Every measure of the proxy for each set, at fixed k."""
    chosen = table[(table["predictor"] == PROXY) & (table["k"] == WITHIN)]
    chosen = chosen[chosen["scope"] == "all"].sort_values("evaluation_set")
    return _measured(chosen, {"evaluation_set": ("evaluation set", text)})


def _measured(rows: "pd.DataFrame", first: Columns) -> Table:
    shown = {name: [_figure(row, name) for row in rows.to_dict("records")] for name in MEASURES}
    sizes = rows["k"].replace(WITHIN, FIXED)
    rows = rows.assign(**shown, k=sizes, words=rows["predictor"].map(in_words))
    columns: Columns = {
        **first,
        "k": ("k", text),
        "references": ("references", count),
        **{name: (head, str) for name, head in MEASURES.items()},
        **REGRETS,
    }
    has_others = rows["predictor"].nunique() > 1
    return table_of(rows, columns, (rows["predictor"] == PROXY) & has_others)


def _head(table: "pd.DataFrame | None", k: str) -> str:
    words = {WITHIN: FIXED, POOLED: POOLED}.get(k, f"k = {k}")
    if table is None:
        return words
    references = table.loc[table["k"] == k, "references"].max()
    return f"{words} ({count(references)})"


def _cells(rows: "pd.DataFrame", sizes: list[str]) -> list[str]:
    by_size = {row["k"]: row for row in rows.to_dict("records")}
    return [_figure(by_size.get(k, {}), "pearson") for k in sizes]


def _figure(row: Mapping[Any, Any], name: str) -> str:
    """A figure with its interval: ``0.94 (0.88 to 0.97)``."""
    shown = number(2)(row.get(name))
    low, high = (number(2)(row.get(f"{name}_{end}")) for end in ("low", "high"))
    return shown if low == number(2)(None) else f"{shown} ({low} to {high})"


def barriers_table(barriers: "pd.DataFrame", most: int) -> Table:
    """The ``most`` highest barriers, those where merging breaks first and marked."""
    rows = barriers.sort_values(["broken", "barrier"], ascending=False).head(most)
    rows = rows.assign(pair=rows["first"] + " + " + rows["second"])
    return table_of(rows, BARRIERS, rows["broken"])
