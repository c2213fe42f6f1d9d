"""Costs are summed by who estimated them, split into spent now and saved, and never mixed."""

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.chain.runner import REFERENCE, Entry, Ledger
from flows.run.costs import COLUMNS, EVERY_MIXTURE, cost_frame, every_mixture, stated
from storage.step import Runtime, Step
from tasks.evaluation.window import WINDOW
from tasks.machine.meter import Meter, energy_source
from tasks.mixtures.mixture import Mixture
from tasks.report import tables
from tasks.tokens.tokenize import TOKENIZE
from tasks.training.train import TRAIN


def cost(seconds: float, **other: Any) -> dict[str, Any]:
    joules = {"joules": 10 * seconds, "estimator": "guess", "device": "cpu"}
    return {"seconds": seconds, "tokens": 100, "flops": 1e6, **joules, **other}


def entry(
    label: str, seconds: float, *, step: Step[Any] = TRAIN, built: bool = True, **other: Any
) -> Entry:
    return Entry(step, label, built, cost(seconds, **other))  # fmt: skip


A, B = entry("a", 1), entry("b", 2, built=False)
MIXTURES = [Mixture.uniform(["a"]), Mixture.uniform(["b"]), Mixture.uniform(["a", "b"])]


def rows(ledger: Ledger) -> dict[str, dict[str, Any]]:
    frame = cost_frame(ledger, MIXTURES, {"a": A, "b": B})
    return {row["item"]: row for row in tables.to_json(frame)}


def test_what_was_spent_is_apart_from_what_the_store_saved() -> None:
    ledger = Ledger([A, B, entry("a", 4, step=TOKENIZE), entry("b", 8, step=WINDOW, built=False)])
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
        "joules": 10.0, "kwh": pytest.approx(10 / 3.6e6), "co2e_kg": None,
        "estimator": "guess", "device": "cpu",
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
    row = tables.to_json(frame)[0]
    assert (row["joules"], row["kwh"], row["co2e_kg"]) == (None, None, None)


def test_references_are_apart_from_partitions() -> None:
    new, old = entry(f"{REFERENCE}a + b", 5), entry(f"{REFERENCE}a", 7, built=False)
    found = rows(Ledger([A, B, new, old]))
    assert {item: row["seconds"] for item, row in found.items()} == {
        "training, now": 1,
        "training references, now": 5,
        "training, saved by the store": 2,
        "training references, saved by the store": 7,
        EVERY_MIXTURE: 6,
    }


@given(
    joules=st.floats(0, 1e12),
    effectiveness=st.floats(1, 3),
    intensity=st.floats(1e-3, 2000),
)
def test_kwh_are_of_the_facility_and_emit_what_is_stated(
    joules: float, effectiveness: float, intensity: float
) -> None:
    runtime = Runtime(power_usage_effectiveness=effectiveness, grid_intensity=intensity)
    ledger = Ledger([entry("a", 1, joules=joules)])
    (row,) = tables.to_json(cost_frame(ledger, [], {}, runtime))
    assert row["joules"] == pytest.approx(joules)
    assert row["kwh"] == pytest.approx(effectiveness * joules / 3.6e6, rel=1e-9, abs=1e-14)
    assert row["co2e_kg"] == pytest.approx(row["kwh"] * intensity / 1000, rel=1e-9, abs=1e-14)


def test_what_the_numbers_rest_on_is_said() -> None:
    alone = " ".join(stated(Runtime()))
    assert "(PUE) of 1: cooling" in alone
    assert "CO2e is not given: state the grid's g per kWh as grid_intensity." in alone
    told = " ".join(stated(Runtime(power_usage_effectiveness=1.25, grid_intensity=380)))
    assert "(PUE) of 1.25." in told
    assert "grid intensity of 380 g per kWh, as stated" in told
    assert "cooling" not in told
    for words in (alone, told):
        assert "rows of different estimators or devices must not be added" in words


def test_the_report_shows_the_columns() -> None:
    assert set(tables.COST) <= set(COLUMNS)
    frame = cost_frame(Ledger([A]), [], {})
    (row,) = tables.table_of(frame, tables.COST).rows
    assert row[-3:] == ["2.778e−06", "–", "guess"]
    empty = cost_frame(Ledger([]), [], {})
    assert list(empty) == list(COLUMNS)
    assert tables.table_of(empty, tables.COST).rows == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("power_usage_effectiveness", 0.9),
        ("power_usage_effectiveness", math.inf),
        ("grid_intensity", -1),
        ("energy", "guess"),
    ],
)
def test_what_cannot_be_is_not_stated(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Runtime.model_validate({field: value})


def test_entries_without_a_cost_are_left_out() -> None:
    free = Entry(TRAIN, "a", True, {})
    assert rows(Ledger([free])).keys() == {EVERY_MIXTURE}


def test_json_has_null_for_nan_and_keeps_every_digit() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"x": [math.pi, math.nan], "name": ["a", "ü"]})
    assert tables.to_json(frame) == [{"x": math.pi, "name": "a"}, {"x": None, "name": "ü"}]


def test_effectiveness_and_intensity_are_applied_once_to_codecarbon() -> None:
    runtime = Runtime(energy="codecarbon", power_usage_effectiveness=1.5, grid_intensity=400)
    with Meter("cpu", energy_source("cpu", how=runtime.energy)) as meter:
        math.factorial(50_000)
        time.sleep(0.1)
    ledger = Ledger([Entry(TRAIN, "a", True, meter.cost.model_dump())])
    (row,) = tables.to_json(cost_frame(ledger, [], {}, runtime))
    assert row["co2e_kg"] / row["kwh"] * 1000 == pytest.approx(400)
    assert row["kwh"] / row["joules"] * 3.6e6 == pytest.approx(1.5)
    assert row["estimator"].startswith("codecarbon ")
