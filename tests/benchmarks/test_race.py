"""The benchmarks of races and of searches, at a size at which they take seconds: what they print is
what they are to print.

Both look at the same 31 mixtures: too few to save much, or to search, enough to see that all works.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

from flows.chain.recipe import Recipe
from flows.chain.recipe_file import override_recipe
from tasks.search.descent import DescentConfig
from tasks.surrogates.kinds import SURROGATES
from tests.benchmarks import race, search
from tests.benchmarks.measure import Ratio
from tests.benchmarks.race_trials import CONFIDENCES, DRAWS

pytestmark = pytest.mark.bench

PARTITIONS = (*race.PARTITIONS[:4], "mathematics")
QUICK = [
    "base.train.steps=20",
    "base.train.warmup_steps=2",
    "train.steps=2",
    "corpus.split.tokens_per_partition=3000",
    # The other half of the tests lies there as well.
    f"corpus.source.include_domains=[{', '.join(PARTITIONS)}]",
]


class Ground(NamedTuple):
    """A store and a recipe of five partitions and three sets."""

    store: Path
    recipe: Recipe


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Text of this environment, which takes seconds to gather; what is evaluated first serves both."""
    folder = tmp_path_factory.mktemp("race")
    recipe = search.prepare_twelve(folder, PARTITIONS, ("python", "cpp", "tests"), documents=60)
    return Ground(folder / "store", override_recipe(recipe, QUICK))


def test_five_partitions_are_raced(ground: Ground) -> None:
    ratio, real, many = race.compared(*ground, 2)
    assert isinstance(ratio, Ratio)
    assert 0 < ratio.median < 1
    assert isinstance(real, str)
    assert "the same best 10, in order: yes" in real
    assert "identical to a full sweep's: yes" in real
    assert isinstance(many, str)
    rows = [line for line in many.splitlines() if "of 2 |" in line]
    assert len(rows) == len(DRAWS) * len(CONFIDENCES) + 1


def test_the_best_of_five_partitions_is_searched(ground: Ground) -> None:
    ratio, table, descent = search.compared(*ground, 1, DescentConfig(steps=4, tokens=1024))
    assert isinstance(ratio, Ratio)
    assert isinstance(table, str)
    for name in (*SURROGATES, "the choice among all", "random"):
        assert f"| {name} |" in table
    assert isinstance(descent, str)
    assert "Descent from 3 starts" in descent
    assert "the subsets nearest to its landings are numbers [" in descent
