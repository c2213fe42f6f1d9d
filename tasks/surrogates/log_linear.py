"""A surrogate by the data mixing law: the loss falls exponentially in the weights, to a floor.

L(w) = c + k * exp(t . w) (Ye et al. 2024, "Data Mixing Laws"; Olmix fits the same form). As weights
sum to 1, k and t are fixed only up to a constant added to t; we centre the weights at their mean.
The floor c lies below every loss of the fit. The fit is a robust least-squares search from several
floors, since a single start sometimes ends in a poor local minimum.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from tasks.arrays import Floats
from tasks.surrogates.linear import RidgeFit
from tasks.surrogates.surrogate import Surrogate

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult


# From the least loss down to the floor, in standard deviations of the losses.
_GAPS = (0.03, 0.3, 3.0)
_TRIED, _STEPS = 15, 60  # evaluations for each floor, and for the one that does best
_OUTLIER = 0.3  # standard deviations at which an error begins to count less than its square


class LogLinear(Surrogate):
    """L(w) = ``floor`` + ``factor`` * exp(``slopes`` . (w - mean of w)).

    Attributes:
        floor: c, in the unit of the losses.
        factor: k, in the unit of the losses.
        slopes: t, shape (p,); only their differences bear meaning, as weights sum to 1.
    """

    def _fit(self, weights: Floats, losses: Floats) -> None:
        features, spread = self._scale(weights), self._spread
        above = (losses - losses.min()) / spread
        tried = {gap: _refined(features, above, gap, _TRIED).cost for gap in _GAPS}
        best = min(tried, key=tried.__getitem__)
        gap, height, *slopes = _refined(features, above, best, _STEPS).x
        self.floor = float(losses.min()) - spread * math.exp(gap)
        self.factor = spread * math.exp(height)
        self.slopes = np.array(slopes) / self._scale.length
        self._note_shrinking("log-linear", weights.shape[1] + 1, len(losses))

    def predict(self, weights: Floats) -> Floats:
        exponent = (weights - self._scale.centre) @ self.slopes
        # Far from the rows of the fit an exponent may be anything; a huge loss says enough.
        return self.floor + self.factor * np.exp(np.minimum(exponent, 50.0))


def _refined(features: Floats, above: Floats, gap: float, most: int) -> "OptimizeResult":
    """Log of the gap to the floor, log of the factor, and slopes, from where the floor is ``gap`` down."""
    from scipy.optimize import least_squares

    start = RidgeFit.fitted(features, np.log(above + gap))
    # What the ridge needed in the log of the losses, carried over to the losses.
    pull = math.sqrt(start.penalty) * float(np.mean(above + gap)) * np.eye(features.shape[1])

    def errors(values: Floats) -> Floats:
        growth = np.exp(np.clip(values[1] + features @ values[2:], -50, 50))
        return np.concatenate([growth - np.exp(values[0]) - above, pull @ values[2:]])

    def slopes(values: Floats) -> Floats:
        growth = np.exp(np.clip(values[1] + features @ values[2:], -50, 50))[:, None]
        gaps = np.full_like(growth, -np.exp(values[0]))
        rows = np.hstack([gaps, growth, growth * features])
        return np.vstack([rows, np.hstack([np.zeros((len(pull), 2)), pull])])

    first = np.array([math.log(gap), start.intercept, *start.slopes])
    low = np.array([-12.0, *np.full(len(first) - 1, -np.inf)])
    high = np.array([6.0, *np.full(len(first) - 1, np.inf)])
    return least_squares(
        errors, first, slopes, bounds=(low, high), loss="soft_l1", f_scale=_OUTLIER, max_nfev=most
    )
