"""Plots of the ranking: distances to the best, losses by set and by size, effects of partitions.

Each is a Vega-Lite specification as a plain dict, without colours (see ``tasks.report.vega``). Of
more mixtures than a person can tell apart, the best are drawn, and a sample of the others at even
distances in the ranking; the page says so.
"""

from typing import TYPE_CHECKING

import numpy as np

from tasks.evaluation.losses import Losses
from tasks.ranking.rank import best_by_size
from tasks.report.vega import FEW_TICKS, WIDTH, Spec, by_name, evenly, names_param, room, values_of

if TYPE_CHECKING:
    import pandas as pd

RANKED = 20
"""Mixtures in a ranking plot."""
HEAT_ALL = 300
"""Up to this many mixtures are all in the heat map; of more, the best 100 and a sample of 100."""
HEAT_PARTITIONS = 40
"""With more partitions the heat map leaves out the panel that shows which are in a mixture."""
POINTS = 2000
"""Marks of single mixtures or single pairs in one plot, at most; a sample of more is drawn."""
EFFECTS = 60
"""Partitions in the plot of marginal effects: of more, the most helpful and the most harmful."""


def ranking_plot(ranking: "pd.DataFrame") -> Spec:
    """The first ``RANKED`` rows of a ``rank`` table: distance to the best, with its interval."""
    top = ranking.head(RANKED)[["difference", "low", "high", "tied"]]
    words = ["not told apart from the best", "worse beyond the noise"]
    standing = top["tied"].map({True: words[0], False: words[1]})
    tie = {"field": "standing", "type": "nominal", "title": None, "legend": {"orient": "top"}}
    x: Spec = {"type": "quantitative", "title": "nats per token above the best, with 95 % interval"}
    x |= {"axis": FEW_TICKS}
    interval = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    shape = {**tie, "scale": {"domain": words, "range": ["circle", "diamond"]}}
    point = {"type": "point", "filled": True, "size": 70, "opacity": 1}
    return {
        "params": [names_param("mixtures", ranking.head(RANKED)["mixture"])],
        "padding": room(ranking.head(RANKED)["mixture"]),
        "data": values_of(top.assign(row=range(len(top)), standing=standing)),
        "width": WIDTH,
        "height": {"step": 20},
        "encoding": {"y": by_name("row", "mixtures"), "color": {**tie, "scale": {"domain": words}}},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": interval},
            {"mark": point, "encoding": {"x": {**x, "field": "difference"}, "shape": shape}},
        ],
    }


def heat_order(ranking: "pd.DataFrame") -> list[str]:
    """Mixtures in the heat map, best first: all, or the best 100 and a sample of 100 of the rest."""
    import pandas as pd

    if len(ranking) <= HEAT_ALL:
        return ranking["mixture"].tolist()
    kept = pd.concat([ranking.iloc[:100], evenly(ranking.iloc[100:], 100)])
    return kept["mixture"].tolist()


def heat_map(losses: Losses, members: "pd.DataFrame", ranking: "pd.DataFrame") -> Spec:
    """Perplexity above each set's best, in percent, by mixture and evaluation set.

    To its left, which partitions each mixture holds. Rows are in the order of ``ranking``.
    """
    order = heat_order(ranking)
    sets, partitions = sorted(losses.sets), sorted(set(members["partition"].tolist()))
    step = max(3, min(18, 900 // len(order)))
    panels = [_loss_panel(losses, order, sets)]
    if len(partitions) <= HEAT_PARTITIONS:
        panels.insert(0, _member_panel(members, order, partitions))
    for panel in panels:
        panel["height"] = {"step": step}
        panel["encoding"]["y"] = {"field": "row", "type": "ordinal", "axis": None}
    padding = room([*(order if step >= 12 else []), " " * 20]) | {"top": 20}
    if step >= 12:
        panels[0]["encoding"]["y"] = by_name("row", "mixtures", ticks=False, domain=False)
    names = {"partitions": partitions, "sets": sets}
    params = [names_param(name, values, 24) for name, values in names.items()]
    params.append(names_param("mixtures", order))
    return {"params": params, "padding": padding, "hconcat": panels, "spacing": 12}


_ON_TOP = {"orient": "top", "labelAngle": -55, "domain": False, "ticks": False, "titlePadding": 25}


def _by_number(frame: "pd.DataFrame", order: list[str], column: str, names: list[str]) -> Spec:
    """The rows of mixtures in ``order`` as data, mixtures and ``column`` by number."""
    row = {mixture: place for place, mixture in enumerate(order)}
    place = {name: place for place, name in enumerate(names)}
    frame = frame[frame["mixture"].isin(row)]
    frame = frame.assign(row=frame["mixture"].map(row), column=frame[column].map(place))
    return values_of(frame.drop(columns=["mixture", column]))


def _member_panel(members: "pd.DataFrame", order: list[str], partitions: list[str]) -> Spec:
    inside = members[members["weight"] > 0][["mixture", "partition"]]
    x = by_name("column", "partitions", "partitions in the mixture", **_ON_TOP)
    return {
        "data": _by_number(inside, order, "partition", partitions),
        "width": {"step": 16},
        "mark": {"type": "rect", "style": "member", "opacity": 0.7},
        "encoding": {"x": x},
    }


def _loss_panel(losses: Losses, order: list[str], sets: list[str]) -> Spec:
    tokens = [counts.num_tokens for counts in losses.counts]
    best = dict(zip(losses.sets, (losses.nll / tokens).min(axis=0).tolist(), strict=True))
    rows = losses.frame(order)
    above = rows["nll"] / rows["num_tokens"] - rows["evaluation_set"].map(best)
    rows = rows[["mixture", "evaluation_set"]].assign(percent=(100 * np.expm1(above)).round(4))
    legend = {"orient": "bottom", "direction": "horizontal", "gradientLength": 220}
    color = {"field": "percent", "type": "quantitative", "scale": {"nice": False, "domainMin": 0}}
    color |= {"title": "perplexity above the set’s best, %", "legend": legend}
    x = by_name("column", "sets", "evaluation sets", **_ON_TOP)
    return {
        "data": _by_number(rows, order, "evaluation_set", sets),
        "width": {"step": 30 if len(sets) <= 14 else 18},
        "mark": "rect",
        "encoding": {"x": x, "color": color},
    }


def size_plot(ranking: "pd.DataFrame") -> Spec:
    """Loss of every mixture against its number of partitions, and the best of each number."""
    every = {"type": "point", "style": "weak", "filled": True, "size": 14, "opacity": 0.45}
    line = {"type": "line", "style": "strong", "point": {"filled": True, "size": 60}}
    x = {"field": "k", "type": "ordinal", "title": "partitions in the mixture"}
    y = {"field": "loss", "type": "quantitative", "title": "loss, nats per token"}
    return {
        "width": WIDTH + 180,
        "height": 280,
        "encoding": {
            "x": {**x, "axis": {"labelAngle": 0, "grid": False}},
            "y": {**y, "scale": {"zero": False}},
        },
        "layer": [
            {"data": values_of(evenly(ranking, POINTS)[["k", "loss"]]), "mark": every},
            {"data": values_of(best_by_size(ranking)[["k", "loss"]]), "mark": line},
        ],
    }


def effects_plot(effects: "pd.DataFrame") -> Spec:
    """Mean and spread of what each partition does to the loss, over ``marginal_effects``' pairs."""
    import pandas as pd

    measured = effects[effects["count"] > 0]
    if len(measured) > EFFECTS:
        measured = pd.concat([measured.head(EFFECTS // 2), measured.tail(EFFECTS // 2)])
    measured = measured.assign(row=range(len(measured)))
    pairs = evenly(measured[["row", "values"]].explode("values"), POINTS)
    x: Spec = {
        "type": "quantitative",
        "title": "change of loss, nats per token: left of 0 it helps",
    }
    x |= {"axis": FEW_TICKS}
    spread = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    thick = {"type": "rule", "style": "strong", "strokeWidth": 3}
    point = {"type": "point", "style": "strong", "filled": True, "size": 90, "opacity": 1}
    tick = {"type": "tick", "style": "weak", "opacity": 0.3, "thickness": 1}
    return {
        "params": [names_param("partitions", measured["partition"])],
        "padding": room(measured["partition"]),
        "data": values_of(measured[["row", "mean", "low", "high"]]),
        "width": WIDTH + 100,
        "height": {"step": 22},
        "encoding": {"y": by_name("row", "partitions")},
        "layer": [
            {
                "data": values_of(pairs.rename(columns={"values": "value"})),
                "mark": tick,
                "encoding": {"x": {**x, "field": "value"}},
            },
            {"mark": {"type": "rule", "style": "text"}, "encoding": {"x": {"datum": 0}, "y": None}},
            {"mark": thick, "encoding": spread},
            {"mark": point, "encoding": {"x": {**x, "field": "mean"}}},
        ],
    }
