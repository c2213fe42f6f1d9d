"""Every side of the benchmark of teachers takes its turns to the end."""

import pytest

from tests.benchmarks.measure import Ratio
from tests.benchmarks.teacher import cost


@pytest.mark.bench
def test_every_side_takes_its_turns() -> None:
    *ratios, told = cost("tiny", 1)
    assert len(ratios) == 5
    assert all(isinstance(r, Ratio) and 0 < r.low <= r.median <= r.high for r in ratios)
    assert isinstance(told, str)
    assert "CPU seconds of a step with a teacher at 8k parameters" in told
