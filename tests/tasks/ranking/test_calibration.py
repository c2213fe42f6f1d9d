"""Estimates are exact where they must be, unbiased elsewhere, and as uncertain as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.ranking.calibration import Groups, estimate, student_quantile

Floats = NDArray[np.float64]

SIZES = (40, 25, 60)
"""Groups of documents in each set."""


def some_groups(chance: np.random.Generator) -> Groups:
    stratum = np.repeat(np.arange(len(SIZES)), SIZES)
    tokens = chance.integers(20, 200, len(stratum)).astype(float)
    totals = np.bincount(stratum, tokens)
    return Groups(stratum, tokens / totals[stratum] / len(SIZES))


def sample(chance: np.random.Generator, groups: Groups, size: int) -> NDArray[np.bool_]:
    """So many groups of each set."""
    chosen = np.zeros(len(groups.stratum), dtype=bool)
    for number in range(len(SIZES)):
        places = np.flatnonzero(groups.stratum == number)
        chosen[chance.choice(places, size, replace=False)] = True
    return chosen


def noisy(
    chance: np.random.Generator, groups: Groups, rows: int, noise: float, *, normal: bool = True
) -> Floats:
    """Rows about proportional to tokens, at a rate of each row's own."""
    shape = rows, len(groups.weight)
    errors = chance.normal(size=shape) if normal else chance.standard_t(5, shape)
    found: Floats = groups.weight * (1 + chance.random((rows, 1)) + noise * errors)
    return found


@given(st.integers(0, 10_000))
def test_the_whole_is_known_without_error(seed: int) -> None:
    chance = np.random.default_rng(seed)
    groups = some_groups(chance)
    rows = noisy(chance, groups, 5, 1.0)
    everything = np.ones(len(groups.weight), dtype=bool)
    found = estimate(groups, everything, rows, noisy(chance, groups, 2, 1.0))
    assert found.value == pytest.approx(rows.sum(axis=1), rel=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 10_000), st.integers(3, 25))
def test_what_follows_from_the_controls_is_known_without_error(seed: int, size: int) -> None:
    """A rate of nats per token for each set, and a multiple of a control."""
    chance = np.random.default_rng(seed)
    groups = some_groups(chance)
    controls = noisy(chance, groups, 2, 1.0)
    rates = chance.random(len(SIZES))[groups.stratum]
    row = (rates * groups.weight + chance.normal(size=2) @ controls)[None]
    chosen = sample(chance, groups, size)
    found = estimate(groups, chosen, row[:, chosen], controls)
    assert found.value == pytest.approx(row.sum(axis=1), abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.freedom == 3 * size - len(SIZES) - 2


def test_without_controls_it_is_the_ratio_of_sums() -> None:
    chance = np.random.default_rng(3)
    groups = some_groups(chance)
    rows = noisy(chance, groups, 4, 0.5)
    chosen = sample(chance, groups, 6)
    expected = np.zeros(4)
    for number in range(len(SIZES)):
        place = chosen & (groups.stratum == number)
        expected += rows[:, place].sum(axis=1) / groups.weight[place].sum() / len(SIZES)
    none = np.zeros((0, len(chosen)))
    assert estimate(groups, chosen, rows[:, chosen], none).value == pytest.approx(expected)


@pytest.mark.parametrize(("size", "with_control"), [(4, False), (4, True), (12, True)])
@pytest.mark.parametrize(("normal", "least"), [(True, 0.985), (False, 0.965)])
def test_intervals_hold_the_truth_as_often_as_they_say(
    size: int, with_control: bool, normal: bool, least: float
) -> None:
    """One-sided 99 % intervals in eight worlds, sampled 250 times each; heavy tails cost some."""
    chance, held, scores = np.random.default_rng(7), 0, []
    for _ in range(8):
        groups = some_groups(chance)
        control = noisy(chance, groups, 1, 0.8, normal=normal)
        row = noisy(chance, groups, 1, 0.2, normal=normal) + 0.7 * with_control * control
        controls = control if with_control else control[:0]
        for _ in range(250):
            chosen = sample(chance, groups, size)
            found = estimate(groups, chosen, row[:, chosen], controls)
            score = float((found.value[0] - row.sum()) / found.error[0])
            held += score <= student_quantile(0.99, found.freedom)
            scores.append(score)
    assert least <= held / 2000 < 1
    assert abs(np.mean(scores)) < 0.15
    assert 0.75 < np.std(scores) < 1.15


def test_a_control_that_explains_makes_intervals_smaller() -> None:
    chance = np.random.default_rng(5)
    groups = some_groups(chance)
    control = noisy(chance, groups, 1, 1.0)
    row = control + noisy(chance, groups, 1, 0.05)
    chosen = sample(chance, groups, 8)
    plain = estimate(groups, chosen, row[:, chosen], control[:0])
    helped = estimate(groups, chosen, row[:, chosen], control)
    assert helped.error[0] < plain.error[0] / 5


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_rows_do_not_disturb_one_another(seed: int) -> None:
    chance = np.random.default_rng(seed)
    groups = some_groups(chance)
    rows, controls = noisy(chance, groups, 6, 0.5), noisy(chance, groups, 1, 0.5)
    chosen = sample(chance, groups, 5)
    together = estimate(groups, chosen, rows[:, chosen], controls)
    alone = estimate(groups, chosen, rows[2:3, chosen], controls)
    assert together.value[2] == pytest.approx(alone.value[0], rel=1e-12)
    assert together.error[2] == pytest.approx(alone.error[0], rel=1e-12)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [
        (0.99, 3, 4.5407),
        (0.975, 16, 2.1199),
        (0.95, 10, 1.8125),
        (0.999, 10, 4.1437),
        (0.99875, 27, 3.3334),
        (0.995, 30, 2.7500),
        (0.975, 10_000, 1.9602),
    ],
)
def test_quantiles_are_those_of_the_tables(
    probability: float, freedom: int, expected: float
) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(expected, abs=1e-4)
    assert student_quantile(1 - probability, freedom) == pytest.approx(-expected, abs=1e-4)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 63.657), (2, 9.925), (0, math.inf), (-1, math.inf)]
)
def test_quantile_with_hardly_any_freedom(freedom: int, expected: float) -> None:
    """Tabled values of Student's t at 0.995; without freedom nothing is known."""
    assert student_quantile(0.995, freedom) == pytest.approx(expected, rel=1e-4)
