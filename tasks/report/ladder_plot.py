"""A plot of a ladder: the rank of each mixture from rung to rung, for each number of partitions."""

from typing import TYPE_CHECKING

from tasks.report.vega import FEW_TICKS, Spec, names_param, values_of

if TYPE_CHECKING:
    import pandas as pd

PANELS = 4
"""Numbers of partitions that are drawn: those with most mixtures."""
LINES = 40
"""Mixtures in a panel: the best on the first rung."""
LONGEST = 28
"""Characters of a rung's name."""


def ladder_plot(losses: "pd.DataFrame", flips: "pd.DataFrame") -> Spec:
    """Ranks by merging among mixtures of one k, a line for each mixture from rung to rung.

    Args:
        losses, flips: as ``tasks.trust.ladder.Ladder`` holds them.
    """
    proxies = losses[losses["kind"] == "proxy"]
    rungs = list(dict.fromkeys(proxies["rung"]))
    number = {rung: place for place, rung in enumerate(rungs)}
    is_told = (flips["first"] == "proxy") & (flips["second"] == "proxy")
    flipping = {*flips.loc[is_told, "better"], *flips.loc[is_told, "worse"]}
    words = ["flips with another beyond the noise", "flips with none"]
    kind = proxies["mixture"].isin(flipping).map({True: words[0], False: words[1]})
    lines = proxies.assign(rung=proxies["rung"].map(number), kind=kind)
    first = lines[lines["rung"] == 0]
    sizes = first["k"].value_counts()
    chosen = sorted(sizes[sizes > 1].index[:PANELS])
    color: Spec = {"field": "kind", "type": "nominal", "title": None, "scale": {"domain": words}}
    dash: Spec = {"field": "kind", "type": "nominal", "title": None}
    dash |= {"scale": {"domain": words, "range": [[1, 0], [4, 3]]}}
    axis = {"labelExpr": "rungs[datum.value]", "labelAngle": -35}
    panels: list[Spec] = []
    for k in chosen:
        best = first[first["k"] == k].nsmallest(LINES, "rank")["mixture"]
        numbers = {label: place for place, label in enumerate(best)}
        shown = lines[lines["mixture"].isin(numbers)]
        shown = shown.assign(line=shown["mixture"].map(numbers))
        y: Spec = {
            "field": "rank",
            "type": "quantitative",
            "title": "rank among mixtures of this k",
        }
        y |= {"scale": {"reverse": True, "zero": False, "nice": False, "padding": 10}}
        panels.append(
            {
                "title": {"text": f"k = {k}"},
                "data": values_of(shown[["rung", "rank", "line", "kind"]]),
                "width": max(120, 70 * len(rungs)),
                "height": 260,
                "mark": {"type": "line", "point": True, "opacity": 0.8, "strokeWidth": 1.5},
                "encoding": {
                    "x": {"field": "rung", "type": "ordinal", "title": None, "axis": axis},
                    "y": {**y, "axis": FEW_TICKS},
                    "detail": {"field": "line", "type": "nominal"},
                    "color": {**color, "legend": {"orient": "top"}},
                    "strokeDash": {**dash, "legend": {"orient": "top"}},
                },
            }
        )
    # Names are put in when the plot is drawn, too late for its own measure of what they take.
    below = 5 + min(LONGEST, max(map(len, rungs)))
    room = {"left": 90, "right": 25, "top": 5, "bottom": below}
    return {"params": [names_param("rungs", rungs, LONGEST)], "padding": room, "hconcat": panels}
