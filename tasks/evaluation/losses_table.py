"""The losses table: one row per (mixture, evaluation set), append-only, in Parquet.

``losses/<evaluation key>/<n>.parquet`` holds sums of nats, never means, per set and per group of
documents. Numbers of tokens and bytes are stored with the set. Where a pair has several rows, the
first counts. The digests of its models and their parts name a mixture, the digest of its windows
names a set. So a row is valid for ever, and ``pandas.read_parquet`` reads the table.
"""

import functools
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from storage.artifact import CorruptError, seal
from storage.fingerprint import Config, canonical, fingerprint
from storage.provenance import provenance
from storage.stamp import is_intact
from storage.store import Store, number_of
from tasks.arrays import Ints
from tasks.evaluation.group_sums import GroupSums, Scratch
from tasks.evaluation.losses import LossRow as LossRow
from tasks.evaluation.losses import LossRows
from tasks.evaluation.losses_file import columns, decode, encode, part_facts, pick
from tasks.mixtures.mixture import Mixture

if TYPE_CHECKING:
    import pyarrow as pa

LOG = logging.getLogger("mixpool.losses")

VERSION = 1
"""Raised by hand when the same models and windows should give other losses."""


class EvaluateConfig(Config):
    """How mixtures are averaged and evaluated: part of every loss's identity."""

    average: Literal["float64", "float32"] = "float64"
    """Precision in which weights are summed; the average itself is float32."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; the cross-entropy is always float32."""


@functools.lru_cache(maxsize=4096)  # a chunk's names are asked for several times
def identity(mixture: Mixture) -> str:
    """Name of a mixture whose members are digests of models."""
    return sys.intern(fingerprint("mixture", mixture.config()))


def evaluation_key(config: EvaluateConfig) -> str:
    """Name of the losses table of one way of evaluating."""
    return fingerprint("evaluation", {"version": VERSION, "config": canonical(config)})


class _Part(NamedTuple):
    """A file of the table that was read; its rows are numbered on from those before it."""

    path: str
    start: int
    stop: int
    cost: dict[str, Any]
    copy: int | None
    """Where its bytes are in the table's scratch file; None where the store is a local folder."""
    num_bytes: int


def _coded(column: "pa.ChunkedArray") -> tuple[list[str], Ints]:
    """The distinct texts of a column, and for each row the number of its text among them."""
    whole = column.unify_dictionaries().combine_chunks()
    return whole.dictionary.to_pylist(), whole.indices.to_numpy()


class LossesTable:
    """The rows of one way of evaluating; read once, then kept up to date by ``append``.

    Memory holds where the row of each pair is; the sums stay in the files. Where the store is not a
    local folder, ``scratch`` holds copies of them (None is the system's temporary folder).
    """

    def __init__(self, store: Store, config: EvaluateConfig, scratch: str | None = None) -> None:
        self._store, self._scratch = store, scratch
        self.key = evaluation_key(config)
        self._folder = f"losses/{self.key}"
        self._config = config
        self._numbers: dict[str, int] = {}
        self._places: dict[str, Ints] = {}
        self._length = 0
        self._parts: list[_Part] = []
        self._copies: Scratch | None = None
        self.refresh()

    def refresh(self) -> None:
        """Take in parts that other runs have added."""
        paths = self._store.chain(self._folder, after=self._last)
        for path, data in self._store.backend.read_each(paths):
            if data is not None:  # else another run set it aside meanwhile
                self._take(path, data)

    @property
    def _last(self) -> int:
        return number_of(self._parts[-1].path) if self._parts else -1

    def _take(self, path: str, data: bytes) -> None:
        # A part moved here from another way of evaluating is intact and would give wrong losses.
        if not is_intact(data) or (facts := part_facts(data))["evaluation"] != self.key:
            LOG.warning("%s was changed after it was written; its rows are evaluated anew", path)
            # Its number may be claimed again, so it does not count as read.
            self._store.set_aside(path)
            return
        start = self._parts[-1].stop if self._parts else 0
        stop = start + self._enter(data, start)
        copy = self._copy(data) if self._store.backend.local(path) is None else None
        self._parts.append(_Part(path, start, stop, facts["cost"], copy, len(data)))

    def _enter(self, data: bytes, start: int) -> int:
        """Note where each row is that is the first of its pair; the number of rows."""
        # Columns come as numbers into a few names: no text is made for each row.
        table = columns(data, ["mixture", "windows"])
        names, name_of_row = _coded(table["mixture"])
        digests, set_of_row = _coded(table["windows"])
        # Who asks for rows has the same name in hand: one text for both.
        numbers = np.array(
            [self._numbers.setdefault(sys.intern(n), len(self._numbers)) for n in names], np.int64
        )
        mixture_of_row = numbers[name_of_row]
        for code, digest in enumerate(digests):
            places = self._room(digest)
            rows = np.flatnonzero(set_of_row == code)
            mixtures, first = np.unique(mixture_of_row[rows], return_index=True)
            is_new = places[mixtures] < 0
            places[mixtures[is_new]] = start + rows[first[is_new]]
            self._length += int(is_new.sum())
        return len(set_of_row)

    def _room(self, windows: str) -> Ints:
        """The places of the rows of a set by number of mixture; -1 where there is none."""
        places = self._places.get(windows, np.empty(0, dtype=np.int64))
        if len(places) < len(self._numbers):
            more = np.full(max(64, 2 * len(self._numbers)) - len(places), -1, dtype=np.int64)
            places = self._places[windows] = np.concatenate([places, more])
        return places

    def _copy(self, data: bytes) -> int:
        """Keep bytes that would have to be sent once more; where they are."""
        self._copies = self._copies or Scratch(self._scratch)
        position = sum(part.num_bytes for part in self._parts if part.copy is not None)
        self._copies.write(data, position)
        return position

    def __contains__(self, pair: tuple[str, str]) -> bool:
        return self._place(pair) >= 0

    def _place(self, pair: tuple[str, str]) -> int:
        mixture, windows = pair
        number, places = self._numbers.get(mixture), self._places.get(windows)
        if number is None or places is None or number >= len(places):
            return -1
        return int(places[number])

    def __getitem__(self, pair: tuple[str, str]) -> LossRow:
        if (place := self._place(pair)) < 0:
            raise KeyError(pair)
        part = next(part for part in self._parts if place < part.stop)
        return decode(self._data(part))[place - part.start]

    def __len__(self) -> int:
        return self._length

    def _data(self, part: _Part) -> bytes:
        """The bytes of a part that was read before. Raises CorruptError where they are others now."""
        if part.copy is not None:
            assert self._copies is not None
            self._copies.read(data := bytearray(part.num_bytes), part.copy)
            return bytes(data)
        found = self._store.backend.read(part.path)
        if len(found) != part.num_bytes or not is_intact(found):
            raise CorruptError(f"{part.path} was changed while this run used it: run again")
        return found

    def lacking(self, names: Sequence[str], sets: Collection[str]) -> list[int]:
        """Which mixtures, by place in ``names``, lack the row of one of ``sets``, by digest."""
        return np.flatnonzero((self._where(names, sets) < 0).any(axis=1)).tolist()

    def _where(self, names: Sequence[str], sets: Collection[str]) -> Ints:
        """Where the row of each pair is, -1 where there is none; shape (mixtures, sets)."""
        places = [self._room(digest)[: len(self._numbers)] for digest in sets]
        # The last row stands for mixtures without any number.
        table = np.stack([np.append(column, -1) for column in places], axis=1)
        return table[[self._numbers.get(name, -1) for name in names]]

    def rows(
        self,
        names: Sequence[str],
        labels: Sequence[str],
        sets: Mapping[str, str],
        scratch: str | None = None,
    ) -> LossRows:
        """The rows of all pairs.

        Args:
            names: identity of each mixture.
            labels: each mixture as people call it.
            sets: digest of the windows by name of the set.
            scratch: folder for the sums per group; None is the system's temporary folder.

        Raises:
            KeyError: the table lacks a pair.
            CorruptError: a part has been changed since it was read.
        """
        places = self._where(names, sets.values())
        if (places < 0).any():
            mixture, number = np.argwhere(places < 0)[0]
            raise KeyError((labels[mixture], list(sets)[number]))
        nll, sums = np.empty(places.shape), GroupSums(len(names), scratch)
        target = LossRows([*names], [*labels], dict(sets), nll, sums)
        order = np.argsort(places, axis=None, kind="stable")
        places = places.ravel()[order]
        for part in self._parts:
            first, last = np.searchsorted(places, [part.start, part.stop])
            if first < last:
                pick(self._data(part), places[first:last] - part.start, order[first:last], target)
        return target

    def append(self, rows: list[LossRow], cost: Mapping[str, Any]) -> None:
        """Write rows as the next part; rows that another run wrote first stand."""
        if not self._parts:
            config = {"version": VERSION, "config": canonical(self._config)}
            self._store.backend.create(f"{self._folder}/evaluation.json", seal(config))
        made_by = provenance(str(cost.get("device", "")))
        data = encode(rows, {"evaluation": self.key, "cost": cost, "provenance": made_by})
        path = self._store.append(self._folder, ".parquet", data, after=self._last)
        if number_of(path) == self._last + 1:
            self._take(path, data)
        else:
            self.refresh()

    def costs(self) -> list[dict[str, Any]]:
        """What evaluating the rows of each part cost."""
        return [part.cost for part in self._parts]
