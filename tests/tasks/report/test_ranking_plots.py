"""Plots: every mark is drawn, dark is what drawing gives, names and large tables are cut down."""

import re
from xml.etree import ElementTree

import pytest

from tasks.ranking.rank import MACRO_MEAN
from tasks.report import ranking_plots, vega
from tasks.report.specs import plot_specs
from tasks.report.vega import DARK, LIGHT, Spec, svg, svg_pair
from tests.tasks.reports import full_report, report_data

KINDS = LIGHT["range"][vega.KINDS]
SVG = "{http://www.w3.org/2000/svg}"


def test_dark_plots_are_what_drawing_them_gives() -> None:
    """Though most are light ones in other colours; numbers of gradients differ by drawing."""
    specs = plot_specs(report_data(["a", 'fill="#1f2933"', "c"], ["s", "t"]))
    for name, spec in specs.items():
        light, dark = svg_pair(spec)
        for found, theme in ((light, LIGHT), (dark, DARK)):
            drawn = svg(spec, theme)
            assert [re.sub(r"gradient_\d+", "", text) for text in (found, drawn)] == [
                re.sub(r"gradient_\d+", "", drawn)
            ] * 2, name


def marks(spec: Spec, role: str) -> int:
    """Drawn marks of one role, those of axes and legends left out."""
    root = ElementTree.fromstring(svg(spec, LIGHT))
    groups = [node for node in root.iter(f"{SVG}g") if f"mark-{role} " in node.get("class", "")]
    return sum(len(node) for node in groups if "role-mark" in node.get("class", ""))


def test_plots_draw_their_marks() -> None:
    data = report_data(["a", "b", "c"], ["s", "t"])
    specs = plot_specs(data)
    names = "effects heat-map pairs pareto ranking ranking-1 ranking-2 sizes"
    assert sorted(specs) == names.split()
    assert marks(specs["ranking"], "symbol") == marks(specs["ranking"], "rule") == 7
    assert marks(specs["heat-map"], "rect") == 7 * 2 + 12
    assert marks(specs["sizes"], "symbol") == 7 + 3
    assert marks(specs["sizes"], "line") == 1
    assert marks(specs["effects"], "rect") == 9
    assert marks(specs["effects"], "symbol") == 3
    assert marks(specs["pairs"], "rect") == marks(specs["pairs"], "text") == 3
    assert marks(specs["pareto"], "symbol") == 7
    assert marks(specs["pareto"], "line") == 1


def test_plots_of_trust_and_search_draw_their_marks() -> None:
    data = full_report()
    specs = plot_specs(data)
    assert data.validation is not None
    assert data.search is not None
    for name in ("agreement", "agreement-1", "agreement-4"):
        assert marks(specs[name], "symbol") == 24
        drawn = ElementTree.fromstring(svg(specs[name], LIGHT))
        shapes = {(node.get("fill"), node.get("d")) for node in drawn.iter(f"{SVG}path")}
        assert len({fill for fill, shape in shapes if fill in KINDS}) == 3
    assert marks(specs["trace"], "symbol") == 40
    assert marks(specs["trace"], "line") == 1


def test_large_tables_are_sampled_in_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    data = report_data(list("abcdefghi"), ["s"])
    macro = data.rankings[MACRO_MEAN]
    order = ranking_plots.heat_order(macro)
    assert len(set(order)) == len(order) == 200
    assert order[:100] == macro["mixture"].tolist()[:100]
    assert order[-1] == macro["mixture"].iloc[-1]
    monkeypatch.setattr(ranking_plots, "POINTS", 50)
    assert marks(ranking_plots.size_plot(macro), "symbol") == 50 + 9


@pytest.mark.parametrize("length", [5, 43, 44, 45, 300])
def test_shortened_names_keep_both_ends(length: int) -> None:
    name = ("abcdefghij" * 30)[:length]
    short = vega.shortened(name, 44)
    assert len(short) <= 44
    assert (short == name) == (length <= 44)
    assert (short[0], short[-1]) == (name[0], name[-1])
