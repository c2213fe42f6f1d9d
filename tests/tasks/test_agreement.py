"""Correlations are numpy's, and a larger sample of references keeps the smaller one."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st

from tasks.agreement import POOLED, agreement, choose_references, pair_up
from tasks.mixture import Mixture
from tasks.ranking import MACRO_MEAN

NAMES = "abcdefg"
ALL = [
    Mixture.uniform(chosen)
    for size in range(1, 8)
    for chosen in itertools.combinations(NAMES, size)
]


@settings(deadline=None)
@cases(st.integers(1, 40), st.integers(0, 5), st.sampled_from([(2, 3, 4), (4, 2), (3,)]))
def test_more_references_keep_the_fewer(count: int, seed: int, sizes: tuple[int, ...]) -> None:
    total = sum(math.comb(7, size) for size in sizes)
    chosen = choose_references(ALL, min(count, total), sizes, seed)
    more = choose_references(ALL, min(count + 1, total), sizes, seed)
    assert more[: len(chosen)] == chosen
    assert len({*chosen}) == len(chosen) == min(count, total)
    assert choose_references(reversed(ALL), len(chosen), sizes, seed) == chosen
    shares = [sum(mixture.size == size for mixture in chosen) for size in sizes]
    full = [share == math.comb(7, size) for share, size in zip(shares, sizes, strict=True)]
    open_shares = [share for share, is_full in zip(shares, full, strict=True) if not is_full]
    assert not open_shares or max(open_shares) - min(open_shares) <= 1


def test_seeds_choose_others() -> None:
    chosen = {tuple(choose_references(ALL, 6, (2, 3, 4), seed)) for seed in range(5)}
    assert len(chosen) == 5


def test_other_mixtures_do_not_move_a_choice() -> None:
    """Nothing but uniform mixtures of the sizes counts, and each counts once."""
    odd = [Mixture.of({"a": 1, "b": 2}), Mixture.uniform("abcde"), *ALL]
    assert choose_references([*odd, *odd], 9, (2, 3), 0) == choose_references(ALL, 9, (2, 3), 0)


def test_too_few_mixtures() -> None:
    assert len(choose_references(ALL, 56, (2, 3), 0)) == 21 + 35
    with pytest.raises(ValueError, match=r"asks for 57 mixtures, and the recipe has 56 .*\[2, 3\]"):
        choose_references(ALL, 57, (2, 3), 0)


def frame(losses: dict[str, dict[str, float]], num_tokens: int = 10) -> pd.DataFrame:
    """Nats per token as rows of losses."""
    rows = [
        {"mixture": m, "evaluation_set": s, "nll": loss * num_tokens, "num_tokens": num_tokens}
        for m, sets in losses.items()
        for s, loss in sets.items()
    ]
    return pd.DataFrame(rows)


def test_pairs_are_nats_per_token() -> None:
    mixture = Mixture.uniform("ab")
    merged = {
        "a": {"x": 1.0, "y": 5.0},
        "b": {"x": 2.0, "y": 1.0},
        "a + b": {"x": 1.25, "y": 2.0},
    }
    trained = {"a + b": {"x": 1.0, "y": 1.5}}
    found = pair_up(frame(merged), frame(trained, num_tokens=70), [mixture])
    assert found["k"].tolist() == [2, 2, 2]
    assert found["evaluation_set"].tolist() == ["x", "y", MACRO_MEAN]
    assert found["proxy"].tolist() == pytest.approx([1.25, 2.0, 1.625])
    assert found["reference"].tolist() == pytest.approx([1.0, 1.5, 1.25])
    assert found["individual"].tolist() == pytest.approx([1.5, 3.0, 2.25])


def test_macro_mean_over_a_set_that_lacks_is_unknown() -> None:
    merged = {"a": {"x": 1.0, "y": 5.0}, "b": {"x": 2.0}, "a + b": {"x": 1.0, "y": 2.0}}
    trained = {"a + b": {"x": 1.0, "y": 1.5}}
    found = pair_up(frame(merged), frame(trained), [Mixture.uniform("ab")])
    assert found["evaluation_set"].tolist() == ["x", "y", MACRO_MEAN]
    assert found["proxy"].tolist() == pytest.approx([1.0, 2.0, 1.5])
    assert found["individual"].isna().tolist() == [False, True, True]


def pairs(seed: int, counts: dict[int, int], ties: bool = False) -> pd.DataFrame:
    """Random losses of so many mixtures of each size on two sets."""
    lots = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for k, count in counts.items():
        for number, name in itertools.product(range(count), ("x", "y")):
            values = lots.integers(0, 3, 3) / 4 if ties else lots.normal(size=3)
            names = dict(zip(("proxy", "reference", "individual"), values.tolist(), strict=True))
            rows.append({"mixture": f"{k} {number}", "k": k, "evaluation_set": name, **names})
    return pd.DataFrame(rows)


def ranks(values: "pd.Series[float]") -> np.ndarray:
    """How many are smaller, equal ones half: ranks up to a constant."""
    column = values.to_numpy()
    found: np.ndarray = ((column < column[:, None]) + (column == column[:, None]) / 2).sum(1)
    return found


@settings(max_examples=25, deadline=None)
@cases(st.integers(0, 10_000), st.integers(3, 12), st.integers(3, 12), st.booleans())
def test_correlations_are_numpys(seed: int, few: int, many: int, ties: bool) -> None:
    data = pairs(seed, {2: few, 3: many}, ties)
    found = agreement(data).set_index(["evaluation_set", "k"])
    assert [*found.index] == [(name, k) for name in ("x", "y") for k in ("2", "3", POOLED)]
    for name, k in found.index:
        part = data[
            (data["evaluation_set"] == name) & ((k == POOLED) | (data["k"].astype(str) == k))
        ]
        line = found.loc[name, k]
        assert line["references"] == len(part)
        for column, suffix in (("proxy", ""), ("individual", "_individual")):
            one, other = part[column], part["reference"]
            if one.nunique() < 2 or other.nunique() < 2:
                assert math.isnan(line["pearson" + suffix])
                assert math.isnan(line["spearman" + suffix])
                continue
            pearson = np.corrcoef(one, other)[0, 1]
            assert line["pearson" + suffix] == pytest.approx(pearson, abs=1e-9)
            spearman = np.corrcoef(ranks(one), ranks(other))[0, 1]
            assert line["spearman" + suffix] == pytest.approx(spearman, abs=1e-9)


def test_two_references_say_nothing() -> None:
    found = agreement(pairs(0, {2: 2, 3: 3})).set_index(["evaluation_set", "k"])
    figures = ["pearson", "spearman", "pearson_individual", "spearman_individual"]
    assert found.loc[("x", "2"), figures].isna().all()
    assert found.loc[("x", "3"), figures].notna().all()
    assert found.loc[("x", POOLED), "references"] == 5
