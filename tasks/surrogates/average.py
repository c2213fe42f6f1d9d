"""The mean of several surrogates: where they err in different places, it errs less than each."""

from collections.abc import Sequence

import numpy as np

from tasks.arrays import Floats
from tasks.surrogates.surrogate import Surrogate


class Average(Surrogate):
    """The mean of the predictions of ``members``, which are in one unit.

    Args:
        members: surrogates that are yet to be fitted.
    """

    def __init__(self, members: Sequence[Surrogate]) -> None:
        self._members = members
        self.smooth = all(member.smooth for member in members)

    def _fit(self, weights: Floats, losses: Floats) -> None:
        for member in self._members:
            self.notes += member.fit(weights, losses).notes

    def predict(self, weights: Floats) -> Floats:
        found: Floats = np.mean([member.predict(weights) for member in self._members], axis=0)
        return found

    def predict_std(self, weights: Floats) -> Floats:
        """Members' doubt and their disagreement: the standard deviation of a mixture of them; shape (n,)."""
        stds = [member.predict_std(weights) for member in self._members]
        own = np.mean(
            [std**2 for std in stds if std is not None] or [np.zeros(len(weights))], axis=0
        )
        apart = np.var([member.predict(weights) for member in self._members], axis=0)
        found: Floats = np.sqrt(own + apart)
        return found
