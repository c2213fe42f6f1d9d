"""The command that looks for the best mixture: of a recipe's pool, or by a table of anybody's losses."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import TerminalReporter, print_json
from flows.options import (
    DEFAULT_STORE,
    AsJson,
    Overrides,
    RuntimeOptions,
    StoreUrl,
    UsageError,
    err,
    faults,
    open_store,
    out,
    read_recipe,
    read_runtime,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from tasks.found import Found
    from tasks.loss_table import LossTable, TableSearch
    from tasks.search import SearchConfig


def search(
    recipe: Annotated[
        str | None,
        typer.Argument(help="Recipe in YAML: a file or any fsspec URL. None with --losses."),
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Mixtures to evaluate at most; default: the recipe's.")
    ] = None,
    losses: Annotated[
        str | None,
        typer.Option(
            help="Instead of a recipe: a table of losses, CSV or Parquet, one row per mixture, with a "
            "column per partition (its weight, any positive sum) and a column per target (its loss, "
            "lower is better). Or the losses.parquet of a run, with members.parquet beside it."
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="With --losses: the columns of losses, separated by commas."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="With --losses: the columns of weights; default: all other numbers."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="With --losses: mixtures to propose.")] = 10,
    held_out: Annotated[
        float,
        typer.Option(min=0, max=0.5, help="With --losses: share of rows that no fit sees."),
    ] = 0.2,
    constraints: Annotated[
        str | None,
        typer.Option(help="With --losses: a YAML file of constraints (search.constraints)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --losses: folder for the tables, Parquet and CSV.")
    ] = None,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    runtime: RuntimeOptions = None,
    as_json: AsJson = False,
) -> None:
    """Look for the best mixture where there are too many to evaluate: fit, propose, evaluate, repeat.

    With --losses nothing is evaluated: surrogates are fitted to the table, judged on rows that they
    have not seen, and propose the mixtures to try next. Fields of the recipe's search are then set
    without their first word: --set constraints.most_partitions=4, --set objective.weights='{qa: 2}'.
    """
    with faults():
        if (recipe is None) == (losses is None):
            raise UsageError("give a recipe, or --losses with a table: one of the two")
        if losses is None:
            assert recipe is not None
            changes = [*(overrides or [])]
            if evaluations is not None:
                changes.append(f"search.evaluations={evaluations}")
            _of_recipe(recipe, store, changes, runtime, as_json=as_json)
            return
        rules = _rules(constraints, overrides or [])
        found = _of_table(losses, _names(targets), _names(weights), rules, count, held_out)
        if output is not None:
            _write(output, found)
        if as_json:
            print_json(_as_json(found))
        else:
            _show_table_search(out, found)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


# A recipe -----------------------------------------------------------------------------------------


def _of_recipe(
    recipe: str, store: str, changes: list[str], runtime: list[str] | None, *, as_json: bool
) -> None:
    from flows.run import execute
    from flows.runners import InlineRunner
    from flows.summary import show_result

    loaded, settings = read_recipe(recipe, changes), read_runtime(runtime)
    with TerminalReporter(err) as reporter:
        runner = InlineRunner(open_store(store, create=True), settings, reporter)
        result = execute(runner, loaded, with_search=True)
    found = result.report.search
    assert found is not None
    if as_json:
        print_json({"run": result.folder, **result.summary})
        return
    show_result(out, result)
    _show_found(out, found)
    out.print(f"report: {store.rstrip('/')}/{result.folder}/report.html", soft_wrap=True)


def _show_found(console: "Console", found: "Found") -> None:
    title = "Surrogates, cross-validated (mean over the sets)"
    _print(console, title, _by_surrogate(found.surrogates))
    columns = ["mixture", "objective", "predicted"]
    _print(console, "Best mixtures by the objective of the search", found.best[columns])


def _by_surrogate(table: "pd.DataFrame") -> "pd.DataFrame":
    figures = ["spearman", "pearson", "rmse", "rows", "chosen"]
    means = table.groupby("surrogate", sort=False)[figures].mean().reset_index()
    means["rows"] = means["rows"].astype(int)
    means["chosen"] = ["yes" if chosen else "" for chosen in means["chosen"]]
    return means


def _print(console: "Console", title: str, frame: "pd.DataFrame") -> None:
    """Any table that has rows; losses of good mixtures differ in the fifth decimal."""
    from pandas.api.types import is_float_dtype
    from rich.table import Table

    from tasks.tables import number, table_of, text

    if frame.empty:
        return
    columns = {
        str(name): (str(name), number(5) if is_float_dtype(column) else text)
        for name, column in frame.items()
    }
    shown = table_of(frame, columns)
    table = Table(title=title, title_justify="left")
    for head, numeric in zip(shown.heads, shown.numeric, strict=True):
        table.add_column(head, justify="right" if numeric else "left", overflow="fold")
    for row in shown.rows:
        table.add_row(*row)
    console.print(table)


# A table ------------------------------------------------------------------------------------------


def _rules(constraints: str | None, overrides: list[str]) -> "SearchConfig":
    """The fields of a search that mean something for a table. Raises RecipeError."""
    from pydantic import ValidationError

    from flows.recipe import RecipeError, apply_override
    from tasks.search import SearchConfig

    tree: dict[str, Any] = {} if constraints is None else {"constraints": _yaml(constraints)}
    for override in overrides:
        apply_override(tree, override)
    try:
        rules = SearchConfig.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, fault['loc'])) or 'search'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        raise RecipeError("\n".join(lines)) from None
    if rules.objective.caps or rules.objective.pull:
        raise UsageError(
            "objective.caps and objective.pull are for recipes: a table has no base model's losses; "
            "give objective.weights"
        )
    return rules


def _yaml(path: str) -> Any:
    import yaml

    from flows.recipe import Loader, RecipeError

    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"--constraints {path} cannot be read as YAML: {error}") from error


def _of_table(
    path: str,
    targets: list[str] | None,
    weights: list[str] | None,
    rules: "SearchConfig",
    count: int,
    held_out: float,
) -> "TableSearch":
    from flows.run_table import is_of_run
    from tasks.loss_table import propose_from_table, read_table

    if is_of_run(path):
        table = _table_of_run(path, targets, weights)
    elif not targets:
        raise UsageError("--losses needs --targets: the names of the columns of losses")
    else:
        table = read_table(path, targets, weights)
    return propose_from_table(
        table,
        rules.objective.weights,
        rules.constraints,
        rules.surrogates,
        count,
        held_out,
        rules.seed,
    )


def _table_of_run(path: str, targets: list[str] | None, weights: list[str] | None) -> "LossTable":
    """A run's losses, as any table is read. Raises ValueError."""
    from flows.run_table import table_of_run
    from tasks.loss_table import read_table

    frame, partitions, sets = table_of_run(path)
    with tempfile.TemporaryDirectory(prefix="mixpool-") as folder:
        wide = str(Path(folder) / "losses.parquet")
        frame.to_parquet(wide)
        try:
            return read_table(wide, targets or sets, weights or partitions)
        except ValueError as error:
            raise ValueError(str(error).replace(wide, path)) from error


def _tables(found: "TableSearch") -> "dict[str, pd.DataFrame]":
    tables = ("surrogates", "held_out", "proposals")
    return {name: getattr(found, name) for name in tables}


def _write(folder: Path, found: "TableSearch") -> None:
    """Each table as Parquet and as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in _tables(found).items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        table.to_csv(folder / f"{name}.csv", index=False)


def _as_json(found: "TableSearch") -> dict[str, Any]:
    from flows.costs import to_json

    tables = {name: to_json(table) for name, table in _tables(found).items()}
    return {**tables, "notes": found.notes}


def _show_table_search(console: "Console", found: "TableSearch") -> None:
    shown = [name for name in found.proposals if not str(name).startswith("weight of ")]
    _print(
        console, "Surrogates, cross-validated (mean over targets)", _by_surrogate(found.surrogates)
    )
    _print(console, "Mixtures to try next", found.proposals[shown])
    for sentence in found.notes:
        console.print(sentence, soft_wrap=True)
