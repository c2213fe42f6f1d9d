"""Read and check a table of weights and losses, whoever made it.

A table of other people's runs may have columns without explanation, rows that failed, and the same
mixture twice. Each fault is refused by name and row number, or repaired with a note. The checked
table goes through the same surrogates, constraints and proposals as a pool of ours.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from storage.backends.urls import file_system
from tasks.arrays import Floats
from tasks.mixtures.units import unknown_name_error
from tasks.readable import listed
from tasks.search.proposals import FEWEST_ROWS

if TYPE_CHECKING:
    import pandas as pd


MOST_BYTES = 500_000_000
"""Of a file with a table: it is held in memory several times."""
MOST_WEIGHTS = 2000
"""Columns of weights: constraints and proposals look at all pairs of them."""


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
    constant: dict[str, float]
    """Weight columns that were left out, as they have one value in all rows, and that value."""


def loss_table(
    frame: "pd.DataFrame", path: str, targets: Sequence[str], weights: Sequence[str] | None = None
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
    numbers = _finite(numbers, notes)
    _refuse_constant(numbers, targets, taken)
    whole, numbers = numbers, _scaled(numbers, names, taken)
    if len(whole):
        notes.insert(0, _sums_sentence(whole, names, targets, taken, bool(weights)))
    numbers = _averaged(numbers, names, notes)
    if len(numbers) < FEWEST_ROWS:
        raise ValueError(
            f"{taken} has {len(numbers)} usable rows with different weights: {FEWEST_ROWS} are needed "
            f"at least. {' '.join(notes)}".rstrip()
        )
    constant = _constant(numbers, names, notes)
    names = [name for name in names if name not in constant]
    kept = numbers[names].to_numpy()
    return LossTable(
        tuple(names),
        kept / kept.sum(axis=1, keepdims=True),
        tuple(targets),
        numbers[[*targets]].to_numpy(),
        tuple(int(row) + 1 for row in numbers.index),
        notes,
        constant,
    )


def weights_of(frame: "pd.DataFrame", path: str, table: LossTable) -> Floats:
    """The weights in another table, in the columns of ``table``; shape (n, p), rows sum to 1.

    Args:
        frame: a column for each of ``table.names``; other columns are not read.
        path: where it was read, for messages.
        table: of ``loss_table``.

    Raises:
        ValueError: there are no rows, a column is missing or not numeric, a weight is negative or not
            finite, a row has only zeros, or a weight that never changes in ``table`` has another value.
    """
    if not len(frame):
        raise ValueError(f"{path} has no rows: give one row for each mixture to predict")
    known = [name for name in table.constant if name in frame.columns]
    names = _numeric_columns(frame, [*table.names, *known], path, path)
    numbers = frame[names].astype("float64").reset_index(drop=True)
    if not (finite := np.isfinite(numbers.to_numpy())).all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"row {row + 1} of {path} has no finite weight in column {names[column]!r}: give a number "
            "there, 0 for none"
        )
    scaled = _scaled(numbers, names, path)
    for name in known:
        value = table.constant[name]
        if (other := (scaled[name] - value).abs() > _SAME).any():
            row = int(other.to_numpy().argmax())
            raise ValueError(
                f"row {row + 1} of {path} gives {scaled[name][row]:.4g} to {name!r}, which has "
                f"{value:.4g} in every row of the table of losses: what another weight does cannot be told"
            )
    return _scaled(scaled, list(table.names), path)[[*table.names]].to_numpy()


def read_frame(path: str) -> "pd.DataFrame":
    """A CSV (``.csv``) or Parquet (``.parquet``, ``.pq``) file at a plain path or a fsspec URL.

    Raises:
        ValueError: it cannot be read.
    """
    import pandas as pd

    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in {".csv", ".parquet", ".pq"}:
        raise ValueError(f"{path} is no table that can be read: give a .csv, .parquet or .pq file")
    files, inner_path = file_system(path)
    try:
        if (size := files.size(inner_path) or 0) > MOST_BYTES:
            raise ValueError(
                f"it has {size:,} bytes, and {MOST_BYTES:,} are read at most: keep the columns of weights "
                "and targets alone"
            )
        with files.open(inner_path, "rb") as opened:
            return pd.read_csv(opened) if suffix == ".csv" else pd.read_parquet(opened)
    # What pandas and pyarrow raise for a file that they cannot parse is a ValueError.
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def _weight_columns(
    frame: "pd.DataFrame", targets: Sequence[str], weights: Sequence[str] | None, path: str
) -> list[str]:
    """The weight columns; all columns that are used are there, numeric and named once."""
    numeric = [str(name) for name in frame.columns if _is_numeric(frame, name)]
    names = list(weights) if weights else [name for name in numeric if name not in targets]
    if len(names) > MOST_WEIGHTS:
        raise ValueError(
            f"{path} has {len(names):,} columns of weights, and {MOST_WEIGHTS:,} can be searched at most: "
            "name fewer with --weights"
        )
    taken = (
        f"{path} (weights: {', '.join(names) or 'none'}; targets: {', '.join(targets) or 'none'})"
    )
    _numeric_columns(frame, [*names, *targets], taken, path)
    if not names or not targets or len({*names, *targets}) < len(names) + len(targets):
        raise ValueError(
            f"{taken}: name at least one column of weights and one target, each column once"
        )
    return names


def _numeric_columns(frame: "pd.DataFrame", names: list[str], taken: str, path: str) -> list[str]:
    """``names``, all of which are columns of numbers."""
    for name in names:
        if name not in frame.columns:
            raise unknown_name_error(
                name, f"the choice of columns of {path}", map(str, frame.columns)
            )
        if not _is_numeric(frame, name):
            raise ValueError(
                f"the column {name!r} of {taken} holds {frame[name].dtype}, no numbers: clean it, or "
                "name other columns"
            )
    return names


def _is_numeric(frame: "pd.DataFrame", name: str) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return bool(is_numeric_dtype(frame[name]) and not is_bool_dtype(frame[name]))


SPREAD = 0.01
"""By how much, of the largest, sums of rows may differ where nobody said which columns are weights."""
_SAME = 1e-6  # difference of two weights that are the same but for the digits of a file


def _finite(numbers: "pd.DataFrame", notes: list[str]) -> "pd.DataFrame":
    """The rows in which every number is finite."""
    kept = np.isfinite(numbers.to_numpy()).all(axis=1)
    if not kept.all():
        row = int(np.argmin(kept))
        column = numbers.columns[int(np.argmin(np.isfinite(numbers.iloc[row].to_numpy())))]
        notes.append(
            f"{int((~kept).sum())} of {len(kept)} rows were left out, since a weight or a target in "
            f"them is not finite: the first is row {row + 1}, in column {column!r}."
        )
    usable: pd.DataFrame = numbers[kept]
    return usable


def _refuse_constant(numbers: "pd.DataFrame", targets: Sequence[str], taken: str) -> None:
    for target in targets:
        if len(numbers) and numbers[target].nunique() == 1:
            raise ValueError(
                f"the target {target!r} of {taken} is {numbers[target].iloc[0]:g} in every row: there "
                "is nothing to learn from it; leave it out"
            )


def _scaled(numbers: "pd.DataFrame", names: list[str], taken: str) -> "pd.DataFrame":
    """Weights that sum to 1 in each row; messages count rows from 1."""
    weights = numbers[names]
    for row in weights.index[(weights < 0).any(axis=1)].tolist():
        column, least = weights.loc[row].idxmin(), weights.loc[row].min()
        raise ValueError(
            f"row {row + 1} of {taken} has the weight {least:g} in column {column!r}: weights are 0 "
            "or more"
        )
    sums = weights.sum(axis=1)
    for row in weights.index[sums == 0].tolist():
        raise ValueError(f"row {row + 1} of {taken} has only weights of 0: give one above it")
    return numbers.assign(**{name: weights[name] / sums for name in names})


def _sums_sentence(
    numbers: "pd.DataFrame", names: Sequence[str], targets: Sequence[str], taken: str, named: bool
) -> str:
    """What was taken for weights and losses; ``named``: somebody said which columns are weights."""
    sums = numbers[[*names]].sum(axis=1)
    low, high = sums.min(), sums.max()
    if not named and high - low > SPREAD * high:
        raise ValueError(
            f"the weights in the rows of {taken} sum to {low:.6g} in one and {high:.6g} in another: "
            "a column among them may be no weight; name the columns of weights with --weights"
        )
    return (
        f"Weights: {listed(names)}; targets: {listed(targets)}; row sums from {low:.6g} to "
        f"{high:.6g}, each row scaled to 1."
    )


def _averaged(numbers: "pd.DataFrame", names: list[str], notes: list[str]) -> "pd.DataFrame":
    """One row per mixture: equal weights (to 9 digits) have the mean of their losses."""
    rounded = [numbers[name].round(9) for name in names]
    averaged = numbers.groupby(rounded, sort=False).transform("mean")
    first = ~numbers[names].round(9).duplicated()
    if not first.all():
        notes.append(
            f"{int((~first).sum())} rows repeat the weights of another row (the first is row "
            f"{int(first.index[~first][0]) + 1}): their losses were averaged."
        )
    return averaged[first]


def _constant(numbers: "pd.DataFrame", names: list[str], notes: list[str]) -> dict[str, float]:
    """The weight columns whose values are the same in all rows."""
    found = {
        name: float(numbers[name].iloc[0])
        for name in names
        if np.ptp(numbers[name].to_numpy()) < 1e-9
    }
    if found:
        notes.append(
            f"The weight is the same in every row in column {', '.join(map(repr, found))}: what it "
            "does cannot be told. It was left out, and the other weights are shares of the rest."
        )
    return found
