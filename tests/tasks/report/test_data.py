"""The page as a browser sees it: well-formed, complete, escaped, and in need of nothing else."""

import base64
import dataclasses
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from tasks.evaluation.losses import Losses
from tasks.ranking.race_result import Screening
from tasks.ranking.rank import MACRO_MEAN
from tasks.report import page as report_page
from tasks.report.data import ReportData
from tasks.report.page import write_report
from tasks.report.specs import plot_specs
from tasks.report.vega import DARK, LIGHT
from tasks.shown import line
from tests.tasks.reports import changed, full_report, report_data

VOID = {"meta", "source", "img", "br", "link"}
NASTY = '<script>alert("x")</script> & \'quoted\' {{ 7 * 7 }} "]) \u202e\n' + "long" * 80


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


def written(tmp_path: Path, data: ReportData) -> Page:
    write_report(tmp_path / "report.html", data)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_page_is_complete_and_needs_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path, full_report(notes=["look here"], cost_words=["As stated."]))
    names = "ranking ranking-1 ranking-4 changes sizes sizes-1 sizes-4 effects partitions sets cost"
    names += " pairs pareto validation validation-measures validation-sets validation-regrets"
    names += " noise barriers search surrogates"
    assert {f"table-{name}" for name in names.split()} <= set(page.cells)
    head, first, *_ = page.cells["table-partitions"]
    shown = dict(zip(head, first, strict=True))
    assert (shown["sharpness"], shown["mean barrier"]) == ("0.0120", "−0.0340")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        for name in {"src", "srcset", "href", "action", "poster"} & set(attrs):
            assert (attrs[name] or "").startswith(("data:image/svg+xml;base64,", "#"))
    assert "@import" not in page.text
    assert "url(" not in page.text
    anchors = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert anchors <= {f"#{name}" for name in page.cells}
    for expected in (
        "look here",
        "└─ sweep",
        "abc123",
        '{"torch": "2.13.0"}',
        "arXiv 2410.15661",
        "As stated.",
    ):
        assert expected in page.text


def test_tables_hold_what_the_frames_hold(tmp_path: Path) -> None:
    data = report_data(["a", "b", "c"], ["s", "t"])
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
    text = written(tmp_path, changed(data, losses=Losses.of(even))).text
    assert "2 other mixtures are tied with it" in text
    assert "No mixture is worse beyond the noise" in text


def test_any_text_is_shown_as_text(tmp_path: Path) -> None:
    data = report_data(
        [NASTY, "b"], [NASTY, "t"], title=NASTY, created=NASTY, notes=[NASTY], lineage=NASTY
    )
    data = dataclasses.replace(data, provenance={NASTY: NASTY}, cost_words=[NASTY])
    page = written(tmp_path, data)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(line(NASTY)) > 10
    assert page.cells["table-partitions"][1][0] == line(NASTY)
    assert "\u202e" not in page.text
    drawn = ["".join(ElementTree.fromstring(image).itertext()) for image in page.images()]
    assert sum("<script>alert" in texts for texts in drawn) == len(drawn) - 2  # no names in sizes
    assert not any("long" * 12 in texts for texts in drawn)


def test_a_plot_that_cannot_be_drawn_is_left_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = report_data(["a", "b"], ["s"])
    specs = plot_specs(data)
    monkeypatch.setattr(report_page, "plot_specs", lambda _: specs | {"sizes": {"mark": "no mark"}})
    page = written(tmp_path, data)
    assert len(page.images()) == 2 * (len(specs) - 1)
    assert page.text.count("This plot could not be drawn.") == 1
    assert "the plot sizes is left out" in caplog.text


def test_one_mixture_makes_a_page(tmp_path: Path) -> None:
    page = written(tmp_path, report_data(["a"], ["s"]))
    assert "No such mixture was evaluated." in page.text
    assert "table-validation" not in page.cells
    assert "Problems and notes" not in page.text


def test_each_plot_is_there_in_light_and_dark(tmp_path: Path) -> None:
    data = full_report()
    page = written(tmp_path, data)
    dark, light = page.images()[::2], page.images()[1::2]
    assert len(light) == len(dark) == len(plot_specs(data))
    for one, other in zip(light, dark, strict=True):
        assert LIGHT["axis"]["labelColor"] in one
        assert DARK["axis"]["labelColor"] in other
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    [query] = {attrs["media"] for tag, attrs in page.tags if tag == "source"}
    assert query == "(prefers-color-scheme: dark)"


def test_validation_comes_with_its_verdict_first(tmp_path: Path) -> None:
    data = full_report()
    assert data.validation is not None
    page = written(tmp_path, data)
    assert page.text.index(data.validation.words[0]) < page.text.index("Pearson for the macro mean")
    head, *rows = page.cells["table-validation"]
    assert head == [
        "predicted by",
        "k = 2 (8)",
        "k = 3 (8)",
        "k = 4 (8)",
        "at fixed k (24)",
        "pooled (24)",
    ]
    assert [row[0] for row in rows][:2] == ["merged model (proxy)", "mean of single partitions"]
    measured = {row[1] for row in page.cells["table-validation-measures"][1:]}
    assert measured == {"2", "3", "4", "at fixed k", "pooled"}
    last = page.cells["table-validation-sets"][0][-3:]
    assert last == ["at fixed k", "pooled", "at fixed k, by mean of single partitions"]
    table = data.validation.table
    table = table[(table["evaluation_set"] == MACRO_MEAN) & (table["predictor"] == "singles")]
    for place, k in enumerate(["2", "3", "4", "within", "pooled"], 1):
        figures = table.set_index("k").loc[k]
        one, low, high = (f"{figures[f'pearson{end}']:.2f}" for end in ("", "_low", "_high"))
        assert rows[1][place].replace("−", "-") == f"{one} ({low} to {high})"
    head, *rows = page.cells["table-barriers"]
    assert [row[head.index("merging breaks")] for row in rows] == ["yes"] * 5 + [""] * 15
    assert rows[0][head.index("above the worse")] == "0.1000"


def test_the_find_of_a_search_stands_above_the_ranking(tmp_path: Path) -> None:
    data = full_report()
    assert data.search is not None
    best = data.search.best.iloc[0]
    text = " ".join(written(tmp_path, data).text.split())
    found = (
        f"objective of the search {best['mixture']} Objective {best['objective']:.4f} bits per byte"
    )
    assert text.index(found) < text.index("Best of 63 evaluated mixtures for the macro mean")
    empty = data.search._replace(best=data.search.best.head(0))
    text = written(tmp_path, dataclasses.replace(data, search=empty)).text
    assert "Best found for" not in text


def test_near_duplicates_are_told_of_and_no_race_is(tmp_path: Path) -> None:
    data = full_report()
    text = written(tmp_path, data).text
    assert "law and law copy are near-duplicates" in text
    assert "drop law copy" in text
    alike = data.partitions.assign(domain=data.partitions["partition"].str.removesuffix(" copy"))
    assert full_report(partitions=alike).remarks == []
    exits = pd.DataFrame({"mixture": ["x"], "estimate": [1.0]})
    raced = changed(data, race=Screening(["Some were dropped."], 64, exits))
    page = written(tmp_path, raced)
    assert "near-duplicates" not in page.text
    assert not {"pairs", "pareto", "sizes", "effects"} & set(page.cells)
    assert {"validation", "search"} <= set(page.cells)


def test_best_of_each_size_is_there_for_every_objective(tmp_path: Path) -> None:
    data = report_data(["a", "b", "c"], ["s", "t"])
    cells = written(tmp_path, data).cells
    for number, (name, ranking) in enumerate(data.rankings.items()):
        head, *rows = cells[f"table-sizes-{number}" if number else "table-sizes"]
        best = ranking.loc[ranking.groupby("k")["loss"].idxmin()]
        assert [row[head.index("best mixture")] for row in rows] == best["mixture"].tolist(), name


def test_with_many_sets_only_the_macro_mean_is_drawn(tmp_path: Path) -> None:
    data = report_data(["a"], [f"s{place}" for place in range(25)])
    assert "ranking-1" not in plot_specs(data)
    page = written(tmp_path, data)
    assert "table-ranking-25" in page.cells
    assert "only the macro mean is drawn" in page.text
