"""`mixpool search`: look for the best mixture of a recipe's pool, or by a table of losses."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.command.console import print_json
from flows.command.options import (
    DEFAULT_STORE,
    AsJson,
    CsvRaw,
    Overrides,
    RuntimeOptions,
    StoreUrl,
    carry_out,
    faults,
    local,
    out,
    read_recipe,
    read_runtime,
)

if TYPE_CHECKING:
    from tasks.search.prediction import Prediction
    from tasks.search.table_search import TableSearch

FOR_TABLES = [
    "targets",
    "weights",
    "predict",
    "count",
    "held_out",
    "constraints",
    "tokens",
    "output",
    "csv_raw",
]
FOR_RECIPES = ["evaluations", "store", "runtime"]
"""Options that say something about one of the two only."""
FOR_PROPOSALS = ["count", "held_out", "constraints", "tokens"]
"""Options that say nothing where given rows are predicted."""


RecipeOrNone = Annotated[
    str | None, typer.Argument(help="Recipe in YAML: a file or any fsspec URL. None with --losses.")
]
Evaluations = Annotated[
    int | None, typer.Option(help="Mixtures to evaluate at most; default: the recipe's.")
]
LossTable = Annotated[
    str | None,
    typer.Option(
        help="Instead of a recipe: a table of losses, CSV or Parquet, one row per mixture, with a "
        "column per partition (its weight; rows are scaled to 1) and a column per target (its "
        "loss, lower is better). Or the losses.parquet of a run, with members.parquet beside it."
    ),
]
Targets = Annotated[
    str | None, typer.Option(help="With --losses: the columns of losses, separated by commas.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="With --losses: the columns of weights; default: all other numbers, where these "
        "have the same sum in all rows."
    ),
]
PredictFile = Annotated[
    str | None,
    typer.Option(
        help="With --losses: a table of mixtures, CSV or Parquet, with the columns of weights. Their "
        "losses are predicted, and nothing is proposed."
    ),
]
Count = Annotated[int, typer.Option(min=1, help="With --losses: mixtures to propose.")]
HeldOut = Annotated[
    float, typer.Option(min=0, max=0.5, help="With --losses: share of rows that no fit sees.")
]
ConstraintsFile = Annotated[
    str | None, typer.Option(help="With --losses: a YAML file of constraints (search.constraints).")
]
TokensFile = Annotated[
    str | None,
    typer.Option(
        help="With --losses and constraints.repetition: a YAML or JSON file with the number of "
        "tokens behind each column of weights."
    ),
]
OutputFolder = Annotated[
    Path | None,
    typer.Option(help="With --losses: folder for the tables, Parquet and CSV.", callback=local),
]


def search(
    context: typer.Context,
    recipe: RecipeOrNone = None,
    evaluations: Evaluations = None,
    losses: LossTable = None,
    targets: Targets = None,
    weights: Weights = None,
    predict: PredictFile = None,
    count: Count = 10,
    held_out: HeldOut = 0.2,
    constraints: ConstraintsFile = None,
    tokens: TokensFile = None,
    output: OutputFolder = None,
    csv_raw: CsvRaw = False,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    runtime: RuntimeOptions = None,
    as_json: AsJson = False,
) -> None:
    """Look for the best mixture where there are too many to evaluate: fit, propose, evaluate, repeat.

    With --losses nothing is evaluated: surrogates are fitted to the table, judged on rows that they
    have not seen, and propose the mixtures to try next, or with --predict, predict given mixtures. Fields
    of the recipe's search are then set without their first word: --set constraints.most_partitions=4,
    --set objective.weights='{qa: 2}'.
    """
    from flows.chain.recipe_file import UsageError
    from flows.command import table_search as by_table
    from tasks.report.tables import to_json

    with faults():
        if (recipe is None) == (losses is None):
            raise UsageError("give a recipe, or --losses with a table: one of the two")
        ignored = dict.fromkeys(FOR_RECIPES, "is for a recipe, and means nothing with --losses")
        if recipe is not None:
            ignored = dict.fromkeys(FOR_TABLES, "is for --losses, and means nothing for a recipe")
        elif predict is not None:
            ignored |= dict.fromkeys(
                FOR_PROPOSALS, "means nothing with --predict: nothing is proposed"
            )
        for name, why in ignored.items():
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise UsageError(f"--{name.replace('_', '-')} {why}")
        if recipe is not None:
            changes = [*(overrides or [])]
            if evaluations is not None:
                changes.append(f"search.evaluations={evaluations}")
            loaded, settings = read_recipe(recipe, changes), read_runtime(runtime)
            carry_out(loaded, store, settings, as_json=as_json, with_search=True)
            return
        assert losses is not None
        rules = by_table.read_rules(constraints, overrides or [])
        token_counts = by_table.read_tokens(tokens, rules)
        table = by_table.read_losses(losses, _names(targets), _names(weights))
        result: TableSearch | Prediction
        if predict is not None:
            result = by_table.predict_rows(table, predict, rules)
            tables = {"surrogates": result.surrogates, "predictions": result.predictions}
        else:
            result = by_table.search_table(table, rules, count, held_out, token_counts)
            tables = {
                name: getattr(result, name) for name in ("surrogates", "held_out", "proposals")
            }
        if output is not None:
            by_table.write_tables(output, tables, raw=csv_raw)
        if as_json:
            found = {name: to_json(table) for name, table in tables.items()}
            print_json({**found, "notes": result.notes})
        else:
            by_table.show(out, result)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
