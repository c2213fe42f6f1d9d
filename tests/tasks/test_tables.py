"""Numbers as people read them."""

import math

import pandas as pd
import pytest

from tasks import tables


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (tables.count(0), "0"),
        (tables.count(9_999), "9,999"),
        (tables.count(999_950), "1.00 M"),
        (tables.count(999_400), "999 k"),
        (tables.count(2.5e15), "2,500 T"),
        (tables.count(math.nan), "–"),
        (tables.count(pd.NA), "–"),
        (tables.flops(1.2e18), "1.20 EFLOP"),
        (tables.joules(36_000.0), "36.0 kJ"),
        (tables.joules(999.96), "1000 J"),
        (tables.duration(0.4219), "0.422 s"),
        (tables.duration(125), "2 min 5 s"),
        (tables.duration(18_720), "5 h 12 min"),
        (tables.duration(86_399), "24 h 0 min"),
        (tables.duration(273_600), "3 d 4 h"),
        (tables.number(2)(-1234.567), "−1,234.57"),
        (tables.number(3)(math.inf), "∞"),
        (tables.significant(0.00012345), "0.0001234"),
        (tables.significant(12_000.0), "12,000"),
        (tables.interval(math.nan, math.nan), "–"),
    ],
)
def test_numbers_are_written_for_people(shown: str, expected: str) -> None:
    assert shown == expected
