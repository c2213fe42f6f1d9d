"""How numbers, durations and lists of names are written for people.

A value that is not there is a dash, never ``nan``; counts are short (``16.8 M``), losses keep the
digits in which mixtures differ.
"""

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from tasks import shown

_MISSING = "–"

Show: TypeAlias = Callable[[Any], str]


def plain(value: object) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _absent(value: Any) -> bool:
    import pandas as pd

    return pd.api.types.is_scalar(value) and bool(pd.isna(value))


def text(value: object) -> str:
    """Any value on one line (``tasks.shown.line``); a dash where there is none."""
    return _MISSING if _absent(value) else shown.line(value)


def yes(value: bool) -> str:
    """``yes``, or nothing."""
    return "yes" if value else ""


def number(digits: int) -> Show:
    """Shows a number with ``digits`` decimals, thousands apart, and a true minus sign."""

    def show(value: float | None) -> str:
        if _absent(value):
            return _MISSING
        return f"{value:,.{digits}f}".replace("-", "−").replace("inf", "∞")

    return show


def significant(value: float | None) -> str:
    """Four significant digits; whole numbers in full."""
    if value is None or _absent(value):
        return _MISSING
    return f"{value:,.0f}" if value == round(value, 0) else f"{value:,.4g}".replace("-", "−")


def count(value: Any, prefixes: str = " kMBT", unit: str = "") -> str:
    """Three significant digits and a prefix (``16.8 M``); below 10,000 in full."""
    if value is None or _absent(value):
        return _MISSING
    if abs(value) < 10_000:
        digits = f"{value:.4g}" if value % 1 and abs(value) < 1000 else f"{value:,.0f}"
        return f"{digits} {unit}".rstrip()
    step = 0
    while abs(value) >= 999.5 and step < len(prefixes) - 1:
        value, step = value / 1000, step + 1
    digits = f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"
    return f"{digits} {prefixes[step]}{unit}"


def duration(seconds: float | None) -> str:
    """``0.42 s``, ``12 min 5 s``, ``5 h 12 min``, ``3 d 4 h``."""
    if seconds is None or _absent(seconds):
        return _MISSING
    if seconds < 60:
        return f"{seconds:.3g} s"
    for size, unit, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            whole, rest = divmod(round(seconds / small), size // small)
            return f"{whole} {unit} {rest} {below}"
    return "{} min {} s".format(*divmod(round(seconds), 60))


def flops(value: float | None) -> str:
    """Floating-point operations with an SI prefix, such as ``1.20 EFLOP``."""
    return count(value, " kMGTPEZY", "FLOP")


def joules(value: float | None) -> str:
    """Energy with an SI prefix, such as ``36.0 kJ``."""
    return count(value, " kMGTPEZY", "J")


def interval(low: float, high: float) -> str:
    """Both ends with four decimals; a dash where there is no interval."""
    return _MISSING if _absent(low) else f"{number(4)(low)} to {number(4)(high)}"


def whole(number: int) -> str:
    """A number in full, or its power of ten where it is beyond a billion."""
    return f"{number:,}" if number < 10**9 else f"about 10^{math.log10(number):.0f}"


def listed(names: Iterable[str], most: int = 20, between: str = ", ") -> str:
    """``a, b``; of more than ``most`` names the first, and how many there are beyond them."""
    names = [*names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return between.join(names[:most]) + more
