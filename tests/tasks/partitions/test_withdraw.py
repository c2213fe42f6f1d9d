"""A withdrawn document is gone for good, and with it nothing changes but what held it."""

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.partitions.index import Role
from tasks.partitions.manifest import Manifest

if TYPE_CHECKING:
    from tests.tasks.conftest import Ground


def many(count: int, name: str = "text") -> list[str]:
    """Texts of 20 bytes, which are 21 tokens: five fill a partition."""
    return [f"{name} {number:04d} ".ljust(20, ".") for number in range(count)]


@pytest.mark.parametrize("how", ["digest", "origin"])
def test_only_the_partition_that_held_it_is_made_anew(ground: "Ground", how: str) -> None:
    texts = many(22)
    ground.put("ant/0.jsonl", texts)
    ground.put("bee/0.jsonl", many(12, "bee"))
    before = ground.scan()
    ground.fields["withdraw"] = [name_of(ground, texts[6], how), name_of(ground, texts[9], how)]
    found = ground.scan()
    assert ground.partitions(found)["ant-1"] == [texts[5], *texts[7:9]]
    changed = [
        (one.name, other.num_documents)
        for one, other in zip(
            before.partitions(with_open=True), found.partitions(with_open=True), strict=True
        )
        if one != other
    ]
    assert changed == [("ant-1", 3)]
    assert found.withdrawn == {
        ground.digest(text): f"ant/0.jsonl:{texts.index(text)}" for text in (texts[6], texts[9])
    }
    assert found.problems == []
    assert ground.scan(ground.opened()) == found


def name_of(ground: "Ground", text: str, how: str) -> str:
    return ground.digest(text) if how == "digest" else f"ant/0.jsonl:{many(22).index(text)}"


def test_it_never_comes_back(ground: "Ground") -> None:
    texts = many(22)
    ground.put("ant/0.jsonl", texts)
    ground.scan()
    ground.fields["withdraw"] = [ground.digest(texts[6])]
    found = ground.scan()
    ground.fields["withdraw"] = []
    assert ground.scan() == found, "a recipe that no longer lists it does not bring it back"
    shutil.move(ground.corpus / "ant", ground.corpus / "new")
    ground.sets = [ground.own_set("own", [texts[6], "other"])]
    moved = ground.scan()
    assert moved.partitions(with_open=True) == found.partitions(with_open=True)
    assert [(entry.num_documents, entry.removed) for entry in moved.sets] == [(1, 1)]
    assert moved.counts["known as withdrawn"] == 1


def test_from_the_open_remainder(ground: "Ground") -> None:
    texts = many(8)
    ground.put("ant/0.jsonl", texts)
    before = ground.scan()
    ground.fields["withdraw"] = [ground.digest(texts[6])]
    found = ground.scan()
    entry, old = found.domains["ant"].remainder, before.domains["ant"].remainder
    assert entry is not None
    assert old is not None
    assert ground.texts(entry.documents) == [texts[5], texts[7]]
    assert (entry.name.rpartition("-")[0], entry.sealed) == ("ant-1-open", False)
    assert entry.name != old.name
    assert found.partitions() == before.partitions()
    ground.put("ant/1.jsonl", many(3, "more"))
    assert ground.partitions(ground.scan())["ant-1"] == [texts[5], texts[7], *many(3, "more")]


def test_the_whole_remainder_or_a_whole_partition(ground: "Ground") -> None:
    """Names are not given twice, where a partition between others is emptied."""
    texts = many(16)
    ground.put("ant/0.jsonl", texts)
    before = ground.scan()
    ground.fields["withdraw"] = [ground.digest(text) for text in [*texts[5:10], texts[15]]]
    found = ground.scan()
    assert found.partitions(with_open=True) == [before.partitions()[0], before.partitions()[2]]
    ground.put("ant/1.jsonl", many(10, "more"))
    assert list(ground.partitions(ground.scan())) == ["ant-0", "ant-2", "ant-3", "ant-4"]


def held_out(ground: "Ground", found: Manifest) -> list[str]:
    return ground.texts(found.domains["ant"].heldout)


@pytest.mark.parametrize("kept", [True, False])
def test_from_the_held_out_documents(ground: "Ground", kept: bool) -> None:
    ground.split |= {"heldout_fraction": 0.5, "heldout_documents": 4}
    texts = many(40)
    ground.put("ant/0.jsonl", texts)
    before = ground.scan()
    index = ground.index(before)
    spare = [t for t in texts if index[ground.digest(t)] == (Role.HELDOUT, "")]
    assert spare
    gone = held_out(ground, before)[1] if kept else spare[0]
    ground.fields["withdraw"] = [ground.digest(gone)]
    found = ground.scan()
    assert held_out(ground, found) == [t for t in held_out(ground, before) if t != gone]
    assert found.domains["ant"].num_heldout == (3 if kept else 4)
    assert found.partitions(with_open=True) == before.partitions(with_open=True)
    assert found.domains["ant"].frozen
    ground.put("ant/1.jsonl", many(40, "more"))
    assert held_out(ground, ground.scan()) == held_out(ground, found), "frozen is frozen"


def test_ids_that_are_unknown_pinned_or_ambiguous_are_reported(ground: "Ground") -> None:
    texts = many(20)
    ground.split |= {"heldout_fraction": 0.3}
    ground.base_source = ground.own_source("base", ["base text"])
    ground.sets = [ground.own_set("own", ["own text"])]
    ground.put("ant/0.jsonl", texts)
    first = ground.scan()
    in_both = held_out(ground, first)[0]
    ground.sets.append(ground.own_set("both", [in_both]))
    ground.scan()
    ground.put("ant/0.jsonl", many(20, "other"))
    before = ground.scan()
    names = {
        "base text": "stays in base documents, which is pinned",
        "own text": "stays in an evaluation set, which is pinned",
        in_both: "stays in an evaluation set, which is pinned",
        "nowhere": "was never seen",
    }
    ground.fields["withdraw"] = [*map(ground.digest, names), "ant/0.jsonl:3", "nowhere.jsonl"]
    found = ground.scan()
    for text, message in names.items():
        assert [line for line in found.problems if ground.digest(text) in line and message in line]
    assert [line for line in found.problems if line.startswith("nowhere.jsonl: is to be with")]
    (line,) = [line for line in found.problems if line.startswith("ant/0.jsonl:3: ")]
    assert ground.digest(texts[3]) in line
    assert ground.digest(many(20, "other")[3]) in line
    assert (found.domains, found.sets) == (before.domains, before.sets)
    assert len(ground.manifests()) == 3
    ground.fields["withdraw"] = [ground.digest(texts[3])]
    assert ground.scan().withdrawn == {ground.digest(texts[3]): "ant/0.jsonl:3"}


@pytest.mark.parametrize("how", ["digest", "origin"])
def test_one_that_has_not_come_yet_never_enters(ground: "Ground", how: str) -> None:
    ground.split |= {"base_fraction": 0.3, "heldout_fraction": 0.3}
    texts = many(22)
    ground.put("bee/0.jsonl", many(30, "bee"))
    ground.fields["withdraw"] = [name_of(ground, text, how) for text in texts[:5]]
    assert [line for line in ground.scan().problems if "was never seen" in line]
    ground.put("ant/0.jsonl", texts)
    found = ground.scan()
    assert {*found.withdrawn} == {ground.digest(text) for text in texts[:5]}
    assert not [line for line in found.problems if "was never seen" in line]
    assert {role for role, _ in map(ground.index(found).get, found.withdrawn)} == {Role.WITHDRAWN}  # type: ignore[misc]
    assert found.counts["withdrawn"] == 5
    assert ground.scan() == found


@pytest.mark.parametrize("how", ["digest", "origin"])
def test_one_that_is_withdrawn_from_the_start_is_in_nothing(ground: "Ground", how: str) -> None:
    ground.split |= {"base_fraction": 0.4, "heldout_fraction": 0.3}
    texts = many(60)
    ground.put("ant/0.jsonl", texts)
    names = [
        ground.digest(t) if how == "digest" else f"ant/0.jsonl:{n}" for n, t in enumerate(texts)
    ]
    ground.fields["withdraw"] = names[:15]
    ground.sets = [ground.own_set("own", [*texts[:3], "own text"])]
    found = ground.scan()
    placed = {
        text
        for artifact in [
            found.base_documents,
            *(entry.documents for entry in found.partitions(with_open=True)),
            *(entry.documents for entry in found.evaluation_sets()),
        ]
        for text in ground.texts(artifact)
    }
    # By origin, the first three are documents of the set before the corpus is read.
    expected = {*texts[15:], "own text"} | ({*texts[:3]} if how == "origin" else set())
    assert placed == expected


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gone=st.lists(st.integers(0, 39), unique=True, max_size=12),
    split=st.fixed_dictionaries(
        {
            "heldout_fraction": st.sampled_from([0.0, 0.3]),
            "heldout_documents": st.sampled_from([2, 100]),
            "partitions_per_domain": st.sampled_from([None, 3]),
        }
    ),
)
def test_everything_else_stays_where_it_is(
    new_ground: Callable[[], "Ground"], gone: list[int], split: dict[str, Any]
) -> None:
    ground = new_ground()
    ground.split |= split
    texts = many(40)
    ground.put("ant/0.jsonl", texts[:20])
    ground.put("bee/0.jsonl", texts[20:])
    before = ground.scan()
    ground.fields["withdraw"] = [ground.digest(texts[number]) for number in gone]
    after = ground.scan()
    out = {texts[number] for number in gone}
    kept = {
        name: [t for t in held if t not in out] for name, held in placed(ground, before).items()
    }
    assert placed(ground, after) == {name: held for name, held in kept.items() if held}
    assert {*after.withdrawn} == {*map(ground.digest, out)}
    index = ground.index(after)
    for name, held in placed(ground, after).items():
        if not name.endswith(" held out"):
            assert {index[ground.digest(text)] for text in held} == {(Role.TRAIN, name)}


def placed(ground: "Ground", found: Manifest) -> dict[str, list[str]]:
    """Texts by place."""
    places = ground.partitions(found)
    for name, state in found.domains.items():
        if state.remainder is not None:
            places[f"{name}/open"] = ground.texts(state.remainder.documents)
        if state.heldout is not None:
            places[f"{name} held out"] = ground.texts(state.heldout)
    return places
