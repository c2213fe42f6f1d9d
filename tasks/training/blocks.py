"""The batches of a training: each depends on the config and the number of its step alone."""

import bisect
import itertools
from fractions import Fraction

import numpy as np

from tasks.training.config import TrainConfig
from tasks.training.divergence import TrainingError


class Blocks:
    """Blocks of context + 1 tokens from one or several token files, in a seeded order without end.

    Every epoch is one permutation of all blocks; ``blocks[n]`` depends on (seed, n) only.
    """

    def __init__(self, files: list[np.ndarray], context: int, seed: int) -> None:
        counts = [max(0, (len(tokens) - 1) // context) for tokens in files]
        if not sum(counts):
            raise TrainingError(
                f"{sum(map(len, files)):,} tokens do not fill one block of {context + 1}: "
                "lower train.context_length or give more text"
            )
        self._files, self._context, self._seed = files, context, seed
        self._ends = list(itertools.accumulate(counts))
        self._epoch = -1
        self._order: np.ndarray

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> np.ndarray:
        """Token ids of the block that comes ``number``-th, from 0; shape (context + 1)."""
        return self._block(self._shuffled(number))

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


class Batches:
    """The batches of a training: own blocks and, evenly between them, replayed ones.

    Of the first n blocks, floor(n * replay) are replayed. They go on where a training on ``replay`` alone
    is when this phase begins.
    """

    def __init__(
        self, config: TrainConfig, own: list[np.ndarray], replay: list[np.ndarray]
    ) -> None:
        """Raises TrainingError where tokens do not fill a block."""
        self._size, self._share = config.batch_size, Fraction(str(config.replay))
        self._earlier = config.begins_at * config.batch_size
        shape = (config.context_length, config.seed)
        replayed = Blocks(replay, *shape) if self._share else None
        self.own = Blocks(own, *shape) if self._share < 1 or replayed is None else replayed
        self._replay = replayed or self.own

    def __getitem__(self, step: int) -> np.ndarray:
        """Token ids of step ``step``, int64, shape (batch, context + 1)."""
        numbers = range(step * self._size, (step + 1) * self._size)
        return np.stack([self._block(n) for n in numbers]).astype(np.int64)

    def replayed(self, steps: int) -> int:
        """Blocks that the first ``steps`` steps replay."""
        return self._replayed(steps * self._size)

    def _block(self, number: int) -> np.ndarray:
        replayed = self._replayed(number)
        if self._replayed(number + 1) > replayed:
            return self._replay[self._earlier + replayed]
        return self.own[number - replayed]

    def _replayed(self, blocks: int) -> int:
        return blocks * self._share.numerator // self._share.denominator
