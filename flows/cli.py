"""The command line. Exit codes: 0 done; 1 something is wrong with data or store; 2 wrong usage.

Heavy modules are imported where they are needed: a run in which everything is cached takes about a
second, and ``--help`` less.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from storage.cache import Runtime
    from storage.store import Store

app = typer.Typer(
    name="mixpool",
    help="Which data should we train on? One model per partition of a corpus, and every mixture "
    "judged by averaging their weights.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

RecipeFile = Annotated[str, typer.Argument(help="Recipe in YAML: a file or any fsspec URL.")]
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store", envvar="MIXPOOL_STORE", help="Where results are kept: a folder or fsspec URL."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field: train.learning_rate=3e-4. May be repeated."),
]
RuntimeOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime",
        help="How it is computed, never what: device=cuda, threads=2, compile=true, "
        "batch_tokens=16384, checkpoint_seconds=60, chunk=64, scratch=DIR. May be repeated.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
RunName = Annotated[str | None, typer.Option("--run", help="Name of a run; by default the latest.")]

DEFAULT_STORE = "mixpool-store"


@app.command()
def run(
    recipe: RecipeFile,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    runtime: RuntimeOptions = None,
    as_json: AsJson = False,
    prefect: Annotated[bool, typer.Option(help="Carry it out as a Prefect flow.")] = False,
) -> None:
    """Train what is missing, evaluate what is missing, rank every mixture."""
    _run(recipe, store, overrides, runtime, as_json=as_json, prefect=prefect, references=None)


@app.command()
def validate(
    recipe: RecipeFile,
    references: Annotated[
        int | None, typer.Option(help="Mixtures to train for real; default: the recipe's.")
    ] = None,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    runtime: RuntimeOptions = None,
    as_json: AsJson = False,
    prefect: Annotated[bool, typer.Option(help="Carry it out as a Prefect flow.")] = False,
) -> None:
    """Run the recipe, and really train a sample of mixtures to see how far the ranking is true."""
    changes = [*(overrides or [])]
    if references is not None:
        changes.append(f"validation.references={references}")
    _run(recipe, store, changes, runtime, as_json=as_json, prefect=prefect, references=True)


def _run(
    recipe: str,
    store: str,
    overrides: list[str] | None,
    runtime: list[str] | None,
    *,
    as_json: bool,
    prefect: bool,
    references: bool | None,
) -> None:
    with _errors():
        loaded, settings = _recipe(recipe, overrides), _runtime(runtime)
        if prefect:
            from flows.prefect_flows import run_with_prefect

            summary = run_with_prefect(loaded, store, settings, with_references=bool(references))
            print(json.dumps(summary)) if as_json else out.print(summary)
            return
        run_recipe(loaded, store, settings, as_json=as_json, references=bool(references))


def run_recipe(
    recipe: "Recipe", store: str, runtime: "Runtime", *, as_json: bool, references: bool = False
) -> None:
    """Carry out a recipe in this process and print what it found."""
    from flows.console import TerminalReporter, show_result
    from flows.run import execute
    from flows.runners import InlineRunner

    opened = _store(store, create=True)
    with TerminalReporter(err) as reporter:
        runner = InlineRunner(opened, runtime, reporter)
        result = execute(runner, recipe, with_references=references)
    if as_json:
        print(json.dumps({"run": result.folder, **result.summary}, indent=1))
        return
    show_result(out, result)
    out.print(f"report: {store.rstrip('/')}/{result.folder}/report.html", soft_wrap=True)


@app.command()
def plan(
    recipe: RecipeFile,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    runtime: RuntimeOptions = None,
    as_json: AsJson = False,
    references: Annotated[bool, typer.Option(help="Plan a validation too.")] = False,
) -> None:
    """Say what is cached, what would be built, at most how many, and at what cost."""
    from flows.planner import plan as make_plan

    with _errors():
        made = make_plan(
            store, _recipe(recipe, overrides), _runtime(runtime), _reporter(),
            with_references=references,
        )  # fmt: skip
    tree = made.to_json()
    if as_json:
        print(json.dumps(tree, indent=1))
        return
    rows = [
        {"step": step, "in the store": len(found["cached"]), "to build": len(found["build"]),
         "which": _shortened(found["build"])}
        for step, found in tree["steps"].items()
    ]  # fmt: skip
    missing = tree["losses_to_evaluate"]
    rows.append({"step": "losses", "in the store": tree["losses_from_store"], "to build": missing})
    _print_rows(rows)
    seconds = tree["seconds"]
    cost = f"about {seconds:,.0f} s" if seconds is not None else "no earlier record to go by"
    at_most = "at most " if tree["upper_bound"] else ""
    out.print(
        f"{tree['partitions']} partitions, {tree['mixtures']:,} mixtures; {at_most}"
        f"{len(made.to_build('train'))} trainings of {made.training_tokens:,} tokens and "
        f"{missing:,} losses; {cost}",
        soft_wrap=True,
    )


def _shortened(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@app.command()
def explain(
    recipe: RecipeFile,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    runtime: RuntimeOptions = None,
    as_json: AsJson = False,
) -> None:
    """Say why each step would run: the fields that differ from the nearest record."""
    from flows.planner import plan as make_plan

    with _errors():
        made = make_plan(store, _recipe(recipe, overrides), _runtime(runtime), _reporter())
    if as_json:
        print(json.dumps([_explanation(e) for e in made.explanations], indent=1))
        return
    for explanation in made.explanations:
        out.print(str(explanation), markup=False, soft_wrap=True)
    if not made.explanations:
        out.print("every step is in the store")


def _explanation(explanation: Any) -> dict[str, Any]:
    nearest = explanation.nearest
    return {
        "step": explanation.call.step.name,
        "label": explanation.call.label,
        "nearest": None if nearest is None else nearest.key,
        "differences": [d._asdict() for d in explanation.differences],
    }


class What(StrEnum):
    """What ``mixpool show`` lists."""

    RUNS = "runs"
    PARTITIONS = "partitions"
    MODELS = "models"
    RANKING = "ranking"
    LINEAGE = "lineage"


@app.command()
def show(
    what: Annotated[What, typer.Argument(help="What to list.")] = What.RUNS,
    store: StoreUrl = DEFAULT_STORE,
    run: RunName = None,
    objective: Annotated[
        str, typer.Option(help="For the ranking: 'macro mean' or an evaluation set.")
    ] = "macro mean",
    most: Annotated[int, typer.Option(help="For the ranking: rows at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List partitions, models, runs or a ranking, or draw a run's lineage with fingerprints."""
    from flows import export
    from flows import show as views

    with _errors():
        opened = _store(store)
        if what is What.LINEAGE:
            lines = list(views.lineage(opened, export.find_run(opened, run)))
            print(json.dumps(lines) if as_json else "\n".join(lines))
            return
        if what is What.RANKING:
            rows = views.ranking(opened, export.find_run(opened, run), objective)[:most]
        else:
            listed = {
                What.RUNS: views.runs,
                What.PARTITIONS: views.partitions,
                What.MODELS: views.models,
            }
            rows = listed[what](opened)
    print(json.dumps(rows, indent=1)) if as_json else _print_rows(rows)


@app.command()
def verify(
    store: StoreUrl = DEFAULT_STORE,
    repair: Annotated[
        bool,
        typer.Option(help="Set aside what is damaged, so that the next run makes it anew."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Re-hash everything and say what is wrong; exit code 1 if anything is."""
    from storage import audit

    with _errors():
        opened = _store(store)
        faults = audit.verify(opened, _reporter().task("verify"))
        aside = audit.repair(opened, faults) if repair else []
    if as_json:
        print(json.dumps({"faults": [f._asdict() for f in faults], "set_aside": aside}, indent=1))
    else:
        for fault in faults:
            out.print(f"{fault.path}: {fault.what}", markup=False, soft_wrap=True)
        for path in aside:
            out.print(f"set aside: {path}", markup=False, soft_wrap=True)
        advice = "; the next run makes what was set aside anew" if aside else ""
        advice = advice or ("; `mixpool verify --repair` sets them aside" if faults else "")
        out.print(f"{len(faults)} faults{advice}")
    if faults:
        raise typer.Exit(1)


@app.command()
def gc(
    store: StoreUrl = DEFAULT_STORE,
    keep: Annotated[
        list[str] | None, typer.Option(help="A run whose results stay. May be repeated.")
    ] = None,
    keep_all: Annotated[bool, typer.Option(help="Every finished run's results stay.")] = False,
    delete: Annotated[bool, typer.Option(help="Really delete; otherwise only say what.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find, and with --delete remove, what the kept runs do not reach."""
    from storage import lineage

    with _errors():
        opened = _store(store)
        kept = [*(keep or [])]
        if keep_all:
            kept += [name for name, content in lineage.run_folders(opened).items() if content]
        if not kept:
            raise typer.BadParameter(
                "say what to keep: --keep RUN (see `mixpool show`) or --keep-all"
            )
        garbage = lineage.find_garbage(opened, kept)
        if delete:
            lineage.delete(opened, garbage)
    if as_json:
        print(json.dumps({"deleted": delete, **garbage._asdict()}, indent=1))
        return
    for kind, paths in garbage._asdict().items():
        for path in paths if isinstance(paths, list) else []:
            out.print(f"{kind}: {path}", markup=False, soft_wrap=True)
    what = "deleted" if delete else "would be deleted; nothing was (add --delete)"
    out.print(f"{garbage.num_bytes:,} bytes {what}")


@app.command()
def export(
    mixture: Annotated[str, typer.Argument(help="'best', 'a + b' or '3 a + b'.")],
    store: StoreUrl = DEFAULT_STORE,
    run: RunName = None,
    model: Annotated[
        Path | None, typer.Option(help="New folder for the merged model (Hugging Face).")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="YAML file for the mixture's sampling weights.")
    ] = None,
) -> None:
    """Write a mixture's merged model, its sampling weights, or both."""
    from flows import export as exports

    with _errors():
        if model is None and weights is None:
            raise typer.BadParameter("say what to write: --model FOLDER, --weights FILE, or both")
        opened = _store(store)
        content = exports.find_run(opened, run)
        chosen = exports.parse_mixture(mixture, content)
        if model is not None:
            exports.export_model(opened, content, chosen, model)
            out.print(f"merged model of {chosen.label}: {model}", soft_wrap=True)
        if weights is not None:
            exports.export_weights(content, chosen, weights)
            out.print(f"sampling weights of {chosen.label}: {weights}", soft_wrap=True)


@app.command()
def demo(
    store: StoreUrl = "demo-store",
    corpus: Annotated[Path, typer.Option(help="Folder for the demo's corpus.")] = Path(
        "demo-corpus"
    ),
    references: Annotated[bool, typer.Option(help="Also validate the ranking.")] = False,
) -> None:
    """Gather text from this Python environment, judge every mixture, let a domain arrive."""
    from flows.demo import run_demo

    with _errors():
        run_demo(store, corpus, references=references)


def main() -> None:
    """Entry point of the console script."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # Nothing here forks after tokenizers has used threads, and its warning about that is noise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    app()


@contextmanager
def _errors() -> Iterator[None]:
    """Faults of input, data and store are one clear message; anything else is a bug and shows."""
    from flows.recipe import RecipeError

    try:
        yield
    except RecipeError as error:
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("MIXPOOL_DEBUG"):
            raise
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _recipe(path: str, overrides: list[str] | None) -> "Recipe":
    from flows.recipe import load_recipe

    return load_recipe(path, overrides or [])


def _runtime(options: list[str] | None) -> "Runtime":
    from pydantic import ValidationError

    from flows.recipe import RecipeError, apply_override
    from storage.cache import Runtime

    tree: dict[str, Any] = {}
    for option in options or []:
        apply_override(tree, option)
    try:
        return Runtime.model_validate(tree)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors()]
        fields = ", ".join(Runtime.model_fields)
        raise RecipeError(f"--runtime {'; '.join(faults)}; fields are {fields}") from None


def _store(url: str, *, create: bool = False) -> "Store":
    from storage.store import Store

    return Store(url, create=create)


def _reporter() -> Any:
    from flows.runners import Quiet

    return Quiet()


def _print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        numeric = all(isinstance(row.get(name, 0), int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name, "")) for name in columns))
    out.print(table)


def _cell(value: object) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else str(value)
