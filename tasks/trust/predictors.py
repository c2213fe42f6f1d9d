"""The losses of references beside what proxies and other predictors say of the same mixtures.

One row is a mixture on one evaluation set: the losses of its proxy and its reference, and the
values of predictors that need no merging. All come from losses that are in the store anyway, except
the regression, which is fitted to the other references.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks.arrays import Floats
from tasks.evaluation.losses import Losses
from tasks.evaluation.predicted import scale_of
from tasks.mixtures.mixture import Mixture
from tasks.ranking.rank import MACRO_MEAN
from tasks.trust.stacked import stacked

if TYPE_CHECKING:
    import pandas as pd

_WORDS = {
    "proxy": "merged model (proxy)",
    "probability": "mixture of probabilities",
    "singles": "mean of single partitions",
    "nearest": "nearest single partition",
    "tokens": "number of tokens",
    "regression": "regression on mixture weights",
    "stacked": "regression on the other predictors (stacked)",
}


def in_words(predictor: str) -> str:
    """A predictor for people; a name that is not known stands for itself."""
    scale = scale_of(predictor)
    if scale is not None:
        return f"model {scale:g} times as far from the base model as the merged one"
    return _WORDS.get(predictor, predictor)


def pair_up(
    proxies: Losses,
    references: Losses,
    chosen: Sequence[Mixture],
    domains: Mapping[str, str],
    set_domains: Mapping[str, str | None],
    tokens: Mapping[str, int],
    others: Mapping[str, Losses] | None = None,
) -> "pd.DataFrame":
    """For each chosen mixture and evaluation set: the reference's loss, and what predictors say of it.

    Args:
        proxies: merged models of the mixtures, and every partition's own model, by label.
        references: the trained models, under the mixtures' labels.
        domains: domain of each partition.
        set_domains: domain of each evaluation set; None where it has none.
        tokens: number of distinct tokens of each partition.
        others: what further predictors say of the mixtures, by name (``tasks.evaluation.predicted``).

    Returns:
        One row per mixture and set; the macro mean, the mean over sets of each number, is one more
        set. ``mixture``; ``k``; ``evaluation_set``; ``own``, "in" where the set's domain is among the
        mixture's, "out" where it is in the pool alone, else None; ``proxy`` and ``reference`` in nats
        per token; ``proxy_bits`` and ``reference_bits`` in bits per byte; the ``others`` in nats per token;
        and the less the better: ``singles``, the members' own losses averaged by their weights;
        ``tokens``, minus the mixture's distinct tokens; ``nearest``, the least loss of any member;
        ``regression`` (see ``tasks.trust.predictors.left_out``) and, where references suffice, ``stacked``
        (see ``tasks.trust.stacked``), which cost references.

    Raises:
        ValueError: a loss, a domain or a number of tokens is not known.
    """
    labels = [mixture.label for mixture in chosen]
    partitions = sorted({name for mixture in chosen for name in mixture.members})
    _check(proxies, [*labels, *partitions], "proxies")
    _check(references, labels, "references")
    for given, what in ((domains, "domain"), (tokens, "number of distinct tokens")):
        if lacking := [name for name in partitions if name not in given]:
            raise ValueError(f"the {what} of partition {lacking[0]!r} is not given: add it")
    sets = proxies.sets
    losses = {
        "proxy": per_token(proxies).loc[labels],
        "reference": per_token(references).loc[labels, sets],
        "proxy_bits": bits_per_byte(proxies).loc[labels],
        "reference_bits": bits_per_byte(references).loc[labels, sets],
    }
    columns = {name: table.to_numpy() for name, table in losses.items()}
    weights = np.array([[float(m.weights.get(name, 0)) for name in partitions] for m in chosen])
    for name, said in (others or {}).items():
        _check(said, labels, name)
        columns[name] = per_token(said).loc[labels, sets].to_numpy()
    columns |= _singles(weights, per_token(proxies).loc[partitions].to_numpy())
    distinct = [-float(sum(tokens[name] for name in mixture.members)) for mixture in chosen]
    columns["tokens"] = np.repeat(np.array(distinct)[:, None], len(sets), axis=1)
    told = [columns["proxy"], *(columns[name] for name in columns if name not in _LOSSES)]
    columns["regression"] = left_out(weights, columns["reference"])
    k, members = np.array([m.size for m in chosen]), [m.members for m in chosen]
    table = np.stack(told, axis=2)
    over = [stacked(table[:, n], columns["reference"][:, n], k, members) for n in range(len(sets))]
    if len(known := [column for column in over if column is not None]) == len(sets):
        columns["stacked"] = np.stack(known, axis=1)
    own = [_own(m, set_domains.get(name), domains) for m in chosen for name in sets]
    return _long(chosen, sets, own, columns)


_LOSSES = {"proxy", "reference", "proxy_bits", "reference_bits"}


def _singles(weights: Floats, alone: Floats) -> dict[str, Floats]:
    """What the members' own losses say; each argument has a row per mixture, or per partition."""
    # By members, as the loss of a partition with weight 0 need not be finite.
    members = [(row[row > 0], alone[row > 0]) for row in weights]
    return {
        "singles": np.stack([shares @ losses for shares, losses in members]),
        "nearest": np.stack([losses.min(axis=0) for _, losses in members]),
    }


def _long(
    chosen: Sequence[Mixture],
    sets: Sequence[str],
    own: Sequence[str | None],
    columns: Mapping[str, Floats],
) -> "pd.DataFrame":
    """Columns of shape (mixtures, sets) as rows, with the mean over sets behind each mixture's."""
    import pandas as pd

    keys = [
        (mixture.label, mixture.size, name) for mixture in chosen for name in [*sets, MACRO_MEAN]
    ]
    table = pd.DataFrame(keys, columns=["mixture", "k", "evaluation_set"])
    is_set = table["evaluation_set"] != MACRO_MEAN
    table["own"] = pd.Series([None] * len(table), dtype=object)
    table.loc[is_set, "own"] = own
    means = {n: np.column_stack([values, values.mean(axis=1)]) for n, values in columns.items()}
    return table.assign(**{name: values.ravel() for name, values in means.items()})


def per_token(losses: Losses) -> "pd.DataFrame":
    """Nats per token by mixture (index) and evaluation set (columns)."""
    return _divided(losses, [counts.num_tokens for counts in losses.counts])


def bits_per_byte(losses: Losses) -> "pd.DataFrame":
    """Bits per byte by mixture (index) and evaluation set (columns)."""
    return _divided(losses, [counts.num_bytes * math.log(2) for counts in losses.counts])


def _divided(losses: Losses, by: Sequence[float]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(losses.nll / np.array(by), index=losses.mixtures, columns=losses.sets)


def _check(losses: Losses, labels: Iterable[str], where: str) -> None:
    if lacking := set(labels).difference(losses.mixtures):
        raise ValueError(
            f"the {where} lack losses of {min(lacking)!r} ({len(lacking)} in all): evaluate it, or "
            "leave it out of the comparison"
        )


def _own(mixture: Mixture, domain: str | None, domains: Mapping[str, str]) -> str | None:
    if domain is None or domain not in domains.values():
        return None
    return "in" if domain in {domains[name] for name in mixture.members} else "out"


_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # against weights whose squares sum to a few


def left_out(weights: Floats, losses: Floats) -> Floats:
    """Each mixture's losses, predicted by a ridge regression on the weights of the other mixtures.

    The slopes are learnt from the others alone; the mean is that of all mixtures, which orders nothing.
    The mean of the others would be low where the mixture left out is high, so that even a regression on
    nothing would seem to predict, the wrong way round. Each mixture left out has a penalty of its own.

    Args:
        weights: shape (n, partitions).
        losses: shape (n, sets); rows that are not finite teach nothing.

    Returns:
        Shape (n, sets); NaN where fewer than three others are known.
    """
    from sklearn.linear_model import RidgeCV

    predicted = np.full_like(losses, np.nan)
    finite = np.isfinite(losses).all(axis=1)
    for place in range(len(losses)):
        others = finite & (np.arange(len(losses)) != place)
        if others.sum() < 3:
            continue
        model = RidgeCV(_PENALTIES, alpha_per_target=True).fit(weights[others], losses[others])
        shift = weights[place] - weights[others].mean(axis=0)
        predicted[place] = losses[finite].mean(axis=0) + shift @ model.coef_.T
    return predicted
