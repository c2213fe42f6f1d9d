"""Whether flatter partition models merge better: their sharpness against the barriers between them."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from tasks.ranking.rank import MACRO_MEAN
from tasks.readable import number
from tasks.trust.bootstrap import mixture_weights, percentile_interval
from tasks.trust.measures import spearman
from tasks.trust.sentences import FEWEST_REFERENCES

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 1000


def mean_barriers(barriers: "pd.DataFrame") -> dict[str, float]:
    """The mean barrier of each partition's pairs for the macro mean, in nats per token.

    Args:
        barriers: as ``tasks.trust.barrier.barriers`` gives them; pairs without a finite one do not count.
    """
    import pandas as pd

    macro = _finite(barriers)
    ends = pd.concat([macro.set_index(end)["barrier"] for end in ("first", "second")])
    return {str(name): float(mean) for name, mean in ends.groupby(level=0).mean().items()}


def flat_merges(sharpness: Mapping[str, float], barriers: "pd.DataFrame") -> Iterator[str]:
    """One sentence: the rank correlation of sharpness with barriers over pairs; none without sharpness.

    Args:
        sharpness: of each partition's model, in nats per token; a pair's is the mean of both.
        barriers: as for ``mean_barriers``.
    """
    if not sharpness:
        return
    macro = _finite(barriers)
    macro = macro[macro["first"].isin(sharpness) & macro["second"].isin(sharpness)]
    pairs = list(zip(macro["first"], macro["second"], strict=True))
    count = len({name for pair in pairs for name in pair})
    of = f"{len(pairs)} pairs of {count} partitions"
    if count < FEWEST_REFERENCES:
        yield (
            f"Whether flatter models merge better cannot be told from {of}: {FEWEST_REFERENCES} partitions "
            "are the least."
        )
        return
    means = np.array([(sharpness[one] + sharpness[other]) / 2 for one, other in pairs])
    weights, alike = mixture_weights(pairs, DRAWS, 0), np.zeros(len(pairs), dtype=np.int64)
    values = spearman(means, macro["barrier"].to_numpy(float), alike, weights)
    low, high = percentile_interval(values[1:], count)
    if math.isnan(low):
        yield f"Whether flatter models merge better cannot be told: sharpness or barriers of {of} are alike."
        return
    answer = "this validation cannot tell whether flatter models merge better"
    if low > 0:
        answer = "flatter models merge better here"
    elif high < 0:
        answer = "sharper models merge better here"
    low_words, high_words, value = (number(2)(x) for x in (low, high, float(values[0])))
    yield (
        f"Sharpness against barriers, {of}: Spearman {value} (95 % interval {low_words} to {high_words}), so "
        f"{answer}."
    )


def _finite(barriers: "pd.DataFrame") -> "pd.DataFrame":
    macro: pd.DataFrame = barriers[barriers["evaluation_set"] == MACRO_MEAN]
    return macro.dropna(subset="barrier")
