"""The page in a real browser: silent, without the network, every plot drawn, right on a phone."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.report.page import write_report
from tasks.report.specs import plot_specs
from tests.browser import CHROMIUM, new_page, picture
from tests.tasks.reports import full_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM.exists() and not os.environ.get("CI"),
        reason=f"{CHROMIUM} is not there; install Debian's package chromium",
    ),
]

PLOTS = """() => [...document.images].map(image => ({
    drawn: image.complete && image.naturalWidth > 0 && image.getBoundingClientRect().width > 150,
    dark: image.currentSrc !== image.src,
}))"""
OVERFLOW = "() => document.documentElement.scrollWidth - window.innerWidth"
CUT = """() => [...document.querySelectorAll('.scroll:has(picture)')]
    .filter(box => box.scrollWidth > box.clientWidth).length"""
OPEN = "() => document.querySelectorAll('details').forEach(part => part.open = true)"


def test_page_in_light_in_dark_and_on_a_phone(tmp_path: Path) -> None:
    data = full_report()
    write_report(tmp_path / "report.html", data)
    said: list[str] = []
    asked: list[str] = []
    with new_page() as page:
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            page.goto((tmp_path / "report.html").as_uri())
            page.evaluate(OPEN)
            for name, size in (("wide", (1280, 900)), ("phone", (390, 844))):
                page.set_viewport_size({"width": size[0], "height": size[1]})
                check_plots(page, len(plot_specs(data)), is_dark=theme == "dark")
                assert page.evaluate(OVERFLOW) <= 0
                assert page.evaluate(CUT) == 0
                picture(page, f"report-{theme}-{name}")
    assert said == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


def check_plots(page: "Page", number: int, *, is_dark: bool) -> None:
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    plots = page.evaluate(PLOTS)
    assert len(plots) == number
    assert all(plot["drawn"] for plot in plots)
    assert {plot["dark"] for plot in plots} == {is_dark}
