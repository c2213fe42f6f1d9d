"""Mixtures that were named and really trained, beside the even references of as many partitions.

They enter no correlation. Those are about the order of a ranking, from a sample spread over it; a mixture
that somebody names, often as the best of very many, is no draw from it. And where an even reference
reads all text of its partitions, as often as the partitions' own trainings did, a weighted one repeats
some and leaves some out. What compares is the length: as many steps as the even references of its k.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.arrays import Ints
from tasks.evaluation.losses import Losses
from tasks.mixtures.mixture import Mixture
from tasks.ranking.noise import paired_variances
from tasks.ranking.rank import MACRO_MEAN, Z
from tasks.readable import interval, number
from tasks.trust.predictors import bits_per_byte, per_token

if TYPE_CHECKING:
    import pandas as pd


def beside_even(
    proxies: Losses, references: Losses, named: Sequence[Mixture], even: Sequence[Mixture]
) -> "pd.DataFrame":
    """What was predicted of the named mixtures and what they came to, among the even ones of their k.

    Args:
        proxies: the merged models, by label.
        references: the trained ones, under the mixtures' labels, with their sums per group.
        named: the mixtures that were named.
        even: those of the sample.

    Returns:
        One row per mixture and set, the macro mean first: ``mixture``; ``k``; ``evaluation_set``;
        ``proxy`` and ``reference`` in nats per token; ``proxy_bits`` and ``reference_bits`` in bits per
        byte; ``even``, the number of other mixtures of the sample with its k; ``proxy_rank`` and
        ``reference_rank`` among these and itself, 1 for the best; ``best_even``, the best of them by its
        reference; ``difference``, the loss of the mixture's reference less that one's, with ``low`` and
        ``high``, its paired 95 % interval over documents. NaN and None where there is none.
    """
    import pandas as pd

    tables = {
        "proxy": _with_macro(per_token(proxies)),
        "reference": _with_macro(per_token(references)),
        "proxy_bits": _with_macro(bits_per_byte(proxies)),
        "reference_bits": _with_macro(bits_per_byte(references)),
    }
    rows = [
        _row(mixture, name, [m.label for m in even if m.size == mixture.size], tables, references)
        for mixture in named
        for name in [MACRO_MEAN, *references.sets]
    ]
    return pd.DataFrame(rows)


def _row(
    mixture: Mixture,
    name: str,
    even: Sequence[str],
    tables: "dict[str, pd.DataFrame]",
    references: Losses,
) -> dict[str, Any]:
    label = mixture.label
    even = [other for other in even if other != label]
    row: dict[str, Any] = {"mixture": label, "k": mixture.size, "evaluation_set": name}
    row |= {column: float(table[name].loc[label]) for column, table in tables.items()}
    row["even"] = len(even)
    for column in ("proxy", "reference"):
        row[f"{column}_rank"] = 1 + int((tables[column].loc[even, name] < row[column]).sum())
    losses = tables["reference"].loc[even, name].dropna()
    row |= {"best_even": None, **dict.fromkeys(("difference", "low", "high"), np.nan)}
    if len(losses):
        best = str(losses.idxmin())
        places: list[Ints] = [np.array([references.mixtures.index(n)]) for n in (label, best)]
        chosen = [place for place, s in enumerate(references.sets) if name in {MACRO_MEAN, s}]
        margin = Z * float(np.sqrt(paired_variances(references, chosen, *places))[0])
        gap = row["reference"] - float(losses[best])
        row |= {"best_even": best, "difference": gap, "low": gap - margin, "high": gap + margin}
    return row


def _with_macro(table: "pd.DataFrame") -> "pd.DataFrame":
    return table.assign(**{MACRO_MEAN: table.mean(axis=1, skipna=False)})


def named_words(table: "pd.DataFrame") -> Iterator[str]:
    """A sentence on each named mixture, for the macro mean."""
    for row in table[table["evaluation_set"] == MACRO_MEAN].to_dict("records"):
        yield (
            f"{row['mixture']}, really trained as long as the even references of k = {row['k']}, has "
            f"{number(4)(row['reference_bits'])} bits per byte on the {MACRO_MEAN}{_standing(row)}."
        )


def _standing(row: Mapping[Any, Any]) -> str:
    if not isinstance(row["best_even"], str):
        return "; no even reference of that k was trained to compare it with"
    among = f"{row['reference_rank']} of {row['even'] + 1} by its reference, {row['proxy_rank']} by its proxy"
    side = "is not told apart from it"
    if row["low"] > 0 or row["high"] < 0:
        side = "is better" if row["difference"] > 0 else "is worse"
    gap = f"{number(4)(row['difference'])} nats per token, {interval(row['low'], row['high'])}"
    return f": rank {among}. The best even one, {row['best_even']}, {side} ({gap})"
