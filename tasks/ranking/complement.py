"""Pairs of partitions: complementary, near-duplicates, or neither.

Complementarity is the loss of the better of two models minus the loss of their merge, ``min(L_A,
L_B) - L_AB``. It is positive where both are needed and about zero for two copies. It is the check
of a single source in CIGLI (Lu et al. 2021), applied to merged models. Copies share one marginal
effect: each makes the other superfluous, so both seem to bring little, and the report must say so.

Both are read off the losses of the ranking; intervals are paired (see ``tasks.ranking.noise``).
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.arrays import Floats
from tasks.evaluation.group_sums import BLOCK
from tasks.evaluation.losses import Losses
from tasks.ranking.choice import set_numbers
from tasks.ranking.effects import UniformMixtures
from tasks.ranking.noise import paired_variances
from tasks.ranking.rank import MACRO_MEAN, Z

if TYPE_CHECKING:
    import pandas as pd


ALIKE = 0.1
"""Two partitions are near-duplicates where their distance is at most this share of the usual."""
FEWEST_SETS = 4
"""On one set two models of different text are alike by chance in about one pair of twelve."""
FEWEST_USUAL = 3
"""It takes three pairs to say what is usual."""


class _Pair(NamedTuple):
    """Two partitions, the numbers of their own mixtures and that of their merge (-1: not there)."""

    first: str
    second: str
    first_number: int
    second_number: int
    merged_number: int


def complementarity(losses: Losses, members: "pd.DataFrame", objective: str) -> "pd.DataFrame":
    """Is the merge of two partitions better than both? For all pairs whose merge was evaluated.

    Args:
        objective: ``tasks.ranking.rank.MACRO_MEAN`` or the name of an evaluation set.

    Returns:
        The most complementary pair first: ``objective``; ``first`` and ``second``, partitions;
        ``loss_first``, ``loss_second``, ``loss_both`` in nats per token; ``complementarity`` =
        min(loss_first, loss_second) - loss_both; ``low`` and ``high``, its paired 95 % interval (NaN
        where a set has fewer than 2 groups of documents).

    Raises:
        ValueError: there is no such set.
    """
    return _gains(losses, _pairs(losses, members), objective)


def all_complementarity(losses: Losses, members: "pd.DataFrame") -> "pd.DataFrame":
    """``complementarity`` for the macro mean, then for the sets by name."""
    import pandas as pd

    pairs = _pairs(losses, members)
    names = [MACRO_MEAN, *sorted(losses.sets)]
    return pd.concat([_gains(losses, pairs, name) for name in names], ignore_index=True)


def _gains(losses: Losses, pairs: list[_Pair], objective: str) -> "pd.DataFrame":
    import pandas as pd

    sets = set_numbers(losses, objective)
    pairs = [pair for pair in pairs if pair.merged_number >= 0]
    numbers = [(pair.first_number, pair.second_number, pair.merged_number) for pair in pairs]
    first, second, merged = np.array(numbers, dtype=np.int64).reshape(-1, 3).T
    tokens = [losses.counts[number].num_tokens for number in sets]
    loss = (losses.nll[:, sets] / tokens).mean(axis=1)
    better = np.where(loss[first] <= loss[second], first, second)
    margin = Z * np.sqrt(paired_variances(losses, sets, better, merged))
    gain = loss[better] - loss[merged]
    table = pd.DataFrame(
        {
            "objective": pd.Series([objective] * len(pairs), dtype=object),
            "first": pd.Series([pair.first for pair in pairs], dtype=object),
            "second": pd.Series([pair.second for pair in pairs], dtype=object),
            "loss_first": loss[first],
            "loss_second": loss[second],
            "loss_both": loss[merged],
            "complementarity": gain,
            "low": gain - margin,
            "high": gain + margin,
        }
    )
    order = ["complementarity", "first", "second"]
    return table.sort_values(order, ascending=[False, True, True], ignore_index=True)


def near_duplicates(
    losses: Losses, members: "pd.DataFrame", domains: Mapping[str, str]
) -> "pd.DataFrame":
    """Partitions of two domains whose models say the same, so that one of them could be left out.

    Two conditions hold for such a pair. The distance of the models is at most ``ALIKE`` of the median
    pair's; it is the root mean square over groups of documents of the difference of their losses, each
    set weighing alike. And the merge is about as good as the better model: its complementarity for the
    macro mean is at most ``ALIKE`` of the median pair's in size, or its interval contains 0, or it was
    not evaluated.

    Partitions of one domain are alike by design: such pairs are left out, also of the medians. With
    fewer than ``FEWEST_SETS`` sets or ``FEWEST_USUAL`` pairs of two domains the result is empty. Near
    copies are missed where most pairs are near copies. The distance of models from the base model is
    no better measure: much of it is common to all of them.

    Args:
        domains: domain of each partition; one that is not there is a domain of its own.

    Returns:
        The closest first: ``first`` and ``second``, partitions; ``distance`` and ``usual``, the median
        pair's, in nats per token; ``complementarity`` with ``low`` and ``high`` (NaN where the merge
        was not evaluated); ``drop``, the one whose own model is worse for the macro mean, of equals
        the second.
    """
    import pandas as pd

    columns = ["first", "second", "distance", "usual", "complementarity", "low", "high", "drop"]
    domain = {name: name for name in members["partition"].unique()} | dict(domains)
    pairs = [p for p in _pairs(losses, members) if domain[p.first] != domain[p.second]]
    distance = _distances(losses, pairs)
    is_known = np.isfinite(distance)
    if len(losses.sets) < FEWEST_SETS or is_known.sum() < FEWEST_USUAL:
        return pd.DataFrame(columns=columns)
    mean = (losses.nll / [counts.num_tokens for counts in losses.counts]).mean(axis=1)
    table = pd.DataFrame(
        {
            "first": [pair.first for pair in pairs],
            "second": [pair.second for pair in pairs],
            "distance": distance,
            "usual": np.median(distance[is_known]),
            "drop": [
                p.first if mean[p.first_number] > mean[p.second_number] else p.second for p in pairs
            ],
        }
    )
    merged = _gains(losses, pairs, MACRO_MEAN)
    gains = merged[["first", "second", "complementarity", "low", "high"]]
    table = table.merge(gains, on=["first", "second"], how="left")
    gain = table["complementarity"].abs()
    alike = gain.isna() | (gain <= ALIKE * gain.median())
    alike |= (table["low"] <= 0) & (table["high"] >= 0)
    duplicates = table[alike & (table["distance"] <= ALIKE * table["usual"])]
    return duplicates[columns].sort_values(["distance", "first", "second"], ignore_index=True)


def duplicate_words(duplicates: "pd.DataFrame", effects: "pd.DataFrame") -> Iterator[str]:
    """The result of ``near_duplicates`` in sentences, some for each pair.

    Args:
        effects: ``tasks.ranking.effects.marginal_effects``.
    """
    effect = {
        row["partition"]: f"{row['mean']:+.4f}" if row["count"] else "not known"
        for row in effects.to_dict("records")
    }
    for pair in duplicates.to_dict("records"):
        first, second = pair["first"], pair["second"]
        gain = pair["complementarity"]
        merging = "" if math.isnan(gain) else f", and merging them gains {gain:.4f}"
        yield (
            f"{first} and {second} are near-duplicates: their models' losses differ by "
            f"{pair['distance']:.4f} nats per token over the documents of the evaluation sets, a "
            f"typical pair's of two domains by "
            f"{pair['usual']:.4f}{merging}. Their marginal effects in nats per token "
            f"({effect[first]} and {effect[second]}) are shared: each stands in for the other, and "
            f"they are not to be added up. If one is to go, drop {pair['drop']}."
        )


def _distances(losses: Losses, pairs: list[_Pair]) -> Floats:
    """Of the models of each pair, in nats per token, shape (pairs,).

    Two losses may be close on a whole set by chance, as the documents on which one model is better make
    up for the others; group by group they are not.
    """
    numbers = sorted({n for pair in pairs for n in (pair.first_number, pair.second_number)})
    row_of = {number: place for place, number in enumerate(numbers)}
    first = np.array([row_of[pair.first_number] for pair in pairs], dtype=np.int64)
    second = np.array([row_of[pair.second_number] for pair in pairs], dtype=np.int64)
    squares = np.zeros(len(pairs))
    for number, counts in enumerate(losses.counts):
        has_text = counts.group_tokens > 0
        sums = losses.sums.take(number, np.array(numbers, dtype=np.int64))
        loss = sums[:, has_text] / counts.group_tokens[has_text]
        for start in range(0, len(pairs), BLOCK):
            block = slice(start, start + BLOCK)
            with np.errstate(invalid="ignore"):  # a model that diverged has no distance
                squares[block] += np.square(loss[first[block]] - loss[second[block]]).mean(axis=1)
    return np.asarray(np.sqrt(squares / len(losses.counts)))


def _pairs(losses: Losses, members: "pd.DataFrame") -> list[_Pair]:
    """Pairs of partitions whose own models were evaluated, by name."""
    number = {mixture: place for place, mixture in enumerate(losses.mixtures)}
    small = UniformMixtures(members, losses.mixtures).by_partitions(most=2)
    held = {names: number[label] for names, label in small.items()}
    single = {names[0]: place for names, place in held.items() if len(names) == 1}
    return [
        _Pair(first, second, single[first], single[second], held.get((first, second), -1))
        for first, second in itertools.combinations(sorted(single), 2)
    ]
