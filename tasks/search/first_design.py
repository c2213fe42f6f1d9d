"""The first design of a search: which mixtures to evaluate before any loss is known.

Every unit must have a large share once, and be missing once, or no surrogate can learn its effect.
Then each further mixture is the one farthest from all before it.
"""

import numpy as np

from tasks.arrays import Ints
from tasks.mixtures.constraints import Feasible
from tasks.mixtures.draws import distinct, sample
from tasks.mixtures.mixture import Mixture

_POOL = 500  # random mixtures from which the farthest are taken
_BY_SIZE = 300  # of them, at most this many of one number of members where all are listed


def first_design(feasible: Feasible, count: int, generator: np.random.Generator) -> list[Mixture]:
    """A first design of up to ``count`` distinct allowed mixtures.

    First come the allowed mixtures nearest to all units alike, to each unit alone, and to all units but
    one, so that every unit is covered where ``count`` allows it. Then come random ones, each the
    farthest from those before; in even mode each has the number of members that is rarest so far.
    """
    size = len(feasible.names)
    corners = [np.ones((1, size)), np.eye(size)]
    if 1 < size <= feasible.rules.most + 1:
        corners.append(1 - np.eye(size))
    chosen = distinct(
        np.array([feasible.round(corner) for corner in np.vstack(corners)[: 2 * count]])
    )[:count]
    if len(chosen) < count:
        pool = _pool(feasible, count, generator)
        spread = _farthest(feasible, chosen, pool, count)
        chosen = np.vstack([chosen, spread])
    return [feasible.mixture(parts) for parts in chosen]


def _pool(feasible: Feasible, count: int, generator: np.random.Generator) -> Ints:
    listed = feasible.listed
    if listed is None or count >= len(listed):
        return sample(feasible, generator, max(_POOL, 2 * count)) if listed is None else listed
    mixed = generator.permutation(listed)
    sizes = mixed.sum(axis=1)
    by_size = [mixed[sizes == size][: max(_BY_SIZE, count)] for size in np.unique(sizes)]
    return np.vstack(by_size)


def _farthest(feasible: Feasible, chosen: Ints, pool: Ints, count: int) -> Ints:
    """Rows of ``pool`` to make ``chosen`` up to ``count``, each the farthest from all before it."""
    weights, taken = feasible.weights(pool), feasible.weights(chosen)
    distance = np.min([np.abs(weights - row).sum(axis=1) for row in taken], axis=0)
    members, seen = (pool > 0).sum(axis=1), np.bincount((chosen > 0).sum(axis=1), minlength=99)
    added: list[int] = []
    while len(chosen) + len(added) < count and (distance > 0).any():
        eligible = distance > 0
        if feasible.config.even:
            rarest = min(np.unique(members[eligible]).tolist(), key=seen.__getitem__)
            eligible &= members == rarest
        best = int(np.argmax(np.where(eligible, distance, -1.0)))
        added.append(best)
        seen[members[best]] += 1
        distance = np.minimum(distance, np.abs(weights - weights[best]).sum(axis=1))
        distance[best] = 0
    return pool[added]
