"""Surrogates, cheap functions from weights to a loss: their kinds, their test, and the choice of one.

Which kind fits best depends on the pool, so none is preferred. Each is judged by how well it orders
rows that it was not fitted to, and the simplest of the best is taken. Good ones err in different places,
so their average is a candidate, too. A surrogate says where to look next; it is never the answer, since
every proposal is really evaluated.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.arrays import Floats
from tasks.mixtures.units import unknown_name_error
from tasks.surrogates.average import Average
from tasks.surrogates.boosted_trees import LightGBM
from tasks.surrogates.gaussian_process import GaussianProcess, logs, roots
from tasks.surrogates.linear import Linear, Quadratic
from tasks.surrogates.log_linear import LogLinear
from tasks.surrogates.surrogate import FEWEST_ROWS, Surrogate

if TYPE_CHECKING:
    import pandas as pd


FOLDS = 5
MOST_REPEATS = 5
"""Cuts into folds times targets, or one cut; fewer for many rows. Means of many vary less with the cut."""
_ROWS = 1000  # held-out predictions of a target that are enough
_AVERAGED, _NEAR = 3, 0.03  # how many are averaged at most, and how far behind the best in Spearman
COLUMNS = [
    *("surrogate", "target", "spearman", "pearson", "rmse", "rows"),
    *("chosen", "share"),
]
"""Of the table that ``cross_validate`` makes."""


SURROGATES: dict[str, Callable[[], Surrogate]] = {
    "linear": Linear,
    "log-linear": LogLinear,
    "quadratic": Quadratic,
    "gaussian process": GaussianProcess,
    "trend process": partial(GaussianProcess, trend=True),
    "root process": partial(GaussianProcess, roots),
    "log process": partial(GaussianProcess, logs),
    "lightgbm": LightGBM,
}
"""Factories by name, the simplest first."""
AVERAGE = "average"
"""The mean of the two or three that order unseen rows best."""
NAMES = (*SURROGATES, AVERAGE)
"""What may be asked for."""


class CrossValidation(NamedTuple):
    """The result of a cross-validation."""

    table: "pd.DataFrame"
    """``surrogate``, ``target``, ``spearman``, ``pearson`` and ``rmse`` of the held-out predictions
    (RMSE in the unit of the losses), ``rows``, ``chosen`` (bool), ``share`` (of the target in the choice). A
    surrogate that predicts one value for all rows orders nothing: its correlations are 0."""

    chosen: str
    """Name of the surrogate with the best order."""

    members: tuple[str, ...]
    """Names of what is fitted: the chosen one, or those that the average is of."""

    notes: list[str]
    """Sentences: which surrogates failed and were left out, and why."""


def cross_validate(
    weights: Floats,
    losses: Mapping[str, Floats],
    names: Sequence[str] = NAMES,
    seed: int = 0,
    shares: Mapping[str, float] | None = None,
) -> CrossValidation:
    """How well each surrogate predicts rows that it was not fitted to, and which is best.

    Args:
        weights: shape (n, p), rows summing to 1.
        losses: by target, shape (n,) each.
        names: of ``NAMES``.
        seed: of the cuts into ``FOLDS`` parts, or as many as there are rows; they are the same for all
            surrogates and targets.
        shares: weight of each target in the choice; None: all alike.

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
    shares = shares or dict.fromkeys(losses, 1 / len(losses))
    repeats = min(-(-_ROWS // len(weights)), max(1, MOST_REPEATS // len(losses)))
    unseen: dict[str, list[dict[str, Floats]]] = {}
    means: dict[str, float] = {}
    notes: list[str] = []
    for repeat in range(repeats):
        reach = max(means.values(), default=0) - _NEAR
        for name in [name for name in SURROGATES if name in names]:
            if repeat and means.get(name, -1) < reach:
                continue
            try:
                found = {t: _unseen(name, weights, losses[t], (seed, repeat)) for t in losses}
            except Exception as error:  # whatever a library raises: the other surrogates go on
                notes.append(f"The {name} surrogate was left out, since it failed: {error}")
                unseen.pop(name, None)
                means.pop(name, None)
                continue
            unseen.setdefault(name, []).append(found)
            means[name] = _mean(_judged(unseen[name], losses), shares)
    if not unseen:
        raise ValueError(f"no surrogate could be fitted: {' '.join(notes)}")
    members = _averaged(means)
    if AVERAGE in names and len(members) > 1:
        cuts = zip(*(unseen[name] for name in members), strict=False)
        unseen[AVERAGE] = [
            {t: np.mean([cut[t] for cut in same], axis=0) for t in losses} for same in cuts
        ]
    judged = {name: _judged(found, losses) for name, found in unseen.items()}
    rows = [
        (name, t, *figures, len(weights)) for name in judged for t, figures in judged[name].items()
    ]
    table = pd.DataFrame(rows, columns=COLUMNS[:-2])
    chosen = choose(table, shares)
    table["chosen"], table["share"] = table["surrogate"] == chosen, table["target"].map(shares)
    return CrossValidation(table, chosen, members if chosen == AVERAGE else (chosen,), notes)


def check_surrogates(names: Iterable[str]) -> None:
    """Raise a ValueError for a name that is no surrogate's, or where there is none to fit."""
    names = list(names)
    for name in names:
        if name not in NAMES:
            raise unknown_name_error(name, "the list of surrogates", NAMES)
    if not {*names} - {AVERAGE}:
        raise ValueError(
            f"no surrogate is named that can be fitted: give one or more of {list(SURROGATES)}"
        )


def _unseen(name: str, weights: Floats, losses: Floats, seed: tuple[int, int]) -> Floats:
    """Each row predicted by a fit to the other folds; shape (n,)."""
    order = np.random.default_rng(seed).permutation(len(losses))
    predicted = np.empty(len(losses))
    for held in np.array_split(order, min(FOLDS, len(losses))):
        seen = np.setdiff1d(order, held)
        predicted[held] = SURROGATES[name]().fit(weights[seen], losses[seen]).predict(weights[held])
    if not np.isfinite(predicted).all():
        raise ValueError("it predicts a loss that is not finite")
    return predicted


def _judged(
    unseen: Sequence[Mapping[str, Floats]], losses: Mapping[str, Floats]
) -> dict[str, Floats]:
    """By target: what ``errors`` says of the predictions of each cut, in the mean."""
    return {t: np.mean([errors(losses[t], cut[t]) for cut in unseen], axis=0) for t in losses}


def _mean(judged: Mapping[str, Floats], shares: Mapping[str, float]) -> float:
    return sum(shares.get(target, 0.0) * float(figures[0]) for target, figures in judged.items())


def _averaged(means: Mapping[str, float]) -> tuple[str, ...]:
    """The names of those worth an average, by their mean Spearman."""
    best = max(means.values())
    near = [name for name in means if means[name] >= best - _NEAR]
    return tuple(sorted(near, key=lambda name: -round(means[name], 3))[:_AVERAGED])


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
    simplest_first = [name for name in NAMES if name in means]
    return max(simplest_first, key=lambda name: round(means[name], 3))


def fit(
    members: Sequence[str], weights: Floats, losses: Mapping[str, Floats]
) -> dict[str, Surrogate]:
    """One fitted surrogate per target; ``weights`` and ``losses`` as in ``cross_validate``.

    Args:
        members: a name of ``SURROGATES``, or several, whose predictions are averaged.

    Raises:
        ValueError: an unknown name, or rows that cannot be fitted.
    """
    check_surrogates(members)
    return {target: _new(members).fit(weights, losses[target]) for target in losses}


def _new(members: Sequence[str]) -> Surrogate:
    made = [SURROGATES[name]() for name in members]
    return made[0] if len(made) == 1 else Average(made)
