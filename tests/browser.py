"""Chromium without a window, and Prefect's form in it: nothing of the person's own browser is touched.

The profile is a new folder each time; the browser ends with the process that started it. What a page
says about itself when a wait ends in vain is in Playwright's message, so a test needs no sleeps.
"""

import contextlib
import http.client
import os
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Locator, Page, Response, TimeoutError, sync_playwright

CHROMIUM = Path(os.environ.get("MIXPOOL_CHROMIUM", "/usr/bin/chromium"))
"""Debian's; Playwright's own builds would have to be downloaded."""

SCREENSHOTS = "MIXPOOL_SCREENSHOTS"
"""Variable with the folder for pictures; none are taken where it is not set."""

ARGUMENTS = [
    # Containers run tests as root, and Chromium's sandbox refuses that.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

PATIENCE_SECONDS = 180.0
"""For a page to show what is waited for: one to five seconds, and thirty beside other work (load 20)."""
MOST_TRIES = 5


@contextlib.contextmanager
def new_page() -> Iterator[Page]:
    """An empty page of 1400 by 1000 pixels in a browser of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        with contextlib.closing(browser):
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(PATIENCE_SECONDS * 1000)
            yield page


def picture(page: Page, name: str) -> None:
    """Save what the page shows, from its top, as ``name.png``, if pictures are wanted."""
    if folder := os.environ.get(SCREENSHOTS):
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(1000)  # transitions come to their ends
        page.screenshot(path=Path(folder) / f"{name}.png")


# Prefect's pages -----------------------------------------------------------------------------------


def enter(page: Page, door: str) -> None:
    """Open the address that `mixpool serve` prints; the page then shows what runs there are."""
    # The door sends the browser on before its own page is loaded, so there is no load to wait for.
    page.goto(door, wait_until="commit")
    page.wait_for_url("**/v2/dashboard**", wait_until="commit")
    page.get_by_role("link", name="Deployments").first.wait_for()


def open_form(page: Page, url: str, deployment: str) -> None:
    """Go from a deployment of the server at ``url`` to its form."""
    page.goto(f"{url}/v2/deployments/deployment/{deployment}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    page.get_by_role("button", name="Submit").wait_for()


def list_item(page: Page) -> Locator:
    """The text field of the one item that the form's lists have."""
    item = (
        page.locator("form").get_by_role("group").filter(has=page.get_by_label("Drag to reorder"))
    )
    return item.get_by_role("textbox")


def correct(page: Page, text: str, complaint: str) -> None:
    """Type into that field until the page no longer complains.

    What the server says of something typed before may come late, and is shown until it is typed anew: by way
    of another text that is right as well, or it would come late again.
    """
    for _ in range(MOST_TRIES):
        list_item(page).fill(f"{text}0")
        list_item(page).fill(text)
        with contextlib.suppress(TimeoutError):
            shown = page.locator("form").get_by_text(complaint)
            shown.wait_for(state="hidden", timeout=1000 * PATIENCE_SECONDS / MOST_TRIES)
            return
    raise TimeoutError(f"the page goes on to say: {shown.all_inner_texts()}")


def press_submit(page: Page, seconds: float = PATIENCE_SECONDS) -> Response:
    """What the server answers. Raises TimeoutError where the page sends nothing for so long.

    Now and then its SQLite is busy: that is shown, and a person presses the button again.
    """
    for _ in range(MOST_TRIES):
        with page.expect_request("**/create_flow_run", timeout=1000 * seconds) as asked:
            page.get_by_role("button", name="Submit").click()
        answer = asked.value.response()
        if answer is not None and answer.status != http.client.SERVICE_UNAVAILABLE:
            return answer
        page.wait_for_timeout(1000)
    raise TimeoutError("the server goes on to be busy")


def submit_corrected(page: Page, text: str, complaint: str) -> Response:
    """Correct the one item of a list and send the form; what the server answers.

    A complaint about what stood there before may come after the correction: then the page sends nothing.
    """
    for _ in range(MOST_TRIES):
        correct(page, text, complaint)
        with contextlib.suppress(TimeoutError):
            return press_submit(page, PATIENCE_SECONDS / MOST_TRIES)
    raise TimeoutError("the page does not send its form")


def run_page(url: str, run: str, tab: str) -> str:
    """Address of a tab of a flow run's page."""
    return f"{url}/v2/runs/flow-run/{run}?tab={tab}"
