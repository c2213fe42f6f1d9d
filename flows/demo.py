"""The demo: a corpus from this Python environment, every mixture judged, then a domain arrives."""

import shutil
import time
from importlib import resources
from pathlib import Path

from rich.console import Console

from flows.console import TerminalReporter, make_console
from flows.demo_corpus import gather
from flows.recipe import Recipe, load_recipe
from flows.run import RunResult, execute
from flows.runners import InlineRunner
from flows.summary import show_result
from storage.cache import Runtime
from storage.store import Store

LATE = "tests"
"""The domain that arrives for the second run."""


def demo_recipe(corpus: Path) -> Recipe:
    """The recipe of the demo with its corpus in the folder ``corpus``."""
    with resources.as_file(resources.files("flows") / "recipes" / "demo.yaml") as path:
        recipe = load_recipe(path)
        # The recipe names files below demo-corpus/; another folder is a matter of its overrides.
        tree = recipe.model_dump_json().replace("demo-corpus/", f"{corpus}/")
    return Recipe.model_validate_json(tree)


def run_demo(store: str, corpus: Path, *, references: bool = False) -> None:
    """Run the demo's recipe, let a new domain arrive, run again; print both."""
    console = make_console()
    started = time.monotonic()
    console.print("Gathering text from this Python environment ...")
    for name, found in gather(corpus).items():
        console.print(f"  {name}: {found.num_documents} documents, {found.num_bytes:,} bytes")
    arriving, arrived = corpus / "arriving" / f"{LATE}.jsonl", corpus / "corpus" / f"{LATE}.jsonl"
    if arrived.exists():
        console.print(f"(the domain {LATE!r} arrived in an earlier demo: nothing is new today)")
    recipe = demo_recipe(corpus)
    result = _run(recipe, store)
    show_result(console, result)
    _say_where(console, store, result, started)

    console.rule(f"a new domain arrives: {LATE}")
    shutil.copyfile(arriving, arrived)
    again = time.monotonic()
    result = _run(recipe, store, references=references)
    show_result(console, result, top=5)
    _say_where(console, store, result, again)
    console.print(f"the whole demo: {time.monotonic() - started:.0f} s")


def _run(recipe: Recipe, store: str, *, references: bool = False) -> RunResult:
    with TerminalReporter() as reporter:
        runner = InlineRunner(Store(store), Runtime(), reporter)
        return execute(runner, recipe, with_references=references)


def _say_where(console: Console, store: str, result: RunResult, since: float) -> None:
    seconds = time.monotonic() - since
    console.print(f"report: {store}/{result.folder}/report.html ({seconds:.0f} s)", soft_wrap=True)
