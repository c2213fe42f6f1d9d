"""Mixtures of probabilities: what averaging predictions, instead of weights, says of each mixture.

The predicted loss of a mixture with weights w is ``-log sum_i w_i p_i(token)``, where p_i is what the
model of partition i gives the token (MixMin, Thudi et al. 2025; mixtures of data experts). One run of
each model serves all mixtures. At a vertex it is the model's own loss; it is convex in w, and never above
the members' mean. It predicts order, not level.

A token's loss is the least of the models' plus ``-log sum_i w_i exp(least - nats_i)``, in float32. Relative
to the set's nats the sums are off by less than 1e-6 (a test), by how many mixtures are asked for at once too.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tasks.arrays import Floats, Ints
from tasks.evaluation.window import Windows

MIXTURES, TOKENS = 1024, 1024
"""Mixtures and tokens that are computed at once: 4 MB, whatever their numbers (``python -m tests.benchmarks
probability`` compares with the bare product and logarithms)."""

FAR = 80.0
"""Nats behind the best model at which a probability, relative to the best's, nears the end of float32."""


class _Tile(NamedTuple):
    """Tokens that are computed at once, in order of their groups."""

    probabilities: np.ndarray
    """Relative to the best model's, float32, shape (tokens, models)."""
    groups: Ints
    """Numbers of the groups that the tokens belong to, ascending."""
    spans: list[tuple[int, int]]
    """The tokens of each of these groups."""
    far: list[tuple[int, Floats]]
    """Tokens for which float32 has no room: place, and nats of each model behind the best."""


class TokenProbabilities:
    """The probabilities of an evaluation set's scored tokens by n models, which are kept in memory.

    Args:
        nats: of each model, float32, shape (S,), in the order of the windows.
        windows: of the set.

    Raises:
        ValueError: a model has another number of tokens than the windows.
    """

    def __init__(self, nats: Sequence[np.ndarray], windows: Windows) -> None:
        groups = np.repeat(windows.group, windows.length - windows.first)
        for of_model in nats:
            if of_model.shape != groups.shape:
                raise ValueError(
                    f"nats of {len(of_model)} tokens are given for windows with {len(groups)}: give those "
                    "that a model has on these very windows"
                )
        order = np.argsort(groups, kind="stable")
        # The part that all mixtures have in common is added in float64.
        self._least = np.zeros(len(windows.num_tokens))
        self._tiles = [
            self._tile(nats, rows, groups[rows])
            for rows in np.split(order, range(TOKENS, len(order), TOKENS))
            if len(rows)
        ]

    def _tile(self, nats: Sequence[np.ndarray], rows: Ints, groups: Ints) -> _Tile:
        table = np.stack([of_model[rows] for of_model in nats], axis=1).astype(np.float64)
        least = table.min(axis=1)
        self._least += np.bincount(groups, weights=least, minlength=len(self._least))
        table -= least[:, None]
        numbers, starts = np.unique(groups, return_index=True)
        ends = [*starts[1:].tolist(), len(rows)]
        far = np.flatnonzero(table.max(axis=1) > FAR)
        return _Tile(
            np.exp(-table).astype(np.float32),
            numbers,
            list(zip(starts.tolist(), ends, strict=True)),
            [(place, table[place]) for place in far.tolist()],
        )

    def sums(self, weights: Floats) -> Floats:
        """Predicted nats of m mixtures per group of documents, shape (m, G).

        Args:
            weights: of each model in each mixture, shape (m, n); each row sums to 1.
        """
        found = np.tile(self._least, (len(weights), 1))
        for start in range(0, len(weights), MIXTURES):
            block = weights[start : start + MIXTURES]
            for groups, gained in self._gained(np.ascontiguousarray(block.T)):
                found[start : start + MIXTURES, groups] -= gained.T
        return found

    def _gained(self, shares: Floats) -> Iterator[tuple[Ints, np.ndarray]]:
        """Groups and, for each, the sum of logarithms of its tokens' relative probabilities."""
        from scipy.special import logsumexp

        single = shares.astype(np.float32)
        room = np.empty((TOKENS, shares.shape[1]), dtype=np.float32)
        for tile in self._tiles:
            logarithms = room[: len(tile.probabilities)]
            np.matmul(tile.probabilities, single, out=logarithms)
            with np.errstate(divide="ignore"):  # zeros are of tokens that come now
                np.log(logarithms, out=logarithms)
            for place, behind in tile.far:
                logarithms[place] = logsumexp(-behind[:, None], axis=0, b=shares)
            gained = np.empty((len(tile.spans), shares.shape[1]), dtype=np.float32)
            for number, (start, end) in enumerate(tile.spans):
                np.add.reduce(logarithms[start:end], axis=0, out=gained[number])
            yield tile.groups, gained
