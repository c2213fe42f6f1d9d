"""Round weights to the nearest whole parts that keep limits on their sums.

Weights from an optimiser are multiples of nothing, and rounding them one by one breaks the limits.
So an integer program (HiGHS, through scipy) finds the nearest allowed point. The solver works in
floats: the caller must check its integers exactly.
"""

from typing import Any, NamedTuple

import numpy as np

from tasks.arrays import Floats, Ints

_IMPOSSIBLE = 2  # scipy's status


class Sums(NamedTuple):
    """``low`` <= ``matrix`` @ parts <= ``high``, in whole parts."""

    matrix: Ints
    """Which units each sum holds: 0 or 1, shape (r, p)."""
    low: Ints
    """Shape (r,)."""
    high: Ints
    """Shape (r,)."""


def largest_remainders(targets: Floats) -> Ints:
    """Each row of ``targets`` (n, p), whose sums are whole, in integers of the same sum.

    No other integers of that sum are nearer in summed absolute distance. Ties go to earlier columns.
    """
    parts = np.floor(targets).astype(np.int64)
    lacking = np.rint(targets.sum(axis=1)).astype(np.int64) - parts.sum(axis=1)
    order = np.argsort(parts - targets, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    # A sum of floats may lie a hair above a whole number that the floors already reach.
    rounded: Ints = (
        parts + (ranks < lacking[:, None]) - (ranks >= parts.shape[1] + lacking[:, None])
    )
    return rounded


def nearest(target: Floats, whole: int, sums: Sums, fewest: int, most: int) -> Ints | None:
    """Integers >= 0 that sum to ``whole``, keep ``sums`` and lie nearest to ``target``; else None.

    Args:
        target: shape (p,).
        whole: the sum.
        sums: limits.
        fewest: the least number of integers above zero.
        most: the largest number of them.

    Returns:
        Shape (p,), least in summed absolute distance; None where nothing keeps all limits.
    """
    size, floor = len(target), np.floor(target)
    ones, zeros = np.eye(size), np.zeros((size, size))
    # An integer is the target's floor, less some, plus one, plus some more. Each part less or more
    # adds 1 to the distance, but the one that passes the target: it adds 1 - 2 * remainder. All
    # are integers, which the solver does better with than with distances in between.
    change = np.hstack([-ones, ones, ones, zeros])
    member = np.hstack([zeros, zeros, zeros, ones])
    cost = np.concatenate([np.ones(size), 1 - 2 * (target - floor), np.ones(size), np.zeros(size)])
    largest = np.concatenate([floor, np.ones(size), np.full(size, whole), np.ones(size)])
    held = sums.matrix @ floor
    limits: list[tuple[Any, ...]] = [
        (change.sum(axis=0)[None], whole - floor.sum(), whole - floor.sum()),
        (sums.matrix @ change, sums.low - held, sums.high - held),
    ]
    if fewest > 1 or most < size:
        limits += [
            (change - whole * member, -np.inf, -floor),
            (change - member, -floor, np.inf),
            (member.sum(axis=0)[None], fewest, most),
        ]
    changes = _solved(cost, limits, largest)
    return None if changes is None else (floor + change @ changes).astype(np.int64)


def cheapest_subset(cost: Floats, size: int, sums: Sums) -> Ints | None:
    """``size`` ones among zeros that keep ``sums``, with the least summed ``cost`` (p,); else None."""
    ones = np.ones(len(cost))
    return _solved(cost, [(ones[None], size, size), tuple(sums)], ones)


def _solved(cost: Floats, limits: list[Any], largest: Floats) -> Ints | None:
    """The cheapest integers from 0 to ``largest``; None where there are none."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    # HiGHS now and then fails in its presolve, and finds a solution without it.
    for presolve in (True, False):
        solution = milp(
            cost,
            integrality=np.ones(len(cost)),
            bounds=Bounds(0, largest),
            constraints=[LinearConstraint(*limit) for limit in limits if len(limit[0])],
            # Without a gap: the least cost is asked for, not one near it.
            options={"mip_rel_gap": 0, "presolve": presolve},
        )
        if solution.status == _IMPOSSIBLE:
            return None
        if solution.x is not None:
            parts: Ints = np.rint(solution.x).astype(np.int64)
            return parts
    raise RuntimeError(f"the solver of integer programs failed: {solution.message}")
