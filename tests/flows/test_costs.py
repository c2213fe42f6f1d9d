"""Costs are summed by who estimated them, split into spent now and saved, and never mixed."""

import math
from typing import Any

import pytest

from flows.costs import EVERY_MIXTURE, cost_frame, every_mixture, to_json
from flows.runners import Entry, Ledger
from tasks.mixture import Mixture


def cost(seconds: float, **other: Any) -> dict[str, Any]:
    joules = {"joules": 10 * seconds, "estimator": "guess", "device": "cpu"}
    return {"seconds": seconds, "tokens": 100, "flops": 1e6, **joules, **other}


def entry(
    label: str, seconds: float, *, step: str = "train", built: bool = True, **other: Any
) -> Entry:
    return Entry(step, label, built, cost(seconds, **other))  # fmt: skip


A, B = entry("a", 1), entry("b", 2, built=False)
MIXTURES = [Mixture.uniform(["a"]), Mixture.uniform(["b"]), Mixture.uniform(["a", "b"])]


def rows(ledger: Ledger) -> dict[str, dict[str, Any]]:
    frame = cost_frame(ledger, MIXTURES, {"a": A, "b": B})
    return {row["item"]: row for row in to_json(frame)}


def test_what_was_spent_is_apart_from_what_the_store_saved() -> None:
    ledger = Ledger(
        [A, B, entry("a", 4, step="tokenize"), entry("b", 8, step="window", built=False)]
    )
    ledger.sweep_costs.append(cost(16))
    found = rows(ledger)
    assert {item: row["seconds"] for item, row in found.items()} == {
        "training, now": 1,
        "training, saved by the store": 2,
        "other steps, now": 4,
        "other steps, saved by the store": 8,
        "evaluating, now": 16,
        EVERY_MIXTURE: 2 * 1 + 2 * 2,
    }
    assert found["training, now"] == {
        "item": "training, now", "seconds": 1.0, "tokens": 100, "flops": 1e6,
        "joules": 10.0, "estimator": "guess",
    }  # fmt: skip


def test_estimators_and_devices_are_never_added_up() -> None:
    other = entry("c", 5, estimator="meter")
    elsewhere = entry("d", 7, device="cuda:0")
    frame = cost_frame(Ledger([A, other, elsewhere]), [], {})
    spent = frame[frame["item"] == "training, now"]
    assert sorted(spent["seconds"]) == [1, 5, 7]
    assert sorted(spent["estimator"]) == ["guess", "guess", "meter"]


def test_training_every_mixture_costs_each_partition_as_often_as_it_is_used() -> None:
    found = every_mixture(MIXTURES, {"a": A, "b": B})
    assert [(c.seconds, c.tokens, c.flops, c.joules) for c in found] == [
        (2, 200, 2e6, 20),
        (4, 200, 2e6, 40),
    ]


def test_energy_that_nobody_estimated_stays_unknown() -> None:
    unknown = entry("a", 1, joules=None)
    (found,) = every_mixture(MIXTURES, {"a": unknown})
    assert found.joules is None
    frame = cost_frame(Ledger([unknown]), [], {"a": unknown})
    assert to_json(frame)[0]["joules"] is None


def test_entries_without_a_cost_are_left_out() -> None:
    free = Entry("train", "a", True, {})
    assert rows(Ledger([free])).keys() == {EVERY_MIXTURE}


def test_json_has_null_for_nan_and_keeps_every_digit() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"x": [math.pi, math.nan], "name": ["a", "ü"]})
    assert to_json(frame) == [{"x": math.pi, "name": "a"}, {"x": None, "name": "ü"}]
