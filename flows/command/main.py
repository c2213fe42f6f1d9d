"""The command line: one function per command, which reads options, calls, and prints.

Results go to stdout, bars and messages to stderr, so that ``--json`` gives one document. Heavy modules
are imported where they are needed: a run whose results are all stored imports neither torch nor
transformers, and ``--help`` next to nothing.
"""

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.command.console import TerminalReporter, print_json, print_rows
from flows.command.export import export
from flows.command.options import (
    DEFAULT_STORE,
    FAULT,
    AsJson,
    Overrides,
    RecipeFile,
    RuntimeOptions,
    StoreUrl,
    assignments,
    carry_out,
    err,
    faults,
    mixture_overrides,
    out,
    read_recipe,
    read_runtime,
)
from flows.command.report import report
from flows.command.search import search
from flows.command.server import deploy, landed, serve
from flows.command.store import gc, show, verify
from flows.command.withdraw import withdraw
from flows.run.unforeseen import is_unforeseen, told
from tasks.shown import Shown

if TYPE_CHECKING:
    from flows.runners.planner import Plan

app = typer.Typer(
    name="mixpool",
    help="Which data should we train on? One model per partition of a corpus, and every mixture "
    "judged by averaging their weights. Exit codes: 0 done; 1 something is wrong with data or store; "
    "2 wrong usage or recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

WithPrefect = Annotated[bool, typer.Option("--prefect", help="Carry it out as a Prefect flow.")]


@app.command()
def run(
    recipe: RecipeFile,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    runtime: RuntimeOptions = None,
    as_json: AsJson = False,
    prefect: WithPrefect = False,
) -> None:
    """Train what is missing, evaluate what is missing, rank every mixture."""
    with faults():
        loaded, settings = read_recipe(recipe, overrides), read_runtime(runtime)
        carry_out(loaded, store, settings, as_json=as_json, prefect=prefect)


@app.command()
def validate(
    recipe: RecipeFile,
    references: Annotated[
        int | None, typer.Option(help="Mixtures to train for real; default: the recipe's.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="What they may cost: '12 trainings', '5e6 tokens', '40 kJ'.")
    ] = None,
    ladder: Annotated[
        list[str] | None,
        typer.Option(
            help="A rung: judge the same mixtures with other fields of train or base, too, such as "
            "'train.learning_rate=1e-4'. Several fields stand between commas. May be repeated; rungs of the "
            "recipe are then left out."
        ),
    ] = None,
    mixture: Annotated[
        list[str] | None,
        typer.Option(
            help="A further mixture to train for real: 'doc=0.6,perl=0.4', proportional (to the tokens at "
            "hand), or best (what the recipe's latest run or search found best). May be repeated; weights "
            "given here take the place of the recipe's validation.mixtures."
        ),
    ] = None,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    runtime: RuntimeOptions = None,
    as_json: AsJson = False,
    prefect: WithPrefect = False,
) -> None:
    """Run the recipe, and really train a sample of mixtures to see how far the ranking is true."""
    changes = [*(overrides or [])]
    if references is not None:
        changes.append(f"validation.references={references}")
    if budget is not None:
        changes.append(f"validation.budget={json.dumps(budget)}")
    with faults():
        changes += mixture_overrides(mixture or [], recipe, overrides or [], store)
        if ladder:
            rungs = [assignments(rung, "--ladder") for rung in ladder]
            changes.append(f"validation.ladder={json.dumps(rungs)}")
        loaded, settings = read_recipe(recipe, changes), read_runtime(runtime)
        carry_out(loaded, store, settings, as_json=as_json, prefect=prefect, with_references=True)


@app.command()
def plan(
    recipe: RecipeFile,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    runtime: RuntimeOptions = None,
    as_json: AsJson = False,
    references: Annotated[
        bool, typer.Option("--references", help="Plan a validation too.")
    ] = False,
    search: Annotated[
        bool, typer.Option("--search", help="Plan a search instead of every mixture.")
    ] = False,
) -> None:
    """Say what is stored, what would be built, at most how many, and at what cost."""
    from tasks.readable import duration, joules, listed
    from tasks.training.train import TRAIN

    planned = _plan(recipe, store, overrides, runtime, references=references, search=search)
    tree = planned.to_json()
    if as_json:
        print_json(tree)
        return
    missing = tree["losses_to_evaluate"]
    rows = [
        {
            "step": step,
            "in the store": len(use["cached"]),
            "to build": len(use["build"]),
            "which": listed(use["build"], 8),
        }
        for step, use in tree["steps"].items()
    ]
    rows.append({"step": "losses", "in the store": tree["losses_from_store"], "to build": missing})
    print_rows(out, rows)
    cost = "no earlier record to go by"
    if planned.seconds is not None:
        cost = f"about {duration(planned.seconds)}"
        cost += f", {joules(planned.joules)} for training" if planned.joules else ""
    at_most = "at most " if tree["upper_bound"] else ""
    out.print(
        f"{tree['partitions']} partitions, {tree['mixtures']:,} mixtures; {at_most}"
        f"{len(planned.to_build(TRAIN))} trainings of {planned.training_tokens:,} tokens and "
        f"{missing:,} losses{planned.then}; {cost}",
        soft_wrap=True,
    )
    if references:
        trainings = tree["references"]
        out.print(
            f"of these for the validation: {len(trainings['build'])} trainings of {trainings['tokens']:,} "
            f"tokens; {len(trainings['cached'])} references are in the store",
            soft_wrap=True,
        )
    _show_notes(planned)


def _show_notes(planned: "Plan") -> None:
    for line in [*planned.lines, *(f"note: {note}" for note in planned.notes)]:
        out.print(line, soft_wrap=True)


def _plan(
    recipe: str,
    store: str,
    overrides: list[str] | None,
    runtime: list[str] | None,
    *,
    references: bool = False,
    search: bool = False,
) -> "Plan":
    with faults():
        from flows.chain.recipe_file import UsageError
        from flows.runners.planner import plan as make_plan

        if references and search:
            raise UsageError("plan a validation and a search one after the other")
        loaded, settings = read_recipe(recipe, overrides), read_runtime(runtime)
        with TerminalReporter(err) as reporter:
            return make_plan(
                store, loaded, settings, reporter, with_references=references, with_search=search
            )


@app.command()
def explain(
    recipe: RecipeFile,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    runtime: RuntimeOptions = None,
    as_json: AsJson = False,
) -> None:
    """Say why each step would run: the fields that differ from the nearest record."""
    from tasks.training.train import TRAIN

    planned = _plan(recipe, store, overrides, runtime)
    if as_json:
        steps = [
            {
                "step": explanation.call.step.name,
                "label": explanation.call.label,
                "nearest": explanation.nearest and explanation.nearest.key,
                "differences": [difference._asdict() for difference in explanation.differences],
            }
            for explanation in planned.explanations
        ]
        rest = {"corpus": planned.lines, "notes": planned.notes}
        print_json({"steps": steps, **rest, "losses_to_evaluate": planned.pairs_missing})
        return
    _show_notes(planned)
    for explanation in planned.explanations:
        for row in str(explanation).split("\n"):
            out.print(row, soft_wrap=True)
    if planned.pairs_missing:
        waiting = len(planned.to_build(TRAIN))
        why = f", for {waiting} models are not built" if waiting else ""
        lacking = f"{planned.pairs_missing:,} are not in the table"
        out.print(f"losses: {lacking}{why}{planned.then}", soft_wrap=True)
    elif not planned.explanations:
        out.print("everything is in the store")


@app.command()
def demo(
    store: StoreUrl = "demo-store",
    corpus: Annotated[
        str, typer.Option(help="Folder or fsspec URL for the demo's corpus.")
    ] = "demo-corpus",
    references: Annotated[
        bool, typer.Option("--references", help="Also validate the ranking.")
    ] = False,
) -> None:
    """Gather text from this Python environment, judge every mixture, let a domain arrive."""
    from flows.command.demo import run_demo

    with faults():
        run_demo(store, corpus, references=references)


for command in (search, report, show, withdraw, verify, gc, export, serve, deploy, landed):
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    handler = logging.StreamHandler()
    handler.addFilter(Shown())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    # Nothing here forks after tokenizers has used threads, and its warning about that is noise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Threads that spin while they wait slow a training several times beside other work. It must be
    # set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app(prog_name="mixpool")  # also as `python -m mixpool`
    except BaseException as error:
        if not is_unforeseen(error) or os.environ.get("MIXPOOL_DEBUG"):
            raise
        err.print(f"error: {told(error)}", soft_wrap=True)
        sys.exit(FAULT)
