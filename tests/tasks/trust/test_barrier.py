"""Midpoints are judged against both ends and the base model; what lacks is named."""

import itertools
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.ranking.rank import MACRO_MEAN
from tasks.trust.barrier import COLUMNS, barriers

LOSS = st.floats(0, 5)


@given(LOSS, LOSS, LOSS, LOSS)
def test_broken_is_worse_than_all_three(
    one: float, other: float, middle: float, base: float
) -> None:
    singles = {"a": {"x": one}, "b": {"x": other}}
    found = barriers(singles, {("b", "a"): {"x": middle}}, {"x": base})
    assert tuple(found.columns) == COLUMNS
    assert found["evaluation_set"].tolist() == ["x", MACRO_MEAN]
    for line in found.to_dict("records"):
        assert (line["first"], line["second"]) == ("a", "b")
        assert line["barrier"] == middle - max(one, other)
        assert line["broken"] == (middle > one and middle > other and middle > base)
        assert (line["loss_first"], line["loss_second"]) == (one, other)
        assert (line["midpoint"], line["base"]) == (middle, base)


def test_every_pair_on_every_set() -> None:
    singles = {name: {"x": float(n), "y": 1.0} for n, name in enumerate("abc")}
    midpoints = {pair: {"y": 3.0, "x": 1.0} for pair in itertools.combinations("abc", 2)}
    found = barriers(singles, midpoints, {"x": 1.0, "y": 2.0})
    assert len(found) == 3 * 3
    macro = found[found["evaluation_set"] == MACRO_MEAN].set_index(["first", "second"])
    assert macro.loc[("a", "b"), "midpoint"] == 2.0
    assert macro.loc[("a", "b"), "loss_second"] == 1.0
    assert macro.loc[("b", "c"), "barrier"] == pytest.approx(0.5)
    assert macro.loc[("b", "c"), "base"] == pytest.approx(1.5)
    of_y = found[found["evaluation_set"] == "y"]
    assert of_y["broken"].all()
    assert not found[found["evaluation_set"] == "x"]["broken"].any()


def test_no_pair() -> None:
    found = barriers({"a": {"x": 1.0}}, {}, {"x": 1.0})
    assert tuple(found.columns) == COLUMNS
    assert found.empty
    assert isinstance(found, pd.DataFrame)


@pytest.mark.parametrize("middle", [math.nan, math.inf])
def test_a_midpoint_that_diverges_is_broken(middle: float) -> None:
    singles = {"a": {"x": 1.0}, "b": {"x": 2.0}}
    assert barriers(singles, {("a", "b"): {"x": middle}}, {"x": 3.0})["broken"].all()


def test_an_end_that_diverges_tells_nothing() -> None:
    singles = {"a": {"x": math.inf}, "b": {"x": 2.0}}
    found = barriers(singles, {("a", "b"): {"x": 9.0}}, {"x": 3.0})
    assert found["barrier"].isna().all()
    assert not found["broken"].any()


def test_what_lacks_is_named() -> None:
    a, b = {"x": 1.0}, {"x": 2.0}
    with pytest.raises(ValueError, match="partition 'b' are not given"):
        barriers({"a": a}, {("a", "b"): a}, a)
    with pytest.raises(ValueError, match="partition 'a' has no loss on the evaluation set 'y'"):
        barriers({"a": a, "b": b}, {}, {"x": 1.0, "y": 1.0})
    with pytest.raises(ValueError, match=r"midpoint of 'a' and 'b' has no loss .* 'x'"):
        barriers({"a": a, "b": b}, {("b", "a"): {}}, a)
    with pytest.raises(ValueError, match="'a' and 'b' is there twice"):
        barriers({"a": a, "b": b}, {("b", "a"): a, ("a", "b"): a}, a)
    with pytest.raises(ValueError, match="base model on 'x' is not finite"):
        barriers({}, {}, {"x": math.nan})
