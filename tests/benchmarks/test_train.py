"""Every side of the training benchmark takes its turns to the end."""

import pytest

from tests.benchmarks.measure import Ratio
from tests.benchmarks.train import measure


@pytest.mark.bench
def test_every_side_takes_its_turns() -> None:
    *ratios, told = measure(2, ["tiny"])
    assert [r.against for r in ratios if isinstance(r, Ratio)] == [
        "bare loop",
        "transformers' Trainer",
        "bare loop, model loaded, not saved",
    ]
    assert all(isinstance(r, Ratio) and 0 < r.low <= r.median <= r.high for r in ratios)
    assert isinstance(told, str)
    assert "CPU seconds of a training step at 8k parameters" in told
