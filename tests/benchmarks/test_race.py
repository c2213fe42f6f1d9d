"""The benchmark of races, at a size at which it takes seconds: what it prints is what it is to print."""

from pathlib import Path

import pytest

from flows.chain.recipe_file import override_recipe
from tests.benchmarks.measure import Ratio
from tests.benchmarks.race import PARTITIONS, compared, prepare
from tests.benchmarks.race_trials import CONFIDENCES, DRAWS

pytestmark = pytest.mark.slow

QUICK = ["base.train.steps=60", "base.train.warmup_steps=5", "train.steps=5"]


def test_five_partitions_and_three_sets(tmp_path: Path) -> None:
    """31 mixtures: too few to save much, enough to see that all of it works."""
    recipe = override_recipe(
        prepare(tmp_path, PARTITIONS[:5], ("python", "cpp", "manual"), 60), QUICK
    )
    ratio, real, many = compared(tmp_path / "store", recipe, 2)
    assert isinstance(ratio, Ratio)
    assert 0 < ratio.median < 1
    assert isinstance(real, str)
    assert "the same best 10, in order: yes" in real
    assert "identical to a full sweep's: yes" in real
    assert isinstance(many, str)
    rows = [line for line in many.splitlines() if "of 2 |" in line]
    assert len(rows) == len(DRAWS) * len(CONFIDENCES) + 1
