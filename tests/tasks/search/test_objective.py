"""The objective is the arithmetic it says, and what cannot be meant is refused by name."""

import math

import numpy as np
import pytest

from tasks.search.objective import Objective, ObjectiveConfig

SETS, UNITS = ["law", "qa"], ["a", "b", "c"]
LOSSES = np.array([[1.0, 3.0], [2.0, 1.0]])
WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])


def objective(**fields: object) -> Objective:
    return Objective(ObjectiveConfig.model_validate(fields), SETS, UNITS)


def test_sets_count_alike_or_as_they_are_weighed() -> None:
    assert objective().values(LOSSES, WEIGHTS).tolist() == [2.0, 1.5]
    assert objective(weights={"qa": 3, "law": 1}).values(LOSSES, WEIGHTS).tolist() == [2.5, 1.25]
    assert objective(weights={"qa": 2}).values(LOSSES, WEIGHTS).tolist() == [3.0, 1.0]


def test_the_pull_is_the_divergence_from_the_prior_in_nats() -> None:
    uniform = objective(pull=0.1).values(LOSSES, WEIGHTS)
    expected = [sum(w * math.log(w * 3) for w in row if w) for row in WEIGHTS.tolist()]
    assert uniform == pytest.approx([2.0 + 0.1 * expected[0], 1.5 + 0.1 * expected[1]])
    own = objective(pull=0.1, prior={"a": 2, "b": 1, "c": 1}).values(LOSSES, WEIGHTS)
    assert own == pytest.approx([2.0 + 0.1 * math.log(2), 1.5])


def test_caps_are_percent_of_the_base_models_bits() -> None:
    base = np.array([1.5, 2.0])
    capped = objective(caps={"qa": 10})
    assert capped.excess(LOSSES, base) == pytest.approx([0.8, -1.2])
    assert capped.holds(LOSSES, base).tolist() == [False, True]
    all_sets = objective(caps={"*": 0, "qa": 50})
    assert all_sets.excess(LOSSES, base) == pytest.approx([0.0, 0.5])
    assert all_sets.holds(LOSSES, base).tolist() == [True, False]
    assert objective().holds(LOSSES, None).tolist() == [True, True]
    with pytest.raises(ValueError, match="no losses of a base model"):
        capped.holds(LOSSES, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"qas": 1}}, "'qas', which is unknown"),
        ({"weights": {"qa": -1}}, "'qa' has -1"),
        ({"weights": {"qa": 0}}, "sum to zero"),
        ({"caps": {"laws": 1}}, "'laws', which is unknown"),
        ({"caps": {"law": -100}}, "cap of 'law' is -100"),
        ({"pull": -0.1}, "pull of the objective is -0.1"),
        ({"prior": {"a": 1, "b": 1}}, "no weight to 'c'"),
        ({"prior": {"a": 1, "b": 1, "c": 1, "d": 1}}, "'d', which is unknown"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**fields)
