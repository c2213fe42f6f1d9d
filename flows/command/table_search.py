"""`mixpool search --losses`: search and prediction by a table of losses; nothing is evaluated."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from tasks.search.loss_table import LossTable
    from tasks.search.prediction import Prediction
    from tasks.search.rounds import SearchConfig
    from tasks.search.table_search import TableSearch


EVALUATING = ("evaluations", "unit", "start", "batch", "descent")
"""Fields of a search that mean nothing where nothing is evaluated."""


def read_rules(constraints: str | None, overrides: list[str]) -> "SearchConfig":
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


def read_tokens(path: str | None, rules: "SearchConfig") -> dict[str, int] | None:
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

    from flows.chain.recipe_file import RecipeError, place_of, read_yaml

    try:
        with Path(path).open("rb") as file:
            return read_yaml(file)
    except OSError as error:
        raise RecipeError(f"{option} {path} cannot be read as YAML: {error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        words = f"{option} {path} cannot be read as YAML: correct it at {place_of(error)}"
        raise RecipeError(words) from None


def read_losses(path: str, targets: list[str] | None, weights: list[str] | None) -> "LossTable":
    """The table of losses at ``path``, checked.

    Raises:
        UsageError: no targets are named, and the table is not that of a run.
        ValueError: the table cannot be used.
    """
    from flows.chain.recipe_file import UsageError
    from flows.run.wide_losses import is_of_run, table_of_run
    from tasks.search.loss_table import loss_table, read_frame

    if is_of_run(path):
        frame, partitions, sets = table_of_run(path)
        targets, weights = targets or sets, weights or partitions
    elif not targets:
        raise UsageError("--losses needs --targets: the names of the columns of losses")
    else:
        frame = read_frame(path)
    return loss_table(frame, path, targets, weights)


def search_table(
    table: "LossTable",
    rules: "SearchConfig",
    count: int,
    held_out: float,
    tokens: Mapping[str, int] | None,
) -> "TableSearch":
    """Fit surrogates to the table and propose ``count`` mixtures. Raises ValueError."""
    from tasks.search.table_search import propose_from_table

    return propose_from_table(
        table,
        rules.objective,
        rules.constraints,
        rules.surrogates,
        count,
        held_out,
        rules.seed,
        tokens,
    )


def predict_rows(table: "LossTable", path: str, rules: "SearchConfig") -> "Prediction":
    """Fit surrogates to the table and predict the rows of the one at ``path``.

    Raises:
        UsageError: constraints are set, which mean nothing here.
        ValueError: the rows cannot be used.
    """
    from flows.chain.recipe_file import UsageError
    from tasks.mixtures.constraints import ConstraintsConfig
    from tasks.search.loss_table import read_frame
    from tasks.search.prediction import predict_from_table

    if rules.constraints != ConstraintsConfig():
        raise UsageError("--set constraints means nothing with --predict: nothing is proposed")
    frame = read_frame(path)
    return predict_from_table(table, frame, path, rules.objective, rules.surrogates, rules.seed)


def write_tables(folder: Path, tables: "Mapping[str, pd.DataFrame]", *, raw: bool) -> None:
    """Each table as Parquet and as CSV (``raw``: see ``tasks.shown.write_csv``)."""
    from tasks.shown import write_csv

    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        write_csv(table, folder / f"{name}.csv", raw=raw)


def show(console: "Console", result: "TableSearch | Prediction") -> None:
    """Print the surrogates, the proposals or predictions, and the notes."""
    from flows.command.summary import by_surrogate, show_frame
    from tasks.search.prediction import Prediction

    title = "Surrogates, cross-validated (mean over the objective's targets)"
    show_frame(console, title, by_surrogate(result.surrogates))
    if isinstance(result, Prediction):
        show_frame(console, "Predictions", result.predictions)
    else:
        shown = [name for name in result.proposals if not str(name).startswith("weight of ")]
        show_frame(console, "Mixtures to try next", result.proposals[shown])
    for sentence in result.notes:
        console.print(sentence, soft_wrap=True, markup=False)
