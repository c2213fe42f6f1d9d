"""The page as a browser sees it: well-formed, complete, escaped, and in need of nothing else."""

import base64
import dataclasses
import itertools
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from tasks import plots, tables
from tasks.plots import DARK, LIGHT, svg, svg_pair
from tasks.ranking import MACRO_MEAN
from tasks.report import ReportData, plot_specs, write_report
from tasks.rows import Losses

VOID = {"meta", "source", "img", "br", "link"}
NASTY = '<script>alert("x")</script> & \'quoted\' {{ 7 * 7 }} "]) \x08' + "long" * 80
SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Elements, texts by id and addresses of a page; refuses tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.cells: dict[str, list[list[str]]] = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if name := (dict(attrs).get("id") or ""):
            self.cells[name] = []
        if tag == "tr":
            self.cells[list(self.cells)[-1]].append([])
        if tag in ("td", "th"):
            self.cells[list(self.cells)[-1]][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[list(self.cells)[-1]][-1][-1] += data

    def images(self) -> list[str]:
        found = [attrs.get("src") or attrs.get("srcset") or "" for _, attrs in self.tags]
        start = "data:image/svg+xml;base64,"
        return [
            base64.b64decode(address.removeprefix(start)).decode()
            for address in found
            if address.startswith(start)
        ]


def report_data(names: list[str], sets: list[str], **changes: Any) -> ReportData:
    """All uniform mixtures of ``names``; each first name is good on every set but the last."""
    rng = np.random.default_rng(0)
    chosen = [c for k in range(1, len(names) + 1) for c in itertools.combinations(names, k)]
    tokens = rng.integers(80, 120, 12)
    rows, members = [], []
    for parts in chosen:
        mixture = " + ".join(parts)
        members += [(mixture, part, 1 / len(parts)) for part in parts]
        for name in sets:
            loss = 3 + 0.1 * (names[0] not in parts) + 0.01 * len(parts) + rng.normal(0, 0.01, 12)
            total = int(tokens.sum())
            nats = tokens * loss
            sums = (float(nats.sum()), total, 4 * total, total // 2)
            rows.append((mixture, name, *sums, nats, tokens, 4 * tokens))
    columns = "mixture evaluation_set nll num_tokens num_bytes num_words"
    groups = ["group_nll", "group_tokens", "group_bytes"]
    data = ReportData(
        title="Which data?",
        created="2026-11-21T02:10:00Z",
        losses=Losses.of(pd.DataFrame(rows, columns=[*columns.split(), *groups])),
        members=pd.DataFrame(members, columns=["mixture", "partition", "weight"]),
        partitions=pd.DataFrame(
            [
                (name, name, 12_345, 16_777_216, 1.5, 725.0, "0a1b2c3d4e", "trained now")
                for name in names
            ],
            columns=[
                "partition",
                "domain",
                "num_documents",
                "num_tokens",
                "repeats",
                "seconds",
                "fingerprint",
                "status",
            ],
        ),
        sets=pd.DataFrame(
            [(name, None if name == sets[-1] else "d", 10, 1000, 4000, 3) for name in sets],
            columns=[
                "evaluation_set",
                "domain",
                "num_documents",
                "num_tokens",
                "num_bytes",
                "removed",
            ],
        ),
        cost=pd.DataFrame(
            [("this run", 4211.0, 5.1e8, 3.2e17, math.nan, None)],
            columns=["item", "seconds", "tokens", "flops", "joules", "estimator"],
        ),
        validation=None,
        notes=[],
        lineage="report\n└─ sweep",
        provenance={"commit": "abc123", "packages": {"torch": "2.13.0"}},
    )
    return dataclasses.replace(data, **changes)


def written(tmp_path: Path, data: ReportData) -> Page:
    write_report(tmp_path / "report.html", data)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_page_is_complete_and_needs_nothing_else(tmp_path: Path) -> None:
    validation = pd.DataFrame({"k": [2], "Pearson": [0.123456], "who": ["macro"]})
    data = report_data(["a", "b", "c"], ["s", "t"], validation=validation, notes=["look here"])
    page = written(tmp_path, data)
    names = "ranking ranking-1 ranking-2 changes sizes effects partitions sets cost validation"
    assert {f"table-{name}" for name in names.split()} <= set(page.cells)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        for name in {"src", "srcset", "href", "action", "poster"} & set(attrs):
            assert (attrs[name] or "").startswith(("data:image/svg+xml;base64,", "#"))
    assert "@import" not in page.text
    assert "url(" not in page.text
    anchors = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert anchors <= {f"#{name}" for name in page.cells}
    for expected in ("look here", "└─ sweep", "abc123", '{"torch": "2.13.0"}', "arXiv 2410.15661"):
        assert expected in page.text


def test_tables_hold_what_the_frames_hold(tmp_path: Path) -> None:
    data = report_data(["a", "b", "c"], ["s", "t"], validation=pd.DataFrame({"r": [0.123456]}))
    cells = written(tmp_path, data).cells
    head, *rows = cells["table-ranking"]
    macro = data.rankings[MACRO_MEAN]
    assert [row[head.index("mixture")] for row in rows] == macro["mixture"].tolist()
    assert [row[head.index("tied")] == "yes" for row in rows] == macro["tied"].tolist()
    assert rows[1][head.index("nats per token")] == f"{macro['loss'].iloc[1]:.4f}"
    assert cells["table-sets"][1:] == [
        ["s", "d", "10", "1,000", "4,000", "3"],
        ["t", "never trained on", "10", "1,000", "4,000", "3"],
    ]
    assert cells["table-partitions"][1] == [
        *("a", "a", "12.3 k", "16.8 M", "1.50", "12 min 5 s", "trained now", "0a1b2c3d4e")
    ]
    assert cells["table-cost"][1] == ["this run", "1 h 10 min", "510 M", "320 PFLOP", "–", "–"]
    assert cells["table-validation"][1] == ["0.1235"]
    assert [row[0] for row in cells["table-changes"][1:]] == ["add", "add"]


def test_headline_names_best_ties_and_the_first_that_is_behind(tmp_path: Path) -> None:
    data = report_data(["a", "b", "c"], ["s", "t"])
    macro = data.rankings[MACRO_MEAN]
    behind = macro[~macro["tied"]].iloc[0]
    text = " ".join(written(tmp_path, data).text.split())
    assert "Best of 7 mixtures for the macro mean over 2 evaluation sets a Perplexity" in text
    assert int(macro["tied"].sum()) == 1
    assert "no other mixture is tied with it" in text
    assert f"not tied, {behind['mixture']}, by {behind['difference']:.4f} nats per token" in text


def test_everything_tied_is_said(tmp_path: Path) -> None:
    data = report_data(["a", "b"], ["s"])
    data.losses.write(tmp_path / "losses.parquet")
    frame = pd.read_parquet(tmp_path / "losses.parquet")
    first = frame["group_nll"].iloc[0]
    even = frame.assign(nll=first.sum(), group_nll=[first] * len(frame))
    text = written(tmp_path, dataclasses.replace(data, losses=Losses.of(even))).text
    assert "2 other mixtures are tied with it" in text
    assert "No mixture is worse beyond the noise" in text


def test_any_text_is_shown_as_text(tmp_path: Path) -> None:
    data = report_data(
        [NASTY, "b"], [NASTY, "t"], title=NASTY, created=NASTY, notes=[NASTY], lineage=NASTY
    )
    data = dataclasses.replace(data, provenance={NASTY: NASTY}, validation=data.sets)
    page = written(tmp_path, data)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(NASTY) > 10
    assert page.cells["table-partitions"][1][0] == NASTY
    drawn = ["".join(ElementTree.fromstring(image).itertext()) for image in page.images()]
    assert sum("<script>alert" in texts for texts in drawn) == len(drawn) - 2  # no names in sizes
    assert not any("long" * 12 in texts for texts in drawn)


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


def test_one_mixture_makes_a_page(tmp_path: Path) -> None:
    page = written(tmp_path, report_data(["a"], ["s"]))
    assert "No such mixture was evaluated." in page.text
    assert "table-validation" not in page.cells
    assert "Problems and notes" not in page.text


def test_each_plot_is_there_in_light_and_dark(tmp_path: Path) -> None:
    data = report_data(["a", "b", "c"], ["s", "t"])
    page = written(tmp_path, data)
    dark, light = page.images()[::2], page.images()[1::2]
    assert len(light) == len(dark) == len(plot_specs(data))
    for one, other in zip(light, dark, strict=True):
        assert plots.LIGHT["axis"]["labelColor"] in one
        assert plots.DARK["axis"]["labelColor"] in other
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    [query] = {attrs["media"] for tag, attrs in page.tags if tag == "source"}
    assert query == "(prefers-color-scheme: dark)"


def marks(spec: plots.Spec, role: str) -> int:
    """Drawn marks of one role, those of axes and legends left out."""
    root = ElementTree.fromstring(plots.svg(spec, plots.LIGHT))
    groups = [node for node in root.iter(f"{SVG}g") if f"mark-{role} " in node.get("class", "")]
    return sum(len(node) for node in groups if "role-mark" in node.get("class", ""))


def test_plots_draw_their_marks() -> None:
    data = report_data(["a", "b", "c"], ["s", "t"])
    specs = plot_specs(data)
    assert sorted(specs) == ["effects", "heat-map", "ranking", "ranking-1", "ranking-2", "sizes"]
    assert marks(specs["ranking"], "symbol") == marks(specs["ranking"], "rule") == 7
    assert marks(specs["heat-map"], "rect") == 7 * 2 + 12
    assert marks(specs["sizes"], "symbol") == 7 + 3
    assert marks(specs["sizes"], "line") == 1
    assert marks(specs["effects"], "rect") == 9
    assert marks(specs["effects"], "symbol") == 3


def test_large_tables_are_sampled_in_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    data = report_data(list("abcdefghi"), ["s"])
    macro = data.rankings[MACRO_MEAN]
    order = plots.heat_order(macro)
    assert len(set(order)) == len(order) == 200
    assert order[:100] == macro["mixture"].tolist()[:100]
    assert order[-1] == macro["mixture"].iloc[-1]
    monkeypatch.setattr(plots, "POINTS", 50)
    assert marks(plots.size_plot(macro), "symbol") == 50 + 9


def test_with_many_sets_only_the_macro_mean_is_drawn(tmp_path: Path) -> None:
    data = report_data(["a"], [f"s{place}" for place in range(25)])
    assert "ranking-1" not in plot_specs(data)
    page = written(tmp_path, data)
    assert "table-ranking-25" in page.cells
    assert "only the macro mean is drawn" in page.text


@pytest.mark.parametrize("length", [5, 43, 44, 45, 300])
def test_shortened_names_keep_both_ends(length: int) -> None:
    name = ("abcdefghij" * 30)[:length]
    short = plots.shortened(name, 44)
    assert len(short) <= 44
    assert (short == name) == (length <= 44)
    assert (short[0], short[-1]) == (name[0], name[-1])


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (tables.count(0), "0"),
        (tables.count(9_999), "9,999"),
        (tables.count(999_950), "1.00 M"),
        (tables.count(999_400), "999 k"),
        (tables.count(2.5e15), "2,500 T"),
        (tables.count(math.nan), "–"),
        (tables.count(pd.NA), "–"),
        (tables.flops(1.2e18), "1.20 EFLOP"),
        (tables.joules(36_000.0), "36.0 kJ"),
        (tables.joules(999.96), "1000 J"),
        (tables.duration(0.4219), "0.422 s"),
        (tables.duration(125), "2 min 5 s"),
        (tables.duration(18_720), "5 h 12 min"),
        (tables.duration(86_399), "24 h 0 min"),
        (tables.duration(273_600), "3 d 4 h"),
        (tables.number(2)(-1234.567), "−1,234.57"),
        (tables.number(3)(math.inf), "∞"),
        (tables.significant(0.00012345), "0.0001234"),
        (tables.significant(12_000.0), "12,000"),
        (tables.interval(math.nan, math.nan), "–"),
    ],
)
def test_numbers_are_written_for_people(shown: str, expected: str) -> None:
    assert shown == expected
