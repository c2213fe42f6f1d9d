"""What following a predictor costs, against all ways in which lots can fall."""

import itertools
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.trust.measures import regret


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_lots_are_drawn_in_every_way(rows: list[tuple[int, int]], first: int) -> None:
    """Every order that the predictor allows is as likely; the best of its first is taken."""
    orders = [
        order
        for order in itertools.permutations(rows)
        if [row[0] for row in order] == sorted(row[0] for row in rows)
    ]
    right = fmean(min(bits for _, bits in order[:first]) for order in orders)
    right -= min(bits for _, bits in rows)
    predicted, bits = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = regret(predicted, bits, np.zeros(len(rows), dtype=np.int64), first)
    assert found == pytest.approx(right)


def test_groups_count_by_their_size() -> None:
    predicted, bits = np.array([1.0, 2.0, 3.0, 2.0, 1.0]), np.array([4.0, 1.0, 9.0, 2.0, 5.0])
    groups = np.array([2, 2, 2, 3, 3])
    assert regret(predicted, bits, groups, 1) == pytest.approx((3 * 3 + 2 * 3) / 5)
    assert regret(predicted, bits, groups, 2) == pytest.approx(0)
