"""Two ways to do the same thing, timed in alternation."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Ratio(NamedTuple):
    """Our time over the floor's."""

    what: str
    against: str
    median: float
    low: float
    high: float
    ours: float
    """Median of our time in seconds."""
    floor: float
    """Median of the floor's time in seconds."""


def compare(
    what: str,
    against: str,
    ours: Callable[[], object],
    floor: Callable[[], object],
    repeats: int,
) -> Ratio:
    """Run both once to warm up, then alternate; the ratio is taken pair by pair."""
    ours()
    floor()
    pairs = [(_seconds(ours), _seconds(floor)) for _ in range(repeats)]
    ratios = [one / other for one, other in pairs]
    return Ratio(
        what,
        against,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(one for one, _ in pairs),
        statistics.median(other for _, other in pairs),
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
