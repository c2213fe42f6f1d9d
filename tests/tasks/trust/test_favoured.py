"""What the references favour is said on each set, where the interval of the difference decides."""

import numpy as np
import pandas as pd
import pytest

from tasks.ranking.rank import MACRO_MEAN
from tasks.trust.verdict import Trust, judge
from tests.tasks.trust.test_verdict import losses, midpoints, sample

MANY = {2: 12, 3: 12, 4: 12}
NOISE = {"x": 0.3, "y": 0.01, "z": 0.3}
"""How far proxies miss on each set."""


def judged(counts: dict[int, int], **misses: dict[str, float]) -> Trust:
    """A validation of which some predictors miss by so much, by set."""
    members = sample(counts)
    pairs = losses(members, NOISE).drop(columns=["singles"])
    random = np.random.default_rng(0)
    for name, by_set in misses.items():
        miss = pairs["evaluation_set"].map(by_set).fillna(0).to_numpy(dtype=float)
        pairs[name] = pairs["reference"] + random.normal(size=len(pairs)) * miss
        of_sets = pairs[pairs["evaluation_set"] != MACRO_MEAN].groupby("mixture")[name].mean()
        macro = pairs["evaluation_set"] == MACRO_MEAN
        pairs.loc[macro, name] = pairs.loc[macro, "mixture"].map(of_sets)
    pairs = pairs.rename(columns={"scaled": "scaled 1.5"})
    return judge(pairs, members, None, midpoints(-2), draws=200)


WORSE, BETTER = dict.fromkeys("xyz", 1.0), {"x": 0.01, "y": 1.0, "z": 0.02}


def test_another_predictor_is_favoured_where_merging_surely_loses() -> None:
    found = judged(MANY, singles=WORSE, probability=BETTER, scaled=WORSE)
    assert found.favoured == {"x": "probability", "y": "merge", "z": "probability"}
    (words,) = [words for words in found.words if words.startswith("By evaluation set they favour")]
    assert "the mixture of probabilities on x and z" in words
    assert "merging on y" in words


def test_of_several_the_best_is_favoured_and_the_switch_is_named() -> None:
    close = dict.fromkeys("xyz", 0.005)
    found = judged(MANY, singles=close, scaled=dict.fromkeys("xyz", 0.02))
    assert found.favoured[MACRO_MEAN] == found.favoured["x"] == "singles"
    text = " ".join(found.words)
    assert "On the macro mean plain merging loses: the references favour the mean of single" in text
    assert "evaluation.rank_by: singles ranks by it" in text
    assert "Merging orders worse than the mean of single partitions" in text
    assert "Merging orders worse than the model 1.5 times as far from the base model" in text


def test_where_the_intervals_do_not_decide_nothing_is() -> None:
    found = judged(MANY, singles=NOISE)
    assert "x" not in found.favoured
    assert MACRO_MEAN not in found.favoured
    assert any(
        "these references favour none on the macro mean beyond doubt" in w for w in found.words
    )


def test_too_few_references_favour_nothing() -> None:
    assert judged({2: 5}, singles=BETTER, probability=BETTER).favoured == {}


@pytest.mark.parametrize("name", ["nearest", "tokens", "regression", "stacked"])
def test_what_no_ranking_goes_by_is_not_favoured(name: str) -> None:
    members = sample(MANY)
    pairs = losses(members, NOISE).drop(columns=["singles", "nearest", "tokens", "regression"])
    pairs = pd.DataFrame(pairs.assign(**{name: pairs["reference"]}))
    found = judge(pairs, members, None, midpoints(-2), draws=100)
    assert found.favoured == {}
    assert any(w.startswith("Merging orders worse than") for w in found.words)
