"""Shared by the commands: their options, how options become objects, how errors become messages.

An error in input, data or store is one clear line and an exit code; any other error is a bug, and
goes up to ``flows.command.main``.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.command.console import TerminalReporter, make_console, print_json
from flows.run.unforeseen import is_fault
from storage import ROOT

if TYPE_CHECKING:
    from flows.chain.recipe import Recipe
    from storage.step import Runtime
    from storage.store import Store

out = make_console()
err = make_console(stderr=True)

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
        help="How it is computed, never what: device=cuda:0, threads=2, compile=true, "
        "batch_tokens=16384, micro_batch=8, shards=2, checkpoint_seconds=60, chunk=64, scratch=DIR, "
        "energy=codecarbon, power_usage_effectiveness=1.2, grid_intensity=380. May be repeated.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
RunName = Annotated[str | None, typer.Option("--run", help="Name of a run; by default the latest.")]


def local(path: Path | None) -> Path | None:
    """Where a command writes beside the store; an address would become a folder called ``s3:``."""
    if path is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise typer.BadParameter("it is an address: give a folder or file of this machine")
    return path


CsvRaw = Annotated[
    bool,
    typer.Option(
        "--csv-raw", help="In CSV leave text as it is, also where a spreadsheet sees a formula."
    ),
]

DEFAULT_STORE = "mixpool-store"
DEMO_RECIPE = ROOT / "flows" / "recipes" / "demo.yaml"

DONE, FAULT, USAGE = 0, 1, 2
"""Exit codes: done; something is wrong with data or store; wrong usage or recipe."""


@contextmanager
def faults() -> Iterator[None]:
    """Turn faults of input, data and store into a message on stderr and an exit code."""
    from flows.chain.recipe_file import RecipeError, UsageError
    from storage.fingerprint import ShortKeyError

    try:
        yield
    except (RecipeError, UsageError, ShortKeyError) as error:
        raise _ended(error, USAGE) from None
    except KeyboardInterrupt:
        err.print("interrupted: what was done stays, and the same command goes on from there")
        raise
    except Exception as error:
        if not is_fault(error) or os.environ.get("MIXPOOL_DEBUG"):
            raise
        raise _ended(error, FAULT) from None


def _ended(error: Exception, code: int) -> typer.Exit:
    from storage.backends.secrets import without_secrets

    words = str(error)
    if isinstance(error, OSError) and error.filename is None:
        words = error.strerror or words  # the error number helps nobody
    if isinstance(error, MemoryError):
        words = f"there is not enough memory: {words}".removesuffix(": ")
    # A URL may hold a password, and messages end up in logs.
    first, *others = map(_brief, without_secrets(words).split("\n"))
    err.print(f"error: {first}", soft_wrap=True)
    for row in others:  # one for each wrong field; or a name's, which begins no message of its own
        err.print(f"  {row.strip()}", soft_wrap=True)
    return typer.Exit(code)


LONGEST = 2000
"""Characters of a line of a message: a name that it repeats may be of any length."""


def _brief(line: str) -> str:
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"


def read_recipe(path: str, overrides: list[str] | None) -> "Recipe":
    """The recipe at ``path`` with ``--set`` applied. Raises RecipeError."""
    from flows.chain.recipe_file import load_recipe

    return load_recipe(path, overrides or [])


def assignments(text: str, option: str) -> dict[str, Any]:
    """``NAME=VALUE,NAME=VALUE``, each value read as YAML. Raises UsageError or RecipeError."""
    from flows.chain.recipe_file import UsageError, apply_override

    tree: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.strip().rpartition("=")
        if not (equals and name.strip()):
            raise UsageError(
                f"{option} {text!r}: write it as NAME=VALUE,NAME=VALUE; what has commas has a place in the "
                "recipe, under validation"
            )
        if name.strip() in tree:
            raise UsageError(f"{option} {text!r} has {name.strip()!r} twice: give it once")
        parsed: dict[str, Any] = {}  # names may have dots, which an override would follow
        apply_override(parsed, f"value={value}", option)
        tree[name.strip()] = parsed["value"]
    return tree


def mixture_overrides(texts: list[str], recipe: str, overrides: list[str], store: str) -> list[str]:
    """Overrides that name the mixtures of ``--mixture``, in place of those of the recipe.

    Args:
        overrides: of the recipe, which may change its name, and so what was best.

    Raises:
        UsageError: a text is no mixture.
        RecipeError: a weight is no YAML, or there is no such recipe.
        ValueError: the best is asked for, and the store has no finished run of the recipe.
    """
    from flows.run.stored import latest_of

    mixtures: list[object] = []
    for text in texts:
        if text == "proportional":
            continue
        if text == "best":
            mixtures.append(
                latest_of(open_store(store), read_recipe(recipe, overrides).name)["best"]
            )
            continue
        mixtures.append(assignments(text, "--mixture"))
    named = [f"validation.mixtures={json.dumps(mixtures)}"] if mixtures else []
    return named + ["validation.proportional=true"] * ("proportional" in texts)


def read_runtime(options: list[str] | None) -> "Runtime":
    """The runtime that ``--runtime`` describes. Raises RecipeError."""
    from pydantic import ValidationError

    from flows.chain.recipe_file import RecipeError, apply_override
    from storage.step import Runtime

    tree: dict[str, Any] = {}
    for option in options or []:
        apply_override(tree, option, "--runtime")
    try:
        runtime = Runtime.model_validate(tree)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        fields = ", ".join(Runtime.model_fields)
        raise RecipeError(f"--runtime {'; '.join(wrong)}; its fields are {fields}") from None
    # A Path would raise where the name is too long.
    if runtime.scratch is not None and not os.path.isdir(runtime.scratch):  # noqa: PTH112
        raise RecipeError(f"--runtime scratch: there is no folder {runtime.scratch!r:.80}")
    return runtime


def open_store(url: str, *, believes_unsigned: bool = False) -> "Store":
    """The store at ``url``. Raises StoreFormatError where there is none, or a newer one."""
    from storage.store import Store

    return Store(url, create=False, believes_unsigned=believes_unsigned)


def carry_out(
    recipe: "Recipe",
    store: str,
    settings: "Runtime",
    *,
    as_json: bool,
    prefect: bool = False,
    with_references: bool = False,
    with_search: bool = False,
) -> None:
    """Carry out a recipe in this process, or as a Prefect flow, and print the result.

    Raises:
        ValueError: data, recipe or store cannot be used; everything committed stays.
    """
    from flows.command.summary import show_ledger, show_result

    if prefect:
        from storage.backends.secrets import refuse_secret

        refuse_secret(store)  # Prefect keeps it before the flow looks at it
        from flows.prefect.flow_runs import ablate_flow

        # Recorded by the server that PREFECT_API_URL names, or by a temporary one.
        summary = ablate_flow(recipe, store, [], with_references, settings)
        if not as_json:
            show_ledger(out, summary)
    else:
        from flows.run.execute import execute
        from flows.runners.inline import InlineRunner
        from storage.store import ReadOnlyStore, store_for_run

        with store_for_run(store) as opened:
            with TerminalReporter(err) as reporter:
                runner = InlineRunner(opened, settings, reporter)
                result = execute(
                    runner, recipe, with_references=with_references, with_search=with_search
                )
            is_kept = not isinstance(opened, ReadOnlyStore)
            summary = {"run": result.folder if is_kept else None, **result.summary}
            if not as_json:
                show_result(out, result)
        if not is_kept:
            note = f"note: the store at {store} cannot be written, so that nothing of this was"
            err.print(note, soft_wrap=True)
    if as_json:
        print_json(summary)
    elif summary["run"] is not None:
        out.print(f"report: {store.rstrip('/')}/{summary['run']}/report.html", soft_wrap=True)
