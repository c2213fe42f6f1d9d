"""Which plots a report has, as Vega-Lite specifications without colours."""

from typing import TYPE_CHECKING

from tasks.ranking.choice import plane
from tasks.ranking.rank import MACRO_MEAN
from tasks.report.choice_plots import PAIRED, agreement_plot, pairs_plot, pareto_plot, trace_plot
from tasks.report.data import ReportData
from tasks.report.ladder_plot import ladder_plot
from tasks.report.ranking_plots import effects_plot, heat_map, ranking_plot, size_plot
from tasks.report.vega import Spec

if TYPE_CHECKING:
    from tasks.trust.verdict import Trust


MOST_SET_PLOTS = 24
"""With more evaluation sets than this, only the macro mean's ranking is drawn; tables stay."""


def plot_specs(data: ReportData) -> dict[str, Spec]:
    """Vega-Lite specifications without colours; draw them with ``tasks.report.vega`` and a theme.

    Keys: ``ranking`` (macro mean), ``heat-map``, ``sizes``, ``effects``, ``pairs`` and ``pareto``
    (where there is something to draw), ``agreement`` after a validation, ``ladder`` where it has one,
    ``trace`` after a search,
    and ``ranking-1``, ``ranking-2`` ..., ``agreement-1`` ... for the sets in order of name. After a
    race the plots that need all mixtures are missing.
    """
    macro = data.rankings[MACRO_MEAN]
    specs = {"ranking": ranking_plot(macro), "heat-map": heat_map(data.losses, data.members, macro)}
    if data.race is None:
        specs |= _specs_of_all(data)
    if data.validation is not None:
        specs |= _agreement_specs(data, data.validation)
    if data.ladder is not None:
        specs["ladder"] = ladder_plot(data.ladder.losses, data.ladder.flips)
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
