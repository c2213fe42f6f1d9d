"""Barriers: whether two partition models can be averaged, by the loss of their midpoint.

Averaging works while models stay in one basin of the loss, as models do that start from one base
model and move little. Too large a learning rate or too long a training takes them out of it. Then
the midpoint of two models is worse than both, and worse than their base model. No reference has to
be trained for this check, so all pairs can be checked.
"""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from tasks.ranking.rank import MACRO_MEAN

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("evaluation_set", "first", "second", "loss_first", "loss_second"),
    *("midpoint", "base", "barrier", "broken"),
)


def barriers(
    singles: Mapping[str, Mapping[str, float]],
    midpoints: Mapping[tuple[str, str], Mapping[str, float]],
    base: Mapping[str, float],
) -> "pd.DataFrame":
    """The barrier between the models of each pair of partitions, on each evaluation set.

    Args:
        singles: nats per token of every partition's model, by partition and evaluation set.
        midpoints: the same of the even average of two, by both partitions in either order.
        base: the same of the base model, by evaluation set; all must be finite.

    Returns:
        One row per pair and set; the macro mean, the mean over sets, is one more set. ``COLUMNS``:
        ``barrier`` is the midpoint less the worse of both ends, in nats per token; ``broken`` says that
        the midpoint is above both ends and above the base model, or not finite though both ends are.

    Raises:
        ValueError: a loss is not known, a pair is there twice, or the base model's loss is not finite.
    """
    import pandas as pd

    start = _with_mean("the base model", base, base)
    if wrong := [name for name, loss in start.items() if not math.isfinite(loss)]:
        raise ValueError(f"the loss of the base model on {wrong[0]!r} is not finite: train it anew")
    ends = {
        name: _with_mean(f"partition {name!r}", losses, base) for name, losses in singles.items()
    }
    rows, seen = [], set()
    for pair, losses in sorted(midpoints.items(), key=lambda item: sorted(item[0])):
        first, second = sorted(pair)
        if lacking := [name for name in (first, second) if name not in ends]:
            raise ValueError(f"the losses of partition {lacking[0]!r} are not given: evaluate it")
        if (first, second) in seen:
            raise ValueError(f"the pair of {first!r} and {second!r} is there twice: give it once")
        seen.add((first, second))
        middle = _with_mean(f"the midpoint of {first!r} and {second!r}", losses, base)
        for name, loss in middle.items():
            first_loss, second_loss = ends[first][name], ends[second][name]
            judged = _judged(first_loss, second_loss, loss, start[name])
            rows.append((name, first, second, first_loss, second_loss, loss, start[name], *judged))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _judged(first: float, second: float, middle: float, base: float) -> tuple[float, bool]:
    """The barrier, and whether merging is broken; NaN and False where one of the two models diverged."""
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.nan, False
    return middle - max(first, second), not middle <= max(first, second, base)


def _with_mean(
    model: str, losses: Mapping[str, float], sets: Mapping[str, float]
) -> dict[str, float]:
    if lacking := [name for name in sets if name not in losses]:
        raise ValueError(
            f"{model} has no loss on the evaluation set {lacking[0]!r}: evaluate it there"
        )
    of_sets = {name: float(losses[name]) for name in sets}
    return {**of_sets, MACRO_MEAN: fmean(of_sets.values())}
