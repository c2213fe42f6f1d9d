"""A reference is predicted from those that share little with it, and from no other."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import pearsonr

from tasks.trust.stacked import FEWEST, stacked

NAMES = "abcdefg"
CHOSEN = [
    *itertools.islice(itertools.combinations(NAMES, 2), 0, None, 2),
    *itertools.islice(itertools.combinations(NAMES, 3), 0, None, 3),
]
K = np.array([len(names) for names in CHOSEN])


def random(seed: int, columns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and losses that have nothing to do with one another."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(len(CHOSEN), columns)), generator.normal(size=len(CHOSEN))


def of(predictions: np.ndarray, losses: np.ndarray) -> np.ndarray:
    found = stacked(predictions, losses, K, CHOSEN)
    assert found is not None
    return found


def within(values: np.ndarray) -> np.ndarray:
    """Values less their k's mean."""
    return np.concatenate([values[k == K] - values[k == K].mean() for k in (2, 3)])


def test_what_is_hidden_in_several_predictors_is_found() -> None:
    """Each has an error of its own that another one has as well, with the other sign."""
    predictions, losses = random(0, 2)
    error = predictions[:, 0]
    found = of(np.stack([losses + error, losses - error], axis=1), losses)
    assert pearsonr(within(found), within(losses))[0] > 0.98
    assert abs(pearsonr(within(losses + error), within(losses))[0]) < 0.95


def test_noise_predicts_nothing() -> None:
    """On average over seeds; a fit that had seen what it predicts would correlate."""
    found = [random(seed) for seed in range(60)]
    correlations = [pearsonr(within(of(*pair)), within(pair[1]))[0] for pair in found]
    assert abs(np.mean(correlations)) < 3 * np.std(correlations) / np.sqrt(60)


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(0, len(CHOSEN) - 1))
def test_references_that_share_more_teach_nothing(seed: int, place: int) -> None:
    predictions, losses = random(seed)
    shared = np.array([len({*CHOSEN[place]} & {*names}) for names in CHOSEN])
    others = np.delete(shared, place)
    least = np.sort(others)[(len(others) + 1) // 2 - 1]
    changed = losses.copy()
    close = shared > least
    close[place] = True
    changed[close] += np.random.default_rng(seed).normal(size=close.sum())
    assert_allclose(of(predictions, changed)[place], of(predictions, losses)[place])
    if seed % 3 == 0:  # while the others do
        changed = losses + np.where(close, 0, np.random.default_rng(seed).normal(size=len(losses)))
        assert of(predictions, changed)[place] != of(predictions, losses)[place]


def test_levels_are_those_of_the_first_predictor() -> None:
    predictions, losses = random(1)
    moved = losses + 10.0 * K
    assert_allclose(of(predictions, moved), of(predictions, losses), atol=1e-9)
    shifted = predictions + np.where(K == 3, 5.0, 0.0)[:, None] * [1, 0, 0]
    assert_allclose(of(shifted, losses), of(predictions, losses) + np.where(K == 3, 5.0, 0.0))


def test_what_is_not_finite_or_constant_is_left_out() -> None:
    predictions, losses = random(2)
    spoilt = np.column_stack([predictions, np.full(len(losses), np.nan), np.ones(len(losses))])
    assert_allclose(of(spoilt, losses), of(predictions, losses))
    lost = losses.copy()
    lost[3] = np.inf
    assert np.flatnonzero(~np.isfinite(of(predictions, lost))).tolist() == [3]


@pytest.mark.parametrize("number", [1, FEWEST - 1])
def test_few_references_are_not_stacked(number: int) -> None:
    predictions, losses = random(0)
    assert stacked(predictions[:number], losses[:number], K[:number], CHOSEN[:number]) is None
