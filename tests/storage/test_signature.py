"""With a group's key, what others write is not believed; without it nothing changes."""

import json
from pathlib import Path

import pytest

from storage import audit
from storage.artifact import CorruptError, UnsignedError, seal, unseal
from storage.audit import Fault
from storage.fingerprint import KEY
from storage.garbage import find_garbage
from storage.store import Store
from tests.storage.contract import FILES, Client, Made, content
from tests.storage.test_store import LocalDoor

OURS, THEIRS = "the key of our group", "the key of their group"
PATH = "records/train/a-label.d095029329c735aa9d60d8fee2c12cb1723191849d93a681870f1385c15f94c4.json"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A place for a store, and nobody's key."""
    monkeypatch.delenv(KEY, raising=False)
    return Client(str(tmp_path / "store"), LocalDoor(tmp_path / "store"), tmp_path / "room")


@pytest.fixture
def made(client: Client) -> Made:
    """A step's output, not committed yet."""
    return client.made()


def _verify(store: Store) -> list[Fault]:
    return audit.verify(store, lambda *_: None)


def test_without_a_key_documents_are_as_ever() -> None:
    assert seal({"format": 1}) == (
        b'{\n "seal": "c9aebf9f4b48ba014f93cced1dc1593b2d1d26ef2379c4dbaedb2fe9170741b9",\n'
        b' "content": {\n  "format": 1\n }\n}'
    )


def test_what_is_signed_is_believed_by_the_group_and_read_by_others(
    client: Client, made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY, OURS)
    made.commit(client.open())
    assert all("signature" in json.loads(client.door.read(p)) for p in ("store.json", PATH))
    assert client.open().find("train", made.record.key) == made.record
    assert _verify(client.open()) == []
    assert not any(OURS.encode() in client.door.read(path) for path in client.door.paths())
    assert caplog.text == ""
    monkeypatch.delenv(KEY)
    assert content(client.open(create=False).fetch(made.record.output)) == FILES
    assert client.open(create=False).find("train", made.record.key) == made.record
    with pytest.raises(UnsignedError, match=f"written without it: set {KEY}, or run into a store"):
        client.open()


@pytest.mark.parametrize("author", [None, THEIRS])
def test_what_others_wrote_into_the_store_is_not_believed(
    client: Client,
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    author: str | None,
) -> None:
    monkeypatch.setenv(KEY, OURS)
    store = client.open()
    with monkeypatch.context() as others:
        others.setenv(KEY, author or "")
        planted = seal(made.record)
    client.door.write(PATH, planted)
    (fault,) = _verify(store)
    assert (fault.path, fault.is_damage) == (PATH, False)
    said = f"{PATH} is not signed with the key in {KEY}, so it is not believed: adopt what"
    assert fault.what.startswith(said)
    assert audit.repair(store, [fault]) == []
    run: dict[str, list[str]] = {"records": [], "manifests": [], "losses": []}
    client.door.write("runs/run/run.json", seal(run))
    with pytest.raises(CorruptError, match="not believed, so what it needs is not known"):
        find_garbage(store, None)
    assert store.find("train", made.record.key) is None
    assert said in caplog.text
    assert [client.door.read(p) for p in client.door.paths() if "set-aside" in p] == [planted]
    assert made.commit(client.open()) == made.record
    assert client.open().find("train", made.record.key) == made.record


def test_an_edit_of_a_signed_document_needs_the_key(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, OURS)
    signed = json.loads(seal(made.record))
    edited = json.loads(seal({**signed["content"], "label": "another"}))
    forged = json.dumps({**edited, "signature": signed["signature"]}).encode()
    with pytest.raises(UnsignedError):
        unseal(forged, "it")
    assert unseal(forged, "it", believes_unsigned=True) == edited["content"]
    del edited["signature"]
    for another in ({}, {"signature": ""}, {"signature": "\N{LATIN SMALL LETTER E WITH ACUTE}"}):
        with pytest.raises(UnsignedError):
            unseal(json.dumps(edited | another).encode(), "it")


def test_a_store_is_adopted_but_for_what_is_damaged(
    client: Client, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.commit(client.open())
    other = client.made("other", {"x": b"other"}, config={"other": 1})
    other.commit(client.open())
    damaged = client.door.read(other.record.path)[:-2]
    client.door.write(other.record.path, damaged)
    monkeypatch.setenv(KEY, OURS)
    before = client.door.paths()
    with pytest.raises(UnsignedError, match=r"store\.json is not signed .*`mixpool verify --sign`"):
        client.open()
    store = Store(client.url, client.room / "cache", believes_unsigned=True)
    assert audit.sign(store, _verify(store)) == ["store.json", PATH]
    assert client.door.paths() == before
    assert client.door.read(other.record.path) == damaged
    assert [fault.path for fault in _verify(client.open())] == [other.record.path]
    assert client.open().find("train", made.record.key) == made.record
    assert audit.sign(store, []) == []


def test_a_key_that_can_be_guessed_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "only 15 letters")
    with pytest.raises(ValueError, match=f"the key in {KEY} is too short") as refused:
        client.open()
    assert "only 15" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "said"), [("", "not for who"), (OURS, "by someone who has the key")]
)
def test_verify_says_what_it_vouches_for(
    monkeypatch: pytest.MonkeyPatch, key: str, said: str
) -> None:
    monkeypatch.setenv(KEY, key)
    assert said in audit.promise()
