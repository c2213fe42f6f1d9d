"""The forecast of fitted surrogates for any weights: losses, objective, order, uncertainty.

Caps come first in the order. A mixture that is expected to break one stands behind all that keep
them, by how far it breaks it. So a search in which nothing keeps the caps yet moves towards them.
"""

from collections.abc import Mapping

import numpy as np

from tasks.arrays import Floats, Ints
from tasks.search.objective import Objective
from tasks.surrogates.surrogate import Surrogate

_STEEP = 10.0  # what a bit per byte above a cap costs a descent, in bits per byte of the objective


class Forecast:
    """Surrogates of one kind, one per evaluation set, seen through an objective.

    Args:
        models: fitted surrogates by set, in the order of ``objective.sets``.
        objective: over these sets.
        base: the base model's bits per byte, shape (S,); None only where there are no caps.
    """

    def __init__(
        self, models: Mapping[str, Surrogate], objective: Objective, base: Floats | None
    ) -> None:
        self._models, self._objective, self._base = list(models.values()), objective, base
        self.smooth = all(model.smooth for model in self._models)

    def losses(self, weights: Floats) -> Floats:
        """Expected bits per byte of ``weights`` (n, p); shape (n, S)."""
        return np.stack([model.predict(weights) for model in self._models], axis=1)

    def values(self, weights: Floats, losses: Floats) -> Floats:
        """The objective at ``losses`` (n, S); shape (n,)."""
        return self._objective.values(losses, weights)

    def order(self, weights: Floats, losses: Floats, credit: Floats | float = 0.0) -> Ints:
        """Numbers of the rows, the best first, by ``losses`` (n, S); ``credit`` (n,) is taken off."""
        above = np.maximum(self._objective.excess(losses, self._base), 0)
        return np.lexsort((self.values(weights, losses) - credit, above))

    def slope_values(self, weights: Floats) -> Floats:
        """One number per row that a descent makes small: the objective, and a price on broken caps."""
        weights = np.maximum(weights, 0)  # an optimiser may step a hair outside
        losses = self.losses(weights)
        above = np.maximum(self._objective.excess(losses, self._base), 0)
        values: Floats = self.values(weights, losses) + _STEEP * above
        return values

    def doubt(self, weights: Floats) -> Floats | None:
        """Standard deviation of the objective; None where the surrogates give none.

        As if all sets were wrong in the same direction: the largest that it can be.
        """
        found = [model.predict_std(weights) for model in self._models]
        if len(stds := [std for std in found if std is not None]) < len(self._models):
            return None
        deviation: Floats = np.stack(stds, axis=1) @ self._objective.shares
        return deviation
