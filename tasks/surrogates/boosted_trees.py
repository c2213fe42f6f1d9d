"""A surrogate of gradient-boosted trees (LightGBM), for losses that no smooth function follows.

Trees (as in RegMix, Liu et al. 2024) follow steps and thresholds. They need more rows than a
Gaussian process and give no uncertainty. The same rows give the same answer every time.
"""

import numpy as np

from tasks.arrays import Floats
from tasks.surrogates.surrogate import Surrogate


class LightGBM(Surrogate):
    """Boosted trees; leaves are kept large enough for the few rows that a search has."""

    smooth = False

    def _fit(self, weights: Floats, losses: Floats) -> None:
        import lightgbm

        options = {
            "objective": "regression",
            "learning_rate": 0.05,
            "num_leaves": 15,
            "min_data_in_leaf": min(20, max(2, len(losses) // 15)),
            "min_data_in_bin": 1,
            "seed": 0,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        values = (losses - self._mean) / self._spread
        rows = lightgbm.Dataset(np.ascontiguousarray(weights), values, params=options)
        self._trees = lightgbm.train(options, rows, num_boost_round=300)

    def predict(self, weights: Floats) -> Floats:
        values: Floats = self._trees.predict(weights, num_threads=1)
        return self._mean + self._spread * values
