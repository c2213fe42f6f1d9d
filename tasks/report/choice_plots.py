"""Plots for trust and for choosing: proxies against references, two sets, pairs, a search.

Vega-Lite specifications without colours, as in ``tasks.report.ranking_plots``. Kinds of points
differ in colour *and* shape; the cells of the pairs' heat map hold their numbers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks.report import vega
from tasks.report.ranking_plots import POINTS
from tasks.report.vega import Spec, by_name, evenly, names_param, room, shortened, values_of

if TYPE_CHECKING:
    import pandas as pd

MULTIPLE = 230
"""Width and height of a plot that has others of its kind beside it, in pixels."""
NUMBERED = 20
"""Up to this many mixtures of a Pareto front bear the number of their row in the table."""
NEAR = 0.04
"""Points of a front nearer than this share of the plot's width and height share a number."""
PAIRED = 40
"""With more partitions the pairs are not drawn."""
WRITTEN = 14
"""Up to this many partitions the cells of the pairs' heat map hold numbers."""


def agreement_plot(pairs: "pd.DataFrame", title: str, sizes: Sequence[int]) -> Spec:
    """Proxy against reference on one set, in nats per token; sizes differ in colour and shape.

    Args:
        pairs: ``k``, ``proxy``, ``reference`` of that set, one row per reference.
        sizes: all values of ``k``, so that a size looks the same in every plot.
    """
    points = pairs[["k", "proxy", "reference"]].assign(k=pairs["k"].map(str))
    names = [str(size) for size in sizes]
    legend = {"orient": "top", "columnPadding": 14, "titleOrient": "left"}
    kind: Spec = {"field": "k", "type": "nominal", "title": "k", "legend": legend}
    shapes = [vega.SHAPES[place % len(vega.SHAPES)] for place in range(len(names))]
    return {
        "title": {"text": shortened(title, 34)},
        "data": values_of(points),
        "width": MULTIPLE,
        "height": MULTIPLE,
        "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.85},
        "encoding": {
            "x": _axis("proxy", "merged model, nats per token"),
            "y": _axis("reference", "really trained, nats per token"),
            "color": {**kind, "scale": {"domain": names, "range": vega.KINDS}},
            "shape": {**kind, "scale": {"domain": names, "range": shapes}},
        },
    }


def _axis(field: str, title: str) -> Spec:
    scale = {"zero": False, "nice": False, "padding": 12}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale} | {
        "axis": vega.FEW_TICKS
    }


def pareto_plot(plane: "pd.DataFrame", first_set: str, second_set: str) -> Spec:
    """Every mixture on two sets, and the front; its mixtures bear the numbers of the table's rows.

    Args:
        plane: as ``tasks.ranking.choice.plane`` gives it.
    """
    behind = evenly(plane[~plane["front"]].sort_values(["first", "second"]), POINTS)
    front = plane[plane["front"]].sort_values(["first", "second", "mixture"])
    number = _numbers(front, plane) if len(front) <= NUMBERED else ""
    front = front.assign(number=number)
    x = _axis("first", f"{shortened(first_set, 40)}, bits per byte")
    y = _axis("second", f"{shortened(second_set, 40)}, bits per byte")
    weak = {"type": "point", "style": "weak", "filled": True, "size": 16, "opacity": 0.5}
    strong = {"type": "point", "style": "strong", "filled": True, "shape": "diamond", "size": 80}
    line = {"type": "line", "style": "strong", "interpolate": "step-after", "strokeWidth": 1}
    words = {"type": "text", "style": "text", "dx": 7, "dy": -8, "align": "left"}
    drawn = values_of(front[["first", "second", "number"]])
    return {
        "width": vega.WIDTH + 100,
        "height": vega.WIDTH - 40,
        "encoding": {"x": x, "y": y},
        "layer": [
            {"data": values_of(behind[["first", "second"]]), "mark": weak},
            {"data": drawn, "mark": line},
            {"data": drawn, "mark": {**strong, "opacity": 1}},
            {"data": drawn, "mark": words, "encoding": {"text": {"field": "number"}}},
        ],
    }


def _numbers(front: "pd.DataFrame", plane: "pd.DataFrame") -> list[str]:
    """1, 2 ... for the points of a front; those that lie together share one, such as ``2-5``."""
    places = front[["first", "second"]].to_numpy()
    extent = np.ptp(plane[["first", "second"]].to_numpy(), axis=0)
    words, start = [""] * len(places), 0
    for place in range(1, len(places) + 1):
        if place < len(places) and (abs(places[place] - places[start]) <= NEAR * extent).all():
            continue
        words[start] = f"{start + 1}" if place == start + 1 else f"{start + 1}\u2013{place}"
        start = place
    return words


def pairs_plot(pairs: "pd.DataFrame") -> Spec:
    """A triangle of pairs by complementarity: how much better the merge is than both parts.

    Args:
        pairs: ``first``, ``second``, ``complementarity`` in nats per token, one row per pair.
    """
    names = sorted({*pairs["first"], *pairs["second"]})
    numbers = {name: number for number, name in enumerate(names)}
    value = pairs["complementarity"].round(5)
    cells = pairs.assign(row=pairs["second"].map(numbers), column=pairs["first"].map(numbers))
    most = float(value.abs().max()) or 1.0
    legend = {"orient": "bottom", "direction": "horizontal", "gradientLength": 220}
    color: Spec = {"field": "value", "type": "quantitative", "legend": {**legend, "format": "+~r"}}
    color |= {"title": "gain on the better part, nats per token"}
    color |= {
        "scale": {"domain": [-most, most], "domainMid": 0, "range": "diverging"}
        | {"interpolate": "rgb"}
    }
    layers: list[Spec] = [{"mark": "rect", "encoding": {"color": color}}]
    if len(names) <= WRITTEN:
        words = {"type": "text", "style": "text", "fontSize": 10}
        layers.append({"mark": words, "encoding": {"text": {"field": "value", "format": "+.3f"}}})
    top: Spec = {"orient": "top", "labelAngle": -55, "labelPadding": 6} | {
        "domain": False,
        "ticks": False,
    }
    step = 46 if len(names) <= WRITTEN else 18
    return {
        "params": [names_param("partitions", names, 24)],
        "padding": room(names, 24) | {"top": 20, "right": 45},
        "data": values_of(cells.assign(value=value)[["row", "column", "value"]]),
        "width": {"step": step},
        "height": {"step": 26 if len(names) <= WRITTEN else 18},
        "encoding": {
            "x": by_name("column", "partitions", **top),
            "y": by_name("row", "partitions", domain=False, ticks=False),
        },
        "layer": layers,
    }


def trace_plot(trace: "pd.DataFrame") -> Spec:
    """Every evaluation of a search in order, and the best feasible one so far.

    Args:
        trace: ``evaluation``, ``objective``, ``best``, ``feasible``, ``proposed_by``.
    """
    points = evenly(trace, POINTS)[["evaluation", "objective", "feasible", "proposed_by"]]
    points = points.assign(
        by=points["proposed_by"]
        .map(lambda name: shortened(name, 44))
        .where(points["feasible"], "breaks a constraint")
    )
    names = list(dict.fromkeys(points["by"]))
    kind: Spec = {"field": "by", "type": "nominal", "title": "proposed by"}
    kind |= {"legend": {"orient": "bottom", "columns": 3, "symbolSize": 60}}
    shapes = [vega.SHAPES[place % len(vega.SHAPES)] for place in range(len(names))]
    x: Spec = {"field": "evaluation", "type": "quantitative", "title": "evaluations"}
    return {
        "width": vega.WIDTH + 100,
        "height": 280,
        "padding": {"left": 5, "right": 25, "top": 5, "bottom": 5},
        "encoding": {"x": {**x, "scale": {"nice": False}, "axis": vega.FEW_TICKS}},
        "layer": [
            {
                "data": values_of(trace[["evaluation", "best"]].dropna()),
                "mark": {"type": "line", "style": "text", "interpolate": "step-after"}
                | {"strokeWidth": 1.5},
                "encoding": {"y": _axis("best", "objective, bits per byte")},
            },
            {
                "data": values_of(points[["evaluation", "objective", "by"]]),
                "mark": {"type": "point", "filled": True, "size": 40, "opacity": 0.8},
                "encoding": {
                    "y": _axis("objective", "objective, bits per byte"),
                    "color": {**kind, "scale": {"domain": names, "range": vega.KINDS}},
                    "shape": {**kind, "scale": {"domain": names, "range": shapes}},
                },
            },
        ],
    }
