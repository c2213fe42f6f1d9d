"""Costs of a run: what it spent, what the store saved, and what training every mixture would have cost.

Costs are summed by estimator and device and never across them. The cost of training a mixture is
that of its partitions' trainings: the same tokens through the same model. kWh are those of the
facility and CO2e follows from them, by the power usage effectiveness and the grid intensity that the
runtime states; ``stated`` says in sentences what was stated and what is left out.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.chain.runner import REFERENCE, Entry, Ledger
from storage.step import Runtime
from tasks.machine.facility import co2e_kg, facility_kwh
from tasks.machine.meter import Cost, total
from tasks.mixtures.mixture import Mixture
from tasks.training.train import TRAIN

if TYPE_CHECKING:
    import pandas as pd

EVERY_MIXTURE = "training every mixture (not done)"

BUILT = ("training", "training references", "other steps")
"""Items of the ledger's entries, each spent now or saved by the store."""

COLUMNS = ("item", "seconds", "tokens", "flops", "joules", "kwh", "co2e_kg", "estimator", "device")


def cost_frame(
    ledger: Ledger,
    mixtures: Sequence[Mixture],
    trainings: Mapping[str, Entry],
    runtime: Runtime | None = None,
) -> "pd.DataFrame":
    """Rows for a person, ``COLUMNS``; one row for each item, estimator and device.

    Args:
        mixtures: all that were considered, those that a race or a search did not evaluate in full
            included.
        trainings: the ledger's entry of each partition's training, by partition.
        runtime: states power usage effectiveness and grid intensity; None takes its defaults.

    Returns:
        ``kwh`` is the facility's, NaN where joules are unknown; ``co2e_kg`` is NaN also where no
        grid intensity is stated.
    """
    import pandas as pd

    items = {**_recorded(ledger), EVERY_MIXTURE: every_mixture(mixtures, trainings)}
    rows = [
        {"item": item, **cost.model_dump(), **_facility(cost, runtime or Runtime())}
        for item, costs in items.items()
        for cost in total(costs)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = ["joules", "kwh", "co2e_kg"]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def _recorded(ledger: Ledger) -> dict[str, list[Cost]]:
    """Costs that the ledger has, by item."""
    saved = "saved by the store"
    items: dict[str, list[Cost]] = {f"{what}, now": [] for what in BUILT}
    items["evaluating, now"] = _costs(ledger.sweep_costs)
    items |= {f"{what}, {saved}": [] for what in BUILT}
    for entry in ledger.entries:
        items[f"{_what(entry)}, {'now' if entry.built else saved}"] += _costs([entry.cost])
    return items


def _what(entry: Entry) -> str:
    if entry.step != TRAIN:
        return "other steps"
    return "training references" if entry.label.startswith(REFERENCE) else "training"


def _facility(cost: Cost, runtime: Runtime) -> dict[str, float | None]:
    if cost.joules is None:
        return {"kwh": None, "co2e_kg": None}
    kwh = facility_kwh(cost.joules, runtime.power_usage_effectiveness)
    intensity = runtime.grid_intensity
    return {"kwh": kwh, "co2e_kg": None if intensity is None else co2e_kg(kwh, intensity)}


def stated(runtime: Runtime) -> list[str]:
    """Sentences for below the table: what was stated, what was measured, what is left out."""
    effectiveness, intensity = runtime.power_usage_effectiveness, runtime.grid_intensity
    kwh = f"kWh are the joules times a power usage effectiveness (PUE) of {effectiveness:g}"
    if effectiveness == 1:
        kwh += ": cooling and power supply of the building are not counted"
    co2e = "CO2e is not given: state the grid's g per kWh as grid_intensity"
    if intensity is not None:
        co2e = f"CO2e is kWh times a grid intensity of {intensity:g} g per kWh, as stated"
        co2e += "; making the hardware is not counted"
    return [
        f"{kwh}.",
        f"{co2e}.",
        "Energy is worth as much as its estimator, which stands beside it: rows of different "
        "estimators or devices must not be added.",
        "Storage and network are in no row, nor is what losses cost that the store had. "
        f"What {EVERY_MIXTURE.partition(' (')[0]} would have cost follows from the recorded cost of "
        "each partition's training.",
    ]


def _costs(costs: Iterable[Mapping[str, Any]]) -> list[Cost]:
    return [Cost.model_validate(cost) for cost in costs if cost]


def every_mixture(mixtures: Sequence[Mixture], trainings: Mapping[str, Entry]) -> list[Cost]:
    """What really training each mixture would have cost, by the recorded cost of its partitions.

    As long as its partitions' trainings together; or, where these are phases, as long as one of them.
    """
    records = [entry.record for entry in trainings.values() if entry.record is not None]
    are_phases = any(record.config.get("of") for record in records)
    times: dict[str, float] = defaultdict(float)
    for mixture in mixtures:
        for name in mixture.members:
            times[name] += 1 / mixture.size if are_phases else 1
    return [
        Cost(
            seconds=cost.seconds * times[name],
            tokens=round(cost.tokens * times[name]),
            flops=cost.flops * times[name],
            joules=None if cost.joules is None else cost.joules * times[name],
            estimator=cost.estimator,
            device=cost.device,
        )
        for name, entry in trainings.items()
        for cost in _costs([entry.cost])
    ]
