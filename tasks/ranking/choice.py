"""Choose a mixture where one number does not decide: the Pareto front, and the best of each size.

Two sets may want different mixtures: the Pareto front holds those that no other mixture beats on
both. The best mixture may be larger than one can afford: so there is the best of each size, with
the mixtures that are tied with it. Both are read off the losses of the ranking; nothing is trained
or evaluated for them.
"""

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tasks.arrays import Bools, Floats
from tasks.evaluation.losses import Losses
from tasks.ranking.noise import paired_variances
from tasks.ranking.rank import MACRO_MEAN, Z, partition_counts

if TYPE_CHECKING:
    import pandas as pd


CLOSEST = 50
"""Mixtures of each size, at most, that are compared with the best of that size."""


# Two sets that want different mixtures ------------------------------------------------------------


def plane(
    losses: Losses, members: "pd.DataFrame", first_set: str, second_set: str
) -> "pd.DataFrame":
    """Every mixture by its losses on two sets, and whether it is on the front.

    Returns:
        In the order of ``losses``: ``mixture``; ``k``, its number of partitions; ``first`` and
        ``second``, bits per byte on the two sets; ``front`` (bool).

    Raises:
        ValueError: there is no such set, both are the same, or a mixture has no members.
    """
    import pandas as pd

    first, second = (_bits(losses, set_number(losses, name)) for name in (first_set, second_set))
    if first_set == second_set:
        raise ValueError(f"a Pareto front is for two different sets, and both are {first_set!r}")
    labels = pd.Series(losses.mixtures, dtype=object)
    k = partition_counts(losses, members)
    columns = {"mixture": labels, "k": k, "first": first, "second": second}
    return pd.DataFrame({**columns, "front": _front(first, second)})


def pareto(
    losses: Losses, members: "pd.DataFrame", first_set: str, second_set: str
) -> "pd.DataFrame":
    """The mixtures that no other beats: none is better on one set and as good on the other.

    Returns:
        ``mixture``, ``k``, ``first`` and ``second`` (bits per byte on the two sets), from the best for
        the first set to the best for the second. Errors as in ``plane``.
    """
    every = plane(losses, members, first_set, second_set)
    front = every[every["front"]].drop(columns="front")
    return front.sort_values(["first", "second", "mixture"], ignore_index=True)


def _front(first: Floats, second: Floats) -> Bools:
    order = np.lexsort((second, first))
    # Of those that are as good on the first set only the best on the second can be on the front.
    x, y = first[order], second[order]
    starts = np.searchsorted(x, x, side="left")
    before = np.concatenate([[np.inf], np.minimum.accumulate(y)])[starts]
    is_front = np.empty(len(order), dtype=bool)
    is_front[order] = (y < before) & (y == y[starts])
    return is_front


def most_conflicting(losses: Losses) -> tuple[str, str] | None:
    """The two sets whose losses order the mixtures least alike, by Spearman; None with one set.

    Sets between which there is no correlation, for want of mixtures that differ, come last.
    """
    import pandas as pd

    bits = {name: _bits(losses, set_number(losses, name)) for name in sorted(losses.sets)}
    alike = pd.DataFrame(bits).rank().corr().fillna(math.inf).to_numpy()
    pairs = itertools.combinations(enumerate(bits), 2)
    least = min(((alike[i, j], first, second) for (i, first), (j, second) in pairs), default=None)
    return least and least[1:]


def set_number(losses: Losses, name: str) -> int:
    """The number of a set. Raises ValueError where there is no such set."""
    if name not in losses.sets:
        names = ", ".join(map(repr, sorted(losses.sets)))
        raise ValueError(f"there is no evaluation set {name!r}; there are {names}")
    return losses.sets.index(name)


def _bits(losses: Losses, number: int) -> Floats:
    return losses.nll[:, number] / (losses.counts[number].num_bytes * math.log(2))


# The best of each size ----------------------------------------------------------------------------


def best_of_sizes(losses: Losses, rankings: "Mapping[str, pd.DataFrame]") -> "pd.DataFrame":
    """The best mixture for each objective and number of partitions, and how many are tied with it.

    Args:
        rankings: ``tasks.ranking.rank.rank`` tables by objective.

    Returns:
        By objective in the order of ``rankings`` and then by ``k``: the row of the rank table;
        ``tied_at_size``, how many of the next ``CLOSEST`` mixtures of the same size are tied with it;
        ``of_size``, how many mixtures of that size there are.
    """
    import pandas as pd

    number = {mixture: place for place, mixture in enumerate(losses.mixtures)}
    tables = [_best(losses, number, ranking) for ranking in rankings.values()]
    return pd.concat(tables, ignore_index=True)


def _best(losses: Losses, number: Mapping[str, int], ranking: "pd.DataFrame") -> "pd.DataFrame":
    ranking = ranking.sort_values(["k", "loss", "mixture"], kind="stable")
    by_size = ranking.groupby("k")
    near = by_size.head(CLOSEST + 1)
    numbers = np.array([number[mixture] for mixture in near["mixture"]], dtype=np.int64)
    best = near.assign(place=numbers).groupby("k")["place"].transform("first")
    sets = set_numbers(losses, str(ranking["objective"].iloc[0]))
    behind = near["loss"] - near.groupby("k")["loss"].transform("first")
    margin = Z * np.sqrt(paired_variances(losses, sets, numbers, best.to_numpy(dtype=np.int64)))
    tied = (behind == 0) | (behind <= margin)
    count = tied.groupby(near["k"]).sum() - 1
    first = by_size.head(1)
    sizes = {"tied_at_size": first["k"].map(count), "of_size": first["k"].map(by_size.size())}
    return first.assign(**sizes)


def set_numbers(losses: Losses, objective: str) -> list[int]:
    """The numbers of an objective's sets, in order of name. Raises ValueError for an unknown one."""
    names = sorted(losses.sets) if objective == MACRO_MEAN else [objective]
    return [set_number(losses, name) for name in names]
