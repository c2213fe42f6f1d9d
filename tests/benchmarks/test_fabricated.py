"""A fabricated store is one that a run finds everything in; a real small run is measured in full."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.chain.ablation import ablate
from flows.chain.runner import Quiet
from flows.run.execute import execute
from flows.runners.inline import InlineRunner
from flows.runners.planner import plan
from storage.step import Runtime
from storage.store import Store
from tests.benchmarks.fabricated import Fabricator, domain_names, recipe_of, write_corpus
from tests.benchmarks.growth import prepare, run_here

SPACES = [{"kind": "subsets", "sizes": [1, 3]}]


@pytest.mark.bench
def test_nothing_is_left_to_do(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", 2, 240)
    recipe = recipe_of(tmp_path / "corpus", SPACES, partitions=3, tokens=300, heldout=5)
    url = str(tmp_path / "store")
    made = ablate(Fabricator(Store(url)), recipe)
    assert [entry.name for entry in made.partitions] == domain_names(2, 3)
    planned = plan(url, recipe, Runtime(), Quiet())
    assert (planned.pairs_known, planned.pairs_missing) == (2 * (6 + 20), 0)
    assert not planned.to_build()
    found = execute(InlineRunner(Store(url)), recipe)
    assert (found.summary["trained"], found.summary["losses_evaluated"]) == ([], 0)
    assert found.outcome.rows == made.rows
    kept = pd.read_parquet(tmp_path / "store" / found.folder / "losses.parquet")
    assert made.rows is not None
    np.testing.assert_array_equal(kept["nll"], made.rows.nll.ravel())
    assert [len(groups) for groups in kept["group_nll"]] == [5] * 52


@pytest.mark.bench
def test_a_small_run_is_measured(tmp_path: Path) -> None:
    prepare(tmp_path, 4, SPACES)
    spent = run_here(tmp_path)
    assert spent.number == 4 + 4
    assert spent.cpu > 0
    assert spent.wall > 0
    assert spent.peak > 10_000_000
