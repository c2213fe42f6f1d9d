"""The benchmark of searches, at a size at which it takes seconds."""

from pathlib import Path

import pytest

from flows.chain.recipe_file import override_recipe
from tasks.surrogates.kinds import SURROGATES
from tests.benchmarks.measure import Ratio
from tests.benchmarks.race import PARTITIONS
from tests.benchmarks.search import compared, prepare_twelve

pytestmark = pytest.mark.slow

QUICK = ["base.train.steps=60", "base.train.warmup_steps=5", "train.steps=5"]


def test_five_partitions_and_two_sets(tmp_path: Path) -> None:
    """31 mixtures: too few to search, enough to see that all of it works."""
    partitions = (*PARTITIONS[:4], "mathematics")
    recipe = override_recipe(prepare_twelve(tmp_path, partitions, ("python", "tests")), QUICK)
    ratio, table, descent = compared(tmp_path / "store", recipe, 1)
    assert isinstance(ratio, Ratio)
    assert isinstance(table, str)
    for name in (*SURROGATES, "the choice among all", "random"):
        assert f"| {name} |" in table
    assert isinstance(descent, str)
    assert "the subsets nearest to its landings are numbers [" in descent
