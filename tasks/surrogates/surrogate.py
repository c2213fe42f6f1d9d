"""What every surrogate is: a function from weights to one loss, fitted to rows that were checked."""

from abc import ABC, abstractmethod
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


class Surrogate(ABC):
    """A function from weights to one loss.

    Attributes:
        smooth: whether a gradient says where to go.
        notes: sentences for the reader, filled by ``fit``.
    """

    smooth = True

    def fit(self, weights: Floats, losses: Floats) -> Self:
        """Fit to ``weights`` (n, p), rows summing to 1, and ``losses`` (n,).

        Raises:
            ValueError: fewer than ``FEWEST_ROWS`` rows, other shapes, or numbers that are not finite.
        """
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
        self.notes: list[str] = []
        self._scale = Scale.of(weights)
        self._mean, self._spread = float(np.mean(losses)), float(np.std(losses)) or 1.0
        self._fit(weights, losses)
        return self

    @abstractmethod
    def _fit(self, weights: Floats, losses: Floats) -> None:
        """Fit to rows that were checked."""

    @abstractmethod
    def predict(self, weights: Floats) -> Floats:
        """Losses of ``weights`` (n, p), in the unit of the fit; shape (n,)."""

    def predict_std(self, weights: Floats) -> Floats | None:  # noqa: ARG002
        """Standard deviation of the loss of ``weights`` (n, p); shape (n,). None where it knows none."""
        return None

    def _note_shrinking(self, name: str, features: int, rows: int) -> None:
        """Add a sentence for the reader where the fit has fewer rows than numbers to find."""
        if rows <= features:
            self.notes.append(
                f"The {name} surrogate finds {features} coefficients from {rows} rows: it is fitted by "
                "ridge regression, which keeps them small by as much as the leave-one-out error advises."
            )
