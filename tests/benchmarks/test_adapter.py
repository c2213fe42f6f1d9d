"""Every side of the adapters' benchmark takes its turns to the end."""

import pytest

from tests.benchmarks.adapter import step_ratios
from tests.benchmarks.measure import Ratio


@pytest.mark.bench
def test_every_side_takes_its_turns() -> None:
    ratios = step_ratios(2, "tiny", rank=4)
    assert len(ratios) == 5
    assert all(isinstance(r, Ratio) and 0 < r.low <= r.median <= r.high for r in ratios)
