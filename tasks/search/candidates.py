"""Candidates of a search: the allowed mixtures from which the next proposals are chosen.

Where mixtures can be listed, all are candidates. Elsewhere they are random mixtures of the whole
region, steps from the best evaluated so far, and the points where descents on the surrogate end.
"""

import warnings

import numpy as np

from tasks.arrays import Bools, Floats, Ints
from tasks.mixtures.constraints import Feasible
from tasks.mixtures.draws import distinct, moves, sample
from tasks.search.forecast import Forecast

_RANDOM = 500
_BEST = 5  # evaluated mixtures from which steps are taken
_STEPS = 300  # from each of them
_CLIMBS = 20  # steps of a climb at most
_STEP = 1e-5  # of a weight, to measure a slope


def candidates(
    feasible: Feasible, best: Floats, forecast: Forecast, generator: np.random.Generator
) -> Ints:
    """Distinct allowed parts (n, p) that were not evaluated.

    Args:
        feasible: what is allowed.
        best: the evaluated weights, the best first, shape (n, p).
        forecast: of the chosen surrogate.
        generator: its state decides every random draw.
    """
    pool = feasible.listed
    if pool is None:
        good = [feasible.round(row) for row in best[:_BEST]]
        pools = [sample(feasible, generator, _RANDOM)]
        pools += [moves(feasible, parts, generator, _STEPS) for parts in good]
        starts = [*good[:2], *pools[0][:3]]
        if forecast.smooth and not feasible.config.even:
            starts += [_slid(feasible, parts, forecast) for parts in starts]
        pools += [_climbed(feasible, parts, forecast, generator) for parts in starts]
        pool = distinct(np.vstack(pools))
    return pool[~_evaluated(feasible, pool, best)]


def _evaluated(feasible: Feasible, pool: Ints, weights: Floats) -> Bools:
    """Which rows of ``pool`` (n, p) are among the evaluated ``weights`` (m, p); shape (n,)."""
    # Two different mixtures of a resolution up to 1,000 are 2e-6 apart or more, equal ones 1e-15.
    evaluated = {row.tobytes() for row in np.rint(weights * 1e8).astype(np.int64)}
    rows = np.rint(feasible.weights(pool) * 1e8).astype(np.int64)
    return np.array([row.tobytes() in evaluated for row in rows], dtype=bool)


def _climbed(
    feasible: Feasible, parts: Ints, forecast: Forecast, generator: np.random.Generator
) -> Ints:
    """Step by step to what is expected to be best; the last place and all places one step from it."""
    for _ in range(_CLIMBS):
        near = np.vstack([parts[None], moves(feasible, parts, generator, _STEPS)])
        weights = feasible.weights(near)
        best = int(forecast.order(weights, forecast.losses(weights))[0])
        if not best:
            break
        parts = near[best]
    return near


def _slid(feasible: Feasible, parts: Ints, forecast: Forecast) -> Ints:
    """The allowed parts nearest to where a descent (SLSQP) on the surrogate ends."""
    from scipy.optimize import Bounds, LinearConstraint, minimize

    def value(weights: Floats) -> float:
        return float(forecast.slope_values(weights[None])[0])

    def slope(weights: Floats) -> Floats:
        near = np.vstack([weights, weights + _STEP * np.eye(len(weights))])
        values = forecast.slope_values(near)
        found: Floats = (values[1:] - values[0]) / _STEP
        return found

    low, high = feasible.bounds
    matrix, least, most = feasible.rows
    limits = [LinearConstraint(np.ones((1, len(low))), 1, 1)]
    if len(matrix):
        limits.append(LinearConstraint(matrix, least, most))
    first = feasible.weights(parts[None])[0]
    bounds, options = Bounds(low, high), {"maxiter": 50}
    with warnings.catch_warnings():
        # It warns of steps just outside of the bounds; its end is brought inside below.
        warnings.simplefilter("ignore")
        found = minimize(
            value,
            first,
            jac=slope,
            method="SLSQP",
            bounds=bounds,
            constraints=limits,
            options=options,
        ).x
    inside = np.clip(np.nan_to_num(found, nan=0.0), 0, 1)
    return feasible.round(inside if inside.sum() > 0 else first)
