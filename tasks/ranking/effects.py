"""Marginal effects: what adding or removing one partition does to the loss, over all mixtures."""

import math
from array import array
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from tasks.arrays import Floats
from tasks.evaluation.losses import Losses
from tasks.ranking.rank import losses_by_mixture, losses_of_frame, sets_of_objective

if TYPE_CHECKING:
    import pandas as pd


def marginal_effects(
    losses: "Losses | pd.DataFrame", members: "pd.DataFrame", objective: str
) -> "pd.DataFrame":
    """What adding a partition does to the loss, over all evaluated pairs of uniform mixtures.

    A pair is a uniform mixture S and the uniform mixture of S and one partition more; mixtures
    with uneven weights are left out. Arguments and errors as in ``rank``.

    Returns:
        One row per partition, the most helpful first: ``partition``; ``mean`` of the differences
        loss(S + partition) - loss(S) in nats per token, negative where it helps; ``low`` and
        ``high``, their 10th and 90th percentile (the spread over mixtures, not an error bar);
        ``count`` of pairs; ``values``, the differences in ascending order (float64, length
        ``count``). Without a pair, ``count`` is 0 and the numbers are NaN.
    """
    import pandas as pd

    losses = losses_of_frame(losses, objective)
    summary = losses_by_mixture(losses, sets_of_objective(losses, objective))
    loss = dict(zip(losses.mixtures, summary["loss"].tolist(), strict=True))
    uniform = UniformMixtures(members, loss)
    values = {name: array("d") for name in sorted(set(members["partition"].tolist()))}
    for key, mixture in uniform.labels.items():
        for partition, smaller in uniform.without(key):
            values[partition].append(loss[mixture] - loss[smaller])
    rows = [_effect(name, np.sort(np.array(changes))) for name, changes in values.items()]
    columns = ["partition", "mean", "low", "high", "count", "values"]
    return pd.DataFrame(rows, columns=columns).sort_values("mean", kind="stable", ignore_index=True)


def _effect(partition: str, values: Floats) -> tuple[str, float, float, float, int, Floats]:
    if not len(values):
        return partition, math.nan, math.nan, math.nan, 0, values
    low, high = np.percentile(values, [10, 90])
    return partition, float(values.mean()), float(low), float(high), len(values), values


def best_uniform(ranking: "pd.DataFrame", members: "pd.DataFrame") -> str | None:
    """The best mixture of a ``rank`` table that weighs its partitions alike; None if there is none."""
    uniform = set(UniformMixtures(members, ranking["mixture"].tolist()).labels.values())
    labels = ranking[ranking["mixture"].isin(uniform)].sort_values(["loss", "mixture"])["mixture"]
    return None if labels.empty else str(labels.iloc[0])


def best_changes(ranking: "pd.DataFrame", members: "pd.DataFrame") -> "pd.DataFrame":
    """Single additions to and removals from the best mixture, with the difference each makes.

    The best mixture here is ``best_uniform``: with uneven weights a change has no single meaning.

    Returns:
        One row per evaluated neighbour, the least loss first: ``change`` ("add" or "remove"),
        ``partition``, ``mixture`` (its label), ``difference`` (its loss minus the best's).
    """
    import pandas as pd

    loss = dict(zip(ranking["mixture"].tolist(), ranking["loss"].tolist(), strict=True))
    uniform = UniformMixtures(members, loss)
    best = best_uniform(ranking, members)
    rows = []
    for key, mixture in uniform.labels.items():
        for partition, smaller in uniform.without(key):
            if smaller == best:
                rows.append(("add", partition, mixture, loss[mixture] - loss[best]))
            if mixture == best:
                rows.append(("remove", partition, smaller, loss[smaller] - loss[best]))
    table = pd.DataFrame(rows, columns=["change", "partition", "mixture", "difference"])
    return table.sort_values(["difference", "partition"], ignore_index=True)


class UniformMixtures:
    """The evaluated mixtures with even weights, by their partitions; of equals, the first label.

    A mixture's key is the numbers of its partitions as bytes: a tenth of what a set of names takes.
    """

    def __init__(self, members: "pd.DataFrame", evaluated: Collection[str]) -> None:
        import pandas as pd

        held = members[(members["weight"] > 0).to_numpy()]
        held = held[held["mixture"].isin(list(evaluated)).to_numpy()]
        mixtures, labels = pd.factorize(held["mixture"], sort=True)
        codes, self._partitions = pd.factorize(held["partition"], sort=True)
        order = np.lexsort((codes, mixtures))
        weights, keys = held["weight"].to_numpy()[order], codes[order].astype(np.int32)
        starts = np.flatnonzero(np.diff(mixtures[order], prepend=-1))
        stops = np.append(starts[1:], len(order))
        spread = np.maximum.reduceat(weights, starts) - np.minimum.reduceat(weights, starts)
        even = np.flatnonzero(spread < 1e-9)[::-1]
        self.labels: dict[bytes, str] = {
            keys[starts[number] : stops[number]].tobytes(): labels[number]
            for number in even.tolist()
        }

    def by_partitions(self, most: int) -> dict[tuple[str, ...], str]:
        """The mixtures of ``most`` partitions or fewer by the names of these, sorted."""
        return {
            tuple(self._partitions[memoryview(key).cast("i")]): label
            for key, label in self.labels.items()
            if len(key) <= 4 * most
        }

    def without(self, key: bytes) -> Iterator[tuple[str, str]]:
        """Each partition of a mixture, and the mixture without it if that was evaluated."""
        for place, code in enumerate(memoryview(key).cast("i")):
            smaller = key[: 4 * place] + key[4 * place + 4 :]
            if (label := self.labels.get(smaller)) is not None:
                yield self._partitions[code], label
