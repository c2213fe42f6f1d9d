"""Faults of the rows of a table of losses: each is repaired with a note, or refused by number.

Rows keep their number in the file as index (counted from 0) through all of it, so that a message can
name the row that its reader will find there.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks.readable import listed

if TYPE_CHECKING:
    import pandas as pd

SPREAD = 0.01
"""By how much, of the largest, sums of rows may differ where nobody said which columns are weights."""


def finite(numbers: "pd.DataFrame", notes: list[str]) -> "pd.DataFrame":
    """The rows in which every number is finite."""
    kept = np.isfinite(numbers.to_numpy()).all(axis=1)
    if not kept.all():
        row = int(np.argmin(kept))
        column = numbers.columns[int(np.argmin(np.isfinite(numbers.iloc[row].to_numpy())))]
        notes.append(
            f"{int((~kept).sum())} of {len(kept)} rows were left out, since a weight or a target in "
            f"them is not finite: the first is row {row + 1}, in column {column!r}."
        )
    found: pd.DataFrame = numbers[kept]
    return found


def refuse_constant(numbers: "pd.DataFrame", targets: Sequence[str], taken: str) -> None:
    """Raise a ValueError for a target that is the same in every row; ``taken`` says where it is."""
    for target in targets:
        if len(numbers) and numbers[target].nunique() == 1:
            raise ValueError(
                f"the target {target!r} of {taken} is {numbers[target].iloc[0]:g} in every row: there "
                "is nothing to learn from it; leave it out"
            )


def scaled(numbers: "pd.DataFrame", names: list[str], taken: str) -> "pd.DataFrame":
    """Weights that sum to 1 in each row.

    Raises:
        ValueError: a weight below 0, or a row of zeros; the message has its number, counted from 1.
    """
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


def told_sums(
    numbers: "pd.DataFrame", names: Sequence[str], targets: Sequence[str], taken: str, named: bool
) -> str:
    """A sentence on what was taken for weights and losses, and what the weights of rows sum to.

    Args:
        numbers: one row or more, weights as they stand in the file.
        named: whether somebody said which columns are weights.

    Raises:
        ValueError: nobody did, and the sums differ by more than ``SPREAD``.
    """
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


def averaged(numbers: "pd.DataFrame", names: list[str], notes: list[str]) -> "pd.DataFrame":
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


def varying(numbers: "pd.DataFrame", names: list[str], notes: list[str]) -> list[str]:
    """The weight columns that tell rows apart."""
    constant = [name for name in names if np.ptp(numbers[name].to_numpy()) < 1e-9]
    if constant:
        notes.append(
            f"The weight is the same in every row in column {', '.join(map(repr, constant))}: what it "
            "does cannot be told. It was left out, and the other weights are shares of the rest."
        )
    return [name for name in names if name not in constant]
