"""Propose the next mixtures for a table of losses, and test the surrogates on held-out rows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.arrays import Floats, Ints
from tasks.mixtures.constraints import ConstraintsConfig, Feasible
from tasks.readable import number
from tasks.search.loss_table import LossTable
from tasks.search.objective import Objective, ObjectiveConfig
from tasks.search.proposals import FEWEST_ROWS, Proposal, propose_by
from tasks.surrogates.kinds import NAMES, cross_validate, errors, fit

if TYPE_CHECKING:
    import pandas as pd


class TableSearch(NamedTuple):
    """What a table of losses says about the next mixtures."""

    surrogates: "pd.DataFrame"
    """The cross-validation on the rows that are not held out, as in ``CrossValidation.table``."""
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
    names: Sequence[str] = NAMES,
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
    shares = objective.shares_by_set
    validated, chosen, members, notes = cross_validate(weights[seen], visible, names, seed, shares)
    models = fit(members, weights[seen], visible)
    predicted = np.stack([model.predict(weights[held]) for model in models.values()], axis=1)
    made, said = propose_by(
        members, weights, table.losses, None, objective, feasible, count, generator
    )
    notes = [*table.notes, *notes, *said, *_order(table, held, predicted, chosen)]
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
    errors_by_target = [
        errors(table.losses[held, n], predicted[:, n]) for n in range(len(table.targets))
    ]
    return [
        f"On {len(held)} held-out rows the {chosen} surrogate orders {target!r} with a Spearman "
        f"correlation of {number(2)(spearman)} (Pearson {number(2)(pearson)}, root mean squared error "
        f"{error:.3g})."
        for target, (spearman, pearson, error) in zip(table.targets, errors_by_target, strict=True)
    ]


def _held_out(table: LossTable, held: Ints, predicted: Floats) -> "pd.DataFrame":
    import pandas as pd

    rows = [
        (table.rows[row], target, table.losses[row, n], predicted[place, n])
        for n, target in enumerate(table.targets)
        for place, row in enumerate(held.tolist())
    ]
    return pd.DataFrame(rows, columns=["row", "target", "loss", "predicted"])


def _proposals(
    made: Sequence[Proposal], feasible: Feasible, targets: Sequence[str]
) -> "pd.DataFrame":
    import pandas as pd

    columns = [
        "mixture",
        "predicted",
        *(f"weight of {name}" for name in feasible.names),
        *(f"predicted {target}" for target in targets),
    ]
    rows = [
        (mixture.label, predicted, *feasible.weights_of([mixture])[0], *losses)
        for mixture, _, predicted, losses in made
    ]
    return pd.DataFrame(rows, columns=columns)
