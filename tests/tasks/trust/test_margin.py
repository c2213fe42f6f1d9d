"""The difference that can be relied on, against a count of all pairs above each difference."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.trust.measures import FEWEST_PAIRS, SURE, Margin, margin


def by_counting(rows: list[tuple[int, float, float]]) -> Margin | None:
    told = [
        (abs(p - q), (p - q) * (a - b) > 0)
        for (k, p, a), (other_k, q, b) in itertools.combinations(rows, 2)
        if k == other_k and a != b
    ]
    for least in sorted({gap for gap, _ in told}):
        above = [right for gap, right in told if gap >= least]
        if len(above) >= FEWEST_PAIRS and sum(above) >= SURE * len(above):
            return Margin(least, sum(above), len(above))
    return None


def frame(rows: list[tuple[int, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["k", "proxy_bits", "reference_bits"])


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from([2, 3]), st.integers(0, 5), st.integers(-1, 1)),
        min_size=1,
        max_size=9,
    )
)
def test_margin_is_counted(lots: list[tuple[int, int, int]]) -> None:
    """Small whole numbers, with ties, and references that mostly go with the proxies."""
    rows = [(k, proxy / 4, (2 * proxy + noise) / 4) for k, proxy, noise in lots]
    assert margin(frame(rows)) == by_counting(rows)


def test_far_pairs_are_right_and_close_ones_a_coin() -> None:
    random = np.random.default_rng(0)
    proxy = random.uniform(0, 1, 60)
    reference = proxy + random.uniform(-0.1, 0.1, 60)
    found = margin(frame([(3, *pair) for pair in zip(proxy, reference, strict=True)]))
    assert found is not None
    assert 0 < found.difference < 0.2  # beyond it no pair can be wrong
    assert found.right >= SURE * found.pairs


def test_no_margin() -> None:
    upside_down = [(2, float(n), -float(n)) for n in range(6)]
    assert margin(frame(upside_down)) is None
    assert margin(frame([(n, float(n), float(n)) for n in range(9)])) is None
    assert margin(frame([(2, 1.0, 1.0)])) is None
    few = [(2, float(n), float(n)) for n in range(4)]
    assert margin(frame(few)) is None
    assert margin(frame([*few, (2, 4.0, 4.0)])) == Margin(1.0, 10, 10)
    assert margin(frame([*few, (2, 4.0, 4.0), (2, float("nan"), 9.0)])) == Margin(1.0, 10, 10)


def test_order_of_rows_does_not_matter() -> None:
    rows = [(2, n / 7, ((n * 3) % 7) / 7) for n in range(7)]
    assert margin(frame(rows)) == margin(frame(rows[::-1])) == by_counting(rows)


@pytest.mark.parametrize(("count", "told"), [(20, True), (19, False)])
def test_fewer_than_twenty_must_all_be_right(count: int, told: bool) -> None:
    """Pairs of mixtures of ``count`` sizes; of the pair that differs least the order is wrong."""
    rows = [
        (k, value, value * (-1 if k == 0 else 1)) for k in range(count) for value in (0.0, 1.0 + k)
    ]
    found = margin(frame(rows))
    assert found == (Margin(1.0, 19, 20) if told else Margin(2.0, 18, 18))
