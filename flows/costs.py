"""What a run cost, what the store saved it, and what training every mixture would have cost.

Costs are summed by estimator and device and never across them. The cost of training a mixture is
that of its partitions' trainings: the same tokens through the same model.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.runners import Entry, Ledger
from tasks.energy import Cost, total
from tasks.mixture import Mixture

if TYPE_CHECKING:
    import pandas as pd

EVERY_MIXTURE = "training every mixture (not done)"


def cost_frame(
    ledger: Ledger, mixtures: Sequence[Mixture], trainings: Mapping[str, Entry]
) -> "pd.DataFrame":
    """Rows for a person: ``item``, ``seconds``, ``tokens``, ``flops``, ``joules``, ``estimator``.

    Args:
        trainings: what became of each partition's training, by partition.
    """
    import pandas as pd

    trained = [entry for entry in ledger.entries if entry.step == "train"]
    others = [entry for entry in ledger.entries if entry.step != "train"]
    items = {
        "training, now": _costs(e.cost for e in trained if e.built),
        "other steps, now": _costs(e.cost for e in others if e.built),
        "evaluating, now": _costs(ledger.sweep_costs),
        "training, saved by the store": _costs(e.cost for e in trained if not e.built),
        "other steps, saved by the store": _costs(e.cost for e in others if not e.built),
        EVERY_MIXTURE: every_mixture(mixtures, trainings),
    }
    rows = [
        {"item": item, **cost.model_dump(exclude={"device"})}
        for item, costs in items.items()
        for cost in total(costs)
    ]
    return pd.DataFrame(rows, columns=["item", "seconds", "tokens", "flops", "joules", "estimator"])


def _costs(costs: Iterable[Mapping[str, Any]]) -> list[Cost]:
    return [Cost.model_validate(cost) for cost in costs if cost]


def every_mixture(mixtures: Sequence[Mixture], trainings: Mapping[str, Entry]) -> list[Cost]:
    """What really training each mixture would have cost, by the recorded cost of its partitions."""
    times: Counter[str] = Counter(name for mixture in mixtures for name in mixture.members)
    return [
        Cost(
            seconds=cost.seconds * times[name],
            tokens=cost.tokens * times[name],
            flops=cost.flops * times[name],
            joules=None if cost.joules is None else cost.joules * times[name],
            estimator=cost.estimator,
            device=cost.device,
        )
        for name, entry in trainings.items()
        for cost in _costs([entry.cost])
    ]


def to_json(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """A frame as plain JSON rows; NaN becomes null."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows
