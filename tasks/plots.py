"""Vega-Lite specifications of the plots, as plain dicts, and their rendering to SVG.

A specification holds data and shapes but no colour of its own: colours come from a theme, a
Vega-Lite config, so that the same specification is drawn for light and for dark pages and turned
into a PNG elsewhere. What colour says is also said by shape (hollow against filled), for those who
cannot see the difference and for paper.

Mixtures, partitions and sets are drawn by number; their names are a parameter that the axis looks up,
so that any text may stand in them and two long names never become one. Names are shortened here and
the font is a single one, as measuring text is what drawing spends its time on (600 ms against 30).
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tasks.rows import Losses

if TYPE_CHECKING:
    import pandas as pd

Spec: TypeAlias = dict[str, Any]

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

_WIDTH = 380
_FEW_TICKS = {"tickCount": 5, "labelFlush": False, "labelOverlap": True}
_NOT_XML = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]"
)  # one of them in a label voids an SVG


def _theme(text: str, faint: str, strong: str, weak: str, ramp: Sequence[str]) -> Spec:
    axis = {"labelColor": text, "titleColor": text, "gridColor": faint, "domainColor": faint}
    return {
        "background": None,
        "aria": False,  # an <img> has one text for all; without this the file is twice as large
        "font": "sans-serif",
        "view": {"stroke": None},
        "axis": {**axis, "tickColor": faint, "labelFontSize": 12, "titleFontSize": 12}
        | {"titleFontWeight": "normal", "labelLimit": 0},
        "legend": {"labelColor": text, "titleColor": text, "titleFontWeight": "normal"}
        | {"labelLimit": 0, "titleLimit": 0, "columnPadding": 36}
        | {"labelFontSize": 12, "titleFontSize": 12},
        "range": {"category": [strong, weak], "ramp": list(ramp), "heatmap": list(ramp)},
        "style": {"strong": {"color": strong}, "weak": {"color": weak}, "text": {"color": text}}
        | {"member": {"color": text}},
    }


_TEXT, _FAINT, _STRONG, _WEAK = (
    ("#1f2933", "#e4e7eb"),
    ("#d5dae1", "#3a424d"),
    ("#0b62c4", "#6db3ff"),
    ("#8a94a0", "#8a94a0"),
)
"""Plain colours, each on light and on dark pages."""
_RAMPS = (
    ["#eef4fb", "#9cc4ec", "#3f86cf", "#0b4587"],
    ["#1c2733", "#24568a", "#4f97e0", "#cfe5ff"],
)
LIGHT, DARK = (
    _theme(_TEXT[i], _FAINT[i], _STRONG[i], _WEAK[i], ramp) for i, ramp in enumerate(_RAMPS)
)
_DARKENED = dict([_TEXT, _FAINT, _STRONG, _WEAK])
_TAG = re.compile("<[^>]*>")
_COLOUR = re.compile('(?<=(?:fill|roke)=")[^"]*')  # fill and stroke


def svg(spec: Spec, theme: Spec) -> str:
    """``spec`` drawn with the colours of ``LIGHT`` or ``DARK``, as the text of an SVG file."""
    import vl_convert

    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", vl_convert.vegalite_to_svg(spec, config=theme))


def svg_pair(spec: Spec) -> tuple[str, str]:
    """``spec`` drawn for light and for dark pages; drawn once where that tells both."""
    light = svg(spec, LIGHT)
    if '="rgb' in light:  # a colour that lies between those of a ramp
        return light, svg(spec, DARK)

    def darkened(tag: re.Match[str]) -> str:
        return _COLOUR.sub(lambda colour: _DARKENED.get(colour[0], colour[0]), tag[0])

    return light, _TAG.sub(darkened, light)


def _values(frame: "pd.DataFrame") -> Spec:
    """Rows of ``frame`` as inline data; NaN becomes null, which JSON has."""
    import pandas as pd

    plain = frame.astype(object).where(pd.notna(frame), None)
    return {"values": plain.to_dict("records")}


def shortened(name: str, most: int) -> str:
    """``name`` in at most ``most`` characters: the middle goes, as both ends tell names apart."""
    if len(name) <= most:
        return name
    return f"{name[: (most - 1) // 2].rstrip()} … {name[len(name) - most // 2 + 2 :].lstrip()}"


def _names(param: str, names: Iterable[str], most: int = 44) -> Spec:
    """A parameter of a plot: the names of the rows or columns 0, 1, 2 ..."""
    return {"name": param, "value": [shortened(name, most) for name in names]}


def _room(names: Iterable[str], most: int = 44) -> Spec:
    """Padding for a reader whose font is a fifth wider than the one that names are measured in."""
    longest = max((len(shortened(name, most)) for name in names), default=0)
    return {"left": 5 + 1.3 * longest, "right": 25, "top": 5, "bottom": 5}


def _by_name(field: str, param: str, title: str | None = None, **axis: Any) -> Spec:
    """The channel of a column of numbers whose axis shows ``param``'s names instead."""
    axis = {"labelExpr": f"{param}[datum.value]", "labelAngle": 0, **axis}
    return {"field": field, "type": "ordinal", "title": title, "axis": axis}


def _evenly(frame: "pd.DataFrame", most: int) -> "pd.DataFrame":
    """At most ``most`` rows at even distances, first and last included: a sample without chance."""
    if len(frame) <= most:
        return frame
    return frame.iloc[[round(index * (len(frame) - 1) / (most - 1)) for index in range(most)]]


def ranking_plot(ranking: "pd.DataFrame") -> Spec:
    """The first ``RANKED`` rows of a ``rank`` table: distance to the best, with its interval."""
    top = ranking.head(RANKED)[["difference", "low", "high", "tied"]]
    words = ["not told apart from the best", "worse beyond the noise"]
    told = top["tied"].map({True: words[0], False: words[1]})
    tie = {"field": "told", "type": "nominal", "title": None, "legend": {"orient": "top"}}
    x: Spec = {"type": "quantitative", "title": "nats per token above the best, with 95 % interval"}
    x |= {"axis": _FEW_TICKS}
    interval = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    shape = {**tie, "scale": {"domain": words, "range": ["circle", "diamond"]}}
    point = {"type": "point", "filled": True, "size": 70, "opacity": 1}
    return {
        "params": [_names("mixtures", ranking.head(RANKED)["mixture"])],
        "padding": _room(ranking.head(RANKED)["mixture"]),
        "data": _values(top.assign(row=range(len(top)), told=told)),
        "width": _WIDTH,
        "height": {"step": 20},
        "encoding": {
            "y": _by_name("row", "mixtures"),
            "color": {**tie, "scale": {"domain": words}},
        },
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
    kept = pd.concat([ranking.iloc[:100], _evenly(ranking.iloc[100:], 100)])
    return kept["mixture"].tolist()


def heat_map(losses: Losses, members: "pd.DataFrame", ranking: "pd.DataFrame") -> Spec:
    """Perplexity above each set's best, in percent, by mixture and evaluation set.

    To its left, which partitions each mixture holds. Rows are in the order of ``ranking``.
    """
    order = heat_order(ranking)
    sets, parts = sorted(losses.sets), sorted(set(members["partition"].tolist()))
    step = max(3, min(18, 900 // len(order)))
    panels = [_loss_panel(losses, order, sets)]
    if len(parts) <= HEAT_PARTITIONS:
        panels.insert(0, _member_panel(members, order, parts))
    for panel in panels:
        panel["height"] = {"step": step}
        panel["encoding"]["y"] = {"field": "row", "type": "ordinal", "axis": None}
    padding = _room([*(order if step >= 12 else []), " " * 20]) | {"top": 20}
    if step >= 12:
        panels[0]["encoding"]["y"] = _by_name("row", "mixtures", ticks=False, domain=False)
    names = {"partitions": parts, "sets": sets}
    params = [_names(name, values, 24) for name, values in names.items()]
    params.append(_names("mixtures", order))
    return {"params": params, "padding": padding, "hconcat": panels, "spacing": 12}


_ON_TOP = {"orient": "top", "labelAngle": -55, "domain": False, "ticks": False, "titlePadding": 25}


def _numbered(frame: "pd.DataFrame", order: list[str], column: str, names: list[str]) -> Spec:
    """The rows of mixtures in ``order`` as data, mixtures and ``column`` by number."""
    row = {mixture: place for place, mixture in enumerate(order)}
    place = {name: place for place, name in enumerate(names)}
    frame = frame[frame["mixture"].isin(row)]
    frame = frame.assign(row=frame["mixture"].map(row), column=frame[column].map(place))
    return _values(frame.drop(columns=["mixture", column]))


def _member_panel(members: "pd.DataFrame", order: list[str], partitions: list[str]) -> Spec:
    inside = members[members["weight"] > 0][["mixture", "partition"]]
    x = _by_name("column", "partitions", "partitions in the mixture", **_ON_TOP)
    return {
        "data": _numbered(inside, order, "partition", partitions),
        "width": {"step": 16},
        "mark": {"type": "rect", "style": "member", "opacity": 0.7},
        "encoding": {"x": x},
    }


def _loss_panel(losses: Losses, order: list[str], sets: list[str]) -> Spec:
    import numpy as np

    tokens = [counts.num_tokens for counts in losses.counts]
    best = dict(zip(losses.sets, (losses.nll / tokens).min(axis=0).tolist(), strict=True))
    rows = losses.frame(order)
    above = rows["nll"] / rows["num_tokens"] - rows["evaluation_set"].map(best)
    rows = rows[["mixture", "evaluation_set"]].assign(percent=(100 * np.expm1(above)).round(4))
    legend = {"orient": "bottom", "direction": "horizontal", "gradientLength": 220}
    color = {"field": "percent", "type": "quantitative", "scale": {"nice": False, "domainMin": 0}}
    color |= {"title": "perplexity above the set’s best, %", "legend": legend}
    x = _by_name("column", "sets", "evaluation sets", **_ON_TOP)
    return {
        "data": _numbered(rows, order, "evaluation_set", sets),
        "width": {"step": 30 if len(sets) <= 14 else 18},
        "mark": "rect",
        "encoding": {"x": x, "color": color},
    }


def size_plot(ranking: "pd.DataFrame") -> Spec:
    """Loss of every mixture against its number of partitions, and the best of each number."""
    from tasks.ranking import best_by_size

    every = {"type": "point", "style": "weak", "filled": True, "size": 14, "opacity": 0.45}
    line = {"type": "line", "style": "strong", "point": {"filled": True, "size": 60}}
    x = {"field": "k", "type": "ordinal", "title": "partitions in the mixture"}
    y = {"field": "loss", "type": "quantitative", "title": "loss, nats per token"}
    return {
        "width": _WIDTH + 180,
        "height": 280,
        "encoding": {
            "x": {**x, "axis": {"labelAngle": 0, "grid": False}},
            "y": {**y, "scale": {"zero": False}},
        },
        "layer": [
            {"data": _values(_evenly(ranking, POINTS)[["k", "loss"]]), "mark": every},
            {"data": _values(best_by_size(ranking)[["k", "loss"]]), "mark": line},
        ],
    }


def effects_plot(effects: "pd.DataFrame") -> Spec:
    """Mean and spread of what each partition does to the loss, over ``marginal_effects``' pairs."""
    import pandas as pd

    known = effects[effects["count"] > 0]
    if len(known) > EFFECTS:
        known = pd.concat([known.head(EFFECTS // 2), known.tail(EFFECTS // 2)])
    known = known.assign(row=range(len(known)))
    pairs = _evenly(known[["row", "values"]].explode("values"), POINTS)
    x: Spec = {
        "type": "quantitative",
        "title": "change of loss, nats per token: left of 0 it helps",
    }
    x |= {"axis": _FEW_TICKS}
    spread = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    thick = {"type": "rule", "style": "strong", "strokeWidth": 3}
    point = {"type": "point", "style": "strong", "filled": True, "size": 90, "opacity": 1}
    tick = {"type": "tick", "style": "weak", "opacity": 0.3, "thickness": 1}
    return {
        "params": [_names("partitions", known["partition"])],
        "padding": _room(known["partition"]),
        "data": _values(known[["row", "mean", "low", "high"]]),
        "width": _WIDTH + 100,
        "height": {"step": 22},
        "encoding": {"y": _by_name("row", "partitions")},
        "layer": [
            {
                "data": _values(pairs.rename(columns={"values": "value"})),
                "mark": tick,
                "encoding": {"x": {**x, "field": "value"}},
            },
            {"mark": {"type": "rule", "style": "text"}, "encoding": {"x": {"datum": 0}, "y": None}},
            {"mark": thick, "encoding": spread},
            {"mark": point, "encoding": {"x": {**x, "field": "mean"}}},
        ],
    }
