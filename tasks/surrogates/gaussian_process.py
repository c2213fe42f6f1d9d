"""Surrogates by a Gaussian process: any smooth shape, with an uncertainty, in coordinates that suit weights.

In its first percent a domain changes a loss more than from 30 to 31 percent. Square roots and logarithms
spread small weights; on them losses that fall with the effective data of domains (power laws) are smooth.
Where weights act evenly (exponential laws, products) they are the better coordinates themselves. The
cross-validation tells which. Each weight has a length scale of its own, drawn toward a common one, so that
tens of rows are enough; what is most probable given the rows is taken (maximum a posteriori). It is our
own code because scikit-learn's process has no prior on length scales, and holds a matrix of slopes for
each of them. The same rows give the same answer every time.
"""

from collections.abc import Callable

import numpy as np

from tasks.arrays import Floats
from tasks.surrogates.surrogate import Scale, Surrogate

MOST_TUNED = 150
"""The process finds its length scales and noise on this many rows at most, and then uses all rows."""

_FLOOR = 0.003  # added to a weight before its logarithm is taken
_SLOPE = 4.0  # of a trend, in standard deviations of the losses, before anything is known
_CHUNK = 10_000  # rows predicted at once: each needs a row of distances to all rows of the fit
_APART = 0.5  # standard deviation of the logarithms of length scales around their mean
_NOISE = 0.01  # most probable share of noise in the variance, before anything is known
_WIDE = 2.0  # standard deviation of the logarithms of noise and of the common length scale


def logs(weights: Floats) -> Floats:
    """Logarithms of weights; a floor keeps absent domains within reach."""
    return np.log(np.maximum(weights, 0) + _FLOOR)


def roots(weights: Floats) -> Floats:
    """Square roots of weights: their distances are those of Hellinger."""
    return np.sqrt(np.maximum(weights, 0))


class GaussianProcess(Surrogate):
    """An RBF kernel with a length scale for each coordinate, a variance, and white noise.

    Args:
        coordinates: from weights (n, p) to what distances are taken of, (n, p).
        trend: beside it a part that is linear in the weights and in the sum of their squares. The loss of
            averaged models is such a part and little else where each model's loss is a paraboloid and all
            models are equally far from one another: twenty rows or so tell it.
    """

    def __init__(
        self, coordinates: Callable[[Floats], Floats] = np.asarray, *, trend: bool = False
    ) -> None:
        self._coordinates, self._with_trend = coordinates, trend

    def _fit(self, weights: Floats, losses: Floats) -> None:
        from scipy.linalg import cho_factor, cho_solve
        from scipy.optimize import minimize

        self._place = Scale.of(self._coordinates(weights))
        places = self._place(self._coordinates(weights))
        values = (losses - self._mean) / self._spread
        some = np.random.default_rng(0).permutation(len(values))[:MOST_TUNED]
        trend = self._trend(weights)
        size = places.shape[1]
        first = np.append(np.zeros(size), [np.log(_NOISE), 0.0][: 1 + self._with_trend])
        bounds = [(-4.0, 8.0)] * size + [(-16.0, 3.0), (-8.0, 10.0)][: 1 + self._with_trend]
        # Slopes are summed over thousands of pairs: beyond 50 steps the order of mixtures stays.
        found = minimize(
            lambda logarithms: _improbability(logarithms, places[some], trend[some], values[some]),
            first,
            jac=True,
            bounds=bounds,
            options={"maxiter": 50},
        ).x
        self._inverse, noise = np.exp(-found[:size]), np.exp(found[size])
        self._steep = np.exp(found[size + 1 :].sum()) * self._with_trend
        self._known, self._known_trend = places * self._inverse, trend
        covariance = self._covariance(self._known, trend) + noise * np.eye(len(values))
        self._factor = cho_factor(covariance, lower=True)
        self._pull = cho_solve(self._factor, values)
        self._deviation = self._spread * float(np.sqrt(max(values @ self._pull, 0) / len(values)))
        if len(some) < len(values):
            self.notes.append(
                f"A Gaussian process found its length scales on {MOST_TUNED} of {len(values)} rows."
            )

    def predict(self, weights: Floats) -> Floats:
        parts = [self._near(weights[chunk]) @ self._pull for chunk in _chunks(len(weights))]
        return self._mean + self._spread * np.concatenate(parts)

    def predict_std(self, weights: Floats) -> Floats:
        """Standard deviation of the loss itself, without the noise of one evaluation; shape (n,)."""
        from scipy.linalg import solve_triangular

        parts = []
        for chunk in _chunks(len(weights)):
            told = solve_triangular(self._factor[0], self._near(weights[chunk]).T, lower=True)
            before = 1 + self._steep * (self._trend(weights[chunk]) ** 2).sum(axis=1)
            parts.append(np.sqrt(np.maximum(before - (told**2).sum(axis=0), 0)))
        return self._deviation * np.concatenate(parts)

    def _near(self, weights: Floats) -> Floats:
        places = self._place(self._coordinates(weights)) * self._inverse
        return self._covariance(places, self._trend(weights))

    def _covariance(self, places: Floats, trend: Floats) -> Floats:
        """With the rows of the fit; shape (n, m)."""
        found: Floats = _likeness(places, self._known) + self._steep * trend @ self._known_trend.T
        return found

    def _trend(self, weights: Floats) -> Floats:
        """What the trend is linear in; shape (n, p + 2)."""
        even = 1 / weights.shape[1]
        squares = (weights**2).sum(axis=1) - even
        found: Floats = _SLOPE * np.column_stack([weights - even, squares, np.ones(len(weights))])
        return found


def _chunks(rows: int) -> list[slice]:
    return [slice(first, first + _CHUNK) for first in range(0, max(rows, 1), _CHUNK)]


def _likeness(some: Floats, others: Floats) -> Floats:
    """exp(-d^2 / 2) of the distances d between rows; shape (n, m)."""
    lengths = (some**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    found: Floats = np.exp(-0.5 * np.maximum(lengths - 2 * some @ others.T, 0))
    return found


def _improbability(
    logarithms: Floats, places: Floats, trend: Floats, values: Floats
) -> tuple[float, Floats]:
    """Negative logarithm of the posterior, and its slope.

    The variance has its most probable value, which is known once the others are.

    Args:
        logarithms: of p length scales, then of the noise and, where there is a trend, of its variance, over
            the variance of the rest.
        places: shape (n, p).
        trend: shape (n, q).
        values: with a mean of 0 and a variance of 1, shape (n,).
    """
    from scipy.linalg import cho_factor, cho_solve

    rows, size = places.shape
    lengths, noise, steep = (
        logarithms[:size],
        np.exp(logarithms[size]),
        np.exp(logarithms[size + 1 :]),
    )
    scaled = places * np.exp(-lengths)
    likeness = _likeness(scaled, scaled)
    straight = steep.sum() * trend @ trend.T if len(steep) else np.zeros_like(likeness)
    factor = cho_factor(likeness + straight + (noise + 1e-10) * np.eye(rows), lower=True)
    inverse = cho_solve(factor, np.eye(rows))
    pull = inverse @ values
    variance = float(values @ pull) / rows + 1e-300
    slope = 0.5 * (inverse - np.outer(pull, pull) / variance)  # by the matrix of covariances
    pairs = slope * likeness
    # Sums over pairs of (x_i - x_j)^2, without the array of all differences.
    by_length = 2 * (pairs.sum(axis=1) @ scaled**2 - (scaled * (pairs @ scaled)).sum(axis=0))
    common, doubt = lengths.mean(), (logarithms[size] - np.log(_NOISE)) / _WIDE
    apart, usual = (lengths - common) / _APART, (common - np.log(size) / 2) / _WIDE
    value = 0.5 * rows * np.log(variance) + np.log(np.diag(factor[0])).sum()
    value += 0.5 * (apart @ apart + usual**2 + doubt**2)
    by_length += apart / _APART + usual / _WIDE / size
    by_others = [noise * np.trace(slope) + doubt / _WIDE, (slope * straight).sum()]
    return float(value), np.append(by_length, by_others[: 1 + len(steep)])
