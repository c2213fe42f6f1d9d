"""Surrogates, cheap functions from weights to a loss: their kinds, their test, and the choice of one.

Which kind fits best depends on the pool, so none is preferred. Each is judged by how well it orders
rows that it was not fitted to, and the simplest of the best is taken. A surrogate says where to
look next; it is never the answer, since every proposal is really evaluated.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.arrays import Floats
from tasks.mixtures.units import unknown_name_error
from tasks.surrogates.boosted_trees import LightGBM
from tasks.surrogates.gaussian_process import GaussianProcess
from tasks.surrogates.linear import Linear, Quadratic
from tasks.surrogates.log_linear import LogLinear
from tasks.surrogates.surrogate import FEWEST_ROWS, Surrogate

if TYPE_CHECKING:
    import pandas as pd


FOLDS = 5
COLUMNS = ["surrogate", "target", "spearman", "pearson", "rmse", "rows"]
"""Of the table that ``cross_validate`` makes."""


SURROGATES: dict[str, Callable[[], Surrogate]] = {
    "linear": Linear,
    "log-linear": LogLinear,
    "quadratic": Quadratic,
    "gaussian process": GaussianProcess,
    "lightgbm": LightGBM,
}
"""Factories by name, the simplest first."""


class CrossValidation(NamedTuple):
    """The result of a cross-validation."""

    table: "pd.DataFrame"
    """``surrogate``, ``target``, ``spearman``, ``pearson`` and ``rmse`` of the held-out predictions
    (RMSE in the unit of the losses), ``rows``. A surrogate that predicts one value for all rows
    orders nothing: its correlations are 0."""

    notes: list[str]
    """Sentences: which surrogates failed and were left out, and why."""


def cross_validate(
    weights: Floats,
    losses: Mapping[str, Floats],
    names: Sequence[str] = tuple(SURROGATES),
    seed: int = 0,
) -> CrossValidation:
    """How well each surrogate predicts rows that it was not fitted to.

    Args:
        weights: shape (n, p), rows summing to 1.
        losses: by target, shape (n,) each.
        names: keys of ``SURROGATES``.
        seed: of the cut into ``FOLDS`` parts, or as many as there are rows; it is the same for all
            surrogates and targets.

    Raises:
        ValueError: an unknown name, too few rows, or no surrogate could be fitted.
    """
    import pandas as pd

    check_surrogates(names)
    if len(weights) <= FEWEST_ROWS:
        raise ValueError(
            f"{len(weights)} rows in {FOLDS} folds cannot be cross-validated: {FEWEST_ROWS + 1} rows "
            "and 2 folds are needed at least"
        )
    rows, notes = [], []
    for name in names:
        try:
            predicted = {t: _unseen(name, weights, losses[t], seed) for t in losses}
        except Exception as error:  # whatever a library raises: the other surrogates go on
            notes.append(f"The {name} surrogate was left out, since it failed: {error}")
            continue
        rows += [(name, t, *errors(losses[t], predicted[t]), len(weights)) for t in losses]
    if not rows:
        raise ValueError(f"no surrogate could be fitted: {' '.join(notes)}")
    return CrossValidation(pd.DataFrame(rows, columns=COLUMNS), notes)


def check_surrogates(names: Iterable[str]) -> None:
    """Raise a ValueError for a name that is no surrogate's, or where there is none."""
    names = list(names)
    for name in names:
        if name not in SURROGATES:
            raise unknown_name_error(name, "the list of surrogates", SURROGATES)
    if not names:
        raise ValueError(f"no surrogate is named: give one or more of {list(SURROGATES)}")


def _unseen(name: str, weights: Floats, losses: Floats, seed: int) -> Floats:
    """Each row predicted by a fit to the other folds; shape (n,)."""
    order = np.random.default_rng(seed).permutation(len(losses))
    predicted = np.empty(len(losses))
    for held in np.array_split(order, min(FOLDS, len(losses))):
        seen = np.setdiff1d(order, held)
        predicted[held] = SURROGATES[name]().fit(weights[seen], losses[seen]).predict(weights[held])
    if not np.isfinite(predicted).all():
        raise ValueError("it predicts a loss that is not finite")
    return predicted


def errors(losses: Floats, predicted: Floats) -> tuple[float, float, float]:
    """Spearman and Pearson correlation, root mean squared error; 0 where there is no order."""
    from scipy.stats import pearsonr, spearmanr

    error = float(np.sqrt(np.mean((predicted - losses) ** 2)))
    # Equal but for rounding is equal: there is no order in it.
    if min(np.ptp(predicted), np.ptp(losses)) <= 1e-12 * np.abs(losses).max():
        return 0.0, 0.0, error
    spearman, pearson = spearmanr(losses, predicted), pearsonr(losses, predicted)
    return float(spearman.statistic), float(pearson.statistic), error


def choose(table: "pd.DataFrame", shares: Mapping[str, float] | None = None) -> str:
    """The surrogate with the largest mean cross-validated Spearman; ties (0.001) to the simpler.

    Args:
        table: of ``cross_validate``.
        shares: weight of each target in the mean; None: all alike.
    """
    weights = table["target"].map(shares or dict.fromkeys(table["target"], 1.0)).fillna(0.0)
    means = {
        str(name): float(np.average(rows["spearman"], weights=weights[rows.index]))
        for name, rows in table.groupby("surrogate")
    }
    simplest_first = [name for name in SURROGATES if name in means]
    return max(simplest_first, key=lambda name: round(means[name], 3))


def fit(name: str, weights: Floats, losses: Mapping[str, Floats]) -> dict[str, Surrogate]:
    """One fitted surrogate per target; ``weights`` and ``losses`` as in ``cross_validate``.

    Raises:
        ValueError: an unknown name, or rows that cannot be fitted.
    """
    check_surrogates([name])
    return {target: SURROGATES[name]().fit(weights, losses[target]) for target in losses}
