"""`mixpool search`: look for the best mixture of a recipe's pool, or by a table of losses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.command.console import TerminalReporter, print_json
from flows.command.options import (
    DEFAULT_STORE,
    AsJson,
    Overrides,
    RuntimeOptions,
    StoreUrl,
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

    from tasks.search.rounds import SearchConfig
    from tasks.search.table_search import TableSearch


FOR_TABLES = ("targets", "weights", "count", "held_out", "constraints", "tokens", "output")
FOR_RECIPES = ("evaluations", "store", "runtime")
"""Options that say something about one of the two only."""

EVALUATING = ("evaluations", "unit", "start", "batch", "descent")
"""Fields of a search that mean nothing where nothing is evaluated."""


def search(
    context: typer.Context,
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
            "column per partition (its weight; rows are scaled to 1) and a column per target (its "
            "loss, lower is better). Or the losses.parquet of a run, with members.parquet beside it."
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="With --losses: the columns of losses, separated by commas."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="With --losses: the columns of weights; default: all other numbers, where these "
            "have the same sum in all rows."
        ),
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
    tokens: Annotated[
        str | None,
        typer.Option(
            help="With --losses and constraints.repetition: a YAML or JSON file with the number of "
            "tokens behind each column of weights."
        ),
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
    from flows.chain.recipe_file import UsageError

    with faults():
        if (recipe is None) == (losses is None):
            raise UsageError("give a recipe, or --losses with a table: one of the two")
        if losses is None:
            _refuse(context, FOR_TABLES, "is for --losses, and means nothing for a recipe")
        else:
            _refuse(context, FOR_RECIPES, "is for a recipe, and means nothing with --losses")
        if losses is None:
            assert recipe is not None
            changes = [*(overrides or [])]
            if evaluations is not None:
                changes.append(f"search.evaluations={evaluations}")
            _of_recipe(recipe, store, changes, runtime, as_json=as_json)
            return
        rules = _rules(constraints, overrides or [])
        token_counts = _tokens(tokens, rules)
        result = _of_table(
            losses, _names(targets), _names(weights), rules, count, held_out, token_counts
        )
        if output is not None:
            _write(output, result)
        if as_json:
            print_json(_as_json(result))
        else:
            _show_table_search(out, result)


def _refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Raise a UsageError for an option that was given and would be ignored."""
    from flows.chain.recipe_file import UsageError

    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _of_recipe(
    recipe: str, store: str, changes: list[str], runtime: list[str] | None, *, as_json: bool
) -> None:
    from flows.command.summary import show_result
    from flows.run.execute import execute
    from flows.runners.inline import InlineRunner

    loaded, settings = read_recipe(recipe, changes), read_runtime(runtime)
    with TerminalReporter(err) as reporter:
        runner = InlineRunner(open_store(store, create=True), settings, reporter)
        result = execute(runner, loaded, with_search=True)
    if as_json:
        print_json({"run": result.folder, **result.summary})
        return
    show_result(out, result)
    out.print(f"report: {store.rstrip('/')}/{result.folder}/report.html", soft_wrap=True)


def _rules(constraints: str | None, overrides: list[str]) -> "SearchConfig":
    """The fields of a search that mean something for a table. Raises RecipeError."""
    from pydantic import ValidationError

    from flows.chain.recipe_file import RecipeError, UsageError, apply_override
    from tasks.search.rounds import SearchConfig

    tree: dict[str, Any] = (
        {} if constraints is None else {"constraints": _yaml(constraints, "--constraints")}
    )
    for override in overrides:
        apply_override(tree, override)
    for name in EVALUATING:
        if name in tree:
            raise UsageError(
                f"--set {name} means nothing with --losses: nothing is evaluated there"
            )
    try:
        rules = SearchConfig.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, fault['loc'])) or 'search'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        raise RecipeError("\n".join(lines)) from None
    if rules.objective.caps:
        raise UsageError(
            "objective.caps is for recipes: a cap is measured from the base model, and a table has no "
            "losses of a base model; give objective.weights"
        )
    return rules


def _tokens(path: str | None, rules: "SearchConfig") -> dict[str, int] | None:
    """Tokens behind columns of weights, which a limit on repetition needs. Raises RecipeError."""
    from pydantic import PositiveInt, TypeAdapter, ValidationError

    from flows.chain.recipe_file import UsageError

    if (path is None) != (rules.constraints.repetition is None):
        raise UsageError(
            "constraints.repetition and --tokens go together: with --losses, how often "
            "tokens would be repeated follows from a file of tokens behind each column of weights"
        )
    if path is None:
        return None
    try:
        return TypeAdapter(dict[str, PositiveInt]).validate_python(_yaml(path, "--tokens"))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = "".join(f" {part}:" for part in fault["loc"][:1])
        raise UsageError(
            f"--tokens {path}:{where} {fault['msg']}; give a mapping of columns to tokens, such as "
            "{web: 2000000}"
        ) from None


def _yaml(path: str, option: str) -> Any:
    import yaml

    from flows.chain.recipe_file import RecipeError, RecipeLoader

    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=RecipeLoader)
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"{option} {path} cannot be read as YAML: {error}") from error


def _of_table(
    path: str,
    targets: list[str] | None,
    weights: list[str] | None,
    rules: "SearchConfig",
    count: int,
    held_out: float,
    tokens: Mapping[str, int] | None,
) -> "TableSearch":
    from flows.chain.recipe_file import UsageError
    from flows.run.wide_losses import is_of_run, table_of_run
    from tasks.search.loss_table import loss_table, read_frame
    from tasks.search.table_search import propose_from_table

    if is_of_run(path):
        frame, partitions, sets = table_of_run(path)
        targets, weights = targets or sets, weights or partitions
    elif not targets:
        raise UsageError("--losses needs --targets: the names of the columns of losses")
    else:
        frame = read_frame(path)
    return propose_from_table(
        loss_table(frame, path, targets, weights),
        rules.objective,
        rules.constraints,
        rules.surrogates,
        count,
        held_out,
        rules.seed,
        tokens,
    )


def _tables(result: "TableSearch") -> "dict[str, pd.DataFrame]":
    tables = ("surrogates", "held_out", "proposals")
    return {name: getattr(result, name) for name in tables}


def _write(folder: Path, result: "TableSearch") -> None:
    """Each table as Parquet and as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in _tables(result).items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        table.to_csv(folder / f"{name}.csv", index=False)


def _as_json(result: "TableSearch") -> dict[str, Any]:
    from tasks.report.tables import to_json

    tables = {name: to_json(table) for name, table in _tables(result).items()}
    return {**tables, "notes": result.notes}


def _show_table_search(console: "Console", result: "TableSearch") -> None:
    from flows.command.summary import by_surrogate, show_frame

    shown = [name for name in result.proposals if not str(name).startswith("weight of ")]
    title = "Surrogates, cross-validated (mean over the objective's targets)"
    show_frame(console, title, by_surrogate(result.surrogates))
    show_frame(console, "Mixtures to try next", result.proposals[shown])
    for sentence in result.notes:
        console.print(sentence, soft_wrap=True, markup=False)
