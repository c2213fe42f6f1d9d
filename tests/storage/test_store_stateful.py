"""Whatever clients do in whatever order, the store answers as a dictionary would.

The model: which records there are and which of them are damaged, which files of artifacts are sound, in
the store and in each client's read cache, what chains hold, and who has which lease. Damage is done by
the back door. On a remote store a client may be given an old answer only where it asked beforehand.
"""

import itertools
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage import audit, records
from storage.artifact import Artifact, Record, describe, step_key
from storage.lease import Busy, Lease
from storage.store import CorruptArtifactError, Store
from tests.s3 import S3Door
from tests.servers import BUCKET
from tests.storage.contract import BackDoor, Client, content
from tests.storage.test_store import LocalDoor

if TYPE_CHECKING:
    from tests.servers import S3Server

CONTENTS = {
    "one": {"weights": b"one", "deep/config": b"{}"},
    "two": {"weights": b"two"},
    "three": {"weights": b"two", "more": b""},
}
CLIENTS = range(3)
KEYS = [step_key("step", 1, {"number": number}, {}) for number in range(2)]
CHAINS = ["parts/a", "parts/b"]

clients = st.sampled_from(CLIENTS)
keys = st.sampled_from(KEYS)
names = st.sampled_from(sorted(CONTENTS))
changes = st.sampled_from(["flip", "cut", "delete"])


@dataclass
class Seen:
    """What one client knows and has."""

    listed: set[str] | None = None
    """Records that were there when it listed them first; it may have listed again since."""
    ahead: dict[str, Record] = field(default_factory=dict)
    """Records that it may have read ahead, by path."""
    copies: set[str] = field(default_factory=set)
    """Files of which its read cache has a sound copy."""


def paths_of(artifact: Artifact) -> set[str]:
    return {f"{artifact.prefix}/{name}" for name in artifact.files}


class StoreAgainstDict(RuleBasedStateMachine):
    """Three clients with a read cache each, one store, one model."""

    def __init__(self, room: Path, url: str, door: BackDoor) -> None:
        super().__init__()
        self.room, self.url, self.door, self.is_remote = room, url, door, "://" in url
        for name, path in ((n, p) for n, files in CONTENTS.items() for p in files):
            (room / name / path).parent.mkdir(parents=True, exist_ok=True)
            (room / name / path).write_bytes(CONTENTS[name][path])
        Store(self.url, room / "0")
        self.clients = [self.opened(client) for client in CLIENTS]
        self.seen = [Seen() for _ in CLIENTS]
        self.records: dict[str, Record] = {}
        self.spoiled: set[str] = set()
        self.sound: set[str] = set()
        self.chains: dict[str, list[bytes]] = {chain: [] for chain in CHAINS}
        self.held: dict[str, Lease] = {}
        self.numbers = itertools.count()
        self.turn = 0

    def opened(self, client: int) -> Store:
        return Store(self.url, self.room / str(client), create=False)

    def teardown(self) -> None:
        for lease in self.held.values():
            lease.__exit__(None, None, None)
        shutil.rmtree(self.room)

    # The model ---------------------------------------------------------------------------------

    def of_key(self, key: str) -> list[str]:
        return sorted(path for path, record in self.records.items() if record.key == key)

    def standing(self, key: str) -> Record | None:
        """What everybody is given who looks now, which sets damaged ones before it aside."""
        for path in self.of_key(key):
            if path not in self.spoiled:
                return self.records[path]
            self.forget(path)
        return None

    def readable(self, key: str) -> list[Record]:
        return [self.records[path] for path in self.of_key(key) if path not in self.spoiled]

    def forget(self, path: str) -> None:
        del self.records[path]
        self.spoiled.discard(path)
        for seen in self.seen:
            # Who lists while it is gone does not see it when it is made again.
            seen.listed = seen.listed and seen.listed - {path}

    def retracted(self, client: int, artifact: Artifact) -> None:
        """Files are deleted; a record that cannot be read names nothing and stays."""
        for path, record in [*self.records.items()]:
            if record.output == artifact and path not in self.spoiled:
                self.forget(path)
                # Who sets a record aside does not find it in what it read before.
                self.seen[client].ahead.pop(path, None)
        self.sound -= paths_of(artifact)

    def forget_damaged_ones_that_are_gone(self) -> None:
        """What a client has set aside that went by an older listing."""
        left = {*self.door.paths()}
        for path in self.records.keys() - left:
            assert path in self.spoiled, f"{path} was sound and is gone"
            self.forget(path)

    def known(self, client: int, key: str, *, fresh: bool) -> set[str]:
        """Sound records of a key that a client cannot miss, which lists now if it has not yet."""
        seen = self.seen[client]
        if fresh or seen.listed is None:
            seen.listed = {*self.records}
        return seen.listed & {*self.of_key(key)} - self.spoiled

    # Records -----------------------------------------------------------------------------------

    @rule(client=clients, key=keys, label=st.sampled_from("ab"), name=names, late=st.booleans())
    def commit(self, client: int, key: str, label: str, name: str, late: bool) -> None:
        mine = self.record(key, label, name)
        known = self.known(client, key, fresh=late)
        with pytest.MonkeyPatch.context() as patch:
            # An early commit believes what it listed, however long a request takes here.
            patch.setattr(records, "RECENT", 0.0 if late else 1e9)
            found = self.clients[client].commit(mine, self.room / name)
        self.sound |= paths_of(mine.output)
        if late:
            standing = self.standing(key)
        else:
            self.forget_damaged_ones_that_are_gone()
            standing = next((r for r in self.readable(key) if r == found), None)
            assert standing or not known, "it knew of a record and made another"
        if standing is None:
            assert mine.path not in self.records.keys() - self.spoiled
            self.spoiled.discard(mine.path)
            self.records[mine.path] = standing = mine
        assert found == standing

    def record(self, key: str, label: str, name: str) -> Record:
        return Record(
            step="step",
            version=1,
            key=key,
            label=label,
            config={"number": KEYS.index(key)},
            inputs={},
            output=describe("text", self.room / name),
        )

    @rule(key=keys, label=st.sampled_from("ab"), order=st.permutations(sorted(CONTENTS)))
    def commit_at_once(self, key: str, label: str, order: list[str]) -> None:
        # Of two that set one damaged record aside, the slower may meet what the quicker put there.
        for client in CLIENTS:
            self.find(client, key)
        mine = [self.record(key, label, name) for name in order]
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(CLIENTS)) as pool:
            patch.setattr(records, "RECENT", 0.0)
            folders = [self.room / name for name in order]
            found = list(pool.map(Store.commit, self.clients, mine, folders))
        standing = self.standing(key)
        for one in mine:
            self.sound |= paths_of(one.output)
        if standing is None:
            assert found[0] in mine
            self.records[found[0].path] = standing = found[0]
        assert found == [standing] * len(CLIENTS)

    @rule(client=clients, key=keys)
    def find(self, client: int, key: str) -> None:
        found = self.clients[client].find("step", key, fresh=True)
        assert found == self.standing(key)
        self.known(client, key, fresh=True)

    @rule(client=clients, key=keys)
    def find_by_what_was_listed_before(self, client: int, key: str) -> None:
        known, ahead = self.known(client, key, fresh=False), self.seen[client].ahead
        asked = [ahead.pop(path) for path in [*ahead] if f".{key}." in path]
        found = self.clients[client].find("step", key)
        self.forget_damaged_ones_that_are_gone()
        assert found in (self.readable(key) + asked) or (found is None and not known)
        if found is not None:
            self.fetch(client, found.output)

    @rule(client=clients)
    def look_ahead(self, client: int) -> None:
        self.clients[client].look_ahead("step", KEYS)
        self.known(client, KEYS[0], fresh=False)
        sound = self.records.keys() - self.spoiled
        self.seen[client].ahead |= {path: self.records[path] for path in sound}

    @rule(key=keys, change=st.sampled_from(["edit", "cut", "delete"]))
    def spoil_record(self, key: str, change: str) -> None:
        for path in self.of_key(key)[:1]:
            data = self.door.read(path)
            if change == "delete":
                self.door.delete(path)
                self.forget(path)
            else:
                edited = data.replace(b'"version": 1', b'"version": 2')
                self.door.write(path, edited if change == "edit" else data[:-2])
                self.spoiled.add(path)

    @rule(client=clients, key=keys)
    def retract(self, client: int, key: str) -> None:
        for record in self.readable(key)[:1]:
            self.clients[client].retract(record.output)
            self.retracted(client, record.output)

    # Artifacts ---------------------------------------------------------------------------------

    @rule(client=clients, key=keys)
    def fetch_by_key(self, client: int, key: str) -> None:
        for record in self.readable(key)[:1]:
            self.fetch(client, record.output)

    def fetch(self, client: int, artifact: Artifact) -> None:
        """Also of what is gone: there is the right content or an error, nothing else."""
        if not self.is_remote:
            self.reopen(client)  # verified once by each process, as nothing lies between
        wanted, copies = paths_of(artifact), self.seen[client].copies
        if wanted <= (self.sound | copies):
            folder = self.clients[client].fetch(artifact)
            assert content(folder) in CONTENTS.values()
            assert describe("text", folder) == artifact
            copies |= wanted if self.is_remote else set()
        else:
            with pytest.raises(CorruptArtifactError):
                self.clients[client].fetch(artifact)
            copies |= wanted & self.sound if self.is_remote else set()
            self.retracted(client, artifact)

    @rule(key=keys, place=st.integers(0, 1), change=changes)
    def rot(self, key: str, place: int, change: str) -> None:
        for record in self.readable(key)[:1]:
            files = sorted(paths_of(record.output) & self.sound)
            for path in files[place : place + 1]:
                data = self.door.read(path)
                if change == "delete":
                    self.door.delete(path)
                else:
                    rotten = (
                        data[:-1] + bytes([data[-1] ^ 1]) * (change == "flip") if data else b"x"
                    )
                    self.door.write(path, rotten)
                self.sound.discard(path)

    @precondition(lambda self: self.is_remote)
    @rule(client=clients, number=st.integers(0, 5), change=changes)
    def copy_rots(self, client: int, number: int, change: str) -> None:
        """Before the client's next start: each process looks at a copy once."""
        for path in sorted(self.seen[client].copies)[number : number + 1]:
            file = self.room / str(client) / path.removeprefix("artifacts/")
            data = file.read_bytes()
            if change == "delete":
                file.unlink()
            else:
                rotten = bytes([data[0] ^ 1]) + data[1:] if data and change == "flip" else b"rotten"
                file.write_bytes(rotten)
            self.seen[client].copies.discard(path)
            self.reopen(client)

    @rule(client=clients)
    def reopen(self, client: int) -> None:
        self.clients[client] = self.opened(client)
        self.seen[client] = Seen(copies=self.seen[client].copies)

    @rule(client=clients)
    def verify_and_repair(self, client: int) -> None:
        store = self.clients[client]
        rotten = [r.output for p, r in self.records.items() if p not in self.spoiled]
        rotten = [artifact for artifact in rotten if not paths_of(artifact) <= self.sound]
        faults = audit.verify(store, lambda done, total, unit: None)
        blamed = {fault.path for fault in faults}
        assert self.spoiled <= blamed
        named = [self.records[path].output for path in blamed - self.spoiled]
        assert {artifact.digest for artifact in named} == {artifact.digest for artifact in rotten}
        audit.repair(store, faults)
        for artifact in named:
            self.retracted(client, artifact)
        for path in [*self.spoiled]:
            self.forget(path)
            self.seen[client].ahead.pop(path, None)

    # Chains and leases -------------------------------------------------------------------------

    @rule(client=clients, chain=st.sampled_from(CHAINS))
    def append(self, client: int, chain: str) -> None:
        data = b"%d" % next(self.numbers)
        path = self.clients[client].append(chain, ".part", data)
        assert path == f"{chain}/{len(self.chains[chain]):06d}.part"
        self.chains[chain].append(data)

    @rule(chain=st.sampled_from(CHAINS))
    def append_at_once(self, chain: str) -> None:
        parts = [b"%d" % next(self.numbers) for _ in CLIENTS]
        with ThreadPoolExecutor(len(CLIENTS)) as pool:
            paths = list(pool.map(lambda c, p: c.append(chain, ".part", p), self.clients, parts))
        claimed = sorted(zip(paths, parts, strict=True))
        start = len(self.chains[chain])
        assert [p for p, _ in claimed] == [f"{chain}/{start + n:06d}.part" for n in CLIENTS]
        self.chains[chain] += [data for _, data in claimed]

    @rule(client=clients, name=st.sampled_from("xy"))
    def take_lease(self, client: int, name: str) -> None:
        lease = self.clients[client].lease(f"step/{name}")
        if name in self.held:
            with pytest.raises(Busy, match=f"work/step/{name} is being worked on by process"):
                lease.__enter__()
        else:
            self.held[name] = lease.__enter__()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release_lease(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.held.pop(name).__exit__(None, None, None)

    # What holds at any time --------------------------------------------------------------------

    @invariant()
    def all_is_as_the_model_has_it(self) -> None:
        self.turn += 1
        # Where each look is a request, now and then.
        if not self.is_remote or self.turn % 5 == 0:
            self.check_by_the_back_door()
            self.check_through(self.clients[self.turn % len(CLIENTS)])

    def check_by_the_back_door(self) -> None:
        there = {*self.door.paths()}
        assert {path for path in there if path.startswith("records/")} == self.records.keys()
        assert self.sound <= there
        for chain, parts in self.chains.items():
            paths = [f"{chain}/{number:06d}.part" for number in range(len(parts))]
            assert sorted(path for path in there if path.startswith(chain)) == paths
            assert [self.door.read(path) for path in paths] == parts
        leases = {path for path in there if path.rpartition("/")[2].startswith("lease.")}
        assert {path.split("/")[2] for path in leases} == self.held.keys()

    def check_through(self, client: Store) -> None:
        sound = {p: r for p, r in self.records.items() if p not in self.spoiled}
        assert dict(client.named_records()) == sound
        for record in sound.values():
            damaged = {fault.partition(" ")[0] for fault in client.faults(record.output)}
            assert damaged == paths_of(record.output) - self.sound
        for chain, parts in self.chains.items():
            assert len(client.chain(chain)) == len(parts)


def test_a_store_on_a_disk(tmp_path: Path) -> None:
    class OnDisk(StoreAgainstDict):
        def __init__(self) -> None:
            room = tmp_path / uuid.uuid4().hex
            super().__init__(room, str(room / "store"), LocalDoor(room / "store"))

    run_state_machine_as_test(OnDisk, settings=settings(max_examples=40, stateful_step_count=25))


def test_a_store_on_s3(
    s3_server: "S3Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnS3(StoreAgainstDict):
        def __init__(self) -> None:
            url = f"s3://{BUCKET}/{uuid.uuid4().hex}/the store"
            super().__init__(tmp_path / uuid.uuid4().hex, url, S3Door(s3_server, url))

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    # To shrink an example takes longer than a test may; what fails here mostly fails on a disk too.
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    run_state_machine_as_test(
        OnS3,
        settings=settings(max_examples=5, stateful_step_count=25, phases=phases),
    )


# What the machine has found --------------------------------------------------------------------


@pytest.fixture
def one(tmp_path: Path) -> Client:
    """A store on a disk."""
    return Client(str(tmp_path / "store"), LocalDoor(tmp_path / "store"), tmp_path / "room")


def test_what_was_read_ahead_and_is_gone_does_not_stop_a_commit(one: Client) -> None:
    made, store = one.made(), one.open()
    made.commit(store)
    store.look_ahead("train", [made.record.key])
    one.open().retract(made.record.output)
    made.commit(store)
    assert one.open().find("train", made.record.key) == made.record


def test_a_record_that_was_damaged_when_it_was_read_ahead_may_be_sound_now(one: Client) -> None:
    made, store = one.made(), one.open()
    made.commit(one.open())
    one.door.write(made.record.path, b"rot")
    store.look_ahead("train", [made.record.key])
    made.commit(one.open())
    assert store.find("train", made.record.key) == made.record
    assert one.open().find("train", made.record.key) == made.record


def test_a_record_of_another_that_has_rotted_at_once_is_replaced(one: Client) -> None:
    made, store = one.made(), one.open()
    assert store.find("train", made.record.key) is None
    made.commit(one.open())
    one.door.write(made.record.path, b"rot")
    assert made.commit(store) == made.record
    assert one.open().find("train", made.record.key) == made.record
