"""The batches of a training: each depends on the seed and the number of its step alone."""

import bisect
import itertools

import numpy as np

from tasks.training.divergence import TrainingError


class Blocks:
    """Blocks of context + 1 tokens from one or several token files, in a seeded order.

    Every epoch is one permutation of all blocks; ``batch(i)`` depends on (seed, i) only.
    """

    def __init__(self, files: list[np.ndarray], context: int, batch: int, seed: int) -> None:
        counts = [max(0, (len(tokens) - 1) // context) for tokens in files]
        if not sum(counts):
            raise TrainingError(
                f"{sum(map(len, files)):,} tokens do not fill one block of {context + 1}: "
                "lower train.context_length or give more text"
            )
        self._files, self._context, self._batch, self._seed = files, context, batch, seed
        self._ends = list(itertools.accumulate(counts))
        self._epoch = -1
        self._order: np.ndarray

    def __len__(self) -> int:
        return self._ends[-1]

    def batch(self, step: int) -> np.ndarray:
        """Token ids of step ``step``, int64, shape (batch, context + 1)."""
        numbers = range(step * self._batch, (step + 1) * self._batch)
        return np.stack([self._block(self._shuffled(n)) for n in numbers]).astype(np.int64)

    def _shuffled(self, number: int) -> int:
        epoch, position = divmod(number, len(self))
        if epoch != self._epoch:
            self._epoch = epoch
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._order = generator.permutation(len(self))
        return int(self._order[position])

    def _block(self, block: int) -> np.ndarray:
        file = bisect.bisect_right(self._ends, block)
        start = (block - (self._ends[file - 1] if file else 0)) * self._context
        return self._files[file][start : start + self._context + 1]
