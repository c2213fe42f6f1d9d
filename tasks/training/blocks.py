"""The batches of a training: each depends on the config and the number of its step alone."""

import bisect
import itertools
import math
from fractions import Fraction

import numpy as np

from tasks.mixtures.mixture import apportioned
from tasks.training.config import TrainConfig
from tasks.training.divergence import TrainingError


class Blocks:
    """Blocks of context + 1 tokens from one or several token files, in a seeded order without end.

    Every epoch is one permutation of all blocks; ``blocks[n]`` depends on (seed, n) only.
    """

    def __init__(
        self, files: list[np.ndarray], context: int, *seed: int, most: int | None = None
    ) -> None:
        """``most`` blocks at most are kept, by the seed; more keep what fewer do."""
        counts = [max(0, (len(tokens) - 1) // context) for tokens in files]
        if not sum(counts):
            raise TrainingError(
                f"{sum(map(len, files)):,} tokens do not fill one block of {context + 1}: "
                "lower train.context_length or give more text"
            )
        self._files, self._context, self._seed = files, context, seed
        self._ends = list(itertools.accumulate(counts))
        self._kept: np.ndarray | None = None
        if most is not None and most < sum(counts):
            self._kept = self._permutation(0, sum(counts))[:most]
        self._epoch = -1
        self._order: np.ndarray

    def __len__(self) -> int:
        return self._ends[-1] if self._kept is None else len(self._kept)

    @property
    def available(self) -> int:
        """Blocks that the files have, those that are not kept included."""
        return self._ends[-1]

    def __getitem__(self, number: int) -> np.ndarray:
        """Token ids of the block that comes ``number``-th, from 0; shape (context + 1)."""
        return self._block(self._shuffled(number))

    def _shuffled(self, number: int) -> int:
        epoch, position = divmod(number, len(self))
        if epoch != self._epoch:
            self._epoch, order = epoch, self._permutation(epoch, len(self))
            self._order = order if self._kept is None else self._kept[order]
        return int(self._order[position])

    def _permutation(self, epoch: int, number: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64([*self._seed, epoch])).permutation(number)

    def _block(self, block: int) -> np.ndarray:
        file = bisect.bisect_right(self._ends, block)
        start = (block - (self._ends[file - 1] if file else 0)) * self._context
        return self._files[file][start : start + self._context + 1]


def own_blocks(config: TrainConfig) -> list[int]:
    """Own blocks that each token file gives to a training of this config, whose files are drawn from.

    What is replayed left out; the others in proportion to the weights, by largest remainder, whose ties
    go by the order of files.
    """
    blocks, share = config.steps * config.batch_size, Fraction(str(config.replay))
    own = blocks - blocks * share.numerator // share.denominator
    return [*apportioned(dict(enumerate(config.weights or [1])), own).values()]


class Drawn:
    """The own blocks of a training that draws from its token files: each gives its share, to the block.

    The blocks of a file come in seeded epochs, as those of ``Blocks``: a file that has fewer than its
    share is repeated, of one that has more the rest is left out. The order among files is one seeded
    permutation. So ``drawn[n]`` depends on the config and n only.
    """

    def __init__(self, files: list[np.ndarray], config: TrainConfig) -> None:
        """Raises TrainingError where a share is less than one block, or files and weights do not fit."""
        self._counts, seed = own_blocks(config), config.seed
        epochs = config.repeat_as.epochs if config.repeat_as else [None] * len(files)
        if not len(files) == len(self._counts) == len(epochs):
            raise TrainingError(
                f"there are {len(files)} token files, {len(self._counts)} weights and {len(epochs)} numbers "
                "of epochs: give one for each file"
            )
        if 0 in self._counts:
            raise TrainingError(
                f"token file {self._counts.index(0)} gives less than one of {sum(self._counts):,} blocks: "
                "raise its weight, or train.steps or train.batch_size"
            )
        keep = [
            None if times is None else math.ceil(count / Fraction(times))
            for count, times in zip(self._counts, epochs, strict=True)
        ]
        self._files = [
            Blocks([tokens], config.context_length, seed, number, most=most)
            for number, (tokens, most) in enumerate(zip(files, keep, strict=True))
        ]
        generator = np.random.Generator(np.random.PCG64([seed, len(files)]))
        self._file = generator.permutation(np.repeat(np.arange(len(files)), self._counts))
        self._turn = np.empty_like(self._file)
        self._turn[np.argsort(self._file, kind="stable")] = np.concatenate(
            [np.arange(count) for count in self._counts]
        )

    def __len__(self) -> int:
        return sum(map(len, self._files))

    def __getitem__(self, number: int) -> np.ndarray:
        """Token ids of the block that comes ``number``-th, from 0; shape (context + 1)."""
        return self._files[int(self._file[number])][int(self._turn[number])]

    @property
    def sources(self) -> list[dict[str, float]]:
        """For the record: what each file gave, of how many different blocks, and how many it has."""
        return [
            {
                "blocks": count,
                "different": min(count, len(blocks)),
                "available": blocks.available,
                "epochs": count / len(blocks),
            }
            for count, blocks in zip(self._counts, self._files, strict=True)
        ]


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
        self.own: Blocks | Drawn
        if self._share == 1 and replayed is not None:
            self.own = replayed
        elif config.weights or config.repeat_as:
            self.own = Drawn(own, config)
        else:
            self.own = Blocks(own, *shape)
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
