"""A surrogate by a Gaussian process: any smooth shape, with an uncertainty.

Exploring needs the uncertainty. The process suits tens to hundreds of rows. The same rows give the
same answer every time.
"""

import warnings
from typing import Any

import numpy as np

from tasks.arrays import Floats
from tasks.surrogates.surrogate import Surrogate

MOST_TUNED = 400
"""The process finds its length scale and noise on this many rows at most, and then uses all rows."""

_CHUNK = 10_000  # rows predicted at once: each needs a row of distances to all rows of the fit


class GaussianProcess(Surrogate):
    """One length scale for all weights (isotropic RBF), a variance and white noise, standardised.

    With one length scale the fit has three numbers to find, whatever the number of units; one for each
    unit would need many more rows than a search has.
    """

    def _fit(self, weights: Floats, losses: Floats) -> None:
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        features = self._scale(weights)
        values = (losses - self._mean) / self._spread
        shape = ConstantKernel(1.0, (1e-2, 1e4)) * RBF(1.0, (5e-2, 1e2))
        some = np.random.default_rng(0).permutation(len(values))[:MOST_TUNED]
        self._process = _process(
            shape + WhiteKernel(1e-2, (1e-8, 1e1)), features[some], values[some]
        )
        if len(some) < len(values):
            kernel = self._process.kernel_
            self._process = _process(kernel, features, values, optimizer=None)
            self.notes.append(
                f"The Gaussian process found its length scale on {MOST_TUNED} of {len(values)} rows."
            )

    def predict(self, weights: Floats) -> Floats:
        return self._means_and_stds(weights)[0]

    def predict_std(self, weights: Floats) -> Floats:
        """Standard deviation of the loss itself, without the noise of one evaluation; shape (n,)."""
        return self._means_and_stds(weights)[1]

    def _means_and_stds(self, weights: Floats) -> tuple[Floats, Floats]:
        noise = float(self._process.kernel_.k2.noise_level)
        means, stds = np.empty(len(weights)), np.empty(len(weights))
        for first in range(0, len(weights), _CHUNK):
            chunk = slice(first, first + _CHUNK)
            features = self._scale(weights[chunk])
            means[chunk], stds[chunk] = self._process.predict(features, return_std=True)
        certain = np.sqrt(np.maximum(stds**2 - noise, 0))
        return self._mean + self._spread * means, self._spread * certain


def _process(kernel: Any, features: Floats, values: Floats, **options: Any) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor

    with warnings.catch_warnings():
        # Noise or a length scale at the end of its range is an answer: none, or no effect.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianProcessRegressor(kernel, random_state=0, **options).fit(features, values)
