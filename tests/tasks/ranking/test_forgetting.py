"""What was learned and forgotten, against the losses written out."""

import math

import numpy as np
import pandas as pd
import pytest

from tasks.evaluation.group_sums import GroupSums
from tasks.evaluation.losses import Counts, Losses
from tasks.ranking.forgetting import learned_and_forgotten

TOKENS = {"b": 10, "a": 20, "web": 40}
MEMBERS = [
    ("a-0", "a-0"),
    ("a-0 + b-0", "a-0"),
    ("a-0 + b-0", "b-0"),
    ("b-0", "b-0"),
    ("c-0", "c-0"),
]
DOMAINS = {"a-0": "a", "b-0": "b", "c-0": "c"}


def losses(mixtures: list[str], rows: list[list[float]], sets: list[str]) -> Losses:
    """Nats per token of mixtures on sets."""
    nll = np.array(rows) * [TOKENS[name] for name in sets]
    none = np.zeros(0, dtype=np.int64)
    counts = [Counts(TOKENS[name], 1, 1, none, none) for name in sets]
    return Losses(mixtures, sets, nll, counts, GroupSums(0))


def table(sets: list[str]) -> pd.DataFrame:
    columns = {"b": [4, 3, 2, 7], "a": [1, 2, 5, 7], "web": [6, 6, 9, 7]}
    mixtures = ["a-0", "a-0 + b-0", "b-0", "c-0"]
    found = losses(mixtures, np.array([columns[name] for name in sets]).T.tolist(), sets)
    # The base model's row has its sets in another order.
    base = losses(
        ["base model"], [[{"b": 3, "a": 3, "web": 5}[s] for s in reversed(sets)]], sets[::-1]
    )
    members = pd.DataFrame(MEMBERS, columns=["mixture", "partition"])
    domains = [None if name == "web" else name for name in sets]
    frame = pd.DataFrame({"evaluation_set": sets, "domain": domains})
    return learned_and_forgotten(found, base, members, DOMAINS, frame)


def test_gain_on_the_own_set_and_rise_of_the_mean_of_the_others() -> None:
    expected = [("a-0", 3 - 1, ((4 - 3) + (6 - 5)) / 2), ("b-0", 3 - 2, ((5 - 3) + (9 - 5)) / 2)]
    assert [*table(["b", "a", "web"]).itertuples(index=False, name=None)] == expected


def test_without_another_set_nothing_is_known_of_forgetting() -> None:
    ((mixture, learned, forgotten),) = table(["a"]).itertuples(index=False, name=None)
    assert (mixture, learned) == ("a-0", pytest.approx(2))
    assert math.isnan(forgotten)
    assert table(["web"]).empty
