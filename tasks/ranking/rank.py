"""Rank mixtures by loss, with ties where the evaluation documents cannot separate them.

Intervals are 95 % normal intervals of one pair. They need some 20 groups per set, and they are not
widened for the number of pairs. They hold the noise of the evaluation documents alone, not that of
training and not the error of the proxy.
"""

import math
from collections import Counter
from collections.abc import Iterable
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from tasks.arrays import Floats, Ints
from tasks.evaluation.losses import Losses
from tasks.ranking.noise import pair_variances, variances_from

if TYPE_CHECKING:
    import pandas as pd


MACRO_MEAN = "macro mean"
"""Objective: mean over sets of nats per token, the log of the geometric mean of the perplexities."""

MOST_COMPARED = 3000
"""Only this many of the best mixtures are compared pair by pair; the rest get plain positions."""

Z = NormalDist().inv_cdf(0.975)
"""Half the width of a 95 % interval, in standard deviations."""

_ROWS = 32  # of 3,000 numbers: their temporaries stay in the cache


def rank(
    losses: "Losses | pd.DataFrame", members: "pd.DataFrame", objective: str
) -> "pd.DataFrame":
    """Mixtures from best to worst, with the noise of their distance to the best.

    Args:
        losses: every mixture on every set, or a frame as ``Losses.write`` writes it, which needs
            only the sets of the objective.
        members: ``mixture``, ``partition``, ``weight``.
        objective: ``MACRO_MEAN`` or the name of one evaluation set.

    Returns:
        Sorted by loss, one row per mixture: ``objective``; ``rank`` = 1 + the number of mixtures
        that are better beyond the noise, so that mixtures within the noise share ranks (past the
        best ``MOST_COMPARED``, the plain position; equal losses always share a rank; as the noise
        differs by pair, ranks need not rise with every row); ``mixture``; ``k``, its number of
        partitions; ``loss`` in nats per token (macro mean: mean over sets, the log of the geometric
        mean of the perplexities); ``perplexity`` = exp(loss); ``bits_per_byte`` (macro mean: mean
        over sets); ``word_perplexity`` (macro mean: geometric mean); ``difference`` = loss minus
        the best mixture's, with ``low`` and ``high``, its paired 95 % interval (NaN where a set has
        fewer than 2 groups); ``tied``, whether that interval includes 0.

    Raises:
        ValueError: the objective is unknown, a mixture lacks a set or its members, is there twice,
            has a loss that is not finite, or was evaluated on other text than the others.
    """
    losses = losses_of_frame(losses, objective)
    return _ranked(losses, partition_counts(losses, members), objective)


def rank_all(
    losses: Losses, members: "pd.DataFrame", *, is_screened: bool = False
) -> "dict[str, pd.DataFrame]":
    """``rank`` tables by objective: the macro mean first, then the sets by name.

    Args:
        is_screened: a race has dropped mixtures, and with them perhaps the best for a set: then there
            is the macro mean alone.
    """
    counts = partition_counts(losses, members)
    sets = [] if is_screened else sorted(losses.sets)
    return {name: _ranked(losses, counts, name) for name in (MACRO_MEAN, *sets)}


def _ranked(losses: Losses, counts: Ints, objective: str) -> "pd.DataFrame":
    import pandas as pd

    sets = sets_of_objective(losses, objective)
    values = losses_by_mixture(losses, sets)
    order = np.lexsort((losses.by_name, values["loss"]))
    table = {name: column[order] for name, column in values.items()}
    loss = table["loss"]
    table["difference"] = loss - loss[0]
    margin = Z * np.sqrt(variances_from(losses, sets, int(order[0])))[order]
    table["low"], table["high"] = table["difference"] - margin, table["difference"] + margin
    labels = np.array(losses.mixtures, dtype=object)[order]
    names = np.full(len(order), objective, dtype=object)
    named = {"objective": names, "mixture": labels}
    texts = {name: pd.Series(column, dtype=object) for name, column in named.items()}
    tied = (table["low"] <= 0) | (table["difference"] == 0)
    ranks = _ranks(loss, pair_variances(losses, sets, order[:MOST_COMPARED]))
    frame = pd.DataFrame({**texts, **table, "k": counts[order], "tied": tied, "rank": ranks})
    return frame[["objective", "rank", "mixture", "k", *table, "tied"]]


def best_by_size(ranking: "pd.DataFrame") -> "pd.DataFrame":
    """The best row of a ``rank`` table for each number of partitions ``k``, in order of ``k``."""
    return ranking.sort_values(["k", "loss", "mixture"]).groupby("k").head(1).reset_index(drop=True)


def losses_of_frame(losses: "Losses | pd.DataFrame", objective: str) -> Losses:
    """The losses of a frame on the sets of an objective."""
    if isinstance(losses, Losses):
        return losses
    mixtures = sorted(set(losses["mixture"].tolist()))
    chosen = losses if objective == MACRO_MEAN else losses[losses["evaluation_set"] == objective]
    if chosen.empty:
        raise _unknown(objective, losses["evaluation_set"].unique())
    return Losses.of(chosen, mixtures)


def _unknown(objective: str, sets: Iterable[str]) -> ValueError:
    names = ", ".join(map(repr, sorted(sets)))
    return ValueError(
        f"no losses for the objective {objective!r}: give {MACRO_MEAN!r} or one of {names}"
    )


def sets_of_objective(losses: Losses, objective: str) -> list[int]:
    """The numbers of an objective's sets, in order of name."""
    order = sorted(range(len(losses.sets)), key=losses.sets.__getitem__)
    sets = [n for n in order if objective in {MACRO_MEAN, losses.sets[n]}]
    if not sets:
        raise _unknown(objective, losses.sets)
    for number in sets:
        _check(losses, number)
    return sets


def _check(losses: Losses, number: int) -> None:
    if not (finite := np.isfinite(losses.nll[:, number])).all():
        raise ValueError(
            f"the loss of mixture {losses.mixtures[int(finite.argmin())]!r} on "
            f"{losses.sets[number]!r} is not finite: one of its partition models diverged; leave "
            "the mixture out of the ranking"
        )
    if losses.counts[number].num_tokens <= 0:
        raise ValueError(
            f"mixtures were evaluated on no text of the set {losses.sets[number]!r}: give it "
            "documents with text, or leave it out"
        )


def losses_by_mixture(losses: Losses, sets: list[int]) -> dict[str, Floats]:
    """Loss and what follows from it by mixture; means over ``sets`` are taken of logarithms."""

    def mean(unit: str) -> Floats:
        total: Floats = np.zeros(len(losses.mixtures))
        for number in sets:
            total += losses.nll[:, number] / np.float64(getattr(losses.counts[number], unit))
        return total / len(sets)

    # A set may have no words, and a word of a thousand letters has no finite perplexity.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return {
            "loss": (loss := mean("num_tokens")),
            "perplexity": np.exp(loss),
            "bits_per_byte": mean("num_bytes") / math.log(2),
            "word_perplexity": np.exp(mean("num_words")),
        }


def partition_counts(losses: Losses, members: "pd.DataFrame") -> Ints:
    """Number of partitions of each mixture. Raises ValueError for a mixture without any."""
    sizes = Counter(members["mixture"][(members["weight"] > 0).to_numpy()].tolist())
    if lacking := [mixture for mixture in losses.mixtures if mixture not in sizes]:
        raise ValueError(
            f"mixture {min(lacking)!r} has losses but no partition with a weight above 0 in the "
            "table of members: add its rows there"
        )
    return np.array([sizes[mixture] for mixture in losses.mixtures], dtype=np.int64)


def _ranks(loss: Floats, variances: Floats) -> Ints:
    """Shared ranks of ascending losses; ``variances`` are those of pairs of the first ones."""
    first_equal = np.searchsorted(loss, loss, side="left")
    ranks: Ints = first_equal.astype(np.int64) + 1
    for start in range(0, len(variances), _ROWS):
        stop = min(start + _ROWS, len(variances))
        ahead = loss[start:stop, None] - loss[:stop]
        is_behind = ahead > 0
        # Not <= rather than >: where the variance is NaN, the mixture ahead counts as better.
        np.square(ahead, out=ahead)
        is_behind &= ~(ahead <= Z**2 * variances[start:stop, :stop])
        ranks[start:stop] = 1 + is_behind.sum(axis=1)
    # Equal losses are neighbours: all get the least of their ranks.
    return np.minimum.reduceat(ranks, np.unique(first_equal))[
        np.unique(first_equal, return_inverse=True)[1]
    ]
