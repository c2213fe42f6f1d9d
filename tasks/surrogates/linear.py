"""Surrogates by ridge regression: on the weights, or on the weights and their products.

Weights sum to 1, so their columns are collinear, and a search starts with fewer rows than columns.
Then many fits are exact, and ridge regression takes one with small coefficients. Leave-one-out
errors decide how much it shrinks them. All features are centred and scaled as one, so that the same
penalty means the same for any pool.
"""

from typing import NamedTuple

import numpy as np

from tasks.arrays import Floats
from tasks.surrogates.surrogate import Surrogate

MOST_NUMBERS = 25_000_000
"""Products of weights over all rows, each held some four times: 0.8 GB."""


class RidgeFit(NamedTuple):
    """A ridge regression: ``intercept`` + features @ ``slopes``."""

    intercept: float
    slopes: Floats
    penalty: float
    """Weight of the squared slopes against the summed squared errors."""

    @classmethod
    def fitted(cls, features: Floats, values: Floats) -> "RidgeFit":
        """The line with the least leave-one-out error over 23 penalties, from next to none."""
        from sklearn.linear_model import RidgeCV

        model = RidgeCV(alphas=len(values) * np.logspace(-10, 1, 23)).fit(features, values)
        return cls(float(model.intercept_), model.coef_, float(model.alpha_))

    def __call__(self, features: Floats) -> Floats:
        values: Floats = self.intercept + features @ self.slopes
        return values


class Linear(Surrogate):
    """The loss as a weighted sum: what each unit adds, whatever it is mixed with."""

    def _fit(self, weights: Floats, losses: Floats) -> None:
        self._line = RidgeFit.fitted(self._scale(weights), losses)
        self._note_shrinking("linear", weights.shape[1], len(losses))

    def predict(self, weights: Floats) -> Floats:
        return self._line(self._scale(weights))


class Quadratic(Surrogate):
    """The loss as a second-degree polynomial: units may help or hinder one another."""

    def _fit(self, weights: Floats, losses: Floats) -> None:
        scaled = self._scale(weights)
        units = scaled.shape[1]
        if (terms := units * (units + 1) // 2) * len(scaled) > MOST_NUMBERS:
            raise ValueError(
                f"{units} weights have {terms:,} products in each of {len(scaled):,} rows, more than "
                f"{MOST_NUMBERS:,} in all"
            )
        first, second = np.triu_indices(units)
        # The square of a sum holds a product of two twice, and that of one with itself once.
        times = np.where(first == second, 1, np.sqrt(2))
        features = np.hstack([scaled, scaled[:, first] * scaled[:, second] * times])
        line = RidgeFit.fitted(features, losses)
        self._intercept, self._slopes = line.intercept, line.slopes[: len(self._scale.centre)]
        self._curves = np.zeros((scaled.shape[1], scaled.shape[1]))
        self._curves[first, second] = times * line.slopes[scaled.shape[1] :]
        self._note_shrinking("quadratic", features.shape[1], len(losses))

    def predict(self, weights: Floats) -> Floats:
        scaled = self._scale(weights)
        bent: Floats = ((scaled @ self._curves) * scaled).sum(axis=1)
        return self._intercept + scaled @ self._slopes + bent
