"""Does an order hold on another rung: with another base model, learning rate or length?

Two mixtures of the same k are in an order that a rung can tell where the paired 95 % interval of their
difference, over documents, leaves out 0. Of two columns of losses, an order *holds* where both tell the
same, and *flips* where both tell, and not the same. All else is within the noise of the documents.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.arrays import Floats, Ints
from tasks.evaluation.losses import Losses
from tasks.ranking.noise import pair_variances
from tasks.ranking.rank import MACRO_MEAN, Z
from tasks.readable import number
from tasks.trust.measures import spearman

if TYPE_CHECKING:
    import pandas as pd

MOST = 1000
"""Mixtures that are compared pair by pair: of more, those that the first column has as the best."""
MOST_FLIPS = 200
"""Pairs that flip and are listed, those that do so most clearly first."""


class Column(NamedTuple):
    """The losses of some mixtures on one rung."""

    rung: str
    kind: str
    """proxy or reference."""
    losses: Losses
    """Under the mixtures' labels."""


class Ladder(NamedTuple):
    """What a ladder shows."""

    words: list[str]
    """Sentences, on the macro mean."""
    orders: "pd.DataFrame"
    """Of every two columns and every set, the macro mean first: ``first_rung``, ``first``, ``second_rung``,
    ``second`` (proxy or reference); ``evaluation_set``; ``mixtures`` that both have; ``spearman``, with the
    mean of each k taken off; ``pairs`` of one k; of these ``held``, ``flipped`` and ``unsure``."""
    flips: "pd.DataFrame"
    """Pairs of mixtures that flip for the macro mean, the clearest first: the columns as above, ``better``
    and ``worse`` by the first; the loss of the worse less that of the better in nats per token as
    ``first_difference``, ``first_low``, ``first_high``, and the same of the second."""
    losses: "pd.DataFrame"
    """``rung``, ``kind``, ``mixture``, ``k``, ``loss`` (macro mean), ``rank`` among those of its k."""


def judge_ladder(columns: Sequence[Column], sizes: Mapping[str, int]) -> Ladder:
    """Compare every two columns.

    Args:
        columns: those of the first rung first; all on the same sets.
        sizes: number of partitions of each mixture, by label.
    """
    import pandas as pd

    orders: list[dict[str, Any]] = []
    flips: list[dict[str, Any]] = []
    for first, second in itertools.combinations(columns, 2):
        names = {"first_rung": first.rung, "first": first.kind}
        names |= {"second_rung": second.rung, "second": second.kind}
        common = _common(first.losses, second.losses)
        k = np.array([sizes[label] for label in common], dtype=np.int64)
        for objective in [MACRO_MEAN, *first.losses.sets]:
            sides = [_differences(c.losses, common, objective) for c in (first, second)]
            order, flipped = _compared(sides, k)
            orders.append({**names, "evaluation_set": objective, **order})
            if objective == MACRO_MEAN:
                flips += [{**names, **_flip(sides, common, *pair)} for pair in flipped]
    frame = pd.DataFrame(orders)
    return Ladder([*_words(frame)], frame, _clearest(flips), _losses(columns, sizes))


class _Side(NamedTuple):
    loss: Floats
    """Shape (n,)."""
    ahead: Floats
    """Loss of each less that of each before it, shape (n, n)."""
    margin: Floats
    """Half of the 95 % interval of these."""


def _common(first: Losses, second: Losses) -> list[str]:
    """The mixtures that both have, the best of the first where they are too many."""
    both = set(second.mixtures)
    common = [label for label in first.mixtures if label in both]
    loss = dict(zip(first.mixtures, _macro(first, range(len(first.sets))), strict=True))
    return sorted(common, key=lambda label: (loss[label], label))[:MOST]


def _macro(losses: Losses, sets: Sequence[int]) -> list[float]:
    tokens = np.array([losses.counts[number].num_tokens for number in sets], dtype=float)
    means: list[float] = (losses.nll[:, [*sets]] / tokens).mean(axis=1).tolist()
    return means


def _differences(losses: Losses, common: Sequence[str], objective: str) -> _Side:
    sets = [n for n, name in enumerate(losses.sets) if objective in {MACRO_MEAN, name}]
    places = {label: place for place, label in enumerate(losses.mixtures)}
    chosen: Ints = np.array([places[label] for label in common], dtype=np.int64)
    loss = np.array(_macro(losses, sets))[chosen]
    variances = np.maximum(pair_variances(losses, sets, chosen), 0)
    return _Side(loss, loss[:, None] - loss, Z * np.sqrt(variances))


def _compared(sides: Sequence[_Side], k: Ints) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """Figures of two columns, and the pairs that flip."""
    x, y = (side.loss for side in sides)
    counted = np.tri(len(k), k=-1, dtype=bool) & (k[:, None] == k)
    signs = [np.where(np.abs(s.ahead) > s.margin, np.sign(s.ahead), 0) for s in sides]
    product = signs[0] * signs[1]
    flipped = np.argwhere(counted & (product < 0))
    sizes, number_of = np.unique(k, return_counts=True)
    alike = np.isin(k, sizes[number_of > 1]) & np.isfinite(x) & np.isfinite(y)
    rank = np.nan
    if alike.sum() > 2:
        rank = float(spearman(x[alike], y[alike], k[alike], np.ones((1, int(alike.sum()))))[0])
    held = int((counted & (product > 0)).sum())
    figures = {"mixtures": len(k), "spearman": rank, "pairs": int(counted.sum()), "held": held}
    figures |= {"flipped": len(flipped), "unsure": int(counted.sum()) - held - len(flipped)}
    return figures, [(int(i), int(j)) for i, j in flipped]


def _flip(sides: Sequence[_Side], common: Sequence[str], i: int, j: int) -> dict[str, Any]:
    is_better = bool(sides[0].ahead[i, j] < 0)
    row: dict[str, Any] = {"better": common[i if is_better else j]}
    row["worse"] = common[j if is_better else i]
    for name, side in zip(("first", "second"), sides, strict=True):
        gap = float(side.ahead[i, j]) * (-1 if is_better else 1)
        margin = float(side.margin[i, j])
        row |= {
            f"{name}_difference": gap,
            f"{name}_low": gap - margin,
            f"{name}_high": gap + margin,
        }
    return row


def _clearest(flips: list[dict[str, Any]]) -> "pd.DataFrame":
    """The flips whose nearer end lies farthest from 0 on both sides, the clearest first."""
    import pandas as pd

    names = ["first_rung", "first", "second_rung", "second", "better", "worse"]
    ends = [
        f"{side}_{what}" for side in ("first", "second") for what in ("difference", "low", "high")
    ]
    table = pd.DataFrame(flips, columns=[*names, *ends])
    clear = table[["first_low"]].assign(second=-table["second_high"]).min(axis=1)
    order = clear.sort_values(ascending=False, kind="stable").index[:MOST_FLIPS]
    return table.loc[order].reset_index(drop=True)


def _losses(columns: Sequence[Column], sizes: Mapping[str, int]) -> "pd.DataFrame":
    import pandas as pd

    rows = [
        (column.rung, column.kind, label, sizes[label], loss)
        for column in columns
        for label, loss in zip(
            column.losses.mixtures,
            _macro(column.losses, range(len(column.losses.sets))),
            strict=True,
        )
        if label in sizes
    ]
    table = pd.DataFrame(rows, columns=["rung", "kind", "mixture", "k", "loss"])
    rank = table.groupby(["rung", "kind", "k"])["loss"].rank(method="min")
    return table.assign(rank=rank)


def _words(orders: "pd.DataFrame") -> Iterator[str]:
    macro = orders[orders["evaluation_set"] == MACRO_MEAN]
    is_told = (macro["first_rung"] != macro["second_rung"]) & (macro["first"] == macro["second"])
    kinds = {"proxy": "merged models", "reference": "references"}
    for row in macro[is_told].to_dict("records"):
        yield (
            f"From {row['first_rung']} to {row['second_rung']}, {kinds[row['first']]}: of {row['pairs']:,} "
            f"pairs of mixtures of the same k {row['held']:,} keep their order and {row['flipped']:,} flip "
            f"beyond the noise of the documents; {row['unsure']:,} are not told apart on one rung or both. "
            f"Spearman at fixed k is {number(2)(row['spearman'])} ({row['mixtures']:,} mixtures)."
        )
