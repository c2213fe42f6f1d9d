"""What the store loses is made again with the same digest, so that nothing below it runs again."""

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from storage.artifact import Artifact, CorruptError
from tasks.partitions.index import Role
from tasks.partitions.manifest import Manifest

if TYPE_CHECKING:
    from tests.tasks.conftest import Ground


def many(count: int, name: str = "text") -> list[str]:
    """Texts of 20 bytes, which are 21 tokens: five fill a partition."""
    return [f"{name} {number:04d} ".ljust(20, ".") for number in range(count)]


@pytest.fixture
def scanned(new_ground: Callable[[], "Ground"]) -> "Ground":
    """``prepared``, with a store in memory."""
    return prepared(new_ground())


def prepared(ground: "Ground") -> "Ground":
    """Everything a manifest can have, from three scans: kinds of artifacts, withdrawals, files that
    moved, and the same text in two domains."""
    ground.split |= {"heldout_fraction": 0.3, "heldout_documents": 4, "base_fraction": 0.2}
    ground.sets = [ground.own_set("own", ["own text", *many(3, "bee")])]
    ground.put("bee/0.jsonl", [*many(30, "bee"), *many(9)])
    ground.scan()
    ground.put("cat/0.jsonl", [*many(55, "cat"), "own text"])
    ground.put("bee/1.jsonl", [*many(8, "more"), *many(4, "cat")])
    found = ground.scan()
    lists = [ground.texts(entry.documents) for entry in found.partitions(with_open=True)]
    gone = [lists[0][1], lists[-1][0], ground.texts(found.domains["cat"].heldout)[2]]
    ground.fields["withdraw"] = [ground.digest(text) for text in gone]
    ground.scan()
    shutil.move(ground.corpus / "cat" / "0.jsonl", ground.corpus / "bee" / "2.jsonl")
    # The same texts now stand first under a domain that is not theirs.
    ground.put("aaa/0.jsonl", [*many(55, "cat"), *many(30, "bee"), *many(3, "aaa")])
    found = ground.scan()
    remainder = found.domains["cat"].remainder
    assert remainder is not None
    assert remainder.num_documents > 1
    assert len(found.domains["cat"].partitions) > 1
    return ground


def lose(ground: "Ground", artifact: Artifact) -> None:
    assert ground.store.retract(artifact)


def everything(found: Manifest) -> list[Artifact | None]:
    states = found.domains.values()
    return [
        found.base_documents,
        *(entry.documents for entry in found.partitions(with_open=True)),
        *(state.heldout for state in states),
        *(entry.documents for entry in found.sets),
    ]


def pick(found: Manifest, kind: str) -> Artifact:
    state = found.domains["cat"]
    assert state.remainder is not None
    picked = {
        "partition": state.partitions[1].documents,
        "remainder": state.remainder.documents,
        "heldout": state.heldout,
        "set": found.sets[0].documents,
        "base": found.base_documents,
    }[kind]
    assert picked is not None
    return picked


@pytest.mark.parametrize("kind", ["partition", "remainder", "heldout", "set", "base"])
def test_each_kind_is_made_again_with_its_digest(scanned: "Ground", kind: str) -> None:
    before, names = scanned.scan(), scanned.artifacts()
    lose(scanned, pick(before, kind))
    assert scanned.artifacts() < names
    assert scanned.scan(scanned.opened()) == before
    assert scanned.artifacts() == names
    assert scanned.scan() == before


def test_everything_at_once_but_the_index(ground: "Ground") -> None:
    scanned = prepared(ground)
    before, names = scanned.scan(), scanned.artifacts()
    for artifact in filter(None, everything(before)):
        lose(scanned, artifact)
    assert scanned.scan() == before
    assert scanned.artifacts() == names


@pytest.mark.parametrize("which", [0, 1, -1, slice(None)])
def test_a_lost_index_is_made_from_the_documents(scanned: "Ground", which: int | slice) -> None:
    before = scanned.scan()
    index = scanned.index(before)
    lost = before.index[which]
    for artifact in lost if isinstance(lost, list) else [lost]:
        lose(scanned, artifact)
    found = scanned.scan()
    assert everything(found) == everything(before)
    assert {key: where for key, where in scanned.index(found).items() if where[1]} == {
        key: where for key, where in index.items() if where[1]
    }
    assert scanned.scan() == found
    # And what it says is right: no document is new to training, and the order is kept.
    scanned.put("new/0.jsonl", [*many(55, "cat"), *many(30, "bee"), *many(9), "own text"])
    scanned.put("cat/9.jsonl", many(12, "last"))
    later = scanned.scan()
    assert later.partitions()[0] == before.partitions()[0]
    assert not [entry for entry in later.partitions(with_open=True) if entry.domain == "new"]
    lose(scanned, pick(later, "partition"))
    lose(scanned, pick(later, "heldout"))
    assert scanned.scan() == later


def test_files_that_land_with_a_repair_are_assigned(scanned: "Ground") -> None:
    """Reading the corpus for the repair does not pass for having assigned it."""
    before = scanned.scan()
    lose(scanned, pick(before, "partition"))
    scanned.put("dog/0.jsonl", many(12, "dog"))
    found = scanned.scan()
    assert {scanned.digest(text) for text in many(12, "dog")} <= {*scanned.index(found)}
    assert found.partitions()[: len(before.partitions())] == before.partitions()


def test_a_rotten_artifact_is_set_aside_and_then_made_again(scanned: "Ground") -> None:
    before = scanned.scan()
    artifact = pick(before, "remainder")
    scanned.store.backend.put(f"{artifact.prefix}/documents.parquet", b"rot")
    shutil.rmtree(scanned.folder / "cache", ignore_errors=True)
    scanned.put("cat/9.jsonl", many(30, "last"))
    with pytest.raises(CorruptError, match=artifact.digest):
        scanned.scan(scanned.opened())
    found = scanned.scan(scanned.opened())
    assert (
        found.partitions()[: len(before.domains["bee"].partitions)]
        == before.domains["bee"].partitions
    )
    assert found.counts["train"] > before.counts["train"]


@pytest.mark.parametrize("kind", ["partition", "heldout", "base"])
def test_documents_that_left_the_corpus_cannot_be_made_again(scanned: "Ground", kind: str) -> None:
    before = scanned.scan()
    artifact = pick(before, kind)
    texts = scanned.texts(artifact)
    text = texts[1]
    lose(scanned, artifact)
    for path in scanned.corpus.rglob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if text not in line))
    with pytest.raises(ValueError, match=f"1 of its documents.*{scanned.digest(text)}.*bring the"):
        scanned.scan()
    if kind == "base":
        return
    scanned.fields["withdraw"] = [scanned.digest(text)]
    found = scanned.scan()
    assert scanned.texts(pick(found, kind)) == [texts[0], *texts[2:]]
    assert scanned.index(found)[scanned.digest(text)] == (Role.WITHDRAWN, "")
    assert scanned.scan() == found


def test_a_set_whose_source_changed_keeps_its_documents_or_is_refused(scanned: "Ground") -> None:
    before = scanned.scan()
    lose(scanned, pick(before, "set"))
    scanned.own_set("own", ["own text", *many(3, "bee"), "came later"])
    found = scanned.scan()
    assert found.sets == before.sets
    assert "evaluation set 'own' stays as it was first read" in found.problems[-1]
    lose(scanned, pick(before, "set"))
    scanned.own_set("own", ["own text"])
    with pytest.raises(ValueError, match=r"'own' was damaged .* has 1 of its 4 documents: bring"):
        scanned.scan()


def test_a_lost_set_that_nobody_asks_for_is_forgotten(scanned: "Ground") -> None:
    before = scanned.scan()
    lose(scanned, pick(before, "set"))
    sets, scanned.sets = scanned.sets, []
    found = scanned.scan()
    assert (found.sets, found.domains) == ([], before.domains)
    scanned.sets = sets
    assert scanned.scan().sets == before.sets


def test_a_lost_tokenizer_is_made_before_what_it_counts(scanned: "Ground") -> None:
    before = scanned.scan()
    for artifact in (before.tokenizer, pick(before, "base"), pick(before, "partition")):
        lose(scanned, artifact)
    assert scanned.scan() == before
    assert scanned.made == [before.base_documents] * 2


def test_index_and_documents_lost_together_are_refused(scanned: "Ground") -> None:
    before = scanned.scan()
    lose(scanned, before.index[0])
    lose(scanned, pick(before, "partition"))
    with pytest.raises(ValueError, match=r"both the index of corpus.* and documents of 'cat-1'"):
        scanned.scan()


def test_what_another_client_stored_is_not_taken_for_lost(scanned: "Ground") -> None:
    """Also where the corpus no longer holds it, so that it could not be made again."""
    other = scanned.opened()
    scanned.scan(other)
    scanned.put("dog/0.jsonl", many(30, "dog"))
    found = scanned.scan()
    scanned.put("dog/0.jsonl", ["another text"])
    later = scanned.scan(other)
    assert later.domains["dog"].partitions == found.domains["dog"].partitions
