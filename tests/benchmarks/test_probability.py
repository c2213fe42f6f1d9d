"""The best of all mixtures is found, by the same number as in float64."""

import re

import pytest

from tests.benchmarks.measure import Ratio
from tests.benchmarks.probability import measure


@pytest.mark.bench
def test_the_best_of_all_is_found_and_counted_right() -> None:
    found = measure(1, bits=11, scored=700)
    assert len([ratio for ratio in found if isinstance(ratio, Ratio)]) == 3
    (words,) = [text for text in found if isinstance(text, str)]
    ours, exact = re.findall(r"\d+\.\d{6}", words)
    assert float(ours) == pytest.approx(float(exact), abs=2e-6)
