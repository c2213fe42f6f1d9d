"""How plots are drawn: colours, SVG and PNG, and what all specifications share.

A specification (``tasks.report.ranking_plots``, ``tasks.report.choice_plots``) holds data and
shapes but no colour of its own. Colours come from a theme, a Vega-Lite config, so the same
specification is drawn for light and for dark pages, and as a PNG. Shapes or numbers repeat what
colours say, for paper and for readers who cannot see the difference.

Mixtures, partitions and sets are drawn by number; the axis looks their names up in a parameter. So
names may be any text, and two long names never become one. Names are shortened here and the font is
a single one, because measuring text takes most of the time of drawing (600 ms against 30).
"""

import logging
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from tasks.shown import line

if TYPE_CHECKING:
    import pandas as pd

Spec: TypeAlias = dict[str, Any]
T = TypeVar("T")

LOG = logging.getLogger("mixpool.report")

WIDTH = 380
"""Of the usual plot, in pixels."""
FEW_TICKS = {"tickCount": 5, "labelFlush": False, "labelOverlap": True}
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "stroke",
    "triangle-right",
)
"""One for each colour of ``KINDS``."""
KINDS = "ordinal"
"""Name of the range of colours that tell kinds of points apart."""


class _Palette(NamedTuple):
    """The colours of one theme."""

    text: str
    faint: str
    strong: str
    weak: str
    kinds: list[str]
    ramp: list[str]
    diverging: list[str]


def _theme(palette: _Palette) -> Spec:
    text, faint, strong, weak, kinds, ramp, diverging = palette
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
        "title": {"color": text, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "range": {"category": [strong, weak], "ramp": ramp, "heatmap": ramp}
        | {KINDS: kinds, "diverging": diverging},
        "style": {"strong": {"color": strong}, "weak": {"color": weak}, "text": {"color": text}}
        | {"member": {"color": text}},
    }


_ON_LIGHT = _Palette(
    text="#1f2933",
    faint="#d5dae1",
    strong="#0b62c4",
    weak="#8a94a0",
    kinds=["#0b62c5", "#c2410c", "#0f766e", "#9333ea", "#a16207", "#be185d", "#4d7c0f", "#78350f"],
    ramp=["#eef4fb", "#9cc4ec", "#3f86cf", "#0b4587"],
    diverging=["#eaa45f", "#f4f5f7", "#7db4ef"],
)
_ON_DARK = _Palette(
    text="#e4e7eb",
    faint="#3a424d",
    strong="#6db3ff",
    weak="#8a94a0",
    kinds=["#6db3fe", "#fb923c", "#2dd4bf", "#c89bff", "#facc15", "#f472b6", "#a3e635", "#e7c6a0"],
    ramp=["#1c2733", "#24568a", "#4f97e0", "#cfe5ff"],
    diverging=["#95560d", "#1f2831", "#2467b0"],
)
LIGHT, DARK = _theme(_ON_LIGHT), _theme(_ON_DARK)
PAPER = ("#ffffff", "#12171d")
"""Backgrounds of pictures that stand alone, light and dark."""

_DARKENED = dict(
    zip([*_ON_LIGHT[:4], *_ON_LIGHT.kinds], [*_ON_DARK[:4], *_ON_DARK.kinds], strict=True)
)
"""The colour on dark pages by that on light ones, which must therefore all differ; not of ramps."""
_TAG = re.compile("<[^>]*>")
_COLOUR = re.compile('(fill|stroke)="([^"]*)"')


def svg(spec: Spec, theme: Spec) -> str:
    """``spec`` drawn with the colours of ``LIGHT`` or ``DARK``, as the text of an SVG file."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(spec, config=theme))


def svg_pair(spec: Spec) -> tuple[str, str]:
    """``spec`` drawn for light and for dark pages; once where only plain colours have to change."""
    light = svg(spec, LIGHT)
    if '="rgb' in light:  # a colour that lies between those of a ramp
        return light, svg(spec, DARK)

    def darkened(tag: re.Match[str]) -> str:
        return _COLOUR.sub(lambda at: f'{at[1]}="{_DARKENED.get(at[2], at[2])}"', tag[0])

    return light, _TAG.sub(darkened, light)


def png(spec: Spec, *, dark: bool = False) -> bytes:
    """``spec`` as a PNG for print or slides, two pixels for each of its own, on a plain background."""
    import vl_convert

    theme = DARK if dark else LIGHT
    return vl_convert.svg_to_png(svg(spec, theme | {"background": PAPER[dark]}), scale=2)


def drawn(name: str, spec: Spec, draw: Callable[[Spec], T]) -> T | None:
    """What ``draw`` makes of a plot; None, and a warning, where it fails: only that plot is missing."""
    try:
        return draw(spec)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the library is no Exception
        LOG.warning("the plot %s is left out, as it cannot be drawn: %r", name, error)
        return None


def values_of(frame: "pd.DataFrame") -> Spec:
    """Rows of ``frame`` as inline data; NaN becomes null, which JSON has."""
    import pandas as pd

    plain = frame.astype(object).where(pd.notna(frame), None)
    return {"values": plain.to_dict("records")}


def shortened(name: str, most: int) -> str:
    """``name`` in at most ``most`` characters: the middle goes, because names differ at their ends.

    Nothing is left that does not print: a control character ends the process inside the library.
    """
    name = line(name)
    if len(name) <= most:
        return name
    return f"{name[: (most - 1) // 2].rstrip()} … {name[len(name) - most // 2 + 2 :].lstrip()}"


def names_param(param: str, names: Iterable[str], most: int = 44) -> Spec:
    """A parameter of a plot: the names of the rows or columns 0, 1, 2 ..."""
    return {"name": param, "value": [shortened(name, most) for name in names]}


def room(names: Iterable[str], most: int = 44) -> Spec:
    """Padding for a reader whose font is a fifth wider than the one that names are measured in."""
    longest = max((len(shortened(name, most)) for name in names), default=0)
    return {"left": 5 + 1.3 * longest, "right": 25, "top": 5, "bottom": 5}


def by_name(field: str, param: str, title: str | None = None, **axis: Any) -> Spec:
    """The channel of a column of numbers whose axis shows ``param``'s names instead."""
    axis = {"labelExpr": f"{param}[datum.value]", "labelAngle": 0, **axis}
    return {"field": field, "type": "ordinal", "title": title, "axis": axis}


def evenly(frame: "pd.DataFrame", most: int) -> "pd.DataFrame":
    """At most ``most`` rows at even distances, first and last included: a sample without chance."""
    if len(frame) <= most:
        return frame
    return frame.iloc[[round(index * (len(frame) - 1) / (most - 1)) for index in range(most)]]
