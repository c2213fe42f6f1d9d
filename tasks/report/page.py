"""The page of a report: tables as text, plots as pictures, the main numbers in sentences.

Everything that the page's template places is made here, as finished text, so that the template
decides nothing but words and look.
"""

import base64
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks import readable
from tasks.evaluation.predicted import MERGE
from tasks.ranking.choice import CLOSEST
from tasks.ranking.effects import best_changes, best_uniform
from tasks.ranking.rank import MACRO_MEAN, MOST_COMPARED
from tasks.report import tables, trust_tables
from tasks.report.data import ReportData
from tasks.report.ranking_plots import EFFECTS, POINTS, RANKED, heat_order
from tasks.report.specs import plot_specs
from tasks.report.vega import Spec, drawn, svg_pair
from tasks.shown import line
from tasks.trust.predictors import in_words

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

    from tasks.trust.verdict import Trust


MOST_ROWS = 20
"""Rows of tables that could have one for each pair of partitions or each mixture of a front."""


def content_of(data: ReportData, specs: dict[str, Spec]) -> dict[str, Any]:
    """What the template of the page is given."""
    macro = data.rankings[MACRO_MEAN]
    return {
        "data": data,
        "headline": _headline(data),
        "ranked_by": None if data.ranked_by == MERGE else in_words(data.ranked_by),
        "plots": {name: drawn(name, spec, Picture.of) for name, spec in specs.items()},
        "tables": _tables(data),
        "objectives": [_objective(*pair) for pair in enumerate(data.rankings.items())],
        "counts": {"mixtures": len(macro), "drawn": len(heat_order(macro)), "top": RANKED}
        | {"sets": len(data.losses.sets), "rows": MOST_ROWS}
        | {"partitions": data.members["partition"].nunique(), "compared": MOST_COMPARED}
        | {"points": POINTS, "effects": EFFECTS, "closest": CLOSEST},
        "sets": sorted(data.losses.sets),
        "home": best_uniform(macro, data.members),
        "choice": {} if data.race else _choice(data),
        "provenance": {name: readable.plain(value) for name, value in data.provenance.items()},
    }


class Picture(NamedTuple):
    """One plot as two ``data:`` addresses, and its natural width in pixels."""

    light: str
    dark: str
    width: int

    @classmethod
    def of(cls, spec: Spec) -> "Picture":
        light, dark = svg_pair(spec)
        stated = re.search(r'width="(\d+)', light)
        assert stated, "an SVG from Vega states its width"
        return cls(_address(light), _address(dark), int(stated[1]))


def _address(text: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def _objective(number: int, named: "tuple[str, pd.DataFrame]") -> dict[str, Any]:
    """What the page says of one objective; ``key`` names its plot and its table."""
    name, ranking = named
    return {
        "key": _key("ranking", number),
        "name": name,
        "best": ranking["mixture"].iloc[0],
        "tied": int(ranking["tied"].sum()) - 1,
    }


def _headline(data: ReportData) -> dict[str, Any]:
    """The best mixture for the macro mean, how many are tied with it, and the first that is not."""
    macro = data.rankings[MACRO_MEAN]
    best, behind = macro.iloc[0], macro[~macro["tied"]]
    words = {
        "best": best["mixture"],
        "perplexity": readable.number(3)(best["perplexity"]),
        "loss": readable.number(4)(best["loss"]),
        "bits": readable.number(4)(best["bits_per_byte"]),
        "tied": int(macro["tied"].sum()) - 1,
        "next": None,
        "found": None,
    }
    if data.search is not None and not data.search.best.empty:
        found = data.search.best.iloc[0]
        objective = readable.number(4)(found["objective"])
        words["found"] = {"mixture": found["mixture"], "objective": objective}
    if not behind.empty:
        other = behind.iloc[0]
        words["next"] = other["mixture"]
        words["gap"] = readable.number(4)(other["difference"])
        words["percent"] = readable.number(2)(100 * math.expm1(other["difference"]))
        words["interval"] = readable.interval(other["low"], other["high"])
    return words


def _choice(data: ReportData) -> dict[str, Any]:
    """Counts that the sections on two sets and on pairs speak of."""
    merged, frames = data.complementarity, data.frames()
    macro = merged[merged["objective"] == MACRO_MEAN]
    return {
        "sets": data.plane_sets,
        "front": len(frames.get("pareto", ())),
        "pairs": len(macro),
        "needed": int((macro["low"] > 0).sum()),
        "barred": int((macro["high"] < 0).sum()),
    }


def _tables(data: ReportData) -> dict[str, tables.Table]:
    macro = data.rankings[MACRO_MEAN]
    changes = best_changes(macro, data.members)
    changes = changes.merge(macro[["mixture", "loss", "perplexity"]], on="mixture")
    sets = data.sets.assign(domain=data.sets["domain"].fillna("never trained on"))
    shown = {
        "changes": tables.table_of(changes, tables.CHANGES),
        "partitions": tables.table_of(
            data.partitions, tables.present_columns(tables.PARTITIONS, data.partitions)
        ),
        "sets": tables.table_of(sets, tables.SETS, data.sets["domain"].isna()),
        "cost": tables.table_of(data.cost, tables.present_columns(tables.COST, data.cost)),
    }
    for number, ranking in enumerate(data.rankings.values()):
        shown[_key("ranking", number)] = tables.ranking_table(ranking.head(RANKED))
    if data.forgetting is not None:
        shown["forgetting"] = tables.table_of(data.forgetting, tables.FORGETTING)
    if data.race is None:
        shown |= _tables_of_all(data)
    if data.validation is not None:
        shown |= _trust_tables(data.validation)
    if data.ladder is not None:
        shown["ladder"] = trust_tables.ladder_table(data.ladder.orders)
        shown["ladder-flips"] = trust_tables.flips_table(data.ladder.flips, MOST_ROWS)
    if data.search is not None:
        best, surrogates = data.search.best, data.search.surrogates
        shown["search"] = tables.table_of(best, tables.search_columns(best))
        shown["surrogates"] = tables.table_of(surrogates, tables.SURROGATES, surrogates["chosen"])
    return shown


def _key(stem: str, number: int) -> str:
    """The name of an objective's plot or table: the macro mean's has no number."""
    return f"{stem}-{number}" if number else stem


def _tables_of_all(data: ReportData) -> dict[str, tables.Table]:
    """Tables of a run in which every mixture was evaluated in full."""
    shown = {"effects": tables.table_of(data.effects, tables.EFFECTS)}
    for number, objective in enumerate(data.rankings):
        best = data.sizes[data.sizes["objective"] == objective]
        shown[_key("sizes", number)] = tables.table_of(best, tables.SIZES, best["tied"])
    frames = data.frames()
    if data.plane_sets is not None:
        front = frames["pareto"].head(MOST_ROWS)
        numbered = front.assign(number=range(1, len(front) + 1))
        shown["pareto"] = tables.table_of(numbered, tables.pareto_columns(*data.plane_sets))
    pairs = data.complementarity
    macro = pairs[pairs["objective"] == MACRO_MEAN].head(MOST_ROWS)
    macro = macro.assign(needed=macro["low"] > 0)
    shown["pairs"] = tables.table_of(macro, tables.PAIRS, macro["needed"])
    return shown


def _trust_tables(trust: "Trust") -> dict[str, tables.Table]:
    shown = {
        "validation": trust_tables.predictors_table(trust.table),
        "validation-measures": trust_tables.measures_table(trust.table),
        "validation-sets": trust_tables.sets_table(trust.table),
        "validation-regrets": trust_tables.regrets_table(trust.table),
        "barriers": trust_tables.barriers_table(trust.barriers, MOST_ROWS),
    }
    if trust.noise is not None:
        shown["noise"] = tables.table_of(trust.noise, trust_tables.NOISE)
    if trust.named is not None:
        is_macro = trust.named["evaluation_set"] == MACRO_MEAN
        shown["named"] = tables.table_of(trust.named, trust_tables.NAMED, is_macro)
    return shown


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to ``path``.

    Raises:
        ValueError: the losses cannot be ranked (see ``tasks.ranking.rank.rank``).
    """
    environment = page_environment(Path(__file__).parent)
    content = content_of(data, plot_specs(data))
    page = environment.get_template("report.html.jinja").render(content)
    path.write_text(page, encoding="utf-8")


@lru_cache
def page_environment(folder: Path) -> "jinja2.Environment":
    """Templates of ``folder``: what they place prints and is escaped, an unknown name is an error.

    A process compiles each once.
    """
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        finalize=lambda value: line(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
