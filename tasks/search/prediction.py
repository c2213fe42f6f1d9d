"""Predict the losses of given weights from a table of losses, and say where the table does not reach.

Nothing is proposed and nothing evaluated. The surrogate that orders the table's rows best when it has not
seen them predicts; how well it does so, and its doubt about each row, stand beside the figures.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.arrays import Floats
from tasks.readable import listed, number
from tasks.search.loss_table import LossTable, weights_of
from tasks.search.objective import Objective, ObjectiveConfig
from tasks.surrogates.kinds import AVERAGE, NAMES, cross_validate, fit

if TYPE_CHECKING:
    import pandas as pd


BEYOND = 0.01
"""Share of the weight by which a row may lie outside of the table's mixtures before it is told."""


class Prediction(NamedTuple):
    """What a table of losses says about other mixtures."""

    predictions: "pd.DataFrame"
    """One row per given row: ``row``, counted from 1; ``predicted`` (the objective; the macro mean where it
    weighs all targets alike) and its ``standard error``, as if all targets erred alike; ``predicted TARGET``
    and ``standard error TARGET`` for each target; ``outside``: share of the weight that would have to move
    until the row is a mixture of the table's rows, 0 inside; ``extrapolates``: in words, empty inside.
    Standard errors are NaN where the surrogate knows none."""
    surrogates: "pd.DataFrame"
    """The cross-validation, as in ``CrossValidation.table``."""
    notes: list[str]
    """Sentences: those of the table and the fits, who predicts and how well, and which rows lie outside."""


def predict_from_table(
    table: LossTable,
    frame: "pd.DataFrame",
    path: str,
    sought: ObjectiveConfig,
    names: Sequence[str] = NAMES,
    seed: int = 0,
) -> Prediction:
    """Fit to all rows of ``table`` and predict the rows of ``frame``.

    Args:
        table: of ``loss_table``.
        frame: a column for each weight of the table; other columns are not read.
        path: where ``frame`` was read, for messages.
        sought: weight of each target; its pull counts, its caps cannot.
        names: the surrogates to compare.
        seed: of the cuts into folds.

    Raises:
        ValueError: a column is missing or no number, a row has no usable weights, or an unknown target.
    """
    import pandas as pd

    objective = Objective(sought, table.targets, table.names)
    weights = weights_of(frame, path, table)
    losses = dict(zip(table.targets, table.losses.T, strict=True))
    shares = objective.shares_by_set
    validated, chosen, members, notes = cross_validate(table.weights, losses, names, seed, shares)
    models = fit(members, table.weights, losses)
    means = np.stack([model.predict(weights) for model in models.values()], axis=1)
    found = [model.predict_std(weights) for model in models.values()]
    stds = np.stack([np.full(len(weights), np.nan) if s is None else s for s in found], axis=1)
    words, outside = _beyond(weights, table)
    columns: dict[str, object] = {
        "row": np.arange(1, len(weights) + 1),
        "predicted": objective.values(means, weights),
        "standard error": stds @ objective.shares,
    }
    for place, target in enumerate(table.targets):
        columns[f"predicted {target}"] = means[:, place]
        columns[f"standard error {target}"] = stds[:, place]
    predictions = pd.DataFrame({**columns, "outside": outside, "extrapolates": words})
    own = validated[validated["chosen"]]
    spearman = float(np.average(own["spearman"], weights=own["share"]))
    who = (
        f"the mean of the surrogates {listed(members)}"
        if chosen == AVERAGE
        else f"the {chosen} surrogate"
    )
    notes = [
        *table.notes,
        *notes,
        *dict.fromkeys(note for model in models.values() for note in model.notes),
        f"Predicted by {who}: Spearman {number(3)(spearman)}, cross-validated on the table's "
        f"{len(table.weights):,} rows, in the mean over the targets of the objective.",
    ]
    if any(std is None for std in found):
        notes.append(f"There are no standard errors: the {chosen} surrogate knows none.")
    if far := [f"row {place}: {text}" for place, text in enumerate(words, 1) if text]:
        notes.append(
            f"{len(far):,} of {len(words):,} rows lie outside of what the table holds, so that their losses "
            f"are extrapolated ({far[0]})."
        )
    return Prediction(predictions, validated, notes)


def _beyond(weights: Floats, table: LossTable) -> tuple[list[str], Floats]:
    """For each row, where it leaves the table's ranges and mixtures, in words; and by what share."""
    low, high = table.weights.min(axis=0), table.weights.max(axis=0)
    outside = np.array([_outside(row, table.weights) for row in weights])
    words = []
    for row, share in zip(weights, outside.tolist(), strict=True):
        found = [
            f"{name!r} is {row[n]:.3g}, in the table {low[n]:.3g} to {high[n]:.3g}"
            for n, name in enumerate(table.names)
            if not low[n] - BEYOND <= row[n] <= high[n] + BEYOND
        ]
        if share > BEYOND and not found:
            found = [f"{share:.2g} of its weight lies beyond every mixture of the table's rows"]
        words.append("; ".join(found))
    return words, outside


def _outside(row: Floats, rows: Floats) -> float:
    """Half the summed absolute distance from ``row`` to the nearest mixture of ``rows`` (n, p)."""
    from scipy.optimize import linprog

    # Shares of the rows, then the part of each weight that is short, then the part that is too much.
    (count, size), one = rows.shape, np.eye(len(row))
    balance = np.hstack([rows.T, one, -one])
    whole = np.concatenate([np.ones(count), np.zeros(2 * size)])
    found = linprog(1 - whole, A_eq=np.vstack([balance, whole]), b_eq=np.append(row, 1))
    share = float(found.fun) / 2
    return share if share > 1e-6 else 0.0
