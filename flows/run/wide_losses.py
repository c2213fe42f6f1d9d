"""A run's losses as a wide table, one row per mixture: the form to which surrogates are fitted."""

import math
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from storage.backends.urls import file_system

if TYPE_CHECKING:
    import pandas as pd

LONG = {"mixture", "evaluation_set", "nll", "num_bytes"}
"""Columns by which a run's ``losses.parquet`` is known."""


def is_of_run(path: str) -> bool:
    """Whether a file is a run's ``losses.parquet``. Raises ValueError where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.endswith((".parquet", ".pq")):
        return False
    try:
        system, location = file_system(path)
        with system.open(location, "rb") as file:
            return {*pq.read_schema(file).names} >= LONG
    except FileNotFoundError:
        return False  # the function that reads it has the better message
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def table_of_run(path: str) -> "tuple[pd.DataFrame, list[str], list[str]]":
    """A run's ``losses.parquet``, with ``members.parquet`` beside it, as one row per mixture.

    Returns:
        The table: a column per partition with its weight (each row sums to 1) and a column per
        evaluation set with bits per byte, indexed by mixture; the names of both kinds of columns.
        Where a set is called like a partition, `` (loss)`` stands behind its name.

    Raises:
        ValueError: there is no ``members.parquet`` beside it, or a mixture lacks a set or members.
    """
    losses = _read(path, [*sorted(LONG)])
    head, slash, _ = path.rpartition("/")
    members = _read(f"{head}{slash}members.parquet", ["mixture", "partition", "weight"])
    losses["bits"] = losses["nll"] / losses["num_bytes"] / math.log(2)
    weights = members.pivot_table(
        index="mixture", columns="partition", values="weight", aggfunc="sum", fill_value=0.0
    )
    bits = losses.pivot_table(index="mixture", columns="evaluation_set", values="bits")
    bits = bits.rename(columns={name: f"{name} (loss)" for name in {*weights} & {*bits}})
    if lacking := sorted({*bits.index} - {*weights.index}):
        raise ValueError(
            f"mixture {lacking[0]!r} of {path} has no row in members.parquet beside it: give both "
            "files of one run"
        )
    table = bits.join(weights)
    if table.isna().to_numpy().any():
        lacking = [str(name) for name in table.index[table.isna().any(axis=1)]]
        raise ValueError(f"mixture {lacking[0]!r} of {path} lacks a loss: give the file of one run")
    return table, sorted(map(str, weights.columns)), sorted(map(str, bits.columns))


def _read(path: str, columns: list[str]) -> "pd.DataFrame":
    import pandas as pd

    try:
        system, location = file_system(path)
        with system.open(location, "rb") as file:
            return pd.read_parquet(file, columns=columns)
    except FileNotFoundError as error:
        name = PurePosixPath(path).name
        raise ValueError(
            f"there is no {name} at {path}: a run's losses.parquet is read together with the "
            "members.parquet that the run leaves beside it"
        ) from error
