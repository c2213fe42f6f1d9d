"""The losses of many mixtures on many evaluation sets, as columns in memory.

Memory holds one number for each pair of a mixture and a set, however many groups of documents a set
has. The sums per group are in a scratch file (``tasks.evaluation.group_sums``). A row is built only
when it is asked for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.arrays import Floats, Ints
from tasks.evaluation.group_sums import BLOCK, GroupSums

if TYPE_CHECKING:
    import pandas as pd


class LossRow(NamedTuple):
    """Sums of one mixture on one evaluation set."""

    mixture: str
    """Identity: fingerprint of model digests and parts."""
    windows: str
    """Digest of the set's windows."""
    label: str
    """The mixture as people call it."""
    evaluation_set: str
    """The set as people call it."""
    nll: float
    """Sum of negative log-likelihoods over the set, in nats."""
    group_nll: list[float]
    """The same for each group of documents."""


@dataclass(frozen=True, eq=False)
class LossRows:
    """Every pair of some mixtures and some sets, in the order of mixtures and then of sets."""

    mixtures: list[str]
    """Identity of each mixture."""
    labels: list[str]
    """Each mixture as people call it."""
    sets: Mapping[str, str]
    """Digest of the windows by the name of the set."""
    nll: Floats
    """Nats of each mixture on each set, shape (mixtures, sets)."""
    sums: GroupSums
    """The same per group of documents; a set's number is its place in ``sets``."""

    def __len__(self) -> int:
        return len(self.mixtures) * len(self.sets)

    def __iter__(self) -> Iterator[LossRow]:
        for number, (mixture, label) in enumerate(zip(self.mixtures, self.labels, strict=True)):
            for set_number, (name, windows) in enumerate(self.sets.items()):
                groups = self.sums.read(set_number, number, number + 1)[0].tolist()
                nll = float(self.nll[number, set_number])
                yield LossRow(mixture, windows, label, name, nll, groups)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LossRows):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def counted(self, counts: Mapping[str, "Counts"]) -> "Losses":
        """The rows with the counts of their sets, by digest of the windows."""
        of_sets = [counts[windows] for windows in self.sets.values()]
        return Losses(self.labels, list(self.sets), self.nll, of_sets, self.sums)


class Counts(NamedTuple):
    """What losses on a set are divided by."""

    num_tokens: int
    """Scored tokens of the set."""
    num_bytes: int
    """UTF-8 bytes of the set."""
    num_words: int
    """Words of the set."""
    group_tokens: Ints
    """Tokens of each group of documents, shape (G,)."""
    group_bytes: Ints
    """Bytes of each group of documents, shape (G,)."""


@dataclass(frozen=True, eq=False)
class Losses:
    """The losses that are ranked: every pair of some mixtures and some sets, and the sets' counts."""

    mixtures: list[str]
    """Labels."""
    sets: list[str]
    """Names."""
    nll: Floats
    """Nats of each mixture on each set, shape (mixtures, sets)."""
    counts: list[Counts]
    """Of each set."""
    sums: GroupSums
    """Nats per group of documents."""

    @cached_property
    def by_name(self) -> Ints:
        """Place of each mixture when all are sorted by label, shape (mixtures,)."""
        order = sorted(range(len(self.mixtures)), key=self.mixtures.__getitem__)
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        return places

    def frame(self, mixtures: Iterable[str]) -> "pd.DataFrame":
        """Some mixtures as ``mixture``, ``evaluation_set``, ``nll``, ``num_tokens``, in our order."""
        import pandas as pd

        labels_asked = set(mixtures)
        chosen = [n for n, label in enumerate(self.mixtures) if label in labels_asked]
        labels = np.array([self.mixtures[number] for number in chosen], dtype=object)
        tokens = [counts.num_tokens for counts in self.counts]
        return pd.DataFrame(
            {
                "mixture": np.repeat(labels, len(self.sets)),
                "evaluation_set": np.tile(np.array(self.sets, dtype=object), len(chosen)),
                "nll": self.nll[chosen].ravel(),
                "num_tokens": np.tile(np.array(tokens, dtype=np.int64), len(chosen)),
            }
        )

    @classmethod
    def of(cls, frame: "pd.DataFrame", mixtures: Sequence[str] | None = None) -> "Losses":
        """The losses of a frame as ``write`` writes it; every mixture must be there for every set.

        Args:
            mixtures: those that must be there; None for all of the frame, sorted.

        Raises:
            ValueError: a pair is missing or there twice, or mixtures were evaluated on other text
                than others.
        """
        mixtures = mixtures or sorted(set(frame["mixture"].tolist()))
        groups = {str(name): of_set for name, of_set in frame.groupby("evaluation_set", sort=True)}
        nll = np.empty((len(mixtures), len(groups)))
        sums, counts = GroupSums(len(mixtures)), []
        for number, (name, of_set) in enumerate(groups.items()):
            of_set = _check_set(name, of_set.set_index("mixture").sort_index(), set(mixtures))
            nll[:, number] = of_set["nll"]
            sums.write(number, np.arange(len(mixtures)), np.stack(of_set["group_nll"].tolist()))
            first = of_set.iloc[0]
            tokens, sizes = (np.asarray(first[n], dtype=np.int64) for n in GROUPS)
            num_tokens, num_bytes, num_words = (int(first[n]) for n in TOTALS)
            counts.append(Counts(num_tokens, num_bytes, num_words, tokens, sizes))
        return cls(list(mixtures), list(groups), nll, counts, sums)

    def write(self, path: Path) -> None:
        """Write Parquet, one row per pair: ``mixture``, ``evaluation_set``, ``nll``, ``group_nll``
        (nats), ``num_tokens``, ``num_bytes``, ``num_words``, ``group_tokens``, ``group_bytes``.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        floats, ints = pa.list_(pa.float64()), pa.list_(pa.int64())
        columns = {"mixture": pa.string(), "evaluation_set": pa.string(), "nll": pa.float64()}
        columns |= {"group_nll": floats, **dict.fromkeys(TOTALS, pa.int64())}
        schema = pa.schema({**columns, **dict.fromkeys(GROUPS, ints)})
        # Lists are nearly all of the file: counts repeat with each mixture, sums never do.
        plain = ["mixture", "evaluation_set", *TOTALS]
        deltas = {f"{name}.list.element": "DELTA_BINARY_PACKED" for name in GROUPS}
        with pq.ParquetWriter(
            path, schema, use_dictionary=plain, write_statistics=plain, column_encoding=deltas
        ) as writer:
            for start in range(0, len(self.mixtures), BLOCK):
                stop = min(start + BLOCK, len(self.mixtures))
                writer.write_table(pa.table(self._columns(start, stop), schema=schema))

    def _columns(self, start: int, stop: int) -> dict[str, object]:
        """Rows of some mixtures, mixture by mixture."""
        import pyarrow as pa

        times, numbers = stop - start, range(len(self.sets))
        widths = np.tile([self.sums.width(number) for number in numbers], times)
        offsets = pa.array(np.concatenate([[0], np.cumsum(widths)]), type=pa.int32())
        sums = np.concatenate([self.sums.read(number, start, stop) for number in numbers], axis=1)
        lists = {"group_nll": sums.ravel()}
        for name in GROUPS:
            lists[name] = np.tile(np.concatenate([getattr(c, name) for c in self.counts]), times)
        totals = {n: np.tile([getattr(c, n) for c in self.counts], times) for n in TOTALS}
        labels = np.repeat(np.array(self.mixtures[start:stop], dtype=object), len(self.sets))
        return {
            "mixture": labels,
            "evaluation_set": np.tile(np.array(self.sets, dtype=object), times),
            "nll": self.nll[start:stop].ravel(),
            **{name: pa.ListArray.from_arrays(offsets, values) for name, values in lists.items()},
            **totals,
        }


TOTALS = ("num_tokens", "num_bytes", "num_words")
GROUPS = ("group_tokens", "group_bytes")


def _check_set(name: str, frame: "pd.DataFrame", mixtures: set[str]) -> "pd.DataFrame":
    if missing := sorted(mixtures.difference(frame.index)):
        raise ValueError(
            f"mixture {missing[0]!r} ({len(missing)} in all) has no loss on the evaluation set "
            f"{name!r}: evaluate it there, or leave the mixture or the set out of the ranking"
        )
    if frame.index.has_duplicates:
        twice = frame.index[frame.index.duplicated()][0]
        raise ValueError(f"mixture {twice!r} has two losses on {name!r}: keep the first of them")
    lengths = {len(groups) for column in ("group_nll", "group_tokens") for groups in frame[column]}
    if frame["num_tokens"].nunique() > 1 or len(lengths) > 1 or frame["num_tokens"].iloc[0] <= 0:
        raise ValueError(
            f"mixtures were evaluated on different text, or on none, of the set {name!r}: "
            f"{frame['num_tokens'].min()} to {frame['num_tokens'].max()} tokens in "
            f"{min(lengths)} to {max(lengths)} groups; evaluate all on the same frozen set"
        )
    return frame
