"""Losses per group of documents, kept in a scratch file and read in blocks.

They are nearly all of a losses table: up to 256 numbers for each pair of a mixture and a set. Each
is needed a few times, in order, so none of them stays in memory. In the file they lie set by set.
"""

import os
import tempfile
import weakref
from collections.abc import Iterator

import numpy as np

from tasks.arrays import Floats, Ints

BLOCK = 512
"""Mixtures whose sums are read at once: 1 MB for 256 groups."""


class Scratch:
    """A file without a name, gone with the process, in ``folder`` or the system's temporary one."""

    def __init__(self, folder: str | None = None) -> None:
        with tempfile.TemporaryFile(dir=folder, prefix="mixpool-") as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def write(self, data: "bytes | memoryview", position: int) -> None:
        """Write all of ``data`` at ``position``."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, position)
            view, position = view[written:], position + written

    def read(self, buffer: "bytearray | memoryview", position: int) -> None:
        """Fill ``buffer`` from ``position``."""
        view = memoryview(buffer)
        while view:
            done = os.preadv(self._file, [view], position)
            assert done, "nothing was written there"
            view, position = view[done:], position + done


class GroupSums:
    """Nats of ``num_mixtures`` mixtures per group of documents, set by set, in a scratch file.

    Args:
        scratch: folder for the file; None is the system's temporary folder.
    """

    def __init__(self, num_mixtures: int, scratch: str | None = None) -> None:
        self.num_mixtures = num_mixtures
        self._file = Scratch(scratch)
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def width(self, number: int) -> int:
        """Groups of a set of which some sums were written."""
        return self._places[number][1]

    def write(self, number: int, mixtures: Ints, sums: Floats) -> None:
        """Keep the sums, shape (n, G), of n mixtures in ascending order on set ``number``.

        Raises:
            ValueError: mixtures have different numbers of groups on one set.
        """
        if number not in self._places:
            self._places[number] = self._end, sums.shape[1]
            self._end += self.num_mixtures * sums.shape[1] * 8
        start, width = self._places[number]
        if width != sums.shape[1]:
            raise ValueError(
                f"mixtures have {width} and {sums.shape[1]} groups of documents on one evaluation "
                "set, so they were evaluated on different text: evaluate all on the same set"
            )
        breaks = np.flatnonzero(np.diff(mixtures) != 1) + 1
        for run, block in zip(np.split(mixtures, breaks), np.split(sums, breaks), strict=True):
            if block.size:
                self._file.write(block.tobytes(), start + int(run[0]) * width * 8)

    def read(self, number: int, start: int, stop: int) -> Floats:
        """Sums of mixtures ``start`` to ``stop`` on set ``number``, shape (stop - start, G)."""
        position, width = self._places[number]
        sums = np.empty((stop - start, width))
        if sums.size:
            self._file.read(sums.data.cast("B"), position + start * width * 8)
        return sums

    def blocks(self, number: int) -> Iterator[tuple[slice, Floats]]:
        """All mixtures of set ``number``, ``BLOCK`` at a time: which they are, and their sums."""
        for start in range(0, self.num_mixtures, BLOCK):
            stop = min(start + BLOCK, self.num_mixtures)
            yield slice(start, stop), self.read(number, start, stop)

    def take(self, number: int, mixtures: Ints) -> Floats:
        """Sums of n mixtures on set ``number``, in their order, shape (n, G)."""
        taken = np.empty((len(mixtures), self.width(number)))
        block = mixtures // BLOCK
        for number_of_block in np.unique(block).tolist():
            start, inside = number_of_block * BLOCK, np.flatnonzero(block == number_of_block)
            sums = self.read(number, start, min(start + BLOCK, self.num_mixtures))
            taken[inside] = sums[mixtures[inside] - start]
        return taken
