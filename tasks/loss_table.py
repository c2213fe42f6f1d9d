"""Any table of (weights, losses), whoever made it: read with its faults named, then searched.

A table of other people's runs has columns nobody explained, rows that failed, and the same mixture
twice. Each of these gets one clear answer: refused by name and number, or repaired with a note. What is
left goes through the same surrogates, constraints and proposals as a pool of ours.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from storage.place import file_system
from tasks.arrays import Floats, Ints
from tasks.constraints import ConstraintsConfig, Feasible
from tasks.mixture import unknown
from tasks.objective import Objective, ObjectiveConfig
from tasks.proposals import FEWEST_ROWS, Proposals, propose
from tasks.readable import number
from tasks.surrogates import SURROGATES, choose, cross_validate, errors, fit
from tasks.table_rows import averaged, finite, refuse_constant, scaled, told_sums, varying

if TYPE_CHECKING:
    import pandas as pd


class LossTable(NamedTuple):
    """Weights and losses, as read."""

    names: tuple[str, ...]
    """Weight columns, in the order of the file."""
    weights: Floats
    """Shape (n, p), rows sum to 1."""
    targets: tuple[str, ...]
    """Target columns, in the order asked for."""
    losses: Floats
    """Shape (n, T), in the unit of the file; lower is better."""
    rows: tuple[int, ...]
    """Which row of the file each was, counted from 1 below the header."""
    notes: list[str]
    """Sentences: what was taken, dropped, averaged, left out."""


def loss_table(
    frame: "pd.DataFrame",
    path: str,
    targets: Sequence[str],
    weights: Sequence[str] | None = None,
) -> LossTable:
    """A table with one row per evaluated mixture, checked.

    Args:
        frame: one numeric column per partition or domain with its weight (any positive sum per row)
            and one numeric column per target with its loss (lower is better).
        path: where it was read, for messages.
        targets: names of the target columns.
        weights: names of the weight columns; None: all numeric columns that are no targets, whose
            sums must then be alike in all rows.

    Raises:
        ValueError: there are no rows, a column is missing or not numeric, a target is constant, a row
            has a negative weight or only zeros, sums of rows say that some column is no weight, or
            fewer than ``FEWEST_ROWS`` distinct rows are left. The message names the columns taken.
    """
    if not len(frame):
        raise ValueError(f"{path} has no rows: give one row for each evaluated mixture")
    names = _weight_columns(frame, targets, weights, path)
    taken = f"{path} (weights: {', '.join(names)}; targets: {', '.join(targets)})"
    numbers = frame[[*names, *targets]].astype("float64").reset_index(drop=True)
    notes: list[str] = []
    numbers = finite(numbers, notes)
    refuse_constant(numbers, targets, taken)
    whole, numbers = numbers, scaled(numbers, names, taken)
    if len(whole):
        notes.insert(0, told_sums(whole, names, targets, taken, bool(weights)))
    numbers = averaged(numbers, names, notes)
    if len(numbers) < FEWEST_ROWS:
        raise ValueError(
            f"{taken} has {len(numbers)} usable rows with different weights: {FEWEST_ROWS} are needed "
            f"at least. {' '.join(notes)}".rstrip()
        )
    names = varying(numbers, names, notes)
    kept = numbers[names].to_numpy()
    return LossTable(
        tuple(names),
        kept / kept.sum(axis=1, keepdims=True),
        tuple(targets),
        numbers[[*targets]].to_numpy(),
        tuple(int(row) + 1 for row in numbers.index),
        notes,
    )


def read_frame(path: str) -> "pd.DataFrame":
    """A CSV (``.csv``) or Parquet (``.parquet``, ``.pq``) file at a plain path or a fsspec URL.

    Raises:
        ValueError: it cannot be read.
    """
    import pandas as pd

    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in {".csv", ".parquet", ".pq"}:
        raise ValueError(f"{path} is no table that can be read: give a .csv, .parquet or .pq file")
    files, place = file_system(path)
    try:
        with files.open(place, "rb") as opened:
            return pd.read_csv(opened) if suffix == ".csv" else pd.read_parquet(opened)
    # What pandas and pyarrow raise for a file that they cannot parse is a ValueError.
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def _weight_columns(
    frame: "pd.DataFrame", targets: Sequence[str], weights: Sequence[str] | None, path: str
) -> list[str]:
    """The weight columns; all columns that are used are there, numeric and named once."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    numeric = [
        str(name)
        for name in frame.columns
        if is_numeric_dtype(frame[name]) and not is_bool_dtype(frame[name])
    ]
    names = list(weights) if weights else [name for name in numeric if name not in targets]
    taken = (
        f"{path} (weights: {', '.join(names) or 'none'}; targets: {', '.join(targets) or 'none'})"
    )
    for name in (*names, *targets):
        if name not in frame.columns:
            raise unknown(name, f"the choice of columns of {path}", map(str, frame.columns))
        if name not in numeric:
            raise ValueError(
                f"the column {name!r} of {taken} holds {frame[name].dtype}, no numbers: clean it, or "
                "name other columns"
            )
    if not names or not targets or len({*names, *targets}) < len(names) + len(targets):
        raise ValueError(
            f"{taken}: name at least one column of weights and one target, each column once"
        )
    return names


class TableSearch(NamedTuple):
    """What a table of losses says about the next mixtures."""

    surrogates: "pd.DataFrame"
    """``surrogate``, ``target``, ``spearman``, ``pearson``, ``rmse``, ``rows``, ``chosen``, ``share``
    (weight of the target in the objective): cross-validated on the rows that are not held out."""
    held_out: "pd.DataFrame"
    """One row per held-out row and target: ``row`` (number in the table), ``target``, ``loss``,
    ``predicted`` by the chosen surrogate. Empty where nothing is held out."""
    proposals: "pd.DataFrame"
    """The most promising first: ``mixture``, ``predicted`` (the objective), one column
    ``weight of NAME`` per weight column, one ``predicted TARGET`` per target."""
    notes: list[str]
    """Sentences: those of the table, of the fits, and how well the held-out rows are ordered."""


def propose_from_table(
    table: LossTable,
    sought: ObjectiveConfig,
    constraints: ConstraintsConfig,
    names: Sequence[str] = tuple(SURROGATES),
    count: int = 10,
    held_out: float = 0.2,
    seed: int = 0,
    tokens: Mapping[str, int] | None = None,
) -> TableSearch:
    """Fit, cross-validate, predict held-out rows and propose weights.

    Args:
        table: of ``loss_table``.
        sought: weight of each target, pull and prior (over the weight columns); no caps, for a table
            has no losses of a base model.
        constraints: over the weight columns; each column is its own domain.
        names: the surrogates to compare.
        count: how many mixtures to propose.
        held_out: share of the rows that no fit sees, 0 to 0.5; the proposals use all rows.
        seed: of every random draw.
        tokens: tokens behind each weight column; needed for ``constraints.repetition`` only.

    Raises:
        ValueError: an unknown target or column, caps, constraints that contradict, a repetition
            without tokens, or too few rows.
    """
    generator = np.random.default_rng(seed)
    feasible = Feasible(constraints, {name: name for name in table.names}, tokens)
    objective = Objective(sought, table.targets, feasible.names)
    weights = table.weights[:, [table.names.index(name) for name in feasible.names]]
    seen, held = _cut(len(weights), held_out, generator)
    visible = dict(zip(table.targets, table.losses[seen].T, strict=True))
    validated, notes = cross_validate(weights[seen], visible, names, seed=seed)
    by_target = dict(zip(table.targets, objective.shares.tolist(), strict=True))
    chosen = choose(validated, by_target)
    validated["chosen"] = validated["surrogate"] == chosen
    validated["share"] = validated["target"].map(by_target)
    models = fit(chosen, weights[seen], visible)
    predicted = np.stack([model.predict(weights[held]) for model in models.values()], axis=1)
    made = propose(weights, table.losses, None, objective, feasible, count, generator, [chosen])
    notes = [*table.notes, *notes, *made.notes, *_order(table, held, predicted, chosen)]
    checked = _held_out(table, held, predicted)
    return TableSearch(validated, checked, _proposals(made, feasible, table.targets), notes)


def _cut(rows: int, held_out: float, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """Numbers of the rows to fit to, and of those held out, which leave ``FEWEST_ROWS`` at least."""
    if not 0 <= held_out <= 0.5:
        raise ValueError(f"the share of held-out rows is {held_out}: give 0 to 0.5")
    order = generator.permutation(rows)
    held = min(int(held_out * rows), rows - FEWEST_ROWS)
    return np.sort(order[held:]), np.sort(order[:held])


def _order(table: LossTable, held: Ints, predicted: Floats, chosen: str) -> list[str]:
    """A sentence per target on how well the held-out rows are ordered."""
    if len(held) < 2:
        return ["Fewer than 2 rows are held out: the cross-validation alone judges the surrogates."]
    found = [errors(table.losses[held, n], predicted[:, n]) for n in range(len(table.targets))]
    return [
        f"On {len(held)} held-out rows the {chosen} surrogate orders {target!r} with a Spearman "
        f"correlation of {number(2)(spearman)} (Pearson {number(2)(pearson)}, root mean squared error "
        f"{error:.3g})."
        for target, (spearman, pearson, error) in zip(table.targets, found, strict=True)
    ]


def _held_out(table: LossTable, held: Ints, predicted: Floats) -> "pd.DataFrame":
    import pandas as pd

    rows = [
        (table.rows[row], target, table.losses[row, n], predicted[place, n])
        for n, target in enumerate(table.targets)
        for place, row in enumerate(held.tolist())
    ]
    return pd.DataFrame(rows, columns=["row", "target", "loss", "predicted"])


def _proposals(made: Proposals, feasible: Feasible, targets: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for one in made.proposals:
        shares = {name: float(share) for name, share in one.mixture.weights.items()}
        weights = {f"weight of {name}": shares.get(name, 0.0) for name in feasible.names}
        losses = {
            f"predicted {target}": loss for target, loss in zip(targets, one.losses, strict=True)
        }
        rows.append({"mixture": one.mixture.label, "predicted": one.predicted, **weights, **losses})
    columns = [
        "mixture",
        "predicted",
        *(f"weight of {name}" for name in feasible.names),
        *(f"predicted {target}" for target in targets),
    ]
    return pd.DataFrame(rows, columns=columns)
