"""The report of a run: one HTML page that needs nothing but itself.

No script, no font, no picture from elsewhere: the page opens from a store, an e-mail or a disk in
ten years' time. Plots are SVG images in the page, once in light and once in dark colours, and the
browser picks; inside an image nothing of one plot can meet anything of another. All text goes
through autoescaping, as labels are other people's file names and configuration.

This module turns frames into text and numbers that a person reads; ``report.html.jinja`` holds the
words and the look.
"""

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks import tables
from tasks.plots import (
    EFFECTS,
    POINTS,
    RANKED,
    Spec,
    effects_plot,
    heat_map,
    heat_order,
    ranking_plot,
    size_plot,
    svg_pair,
)
from tasks.ranking import (
    MACRO_MEAN,
    MOST_COMPARED,
    best_by_size,
    best_changes,
    best_uniform,
    marginal_effects,
    rank_all,
)
from tasks.rows import Losses
from tasks.verdict import Screening

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

MOST_SET_PLOTS = 24
"""With more evaluation sets than this, only the macro mean's ranking is drawn; tables stay."""


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that a report tells.

    ``losses`` and ``members`` are as for ``tasks.ranking.rank``; ``created`` is ISO 8601 text;
    ``partitions`` has partition, domain, num_documents, num_tokens, repeats (times its tokens are
    seen in training), seconds, fingerprint, status; ``sets`` has evaluation_set, domain (None where
    never trained on), num_documents, num_tokens, num_bytes, removed (documents lost to
    deduplication); ``cost`` has item, seconds, tokens, flops, joules, estimator; ``validation`` is
    any frame that compares proxy and reference; ``lineage`` is preformatted text; ``race`` is there
    where only some mixtures were evaluated in full, and then ``losses`` and ``members`` are theirs.
    """

    title: str
    created: str
    losses: Losses
    members: "pd.DataFrame"
    partitions: "pd.DataFrame"
    sets: "pd.DataFrame"
    cost: "pd.DataFrame"
    validation: "pd.DataFrame | None"
    notes: list[str]
    lineage: str
    provenance: Mapping[str, object]
    race: Screening | None = None

    @cached_property
    def rankings(self) -> "dict[str, pd.DataFrame]":
        """``rank`` tables by objective, the macro mean first, then the sets by name.

        After a race there is the macro mean alone: the best for a set may have been screened out.
        """
        found = rank_all(self.losses, self.members)
        return found if self.race is None else {MACRO_MEAN: found[MACRO_MEAN]}

    @cached_property
    def effects(self) -> "pd.DataFrame":
        """``marginal_effects`` for the macro mean."""
        return marginal_effects(self.losses, self.members, MACRO_MEAN)


def plot_specs(data: ReportData) -> dict[str, Spec]:
    """Vega-Lite specifications without colours; draw them with ``tasks.plots.svg`` and a theme.

    Keys: ``ranking`` (macro mean), ``heat-map``, ``sizes``, ``effects`` (where there is a pair to
    take it from) and ``ranking-1``, ``ranking-2`` ... for the sets in order of name. After a race
    there are the first two alone, as the others speak of all mixtures.
    """
    macro = data.rankings[MACRO_MEAN]
    specs = {
        "ranking": ranking_plot(macro),
        "heat-map": heat_map(data.losses, data.members, macro),
    }
    if data.race is not None:
        return specs
    specs["sizes"] = size_plot(macro)
    if (data.effects["count"] > 0).any():
        specs["effects"] = effects_plot(data.effects)
    _, *sets = data.rankings.values()
    if len(sets) <= MOST_SET_PLOTS:
        specs |= {f"ranking-{n}": ranking_plot(table) for n, table in enumerate(sets, 1)}
    return specs


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to ``path``.

    Raises:
        ValueError: the losses cannot be ranked (see ``tasks.ranking.rank``).
    """
    environment = page_environment(Path(__file__).parent)
    page = environment.get_template("report.html.jinja").render(_page(data))
    path.write_text(page, encoding="utf-8")


def page_environment(folder: Path) -> "jinja2.Environment":
    """Templates of ``folder``: what they place is escaped, a name they are not given is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(data: ReportData) -> dict[str, Any]:
    macro = data.rankings[MACRO_MEAN]
    return {
        "data": data,
        "headline": _headline(data),
        "plots": {name: Picture.of(spec) for name, spec in plot_specs(data).items()},
        "tables": _tables(data),
        "objectives": [_objective(*pair) for pair in enumerate(data.rankings.items())],
        "counts": {"mixtures": len(macro), "drawn": len(heat_order(macro)), "top": RANKED}
        | {"sets": len(data.losses.sets)}
        | {"partitions": data.members["partition"].nunique(), "compared": MOST_COMPARED}
        | {"points": POINTS, "effects": EFFECTS},
        "home": best_uniform(macro, data.members),
        "provenance": {name: tables.plain(value) for name, value in data.provenance.items()},
    }


class Picture(NamedTuple):
    """One plot as two ``data:`` addresses, and its natural width in pixels."""

    light: str
    dark: str
    width: int

    @classmethod
    def of(cls, spec: Spec) -> "Picture":
        light, dark = svg_pair(spec)
        found = re.search(r'width="(\d+)', light)
        assert found, "an SVG from Vega states its width"
        return cls(_address(light), _address(dark), int(found[1]))


def _address(text: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def _objective(place: int, named: "tuple[str, pd.DataFrame]") -> dict[str, Any]:
    """What the page says of one objective; ``key`` names its plot and its table."""
    name, ranking = named
    return {
        "key": f"ranking-{place}" if place else "ranking",
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
        "perplexity": tables.number(3)(best["perplexity"]),
        "loss": tables.number(4)(best["loss"]),
        "bits": tables.number(4)(best["bits_per_byte"]),
        "tied": int(macro["tied"].sum()) - 1,
        "next": None,
    }
    if not behind.empty:
        other = behind.iloc[0]
        words["next"] = other["mixture"]
        words["gap"] = tables.number(4)(other["difference"])
        words["percent"] = tables.number(2)(100 * math.expm1(other["difference"]))
        words["interval"] = tables.interval(other["low"], other["high"])
    return words


def _tables(data: ReportData) -> dict[str, tables.Table | None]:
    macro = data.rankings[MACRO_MEAN]
    changes = best_changes(macro, data.members)
    changes = changes.merge(macro[["mixture", "loss", "perplexity"]], on="mixture")
    effects = data.effects.assign(
        spread=list(map(tables.interval, data.effects["low"], data.effects["high"]))
    )
    sets = data.sets.assign(domain=data.sets["domain"].fillna("never trained on"))
    shown = {
        "changes": tables.table_of(changes, tables.CHANGES),
        "sizes": tables.ranking_table(best_by_size(macro)),
        "effects": tables.table_of(effects, tables.EFFECTS),
        "partitions": tables.table_of(data.partitions, tables.PARTITIONS),
        "sets": tables.table_of(sets, tables.SETS, data.sets["domain"].isna()),
        "cost": tables.table_of(data.cost, tables.COST),
        "validation": None if data.validation is None else tables.table_as_it_is(data.validation),
    }
    for place, ranking in enumerate(data.rankings.values()):
        shown[f"ranking-{place}" if place else "ranking"] = tables.ranking_table(
            ranking.head(RANKED)
        )
    return shown
