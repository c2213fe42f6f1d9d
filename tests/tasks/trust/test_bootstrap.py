"""Weighted figures are scipy's, and intervals over partitions hold what they promise."""

import itertools
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from tasks.trust.bootstrap import mixture_weights, percentile_interval
from tasks.trust.measures import kendall, pearson, spearman
from tasks.trust.predictors import left_out

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


def sample(seed: int, size: int, ties: bool) -> tuple[Floats, Floats, Ints]:
    """Two columns with something in common, in three groups with means of their own."""
    random = np.random.default_rng(seed)
    groups = random.integers(0, 3, size)
    common = random.normal(size=size)
    x, y = (common + random.normal(size=size) + groups for _ in range(2))
    return (np.round(x), np.round(y), groups) if ties else (x, y, groups)


def without_means(values: Floats, groups: Ints) -> Floats:
    """Each less the mean of its group, to as many digits as ties need."""
    means = np.array([values[groups == group].mean() for group in groups])
    return np.asarray(np.round(values - means, 9))


def is_constant(*columns: Floats) -> bool:
    return any(np.ptp(column) == 0 for column in columns)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(3, 14), st.booleans())
def test_with_even_weights_figures_are_scipys(seed: int, size: int, ties: bool) -> None:
    x, y, _ = sample(seed, size, ties)
    even, one = np.ones((2, size)), np.zeros(size, dtype=np.int64)
    found = [pearson(x, y, one, even), spearman(x, y, one, even), kendall(x, y, one, even)[0]]
    if is_constant(x, y):
        assert np.isnan(found).all()
        return
    right = [stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0], stats.kendalltau(x, y)[0]]
    np.testing.assert_allclose(found, np.transpose([right, right]), atol=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(4, 14), st.booleans())
def test_groups_lose_their_means(seed: int, size: int, ties: bool) -> None:
    x, y, groups = sample(seed, size, ties)
    left, even = [without_means(values, groups) for values in (x, y)], np.ones((1, size))
    if is_constant(*left):
        assert np.isnan(pearson(x, y, groups, even)).all()
        return
    assert pearson(x, y, groups, even)[0] == pytest.approx(stats.pearsonr(*left)[0], abs=1e-7)
    assert spearman(x, y, groups, even)[0] == pytest.approx(stats.spearmanr(*left)[0], abs=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(3, 12), st.booleans())
def test_a_weight_is_a_number_of_copies(seed: int, size: int, ties: bool) -> None:
    x, y, _ = sample(seed, size, ties)
    times = np.random.default_rng(seed).integers(1, 5, size)
    weights, one = times[None].astype(float), np.zeros(size, dtype=np.int64)
    if is_constant(x, y):
        return
    copies = [np.repeat(values, times) for values in (x, y)]
    assert pearson(x, y, one, weights)[0] == pytest.approx(stats.pearsonr(*copies)[0], abs=1e-9)
    # Copies of one mixture tie in both, and tau-b leaves such pairs out.
    assert kendall(x, y, one, weights)[0][0] == pytest.approx(
        stats.kendalltau(*copies)[0], abs=1e-9
    )


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(3, 12), st.booleans())
def test_pairs_right_are_counted(seed: int, size: int, ties: bool) -> None:
    """By loops over all pairs of one group; a coin decides where x ties."""
    x, y, groups = sample(seed, size, ties)
    weights = np.random.default_rng(seed).exponential(size=size)
    right = known = 0.0
    for i, j in itertools.combinations(range(size), 2):
        if groups[i] == groups[j] and y[i] != y[j]:
            known += weights[i] * weights[j]
            same_way = 0.5 if x[i] == x[j] else float((x[i] < x[j]) == (y[i] < y[j]))
            right += weights[i] * weights[j] * same_way
    found = kendall(x, y, groups, weights[None])[1][0]
    assert np.isnan(found) if known == 0 else found == pytest.approx(right / known)


def test_constant_columns_have_no_correlation() -> None:
    """Also where only means of groups differ, and where those are not exact in binary."""
    groups = np.array([2, 2, 2, 3, 3, 3])
    x, y = np.where(groups == 2, 0.1, 0.7), np.array([1.0, 3.0, 2.0, 5.0, 4.0, 6.0])
    weights = mixture_weights([{str(n)} for n in range(6)], 50, 0)
    for first, second in ((x, y), (y, x)):
        assert np.isnan(pearson(first, second, groups, weights)).all()
        assert np.isnan(spearman(first, second, groups, weights)).all()
        assert np.isnan(kendall(first, second, groups, weights)[0]).all()
    assert (kendall(x, y, groups, weights)[1] == 0.5).all()
    assert np.isnan(kendall(y, x, groups, weights)[1]).all()


def test_interval_is_of_what_is_finite() -> None:
    values = np.array([*np.linspace(0, 1, 1001), np.nan, np.inf])
    low, high = percentile_interval(values, 10**9)
    assert (low, high) == pytest.approx((0.025, 0.975))
    for nothing in (np.array([np.nan]), np.array([])):
        assert np.isnan(percentile_interval(nothing, 8)).all()
    assert np.isnan(percentile_interval(values, 1)).all()


def test_fewer_partitions_make_wider_intervals() -> None:
    """As Student's t does for a mean, once the weights' smaller variance is made up for."""
    random = np.random.default_rng(0)
    values = random.normal(size=8)
    weights = random.exponential(size=(40_000, 8))
    low, high = percentile_interval(weights @ values / weights.sum(axis=1), 8)
    expected = 2 * stats.t.ppf(0.975, 7) * values.std(ddof=1) / np.sqrt(8)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_weights_of_mixtures_are_products() -> None:
    weights = mixture_weights([("a",), ("b",), ("a", "c"), ("b", "c"), ("c", "a")], 4000, 1)
    assert (weights[0] == 1).all()
    drawn = weights[1:]
    assert (drawn.max(axis=1) == 1).all()
    a, b, ac, bc, ca = drawn.T
    np.testing.assert_allclose(ac * b, bc * a, atol=1e-12)
    assert (ac == ca).all()
    # Of two exponential weights the first is below t times the second with probability t / (1 + t).
    assert stats.kstest(a / b, lambda t: t / (1 + t)).pvalue > 0.01


def test_many_partitions_do_not_underflow() -> None:
    weights = mixture_weights([[str(n) for n in range(size)] for size in (2, 900)], 20, 0)
    assert np.isfinite(weights).all()
    assert (weights.max(axis=1) == 1).all()


def test_a_draw_on_one_mixture_is_left_out() -> None:
    weights = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    x, y, one = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]), np.zeros(3, dtype=np.int64)
    for found in (pearson(x, y, one, weights), *kendall(x, y, one, weights)):
        assert np.isfinite(found).tolist() == [True, False]


def references(random: np.random.Generator, partitions: int) -> list[tuple[int, ...]]:
    """24 mixtures of two to four partitions, eight of each size."""
    chosen = []
    for k in (2, 3, 4):
        known = list(itertools.combinations(range(partitions), k))
        chosen += [known[n] for n in random.choice(len(known), 8, replace=False)]
    return chosen


def test_left_out_learns_nothing_from_what_it_predicts() -> None:
    random = np.random.default_rng(0)
    mixtures = references(random, 8)
    weights = np.array([[(n in m) / len(m) for n in range(8)] for m in mixtures])
    losses = weights @ random.normal(size=(8, 2)) + 3
    found = left_out(weights, losses)
    for one, other in zip(found.T, losses.T, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.99
    changed = losses.copy()
    changed[5] += 1
    moved = left_out(weights, changed)[5] - found[5]
    assert moved == pytest.approx(1 / 24)  # by the mean of all, which orders nothing


def test_left_out_of_noise_is_not_upside_down() -> None:
    """With the mean of the others in it, the correlation would be far below zero."""
    random = np.random.default_rng(1)
    weights = np.array([[(n in m) / len(m) for n in range(8)] for m in references(random, 8)])
    noise = random.normal(size=(24, 60))
    found = left_out(weights, noise)
    each = [np.corrcoef(one, other)[0, 1] for one, other in zip(found.T, noise.T, strict=True)]
    assert abs(np.mean(each)) < 0.12


def test_left_out_without_enough_others() -> None:
    weights, losses = np.eye(4), np.array([[1.0], [2.0], [3.0], [np.nan]])
    assert np.isnan(left_out(weights[:3], losses[:3])).all()
    found = left_out(weights, losses)
    assert np.isnan(found[:3]).all()
    assert np.isfinite(found[3])


def coverage(repetitions: int, draws: int) -> tuple[float, float]:
    """Share of intervals over partitions, and over mixtures, that hold the true correlation within k.

    Losses of partitions are random, those of proxy and reference correlate, a mixture's is the mean of
    its members' and a little noise; 8 partitions, 24 mixtures of 2 to 4.
    """
    common, noise, held = 0.6, 0.15, np.zeros(2)
    variances = [1 / k + noise**2 for k in (2, 3, 4)]
    truth = common * sum(1 / k for k in (2, 3, 4)) / sum(variances)
    for repetition in range(repetitions):
        random = np.random.default_rng(repetition)
        losses = random.multivariate_normal([0, 0], [[1, common], [common, 1]], 8)
        mixtures = references(random, 8)
        x, y = np.array([losses[list(m)].mean(axis=0) for m in mixtures]).T
        x, y = x + noise * random.normal(size=24), y + noise * random.normal(size=24)
        sizes = np.array([len(mixture) for mixture in mixtures])
        by_partition = mixture_weights([set(map(str, m)) for m in mixtures], draws, repetition)
        by_mixture = random.exponential(size=(1 + draws, 24))
        for place, (weights, number) in enumerate(((by_partition, 8), (by_mixture, 24))):
            low, high = percentile_interval(pearson(x, y, sizes, weights)[1:], number)
            held[place] += low <= truth <= high
    by_partition_held, by_mixture_held = (held / repetitions).tolist()
    return by_partition_held, by_mixture_held


def test_intervals_over_partitions_hold_more() -> None:
    partitions, mixtures = coverage(200, 200)
    print(
        f"coverage of 95 % intervals: over partitions {partitions:.3f}, over mixtures {mixtures:.3f}"
    )
    assert partitions > 0.88
    assert partitions > mixtures + 0.1
