"""What each partition's model learned on its own domain, and what it forgot on other sets.

Low-rank training is said to learn less and to forget less than training all weights (Biderman et al. 2024,
arXiv 2405.09673). Both are changes of the base model's loss, so runs of several ranks and rates, on one
corpus and base model, give points of one plane.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tasks.evaluation.losses import Losses

if TYPE_CHECKING:
    import pandas as pd


def learned_and_forgotten(
    losses: Losses,
    base: Losses,
    members: "pd.DataFrame",
    domains: Mapping[str, str],
    sets: "pd.DataFrame",
) -> "pd.DataFrame":
    """A row for each mixture of one partition whose domain has a set, in the order of ``losses``.

    Args:
        base: one row, the base model's, on the same sets.
        members: mixture and partition, as for ``tasks.ranking.rank.rank``.
        domains: of each partition.
        sets: evaluation_set and domain (None where never trained on).

    Returns:
        ``mixture``; ``learned``, the fall of the loss on the set of its domain, in nats per token;
        ``forgotten``, the rise of the mean loss over all other sets, NaN where there are none.
    """
    import pandas as pd

    alone = members[~members["mixture"].duplicated(keep=False)]
    partitions = dict(zip(alone["mixture"], alone["partition"], strict=True))
    trained_on = dict(zip(sets["evaluation_set"], sets["domain"], strict=True))
    tokens = np.array([counts.num_tokens for counts in losses.counts])
    before = base.nll[0, [base.sets.index(name) for name in losses.sets]] / tokens
    rows = []
    for mixture, nll in zip(losses.mixtures, losses.nll, strict=True):
        domain = domains.get(partitions.get(mixture, ""))
        own = np.array([trained_on[name] == domain for name in losses.sets])
        if domain is not None and own.any():
            rise = nll / tokens - before
            others = float(rise[~own].mean()) if not own.all() else float("nan")
            rows.append((mixture, -float(rise[own].mean()), others))
    return pd.DataFrame(rows, columns=["mixture", "learned", "forgotten"])
