"""Numbers as people read them."""

import math

import pandas as pd
import pytest

from tasks import readable


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (readable.count(0), "0"),
        (readable.count(9_999), "9,999"),
        (readable.count(999_950), "1.00 M"),
        (readable.count(999_400), "999 k"),
        (readable.count(2.5e15), "2,500 T"),
        (readable.count(math.nan), "–"),
        (readable.count(pd.NA), "–"),
        (readable.flops(1.2e18), "1.20 EFLOP"),
        (readable.joules(36_000.0), "36.0 kJ"),
        (readable.joules(999.96), "1000 J"),
        (readable.duration(0.4219), "0.422 s"),
        (readable.duration(125), "2 min 5 s"),
        (readable.duration(18_720), "5 h 12 min"),
        (readable.duration(86_399), "24 h 0 min"),
        (readable.duration(273_600), "3 d 4 h"),
        (readable.number(2)(-1234.567), "−1,234.57"),
        (readable.number(3)(math.inf), "∞"),
        (readable.significant(0.00012345), "0.0001234"),
        (readable.significant(12_000.0), "12,000"),
        (readable.interval(math.nan, math.nan), "–"),
        (readable.whole(999_999_999), "999,999,999"),
        (readable.whole(3 * 10**30), "about 10^30"),
        (readable.listed("abc", 3), "a, b, c"),
        (readable.listed("abcd", 2), "a, b and 2 more"),
    ],
)
def test_numbers_are_written_for_people(shown: str, expected: str) -> None:
    assert shown == expected
