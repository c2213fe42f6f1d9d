"""Whatever clients do in whatever order, the store answers as a dictionary would.

The model: which record each key has, what every artifact holds, and which artifacts and records are
damaged at the moment. Damage is done on the disk, behind the store's back.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from storage.artifact import Artifact, Record, describe, step_key
from storage.store import CorruptArtifactError, Store

CONTENTS = {
    "one": {"weights": b"one", "deep/config": b"{}"},
    "two": {"weights": b"two"},
    "three": {"weights": b"two", "more": b""},
}


class StoreAgainstDict(RuleBasedStateMachine):
    """Two clients, one store on disk, one dictionary."""

    keys = Bundle("keys")

    @initialize()
    def begin(self) -> None:
        self.room = Path(tempfile.mkdtemp(prefix="mixpool-"))
        self.clients = [Store(str(self.room / "store")), Store(str(self.room / "store"))]
        self.records: dict[str, Record] = {}
        self.spoiled: set[str] = set()
        self.rotten: dict[str, Artifact] = {}
        for name, files in CONTENTS.items():
            for path, data in files.items():
                target = self.room / name / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)

    def teardown(self) -> None:
        if hasattr(self, "room"):
            shutil.rmtree(self.room)

    def path(self, path: str) -> Path:
        return self.room / "store" / path

    def drop(self, artifact: Artifact) -> None:
        """What retracting an artifact does; a record that cannot be read names nothing."""
        names = [k for k, r in self.records.items() if r.output == artifact]
        for key in set(names) - self.spoiled:
            del self.records[key]
        self.rotten.pop(artifact.digest, None)

    @rule(
        target=keys,
        client=st.integers(0, 1),
        number=st.integers(0, 3),
        label=st.sampled_from(["a", "b"]),
        name=st.sampled_from(sorted(CONTENTS)),
    )
    def commit(self, client: int, number: int, label: str, name: str) -> str:
        key = step_key("step", 1, {"number": number}, {})
        record = Record(
            step="step",
            version=1,
            key=key,
            label=label,
            config={"number": number},
            inputs={},
            output=describe("text", self.room / name),
        )
        standing = self.clients[client].commit(record, self.room / name)
        self.rotten.pop(record.output.digest, None)
        if key in self.spoiled or key not in self.records:
            self.spoiled.discard(key)
            self.records[key] = record
        assert standing == self.records[key]
        return key

    @rule(client=st.integers(0, 1), key=keys)
    def find(self, client: int, key: str) -> None:
        found = self.clients[client].find("step", key, fresh=True)
        if key in self.spoiled:
            self.spoiled.discard(key)
            del self.records[key]
        assert found == self.records.get(key)

    @rule(client=st.integers(0, 1), key=keys)
    def find_by_what_was_listed_before(self, client: int, key: str) -> None:
        found = self.clients[client].find("step", key)
        assert found is None or (key not in self.spoiled and found == self.records[key])
        if key in self.spoiled and not self.path(self.records[key].path).exists():
            self.spoiled.discard(key)
            del self.records[key]

    @rule(key=keys)
    def fetch(self, key: str) -> None:
        if key not in self.records or key in self.spoiled:
            return
        artifact = self.records[key].output
        store = Store(str(self.room / "store"))
        if artifact.digest not in self.rotten:
            folder = store.fetch(artifact)
            files = [path for path in folder.rglob("*") if path.is_file()]
            found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
            assert found in CONTENTS.values()
            assert describe("text", folder) == artifact
        else:
            with pytest.raises(CorruptArtifactError):
                store.fetch(artifact)
            self.drop(artifact)

    @rule(key=keys, place=st.integers(0, 1), change=st.sampled_from(["flip", "cut", "delete"]))
    def rot(self, key: str, place: int, change: str) -> None:
        if key not in self.records or key in self.spoiled:
            return
        artifact = self.records[key].output
        if artifact.digest in self.rotten:
            return
        name = sorted(artifact.files)[place % len(artifact.files)]
        file = self.path(f"{artifact.prefix}/{name}")
        data = file.read_bytes()
        if change == "delete":
            file.unlink()
        elif data:
            file.write_bytes(data[:-1] + (bytes([data[-1] ^ 1]) if change == "flip" else b""))
        else:
            file.write_bytes(b"x")
        self.rotten[artifact.digest] = artifact

    @rule(key=keys)
    def spoil_record(self, key: str) -> None:
        if key in self.records:
            file = self.path(self.records[key].path)
            file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": 2'))
            self.spoiled.add(key)

    @rule(client=st.integers(0, 1), key=keys)
    def retract(self, client: int, key: str) -> None:
        if key in self.records:
            artifact = self.records[key].output
            self.clients[client].retract(artifact)
            self.drop(artifact)

    @rule(client=st.integers(0, 1))
    def reopen(self, client: int) -> None:
        self.clients[client] = Store(str(self.room / "store"), create=False)

    @invariant()
    def every_client_sees_the_records_of_the_model(self) -> None:
        if hasattr(self, "room"):
            expected = {k: r for k, r in self.records.items() if k not in self.spoiled}
            assert {r.key: r for r in self.clients[0].records()} == expected

    @invariant()
    def a_record_names_an_artifact_that_is_there(self) -> None:
        if hasattr(self, "room"):
            for key in set(self.records) - self.spoiled:
                artifact = self.records[key].output
                assert bool(self.clients[1].faults(artifact)) == (artifact.digest in self.rotten)


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestStoreAgainstDict.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
