"""From which difference of proxies on the better of two mixtures is nearly always told.

A correlation says nothing about the two mixtures that somebody must choose between. So pairs of the same
number of partitions k are sorted by how far apart their proxies are, and counted from the far end.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

SURE = 0.95
"""Share of pairs ordered right from which on a difference of proxies is called sure."""
FEWEST_PAIRS = 10
"""A coin orders ten pairs right once in a thousand times; as pairs share mixtures, somewhat more often."""


class Margin(NamedTuple):
    """From which difference on proxies order nearly all pairs right."""

    difference: float
    """Of two proxies, in bits per byte."""
    right: int
    """Pairs of the same k that differ by as much or more and were ordered right."""
    pairs: int
    """All such pairs."""


def margin(pairs: "pd.DataFrame") -> Margin | None:
    """The least difference above which ``SURE`` of the pairs of the same k were ordered right.

    Args:
        pairs: the rows of one evaluation set, as ``tasks.pairs.pair_up`` gives them. Pairs whose
            references tie have no right order and do not count; fewer than 20 must all be right.

    Returns:
        None where no difference has ``FEWEST_PAIRS`` pairs above it and enough of them right.
    """
    values = pairs[["k", "proxy_bits", "reference_bits"]].to_numpy(dtype=float)
    k, proxy, reference = values[np.isfinite(values).all(axis=1)].T
    one, other = np.triu_indices(len(k), 1)
    counted = (k[one] == k[other]) & (reference[one] != reference[other])
    one, other = one[counted], other[counted]
    ahead = proxy[one] - proxy[other]
    order = np.argsort(-np.abs(ahead), kind="stable")
    gaps = np.abs(ahead)[order]
    right = np.cumsum((ahead * (reference[one] - reference[other]) > 0)[order])
    number_of_pairs = np.arange(1, len(gaps) + 1)
    # Pairs of one gap stand or fall together.
    complete = np.append(gaps[1:] != gaps[:-1], True)[: len(gaps)]
    sure = complete & (right >= SURE * number_of_pairs) & (number_of_pairs >= FEWEST_PAIRS)
    if not sure.any():
        return None
    last = int(np.flatnonzero(sure)[-1])
    return Margin(float(gaps[last]), int(right[last]), last + 1)
