"""Some thirty corruptions, planted in a store on S3 by a back door: all are found, and made good."""

import json
import random
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from flows.chain.recipe import Recipe
from flows.run.execute import RunResult, execute
from flows.runners.inline import InlineRunner
from storage import audit
from storage.step import Runtime
from storage.store import Store
from tests.integration.conftest import Place
from tests.s3 import S3Door
from tests.servers import BUCKET

if TYPE_CHECKING:
    from tests.conftest import TinyRecipe
    from tests.servers import S3Server

pytestmark = pytest.mark.slow

BATCHES, BATCH = 3, 10
"""So that every kind of file and every kind of damage has its turn."""
TRIES = 20 * BATCH
"""For a batch: files that hide no other's damage may run out before it is full."""

HISTORY = ("manifests/", "runs/")
"""What cannot be made anew: a person restores it from a copy."""

TRACELESS = ("losses/", "run.json")
"""What leaves no trace where it is gone altogether, and does no harm."""


DOCUMENTS = {"documents", "partition", "remainder", "heldout", "evaluation-set", "base"}
"""Kinds and steps of documents; where they went is known from the index, and the index from them."""


class Planted(NamedTuple):
    """What was done to which file."""

    damage: str
    path: str


def kind_of(path: str) -> str:
    """Kind of artifact, step of record; of other files the name, of numbered ones the suffix."""
    top, second, *_, last = path.split("/")
    if last == "index.parquet":
        return f"{top}/index"  # by its kind it is one of documents
    if top in ("artifacts", "records"):
        return f"{top}/{second}"
    return f"{top}/{last.lstrip('0123456789')}"


class Saboteur:
    """Damages a store behind its back, and knows what was there."""

    def __init__(self, door: S3Door, seed: int) -> None:
        self._door = door
        self._chance = random.Random(seed)
        self._touched: list[str] = []
        self._turns: Counter[str] = Counter()
        self.good: dict[str, bytes] = {}
        self._of_record: dict[str, str] = {}

    def plant(self, number: int) -> list[Planted]:
        """Damage so many files, none of which hides the damage of another."""
        tops = ("artifacts/", "records/", "losses/", *HISTORY)
        self.good = {p: self._door.read(p) for p in self._door.paths() if p.startswith(tops)}
        records = [path for path in self.good if path.startswith("records/")]
        digests = {path.split("/")[2] for path in self.good if path.startswith("artifacts/")}
        self._of_record = {path: self._output(path, digests) for path in records}
        named = {*self._of_record.values()}
        # What no record names any more is garbage, and nobody reads it.
        self.good = {
            path: data
            for path, data in self.good.items()
            if not path.startswith("artifacts/") or self._digest(path) in named
        }
        by_kind: dict[str, list[str]] = {}
        for path in self.good:
            by_kind.setdefault(kind_of(path), []).append(path)
        done: list[Planted] = []
        failed: set[str] = set()
        for _ in range(TRIES):
            if len(done) == number:
                break
            # Every kind has its turn; one that cannot be had beside the others is first next time.
            kind = min(sorted(by_kind), key=lambda kind: (kind in failed, self._turns[kind]))
            path = self._chance.choice(by_kind[kind])
            damages = [self._flip, self._cut, self._delete, self._edit, self._exchange]
            # The rarest so far has its turn every other time, so that all five come.
            rarest = min(damages, key=lambda each: self._turns[each.__name__])
            damage = self._chance.choice([self._chance.choice(damages), rarest])
            self._touched = [one.path for one in done]
            is_hidden = any(self._hides(other, path) for other in self._touched)
            is_too_much = len(done) == number - 1 and damage == self._exchange
            touched = [] if is_hidden or is_too_much else damage(path)
            self._turns[kind] += bool(touched)
            self._turns[damage.__name__] += bool(touched)
            failed |= set() if touched else {kind}
            done += [Planted(damage.__name__.strip("_"), one) for one in touched]
        return done

    def fits(self, planted: Planted, fault: audit.Fault) -> bool:
        """Whether a finding is of what was planted, or comes of it.

        A record that is lost leaves an artifact without, and a manifest that is lost makes the one
        before it the newest, and what that names may have been made anew since.
        """
        named = [planted.path]
        if planted.path.startswith("records/"):
            named.append(self._digest(planted.path))
        if planted.path.startswith("manifests/"):
            named.append(planted.path.rpartition("/")[0])
        return any(name in f"{fault.path} {fault.what}" for name in named)

    def restore_history(self) -> None:
        """What a person does with a copy."""
        for path, data in self.good.items():
            if path.startswith(HISTORY):
                self._door.write(path, data)

    def _hides(self, one: str, other: str) -> bool:
        """Whether one is lost in the other, or both together can only be restored from a copy."""
        kinds = {kind_of(path).split("/")[1] for path in (one, other)}
        tops = {path.split("/")[0] for path in (one, other)}
        if ("index" in kinds and kinds & DOCUMENTS) or tops == {"manifests", "records"}:
            return True
        digests = [self._digest(path) for path in (one, other)]
        depth = 2 if tops == {"runs"} else 3
        is_near = one.split("/")[:depth] == other.split("/")[:depth]
        return is_near or digests[0] == digests[1]

    def _digest(self, path: str) -> str:
        """The artifact that a file belongs to or that a record names; else the file itself."""
        if path.startswith("artifacts/"):
            return path.split("/")[2]
        return self._of_record.get(path, path)

    def _output(self, record: str, digests: set[str]) -> str:
        """The artifact that a record names; the record itself where there is none."""
        output = self.good[record].partition(b'"output"')[2]
        return next((d for d in digests if f'"{d}"'.encode() in output), record)

    def _flip(self, path: str) -> list[str]:
        data = bytearray(self.good[path])
        place = self._chance.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        self._door.write(path, bytes(data))
        return [path]

    def _cut(self, path: str) -> list[str]:
        data = self.good[path]
        self._door.write(path, data[: self._chance.randrange(len(data))])
        return [path]

    def _delete(self, path: str) -> list[str]:
        if path.startswith(TRACELESS[0]) or path.endswith(TRACELESS[1]):
            return []
        self._door.delete(path)
        return [path]

    def _edit(self, path: str) -> list[str]:
        data = self.good[path]
        digits = [i for i in range(len(data)) if data[i : i + 1].isdigit()]
        if not path.endswith(".json") or not digits:
            return []
        place = self._chance.choice(digits)
        digit = (int(data[place : place + 1]) + self._chance.randrange(1, 10)) % 10
        edited = data[:place] + b"%d" % digit + data[place + 1 :]
        if same_json(data, edited):  # the last digit of a long number may say nothing
            return []
        self._door.write(path, edited)
        return [path]

    def _exchange(self, path: str) -> list[str]:
        """With another file of the kind and name; each of the two is a corruption."""
        if path.startswith("losses/"):
            return []  # in which order parts lie says nothing
        kind = path.split("/")[:2]
        others = [
            other
            for other, data in self.good.items()
            if other.split("/")[:2] == kind
            and other.rpartition(".")[2] == path.rpartition(".")[2]
            and data != self.good[path]
            and not any(self._hides(one, other) for one in [path, *self._touched])
        ]
        if not others:
            return []
        other = self._chance.choice(others)
        self._door.write(path, self.good[other])
        self._door.write(other, self.good[path])
        return [path, other]


def same_json(one: bytes, other: bytes) -> bool:
    """Whether an edit left what JSON says as it was."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:  # such as a number that begins with 0 now
        return False


@pytest.fixture
def place(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    """Where the store is to lie."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "unused"))
    return Place(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def recipe(tiny_recipe: "TinyRecipe", tmp_path: Path) -> Recipe:
    """Three partitions, six mixtures, an open remainder; a run takes a second or two."""
    return tiny_recipe(
        tmp_path,
        "corpus.source.include_domains=[birds, law, sums]",
        "corpus.split.partitions_per_domain=null",
        "corpus.split.tokens_per_partition=1500",
        "train.steps=2",
        "base.train.steps=2",
    )


def outputs(store: Store) -> dict[str, str]:
    """Digest of everything made, by key; an index may come back in another order."""
    return {r.key: r.output.digest for r in store.records() if r.step != "index"}


def test_corruptions_are_found_and_repaired(
    place: Place, recipe: Recipe, s3_server: "S3Server", tmp_path: Path
) -> None:
    def run(cache: str) -> RunResult:
        # A cache of its own, in which no good copy hides what rotted in the store.
        runtime = Runtime(threads=1, chunk=2)  # several parts of losses
        return execute(InlineRunner(Store(place.url, tmp_path / cache), runtime), recipe)

    run("first")
    made, losses = outputs(place.store), place.losses()
    saboteur = Saboteur(S3Door(s3_server, place.url), seed=7)
    planted: list[Planted] = []
    for batch in range(BATCHES):
        now = saboteur.plant(BATCH)
        planted += now
        found = audit.verify(place.store, lambda done, total, unit: None)
        missed = [one for one in now if not any(saboteur.fits(one, fault) for fault in found)]
        assert missed == [], f"batch {batch}"
        strange = [fault for fault in found if not any(saboteur.fits(one, fault) for one in now)]
        assert strange == [], f"batch {batch}"
        audit.repair(place.store, found)
        saboteur.restore_history()
        run(f"batch {batch}")
        left = audit.verify(place.store, lambda done, total, unit: None)
        assert left == [], f"batch {batch}: {now}"
        assert outputs(place.store) == made
        assert place.losses() == losses
    assert len(planted) >= BATCHES * BATCH - 5
    assert {one.damage for one in planted} == {"flip", "cut", "delete", "edit", "exchange"}
    tops = {one.path.partition("/")[0] for one in planted}
    assert tops == {"artifacts", "records", "losses", "manifests", "runs"}
