"""Draw random allowed mixtures: from the whole region, or one step from a given mixture.

A search uses them where mixtures cannot be listed. Each is checked exactly before it is returned,
so the way of drawing decides how varied they are and nothing else.
"""

import numpy as np

from tasks.arrays import Ints
from tasks.mixtures.constraints import Feasible
from tasks.mixtures.rounding import largest_remainders

# An integer program takes some milliseconds; further mixtures are steps away from those that it gives.
_MOST_SOLVED = 32
_CONCENTRATIONS = (0.1, 0.3, 1.0, 3.0, 10.0)
_STEPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0)  # of the whole; at least one part


def sample(feasible: Feasible, generator: np.random.Generator, count: int) -> Ints:
    """Up to ``count`` distinct allowed parts from the whole region; shape (at most count, p).

    There are fewer rows where fewer mixtures are allowed, or where the search for more fails. The same
    state of the generator gives the same rows.
    """
    if (listed := feasible.listed) is not None:
        return generator.permutation(listed)[:count]
    even = feasible.config.even
    first = _subsets(feasible, generator, count) if even else _points(feasible, generator, count)
    return _grown(feasible, first, generator, count)


def moves(
    feasible: Feasible, parts: Ints, generator: np.random.Generator, most: int = 2000
) -> Ints:
    """Distinct allowed parts one step from ``parts`` (p,), drawn at random; shape (at most most, p).

    A step shifts weight from one unit to another; in even mode it adds, drops or swaps a member.
    """
    if feasible.config.even:
        moved = _swaps(parts, generator, most)
    else:
        moved = _shifts(parts, feasible.config.resolution, generator, most)
    moved = distinct(moved[feasible.holds(moved)])
    others: Ints = moved[(moved != parts).any(axis=1)]
    return others


def distinct(parts: Ints) -> Ints:
    """The rows of ``parts`` without repetition, in the order of their first places."""
    _, first = np.unique(parts, axis=0, return_index=True)
    return parts[np.sort(first)]


def _subsets(feasible: Feasible, generator: np.random.Generator, count: int) -> Ints:
    sizes = generator.choice(feasible.sizes, size=min(count, _MOST_SOLVED))
    costs = generator.random((len(sizes), len(feasible.names)))
    subsets = [feasible.subset(cost, int(size)) for cost, size in zip(costs, sizes, strict=True)]
    return distinct(np.array(subsets))


def _points(feasible: Feasible, generator: np.random.Generator, count: int) -> Ints:
    """Dirichlet weights of several concentrations over some of the units, brought inside."""
    shape = (max(2 * count, _MOST_SOLVED), len(feasible.names))
    concentrations = generator.choice(_CONCENTRATIONS, size=(shape[0], 1))
    weights = generator.standard_gamma(concentrations, size=shape) + 1e-12
    members = generator.integers(feasible.rules.fewest, feasible.rules.most + 1, size=(shape[0], 1))
    shuffled = np.argsort(generator.random(shape), axis=1)
    weights[shuffled >= members] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    parts = largest_remainders(weights * feasible.config.resolution)
    outside = np.flatnonzero(~feasible.holds(parts))
    lacking = max(0, min(count, _MOST_SOLVED) - (len(parts) - len(outside)))
    for row in outside[:lacking]:
        parts[row] = feasible.round(weights[row])
    return distinct(parts[feasible.holds(parts)])[:count]


def _grown(feasible: Feasible, parts: Ints, generator: np.random.Generator, count: int) -> Ints:
    """``parts`` (n, p) and, until there are ``count`` rows, others some random steps away from them."""
    for _ in range(4 * count):
        if len(parts) >= count:
            break
        origin = parts[generator.integers(len(parts))]
        parts = distinct(np.concatenate([parts, moves(feasible, origin, generator, 100)[:20]]))
    return parts[:count]


def _swaps(parts: Ints, generator: np.random.Generator, most: int) -> Ints:
    """A member leaves, or another joins, or both."""
    moved, rows = np.repeat(parts[None], most, axis=0), np.arange(most)
    for old, new in ((1, 0), (0, 1)):
        if len(units := np.flatnonzero(parts == old)):
            chosen = generator.choice(units, size=most)
            changes = generator.random(most) < 0.7
            moved[rows[changes], chosen[changes]] = new
    return moved


def _shifts(parts: Ints, whole: int, generator: np.random.Generator, most: int) -> Ints:
    """Some of the weight of a member goes to another unit."""
    moved, rows = np.repeat(parts[None], most, axis=0), np.arange(most)
    givers = generator.choice(np.flatnonzero(parts), size=most)
    takers = generator.integers(len(parts), size=most)
    shares = generator.choice(_STEPS, size=most) * whole
    amounts = np.clip(np.ceil(shares).astype(np.int64), 1, parts[givers])
    moved[rows, givers] -= amounts
    moved[rows, takers] += amounts
    return moved
