"""How well proxies (merged models) agree with references (models really trained on the mixtures).

Figures are given at a fixed number of partitions k and pooled over all k. Pooled ones are higher
than they deserve, because k itself, and whether a set's own domain is in the mixture, move proxy and
reference alike. Beside the merged models stands the baseline that needs no merging: the mean loss of
the mixture's single partition models. Where it does as well, merging adds nothing.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tasks.mixture import Mixture
from tasks.ranking import MACRO_MEAN

if TYPE_CHECKING:
    import pandas as pd

POOLED = "pooled"


def choose_references(
    mixtures: Iterable[Mixture], count: int, sizes: Sequence[int], seed: int
) -> list[Mixture]:
    """A seeded sample of uniform mixtures, in equal shares over ``sizes``.

    A larger ``count`` keeps what a smaller one chose, so that more references cost only themselves.

    Raises:
        ValueError: there are fewer such mixtures than ``count``.
    """
    found: dict[int, list[Mixture]] = {size: [] for size in dict.fromkeys(sizes)}
    for mixture in dict.fromkeys(mixtures):
        if mixture.is_uniform and mixture.size in found:
            found[mixture.size].append(mixture)
    for same_size in found.values():
        same_size.sort(key=lambda mixture: _lot(mixture, seed))
    total = sum(map(len, found.values()))
    if total < count:
        raise ValueError(
            f"validation.references asks for {count} mixtures, and the recipe has {total} uniform "
            f"ones of sizes {sorted(found)}: ask for fewer, or add validation.sizes"
        )
    chosen: list[Mixture] = []
    while len(chosen) < count:
        for size in found:
            if found[size] and len(chosen) < count:
                chosen.append(found[size].pop(0))
    return chosen


def _lot(mixture: Mixture, seed: int) -> str:
    return hashlib.sha256(f"{seed} {mixture.label}".encode()).hexdigest()


def pair_up(
    losses: "pd.DataFrame", references: "pd.DataFrame", chosen: Sequence[Mixture]
) -> "pd.DataFrame":
    """Nats per token of proxy, reference and baseline for each chosen mixture and set.

    Args:
        losses: rows of merged models and of every single partition (``mixture``,
            ``evaluation_set``, ``nll``, ``num_tokens``).
        references: the same for the trained models, under the same labels.

    Returns:
        Columns ``mixture``, ``k``, ``evaluation_set``, ``proxy``, ``reference``, ``individual``;
        the macro mean is one more set.
    """
    import pandas as pd

    proxy, reference = _means(losses), _means(references)
    rows = [
        {
            "mixture": mixture.label,
            "k": mixture.size,
            "evaluation_set": name,
            "proxy": proxy.loc[mixture.label, name],
            "reference": reference.loc[mixture.label, name],
            "individual": proxy.loc[list(mixture.members), name].mean(skipna=False),
        }
        for mixture in chosen
        for name in proxy.columns
    ]
    return pd.DataFrame(rows)


def _means(frame: "pd.DataFrame") -> "pd.DataFrame":
    per_token = frame.assign(loss=frame["nll"] / frame["num_tokens"])
    table = per_token.pivot(index="mixture", columns="evaluation_set", values="loss")
    return table.assign(**{MACRO_MEAN: table.mean(axis=1, skipna=False)})


def agreement(pairs: "pd.DataFrame") -> "pd.DataFrame":
    """Pearson and Spearman of log-perplexity for each set, at each k and pooled.

    Columns: ``evaluation_set``, ``k`` (a number as text, or ``pooled``), ``references``,
    ``pearson``, ``spearman``, ``pearson_individual``, ``spearman_individual``. Fewer than three
    references, or constant ones, give NaN.
    """
    import pandas as pd

    rows = []
    for name, of_set in pairs.groupby("evaluation_set", sort=False):
        groups = [(str(k), group) for k, group in of_set.groupby("k")]
        for k, group in [*groups, (POOLED, of_set)]:
            rows.append({"evaluation_set": name, "k": k, **_figures(group)})
    return pd.DataFrame(rows)


def _figures(group: "pd.DataFrame") -> dict[str, float]:
    few = len(group) < 3
    ranks = group[["proxy", "reference", "individual"]].rank()
    nan = float("nan")

    def correlation(frame: "pd.DataFrame", column: str) -> float:
        constant = few or frame[column].nunique() < 2 or frame["reference"].nunique() < 2
        return nan if constant else float(frame[column].corr(frame["reference"]))

    return {
        "references": len(group),
        "pearson": correlation(group, "proxy"),
        "spearman": correlation(ranks, "proxy"),
        "pearson_individual": correlation(group, "individual"),
        "spearman_individual": correlation(ranks, "individual"),
    }
