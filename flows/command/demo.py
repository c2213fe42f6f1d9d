"""The demo: gather a corpus from this Python environment, judge every mixture, let a domain arrive."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.chain.recipe import Recipe
from flows.chain.recipe_file import load_recipe
from flows.command.console import TerminalReporter, make_console
from flows.command.demo_corpus import gather
from flows.command.options import DEMO_RECIPE
from flows.command.summary import show_result
from flows.run.execute import RunResult, execute
from flows.runners.inline import InlineRunner
from storage.backends.urls import file_system
from storage.step import Runtime
from storage.store import Store

LATE = "tests"
"""The domain that arrives for the second run."""

GATHERED = "demo-corpus"
"""Folder in which text is gathered, unless the corpus is to lie in another one."""


def demo_recipe(corpus: str) -> Recipe:
    """The recipe of the demo with its corpus in ``corpus``, a folder or URL."""
    # The recipe names files below demo-corpus/; another place is a matter of its overrides.
    tree = load_recipe(DEMO_RECIPE).model_dump_json()
    tree = tree.replace("demo-corpus/", f"{corpus.rstrip('/')}/")
    return Recipe.model_validate_json(tree)


def run_demo(store: str, corpus: str, *, references: bool = False) -> None:
    """Run the demo's recipe, let a new domain arrive, run again; print both.

    Args:
        store, corpus: folders or URLs; where the corpus is a URL, its text is gathered in the
            folder ``demo-corpus`` and copied there.
    """
    console = make_console()
    started = time.monotonic()
    console.print("Gathering text from this Python environment ...")
    folder = Path(GATHERED if "://" in corpus else corpus)
    for name, gathered in gather(folder).items():
        console.print(f"  {name}: {gathered.num_documents} documents, {gathered.num_bytes:,} bytes")
    system, location = file_system(corpus)
    if "://" in corpus:
        console.print(f"Copying it to {corpus} ...")
        _copy(folder, system, location)
    arriving, arrived = f"{location}/arriving/{LATE}.jsonl", f"{location}/corpus/{LATE}.jsonl"
    if system.exists(arrived):
        console.print(f"(the domain {LATE!r} arrived in an earlier demo: nothing is new today)")
    recipe = demo_recipe(corpus)
    result = _run(recipe, store)
    show_result(console, result)
    _say_where(console, store, result, started)

    console.rule(f"a new domain arrives: {LATE}")
    system.cp_file(arriving, arrived)
    again = time.monotonic()
    result = _run(recipe, store, references=references)
    show_result(console, result, top=5)
    _say_where(console, store, result, again)
    console.print(f"the whole demo: {time.monotonic() - started:.0f} s")


def _copy(folder: Path, system: Any, location: str) -> None:
    """Copy what was gathered, and is not there yet; what an earlier demo let arrive stays out."""
    for path in sorted(folder.glob("*/*.jsonl")):
        target = f"{location}/{path.relative_to(folder).as_posix()}"
        if path != folder / "corpus" / f"{LATE}.jsonl" and not system.exists(target):
            system.put_file(str(path), target)


def _run(recipe: Recipe, store: str, *, references: bool = False) -> RunResult:
    with TerminalReporter() as reporter:
        runner = InlineRunner(Store(store), Runtime(), reporter)
        return execute(runner, recipe, with_references=references)


def _say_where(console: Console, store: str, result: RunResult, since: float) -> None:
    seconds = time.monotonic() - since
    console.print(
        f"report: {store.rstrip('/')}/{result.folder}/report.html ({seconds:.0f} s)", soft_wrap=True
    )
