"""Propose the next mixtures of a search: those with the best forecast, and a few to learn from.

One surrogate per evaluation set is fitted to what was evaluated so far. The kind that orders unseen
rows best makes the proposals. Some go where it is unsure, because a search that only follows its
own forecast stops at its first mistake. No mixture is proposed twice, and each keeps its
constraints exactly.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.arrays import Floats, Ints
from tasks.mixtures.constraints import Feasible
from tasks.mixtures.mixture import Mixture
from tasks.search.candidates import candidates
from tasks.search.forecast import Forecast
from tasks.search.objective import Objective
from tasks.surrogates.kinds import AVERAGE, NAMES, SURROGATES, cross_validate, fit

if TYPE_CHECKING:
    import pandas as pd


FEWEST_ROWS = 5
"""Proposals are made from this many evaluated mixtures on."""

EXPLORED = 0.25
"""Share of a batch that goes where the surrogates are unsure."""

_SPACING = 0.05  # summed absolute distance of the weights of two proposals, while there are others
_DOUBT = 2.0  # standard deviations by which an unsure mixture is taken for better than expected


class Proposal(NamedTuple):
    """A mixture to evaluate next."""

    mixture: Mixture
    proposed_by: str
    """Name of the surrogate."""
    predicted: float
    """Its objective in bits per byte, as the surrogate expects it."""
    losses: Floats
    """Expected bits per byte by set, shape (S,)."""


class Proposals(NamedTuple):
    """What to evaluate next, and the grounds."""

    proposals: list[Proposal]
    """The most promising first; fewer than asked for (none, at the end) where no more are allowed."""
    chosen: str
    """Name of the surrogate that made them."""
    surrogates: "pd.DataFrame"
    """The cross-validation of this round, as in ``CrossValidation.table``: targets are sets, ``rmse`` in
    bits per byte."""
    notes: list[str]
    """Sentences for the reader."""


def propose(
    weights: Floats,
    losses: Floats,
    base: Floats | None,
    objective: Objective,
    feasible: Feasible,
    count: int,
    generator: np.random.Generator,
    names: Sequence[str] = NAMES,
) -> Proposals:
    """The next ``count`` mixtures to evaluate.

    Args:
        weights: of n evaluated mixtures of the units, shape (n, p); rows sum to 1, and are distinct.
            Allowed or not: all of them teach.
        losses: their bits per byte, shape (n, S), columns as in ``objective.sets``.
        base: the base model's bits per byte, shape (S,); None only where there are no caps.
        objective: over the sets and over ``feasible.names``.
        feasible: what may be proposed.
        count: how many to propose at most.
        generator: its state decides every random draw.
        names: the surrogates to compare.

    Raises:
        ValueError: fewer than ``FEWEST_ROWS`` evaluated mixtures, shapes that do not fit, losses
            that are not finite, or no surrogate could be fitted.
    """
    _refuse_unusable(weights, losses, objective)
    by_set = dict(zip(objective.sets, losses.T, strict=True))
    seed = int(generator.integers(2**31))
    table, chosen, members, notes = cross_validate(
        weights, by_set, names, seed, objective.shares_by_set
    )
    others = [name for name in SURROGATES if name in {*table["surrogate"]} - {*members}]
    made, said = propose_by(
        members, weights, losses, base, objective, feasible, count, generator, others
    )
    return Proposals(made, chosen, table, [*notes, *said])


def propose_by(
    members: Sequence[str],
    weights: Floats,
    losses: Floats,
    base: Floats | None,
    objective: Objective,
    feasible: Feasible,
    count: int,
    generator: np.random.Generator,
    others: Sequence[str] = (),
) -> tuple[list[Proposal], list[str]]:
    """The next mixtures as in ``propose``, by surrogates that were chosen, and notes of their fits.

    Args:
        members: the chosen one, or those to average.
        weights, losses, base, objective, feasible, count, generator: as in ``propose``.
        others: with these it is compared where it does not know its own doubt.
    """
    by_set = dict(zip(objective.sets, losses.T, strict=True))
    fitted = fit(members, weights, by_set)
    notes = [*dict.fromkeys(note for model in fitted.values() for note in model.notes)]
    forecast = Forecast(fitted, objective, base)
    pool = candidates(feasible, weights[forecast.order(weights, losses)], forecast, generator)
    rivals = []
    if forecast.doubt(weights[:1]) is None:
        rivals = [Forecast(fit([name], weights, by_set), objective, base) for name in others]
    name = members[0] if len(members) == 1 else AVERAGE
    return _picked(feasible, pool, name, forecast, rivals, count), notes


def _refuse_unusable(weights: Floats, losses: Floats, objective: Objective) -> None:
    if losses.shape != (len(weights), len(objective.sets)):
        raise ValueError(
            f"losses of shape {losses.shape} do not fit {len(weights)} mixtures and "
            f"{len(objective.sets)} evaluation sets: give one row per mixture, one column per set"
        )
    if len(weights) < FEWEST_ROWS:
        raise ValueError(
            f"{len(weights)} evaluated mixtures are too few to propose from: evaluate {FEWEST_ROWS} "
            "at least"
        )
    if not (finite := np.isfinite(losses)).all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"the loss of evaluated mixture {row + 1} on {objective.sets[column]!r} is "
            f"{losses[row, column]}: leave that mixture out"
        )


def _picked(
    feasible: Feasible,
    pool: Ints,
    made_by: str,
    forecast: Forecast,
    rivals: Sequence[Forecast],
    count: int,
) -> list[Proposal]:
    """Of the ``pool``, the best by the ``forecast``, then those in most doubt."""
    if not len(pool) or count < 1:
        return []
    weights = feasible.weights(pool)
    losses = forecast.losses(weights)
    values, order = forecast.values(weights, losses), forecast.order(weights, losses)
    explored = int(EXPLORED * count)
    first = _apart(weights, order, [], count - explored)
    rest = np.setdiff1d(order, first)
    doubt = forecast.doubt(weights[rest])
    if doubt is not None:
        by_doubt = rest[forecast.order(weights[rest], losses[rest], _DOUBT * doubt)]
    else:
        by_doubt = _disputed(weights, order[np.isin(order, rest)], [forecast, *rivals])
    picked = _apart(weights, by_doubt, first, explored)
    return [
        Proposal(feasible.mixture(pool[row]), made_by, float(values[row]), losses[row])
        for row in [*first, *picked]
    ]


def _disputed(weights: Floats, order: Ints, forecasts: Sequence[Forecast]) -> Ints:
    """The better quarter of the rows in ``order``, those first about which surrogates differ most."""
    better = order[: max(1, len(order) // 4)]
    values = [
        forecast.values(weights[better], forecast.losses(weights[better])) for forecast in forecasts
    ]
    return better[np.argsort(-np.std(values, axis=0), kind="stable")]


def _apart(weights: Floats, order: Ints, taken: list[int], count: int) -> list[int]:
    """The first ``count`` rows in ``order`` with some distance to one another and to those ``taken``.

    Where too few keep the distance, the first of the others follow.
    """
    chosen: list[int] = []
    for spacing in (_SPACING, 0.0):
        for row in order.tolist():
            if len(chosen) == count:
                return chosen
            near = weights[[*taken, *chosen]]
            if row not in chosen and (np.abs(near - weights[row]).sum(axis=1) > spacing).all():
                chosen.append(row)
    return chosen
