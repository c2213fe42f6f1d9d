"""The report of a run: one HTML page that needs nothing but itself, and the tables behind it.

No script, no font, no picture from elsewhere: the page opens from a store, an e-mail or a disk in
ten years' time. Plots are SVG images in the page, once in light and once in dark colours, and the
browser picks; inside an image nothing of one plot can meet anything of another. All text goes
through autoescaping, as labels are other people's file names and configuration.

Here is what a report knows: the tables it was given and those that follow from them, and its plots.
``tasks.page`` turns them into what a person reads; ``report.html.jinja`` holds the words and the look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.choice import best_of_sizes, most_conflicting, pareto, plane
from tasks.choice_plots import PAIRED, agreement_plot, pairs_plot, pareto_plot, trace_plot
from tasks.complement import all_complementarity, duplicate_words, near_duplicates
from tasks.drawing import Spec
from tasks.found import Found
from tasks.page import MOST_SET_PLOTS, content_of
from tasks.plots import effects_plot, heat_map, ranking_plot, size_plot
from tasks.ranking import MACRO_MEAN, marginal_effects
from tasks.rows import Losses
from tasks.verdict import Screening

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

    from tasks.trust import Trust


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that a report tells.

    ``losses`` and ``members`` are as for ``tasks.ranking.rank``, and ``rankings`` are what
    ``tasks.ranking.rank_all`` makes of them; ``created`` is ISO 8601 text;
    ``partitions`` has partition, domain, num_documents, num_tokens, repeats (times its tokens are
    seen in training), seconds, fingerprint, status; ``sets`` has evaluation_set, domain (None where
    never trained on), num_documents, num_tokens, num_bytes, removed (documents lost to
    deduplication); ``cost`` has item, seconds, tokens, flops, joules, estimator; ``validation`` is
    there where references were trained, ``search`` where mixtures were sought; ``lineage`` is
    preformatted text; ``race`` is there where only some mixtures were evaluated in full, and then
    ``losses`` and ``members`` are theirs; ``pareto_sets`` are the two sets of the Pareto front, None
    for those that conflict most; ``cost_words`` are sentences on what the cost holds.
    """

    title: str
    created: str
    losses: Losses
    members: "pd.DataFrame"
    rankings: "dict[str, pd.DataFrame]"
    partitions: "pd.DataFrame"
    sets: "pd.DataFrame"
    cost: "pd.DataFrame"
    validation: "Trust | None"
    notes: list[str]
    lineage: str
    provenance: Mapping[str, object]
    race: Screening | None = None
    search: Found | None = None
    pareto_sets: tuple[str, str] | None = None
    cost_words: Sequence[str] = ()

    @cached_property
    def effects(self) -> "pd.DataFrame":
        """``marginal_effects`` for the macro mean."""
        return marginal_effects(self.losses, self.members, MACRO_MEAN)

    @cached_property
    def sizes(self) -> "pd.DataFrame":
        """``best_of_sizes`` for every objective."""
        return best_of_sizes(self.losses, self.rankings)

    @cached_property
    def plane_sets(self) -> tuple[str, str] | None:
        """The two sets of the Pareto front; None where there is only one set."""
        return self.pareto_sets or most_conflicting(self.losses)

    @cached_property
    def complementarity(self) -> "pd.DataFrame":
        """``complementarity`` of pairs for the macro mean, then for the sets by name."""
        return all_complementarity(self.losses, self.members)

    @cached_property
    def duplicates(self) -> "pd.DataFrame":
        """``near_duplicates`` among the partitions of different domains."""
        known = self.partitions.dropna(subset="domain")
        domains = dict(zip(known["partition"], known["domain"], strict=True))
        return near_duplicates(self.losses, self.members, domains)

    @cached_property
    def remarks(self) -> list[str]:
        """What a reader must know of the partitions before believing their effects."""
        return [] if self.race else list(duplicate_words(self.duplicates, self.effects))

    def frames(self) -> "dict[str, pd.DataFrame]":
        """The tables by the name of their file, without ranking, losses and members.

        After a race those are missing that speak of all mixtures.
        """
        found = {name: getattr(self, name) for name in ("partitions", "sets", "cost")}
        if self.race is None:
            found |= {name: getattr(self, name) for name in ("effects", "sizes", "complementarity")}
            found["near-duplicates"] = self.duplicates
            if self.plane_sets is not None:
                found["pareto"] = pareto(self.losses, self.members, *self.plane_sets)
        else:
            found["screened"] = self.race.exits
        if self.validation is not None:
            found |= {"validation": self.validation.table, "references": self.validation.pairs}
            found["validation-barriers"] = self.validation.barriers
            if self.validation.noise is not None:
                found["validation-noise"] = self.validation.noise
        if self.search is not None:
            found |= {f"search-{name}": getattr(self.search, name) for name in FOUND}
        return found


FOUND = ("surrogates", "trace", "best")
"""Tables of a ``Found``."""


def plot_specs(data: ReportData) -> dict[str, Spec]:
    """Vega-Lite specifications without colours; draw them with ``tasks.drawing`` and a theme.

    Keys: ``ranking`` (macro mean), ``heat-map``, ``sizes``, ``effects``, ``pairs`` and ``pareto``
    (where there is something to draw), ``agreement`` after a validation, ``trace`` after a search,
    and ``ranking-1``, ``ranking-2`` ..., ``agreement-1`` ... for the sets in order of name. After a
    race those are missing that speak of all mixtures.
    """
    macro = data.rankings[MACRO_MEAN]
    specs = {
        "ranking": ranking_plot(macro),
        "heat-map": heat_map(data.losses, data.members, macro),
    }
    if data.race is None:
        specs |= _specs_of_all(data)
    if data.validation is not None:
        specs |= _agreement_specs(data, data.validation)
    if data.search is not None and not data.search.trace.empty:
        specs["trace"] = trace_plot(data.search.trace)
    return specs


def _specs_of_all(data: ReportData) -> dict[str, Spec]:
    """Plots of a run in which every mixture was evaluated in full."""
    macro, *sets = data.rankings.values()
    specs = {"sizes": size_plot(macro)}
    if (data.effects["count"] > 0).any():
        specs["effects"] = effects_plot(data.effects)
    if data.plane_sets is not None:
        points = plane(data.losses, data.members, *data.plane_sets)
        specs["pareto"] = pareto_plot(points, *data.plane_sets)
    pairs = data.complementarity[data.complementarity["objective"] == MACRO_MEAN]
    if 1 < len(pairs) <= PAIRED * (PAIRED - 1) // 2:
        specs["pairs"] = pairs_plot(pairs)
    if len(sets) <= MOST_SET_PLOTS:
        specs |= {f"ranking-{n}": ranking_plot(table) for n, table in enumerate(sets, 1)}
    return specs


def _agreement_specs(data: ReportData, trust: "Trust") -> dict[str, Spec]:
    sizes = sorted(set(trust.pairs["k"]))
    names = {"agreement": MACRO_MEAN}
    if len(data.losses.sets) <= MOST_SET_PLOTS:
        names |= {f"agreement-{n}": name for n, name in enumerate(sorted(data.losses.sets), 1)}
    of_set = dict(list(trust.pairs.groupby("evaluation_set")))
    return {
        key: agreement_plot(of_set[name], name, sizes)
        for key, name in names.items()
        if name in of_set
    }


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to ``path``.

    Raises:
        ValueError: the losses cannot be ranked (see ``tasks.ranking.rank``).
    """
    environment = page_environment(Path(__file__).parent)
    content = content_of(data, plot_specs(data))
    page = environment.get_template("report.html.jinja").render(content)
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
