"""Surrogates by ridge regression: on the weights, or on the weights and their products.

Weights sum to 1, so their columns are collinear, and a search starts with fewer rows than columns.
Then many fits are exact, and ridge regression takes one with small coefficients. Leave-one-out
errors decide how much it shrinks them. All features are centred and scaled as one, so that the same
penalty means the same for any pool.
"""

from typing import NamedTuple, Self

import numpy as np

from tasks.arrays import Floats

FEWEST_ROWS = 3
"""No surrogate is fitted to fewer rows."""


class Scale(NamedTuple):
    """Weights moved to their mean and divided by their typical distance from it."""

    centre: Floats
    length: float

    @classmethod
    def of(cls, values: Floats) -> "Scale":
        """The scale at which the rows of ``values`` (n, p) have a mean of 0 and a mean square of 1."""
        centre = values.mean(axis=0)
        length = float(np.sqrt(((values - centre) ** 2).sum(axis=1).mean()))
        return cls(centre, length or 1.0)

    def __call__(self, values: Floats) -> Floats:
        return (values - self.centre) / self.length


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


class Linear:
    """The loss as a weighted sum: what each unit adds, whatever it is mixed with."""

    smooth = True

    def __init__(self) -> None:
        self.notes: list[str] = []

    def fit(self, weights: Floats, losses: Floats) -> Self:
        refuse_unusable(weights, losses)
        self._scale = Scale.of(weights)
        self._line = RidgeFit.fitted(self._scale(weights), losses)
        self.notes = shrunk("linear", weights.shape[1], len(losses))
        return self

    def predict(self, weights: Floats) -> Floats:
        return self._line(self._scale(weights))


class Quadratic:
    """The loss as a second-degree polynomial: units may help or hinder one another."""

    smooth = True

    def __init__(self) -> None:
        self.notes: list[str] = []

    def fit(self, weights: Floats, losses: Floats) -> Self:
        refuse_unusable(weights, losses)
        self._scale = Scale.of(weights)
        scaled = self._scale(weights)
        first, second = np.triu_indices(scaled.shape[1])
        # The square of a sum holds a product of two twice, and that of one with itself once.
        times = np.where(first == second, 1, np.sqrt(2))
        features = np.hstack([scaled, scaled[:, first] * scaled[:, second] * times])
        line = RidgeFit.fitted(features, losses)
        self._intercept, self._slopes = line.intercept, line.slopes[: len(self._scale.centre)]
        self._curves = np.zeros((scaled.shape[1], scaled.shape[1]))
        self._curves[first, second] = times * line.slopes[scaled.shape[1] :]
        self.notes = shrunk("quadratic", features.shape[1], len(losses))
        return self

    def predict(self, weights: Floats) -> Floats:
        scaled = self._scale(weights)
        bent: Floats = ((scaled @ self._curves) * scaled).sum(axis=1)
        return self._intercept + scaled @ self._slopes + bent


def shrunk(name: str, features: int, rows: int) -> list[str]:
    """A sentence for the reader where a fit has fewer rows than numbers to find."""
    if rows > features:
        return []
    return [
        f"The {name} surrogate finds {features} coefficients from {rows} rows: it is fitted by ridge "
        "regression, which keeps them small by as much as the leave-one-out error advises."
    ]


def refuse_unusable(weights: Floats, losses: Floats) -> None:
    """Raise a ValueError for fewer than ``FEWEST_ROWS`` rows, other shapes, or no finite numbers."""
    if weights.ndim != 2 or losses.shape != weights.shape[:1]:
        raise ValueError(
            f"weights of shape {weights.shape} and losses of shape {losses.shape} do not fit: give "
            "(n, p) and (n,)"
        )
    if len(losses) < FEWEST_ROWS:
        raise ValueError(
            f"{len(losses)} rows are too few to fit a surrogate: {FEWEST_ROWS} are needed at least"
        )
    if not (np.isfinite(weights).all() and np.isfinite(losses).all()):
        raise ValueError("weights or losses are not finite: leave such rows out")
