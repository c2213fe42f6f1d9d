"""Sharpness against barriers: scipy's rank correlation, its sign in words, and too few said so."""

import itertools
import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from tasks.ranking.rank import MACRO_MEAN
from tasks.trust.barrier import barriers
from tasks.trust.flatness import flat_merges, mean_barriers

NAMES = "abcdefgh"
SHARP = {name: 0.01 * (number + 1) ** 2 for number, name in enumerate(NAMES)}


def table(barrier: Callable[[str, str], float], names: str = NAMES) -> pd.DataFrame:
    """Barriers between all pairs; every end has the loss 1."""
    midpoints = {pair: {"x": 1 + barrier(*pair)} for pair in itertools.combinations(names, 2)}
    return barriers({name: {"x": 1.0} for name in names}, midpoints, {"x": 1.5})


def by_sharpness(sign: float) -> Callable[[str, str], float]:
    noise = np.random.default_rng(0)
    return lambda one, other: sign * (SHARP[one] + SHARP[other]) + noise.normal(0, 0.05)


@pytest.mark.parametrize(
    ("sign", "answer"),
    [
        (1.0, "flatter models merge better here"),
        (-1.0, "sharper models merge better here"),
        (0.0, "this validation cannot tell whether flatter models merge better"),
    ],
)
def test_the_sentence_has_scipys_correlation_and_goes_by_its_interval(
    sign: float, answer: str
) -> None:
    found = table(by_sharpness(sign))
    macro = found[found["evaluation_set"] == MACRO_MEAN]
    means = macro["first"].map(SHARP) + macro["second"].map(SHARP)
    expected = spearmanr(means, macro["barrier"]).statistic
    (sentence,) = flat_merges(SHARP, found)
    value, low, high = (
        float(x.replace("\u2212", "-")) for x in re.findall(r"[-\u2212]?\d\.\d\d", sentence)
    )
    assert value == pytest.approx(expected, abs=0.006)
    assert low <= value <= high
    assert sentence.startswith("Sharpness against barriers, 28 pairs of 8 partitions: Spearman ")
    assert sentence.endswith(f", so {answer}.")


def test_pairs_of_others_and_of_models_that_diverged_do_not_count() -> None:
    """The control has no text of its own, so nothing is measured on it."""
    found = table(lambda one, other: math.nan if "h" in (one, other) else 0.1, "abcdefghx")
    (sentence,) = flat_merges(SHARP, found)
    assert "sharpness or barriers of 21 pairs of 7 partitions are alike" in sentence
    assert mean_barriers(found) == pytest.approx(dict.fromkeys("abcdefgx", 0.1))


def test_few_partitions_say_nothing() -> None:
    (sentence,) = flat_merges(SHARP, table(by_sharpness(1.0), "abcde"))
    assert "cannot be told from 10 pairs of 5 partitions: 6 partitions are the least" in sentence
    assert not [*flat_merges({}, table(by_sharpness(1.0)))]
    (none,) = flat_merges(SHARP, table(by_sharpness(1.0), "a"))
    assert "from 0 pairs of 0 partitions" in none


def test_a_partitions_barrier_is_the_mean_of_its_pairs() -> None:
    found = table(lambda one, other: SHARP[one] * SHARP[other], "abc")
    a, b, c = (SHARP[name] for name in "abc")
    expected = {"a": a * (b + c) / 2, "b": b * (a + c) / 2, "c": c * (a + b) / 2}
    assert mean_barriers(found) == pytest.approx(expected)
