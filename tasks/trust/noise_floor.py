"""The noise of references: the same mixture, really trained again with other seeds.

A reference is not the truth but one draw of it. Let the seed alone move its loss by a standard
deviation s, and let references of one k differ by a variance v, of which s^2 is that noise. Then
not even the true losses would correlate with the references by more than ``sqrt(1 - s^2 / v)``, the
square root of their reliability (Spearman 1904). No proxy should be asked for more.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from tasks.ranking.rank import MACRO_MEAN

if TYPE_CHECKING:
    import pandas as pd

LOSSES = ["reference", "reference_bits"]


def noise_floor(repeats: "pd.DataFrame", pairs: "pd.DataFrame") -> "pd.DataFrame":
    """Noise of repeated references, and the largest correlation that it allows.

    Args:
        repeats: ``mixture``, ``seed``, ``evaluation_set``, ``reference`` (nats per token),
            ``reference_bits`` (bits per byte), the reference's own seed included. The macro mean is
            made from the sets where it is not there.
        pairs: all references, as ``tasks.trust.predictors.pair_up`` gives them.

    Returns:
        One row per mixture and set: ``evaluation_set``, ``mixture``, ``runs`` with a finite loss, ``sd``
        over them (nats per token), ``sd_bits`` (bits per byte), ``ceiling``, the largest Pearson
        correlation within k. NaN for fewer than two runs, or no k with two references.
    """
    import pandas as pd

    if MACRO_MEAN not in set(repeats["evaluation_set"]):
        runs = repeats.groupby(["mixture", "seed"], sort=False)[LOSSES]
        means = runs.mean(skipna=False).reset_index()
        repeats = pd.concat([repeats, means.assign(evaluation_set=MACRO_MEAN)], ignore_index=True)
    rows = []
    for (name, mixture), part in repeats.groupby(["evaluation_set", "mixture"], sort=False):
        finite = part[LOSSES][np.isfinite(part[LOSSES]).all(axis=1)]
        sd, sd_bits = (float(finite[column].std()) for column in LOSSES)
        variance = variance_within(pairs[pairs["evaluation_set"] == name])
        reliable = 1 - sd**2 / variance if variance else math.nan
        ceiling = float(np.sqrt(np.maximum(0, reliable)))
        rows.append((name, mixture, len(finite), sd, sd_bits, ceiling))
    columns = ["evaluation_set", "mixture", "runs", "sd", "sd_bits", "ceiling"]
    return pd.DataFrame(rows, columns=columns)


def variance_within(pairs: "pd.DataFrame") -> float:
    """Variance of finite reference losses around the mean of their k; NaN where no k has two."""
    finite = pairs[np.isfinite(pairs["reference"])]
    groups = finite.groupby("k")["reference"]
    freedom = len(finite) - groups.ngroups
    left = finite["reference"] - groups.transform("mean")
    return float((left**2).sum() / freedom) if freedom > 0 else math.nan
