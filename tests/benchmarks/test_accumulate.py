"""Every side of the benchmark takes its turns to the end."""

import pytest

from storage import ROOT
from tests.benchmarks.accumulate import measure
from tests.benchmarks.measure import Ratio


@pytest.mark.bench
def test_every_side_takes_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAIN_BEFORE", str(ROOT))
    rows = measure(1, [("tiny", what) for what in ("replay", "parts", "before")])
    ratios = [row for row in rows if isinstance(row, Ratio)]
    assert [r.against for r in ratios] == [
        "without",
        "whole",
        "in the one before",
    ]
    assert all(0 < r.low <= r.median <= r.high for r in ratios)
    assert all("CPU seconds" in row for row in rows if isinstance(row, str))
