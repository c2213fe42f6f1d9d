"""Two ways to do the same thing, measured in alternation.

A ratio is ours over theirs, pair by pair, so that a noisy machine disturbs both alike; for time and
memory smaller is better. Where the other side is a floor (the same work without us, bytes over
bandwidth) the ratio cannot well be below one; where it is what people use today, it should be.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Ratio(NamedTuple):
    """Ours over theirs."""

    what: str
    against: str
    median: float
    low: float
    high: float
    ours: float
    """Median of ours, in seconds or bytes."""
    floor: float
    """Median of theirs, in seconds or bytes."""
    goal: str = ""
    """What the ratio should be, such as ``<= 1.10``."""
    unit: str = "s"
    """s, bytes, tokens or evaluations."""


def compare(
    what: str,
    against: str,
    ours: Callable[[], object],
    floor: Callable[[], object],
    repeats: int,
    goal: str = "",
) -> Ratio:
    """Run both once to warm up, then alternate; the ratio is taken pair by pair."""
    ours()
    floor()
    pairs = [(seconds(ours), seconds(floor)) for _ in range(repeats)]
    return ratio_of(what, against, pairs, goal)


def ratio_of(
    what: str, against: str, pairs: list[tuple[float, float]], goal: str = "", unit: str = "s"
) -> Ratio:
    """The ratio of pairs (ours, theirs) that were measured one after the other."""
    ratios = [one / other for one, other in pairs]
    return Ratio(
        what,
        against,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(one for one, _ in pairs),
        statistics.median(other for _, other in pairs),
        goal,
        unit,
    )


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes by which this process's resident memory rose above its size before the call.

    Linux keeps the highest resident size of a process and sets it back on request (proc(5),
    clear_refs), so nothing has to be sampled.
    """
    gc.collect()
    # What glibc keeps of earlier calls would be used again and not be seen to grow.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes(status.read_text(), "VmRSS")
    work()
    return (kilobytes(status.read_text(), "VmHWM") - before) * 1024


def kilobytes(status: str, field: str) -> int:
    """A field of a process's status (proc(5))."""
    return int(status.partition(f"{field}:")[2].split()[0])
