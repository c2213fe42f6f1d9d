"""Surrogates by a Gaussian process: any smooth shape, with an uncertainty, in coordinates that suit weights.

In its first percent a domain changes a loss more than from 30 to 31 percent. Square roots and logarithms
spread small weights; on them losses that fall with the effective data of domains (power laws) are smooth.
Where weights act evenly (exponential laws, products) they are the better coordinates themselves. The
cross-validation tells which. Each weight has a length scale of its own, drawn toward a common one, so that
tens of rows are enough; what is most probable given the rows is taken (maximum a posteriori). It is our
own code because scikit-learn's process computes a slope for each length scale and pair of rows, which
costs some ten times as much. The same rows give the same answer every time.
"""

from collections.abc import Callable

import numpy as np

from tasks.arrays import Floats
from tasks.surrogates.surrogate import Scale, Surrogate

MOST_TUNED = 150
"""The process finds its length scales and noise on this many rows at most, and then uses all rows."""

_FLOOR = 0.003  # added to a weight before its logarithm is taken
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
    """

    def __init__(self, coordinates: Callable[[Floats], Floats] = np.asarray) -> None:
        self._coordinates = coordinates

    def _fit(self, weights: Floats, losses: Floats) -> None:
        from scipy.linalg import cho_factor, cho_solve
        from scipy.optimize import minimize

        self._place = Scale.of(self._coordinates(weights))
        places = self._place(self._coordinates(weights))
        values = (losses - self._mean) / self._spread
        some = np.random.default_rng(0).permutation(len(values))[:MOST_TUNED]
        size = places.shape[1]
        first = np.append(np.zeros(size), np.log(_NOISE))
        bounds = [(-4.0, 8.0)] * size + [(-16.0, 3.0)]
        # Slopes are summed over thousands of pairs: beyond 50 steps the order of mixtures stays.
        found = minimize(
            lambda logarithms: _improbability(logarithms, places[some], values[some]),
            first,
            jac=True,
            bounds=bounds,
            options={"maxiter": 50},
        ).x
        self._inverse, noise = np.exp(-found[:-1]), np.exp(found[-1])
        self._known = places * self._inverse
        likeness = _likeness(self._known, self._known) + noise * np.eye(len(values))
        self._factor = cho_factor(likeness, lower=True)
        self._pull = cho_solve(self._factor, values)
        self._deviation = self._spread * float(np.sqrt(values @ self._pull / len(values)))
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
            parts.append(np.sqrt(np.maximum(1 - (told**2).sum(axis=0), 0)))
        return self._deviation * np.concatenate(parts)

    def _near(self, weights: Floats) -> Floats:
        return _likeness(self._place(self._coordinates(weights)) * self._inverse, self._known)


def _chunks(rows: int) -> list[slice]:
    return [slice(first, first + _CHUNK) for first in range(0, max(rows, 1), _CHUNK)]


def _likeness(some: Floats, others: Floats) -> Floats:
    """exp(-d^2 / 2) of the distances d between rows; shape (n, m)."""
    lengths = (some**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    found: Floats = np.exp(-0.5 * np.maximum(lengths - 2 * some @ others.T, 0))
    return found


def _improbability(logarithms: Floats, places: Floats, values: Floats) -> tuple[float, Floats]:
    """Negative logarithm of the posterior, and its slope.

    The variance has its most probable value, which is known once the others are.

    Args:
        logarithms: of p length scales, then of the noise over the variance.
        places: shape (n, p).
        values: with a mean of 0 and a variance of 1, shape (n,).
    """
    from scipy.linalg import cho_factor, cho_solve

    rows, lengths = len(values), logarithms[:-1]
    scaled = places * np.exp(-lengths)
    likeness, noise = _likeness(scaled, scaled), np.exp(logarithms[-1])
    factor = cho_factor(likeness + (noise + 1e-10) * np.eye(rows), lower=True)
    inverse = cho_solve(factor, np.eye(rows))
    pull = inverse @ values
    variance = float(values @ pull) / rows + 1e-300
    slope = 0.5 * (inverse - np.outer(pull, pull) / variance)  # by the matrix of likeness
    pairs = slope * likeness
    # Sums over pairs of (x_i - x_j)^2, without the array of all differences.
    by_length = 2 * (pairs.sum(axis=1) @ scaled**2 - (scaled * (pairs @ scaled)).sum(axis=0))
    common, doubt = lengths.mean(), (logarithms[-1] - np.log(_NOISE)) / _WIDE
    apart = (lengths - common) / _APART
    usual = (common - np.log(len(lengths)) / 2) / _WIDE
    value = 0.5 * rows * np.log(variance) + np.log(np.diag(factor[0])).sum()
    value += 0.5 * (apart @ apart + usual**2 + doubt**2)
    by_length += apart / _APART + usual / _WIDE / len(lengths)
    by_noise = noise * np.trace(slope) + doubt / _WIDE
    return float(value), np.append(by_length, by_noise)
