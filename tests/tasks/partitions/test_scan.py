"""Partitions stay put whatever lands, no text is in two places, and nothing is done twice."""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.artifact import seal
from storage.store import Store
from tasks.corpus.listing import EmptyCorpusError
from tasks.corpus.source import DocumentFormat, Source
from tasks.partitions.config import EvaluationSetConfig, SplitConfig
from tasks.partitions.index import Role
from tasks.partitions.manifest import Manifest, PartitionEntry
from tasks.partitions.split import role_of

if TYPE_CHECKING:
    from tests.tasks.conftest import Ground

ROOT = Path(__file__).parents[3]
BUDGET = 100

POOL = [f"text {number} " + "words " * (number % 7) for number in range(60)]
"""Documents of 7 to 44 tokens."""


def many(count: int, name: str = "text", size: int = 20) -> list[str]:
    """Texts of ``size`` bytes, one token less than they count."""
    return [f"{name} {number:04d} ".ljust(size, ".") for number in range(count)]


class Reference:
    """Where every text belongs, by brute force: the whole history once more, text by text."""

    def __init__(self, split: SplitConfig, evaluation: Sequence[str]) -> None:
        self.split = split
        self.roles = dict.fromkeys(evaluation, Role.EVALUATION)
        self.base: list[str] = []
        self.partitions: dict[str, list[list[str]]] = {}
        self.heldout: dict[str, list[str]] = {}
        self.frozen: set[str] = set()

    def land(self, files: list[tuple[str, list[str]]], *, first: bool) -> None:
        """Documents of new files, (domain, texts) in the order of their paths."""
        for _, texts in files if first else []:
            for text in texts:
                if text not in self.roles and self._role(text, first=True) == Role.BASE:
                    self.roles[text] = Role.BASE
                    self.base.append(text)
        for domain, texts in files:
            for text in texts:
                if text not in self.roles:
                    self.roles[text] = self._role(text, first=False)
                    self._place(domain, text)
        self.frozen |= {domain for domain in self.heldout if self.sealed(domain)}

    def _role(self, text: str, *, first: bool) -> str:
        return role_of(digest(text), self.split, with_base=first)

    def _place(self, domain: str, text: str) -> None:
        if self.roles[text] == Role.HELDOUT:
            kept = self.heldout.get(domain, [])
            if domain not in self.frozen and len(kept) < self.split.heldout_documents:
                self.heldout[domain] = [*kept, text]
            return
        found = self.partitions.setdefault(domain, [[]])
        if len(found) - 1 == self.split.partitions_per_domain:
            self.roles[text] = Role.LEFT_OUT
            return
        found[-1].append(text)
        if tokens(found[-1]) >= self.split.tokens_per_partition:
            found.append([])

    def sealed(self, domain: str) -> list[list[str]]:
        return self.partitions.get(domain, [[]])[:-1]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tokens(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) + 1 for text in texts)


def check(ground: "Ground", found: Manifest, expected: Reference) -> None:
    """The manifest, its artifacts and its index are what the reference says."""
    for domain, state in found.domains.items():
        got = [ground.texts(entry.documents) for entry in state.partitions]
        assert got == expected.sealed(domain)
        assert all(BUDGET <= tokens(part) < BUDGET + tokens(part[-1:]) for part in got)
        remainder = state.remainder
        rest = [] if remainder is None else ground.texts(remainder.documents)
        assert rest == expected.partitions.get(domain, [[]])[-1]
        assert ground.texts(state.heldout) == expected.heldout.get(domain, [])
        assert state.num_heldout == len(expected.heldout.get(domain, []))
        assert state.frozen == (domain in expected.frozen)
    assert {*found.domains} == {*expected.partitions, *expected.heldout}
    assert ground.texts(found.base_documents) == expected.base
    for entry in found.partitions(with_open=True):
        rows = ground.rows(entry.documents)
        assert [row["num_tokens"] for row in rows] == [tokens([row["text"]]) for row in rows]
        assert entry.num_tokens == sum(row["num_tokens"] for row in rows)
        assert (entry.num_documents, entry.num_bytes) == (len(rows), entry.num_tokens - len(rows))
        assert {row["domain"] for row in rows} == {entry.domain}
    check_index(ground, found, expected)


def check_index(ground: "Ground", found: Manifest, expected: Reference) -> None:
    index = ground.index(found)
    assert {key: role for key, (role, _) in index.items()} == {
        digest(text): role for text, role in expected.roles.items()
    }
    for entry in found.partitions(with_open=True):
        place = entry.name if entry.sealed else f"{entry.domain}/open"
        held = {digest(text) for text in ground.texts(entry.documents)}
        assert held == {key for key, where in index.items() if where == (Role.TRAIN, place)}


domains = st.sampled_from(["ant", "bee", "cat/x", "bee-0"])
contents = st.lists(st.sampled_from(POOL), min_size=1, max_size=25)
landing = st.one_of(
    st.tuples(st.just("put"), domains, st.integers(0, 2), contents),
    st.tuples(st.just("grow"), st.integers(0, 9), contents),
    st.tuples(st.just("move"), st.integers(0, 9), domains, st.integers(0, 2)),
)
splits = st.fixed_dictionaries(
    {
        "heldout_fraction": st.sampled_from([0.0, 0.3]),
        "heldout_documents": st.sampled_from([1, 3, 100]),
        "base_fraction": st.sampled_from([0.0, 0.2]),
        "partitions_per_domain": st.sampled_from([None, 2]),
    }
)


class Folder:
    """The corpus folder as a dictionary, and which files changed since the last scan."""

    def __init__(self, ground: "Ground") -> None:
        self.ground = ground
        self.files: dict[str, list[str]] = {}
        self.changed: set[str] = set()
        self.num_read = 0

    def apply(self, step: tuple[Any, ...]) -> None:
        match step:
            case "put", domain, number, texts:
                self.write(f"{domain}/{number}.jsonl", texts)
            case "grow", which, texts if len(self.files) > 1:
                name = self._name(which)
                self.write(name, [*self.files[name], *texts])
            case "move", which, domain, number if len(self.files) > 1:
                name = self._name(which)
                texts = self.files.pop(name)
                self.changed.discard(name)
                (self.ground.corpus / name).unlink()
                self.write(f"{domain}/{number}.jsonl", texts)

    def _name(self, which: int) -> str:
        names = sorted(self.files)[:-1]  # the last is in the zoo
        return names[which % len(names)]

    def write(self, name: str, texts: list[str]) -> None:
        self.ground.put(name, texts)
        self.files[name] = texts
        self.changed.add(name)

    def landed(self) -> list[tuple[str, list[str]]]:
        """(domain, texts) of the changed files in order; they are read now."""
        names, self.changed = sorted(self.changed), set()
        self.num_read += sum(len(self.files[name]) for name in names)
        return [(name.split("/")[0], self.files[name]) for name in names]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    split=splits,
    evaluation=st.lists(st.sampled_from(POOL), max_size=5, unique=True),
    batches=st.lists(st.lists(landing, min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_whatever_lands_is_assigned_as_if_text_by_text_and_sealed_partitions_stay(
    new_ground: Callable[[], "Ground"],
    split: dict[str, Any],
    evaluation: list[str],
    batches: list[list[tuple[Any, ...]]],
) -> None:
    ground = new_ground()
    ground.split |= split
    ground.sets = [ground.own_set("own", evaluation)] if evaluation else []
    folder, expected = Folder(ground), Reference(SplitConfig(**ground.split), evaluation)
    # So that the first scan seals something and has documents for the base model.
    folder.write("zoo/0.jsonl", many(60, "zoo"))
    found = None
    for batch in batches:
        for step in batch:
            folder.apply(step)
        before: dict[str, PartitionEntry] = (
            {} if found is None else {e.name: e for e in found.partitions()}
        )
        expected.land(folder.landed(), first=found is None)
        found = ground.scan()
        check(ground, found, expected)
        assert {e.name: e for e in found.partitions() if e.name in before} == before
        assert ground.scan() == found
        # Every document that was ever read is counted once, whatever became of it.
        assert sum(found.counts.values()) == folder.num_read


def test_a_second_scan_publishes_nothing_and_opens_no_file(
    ground: "Ground", monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.put("ant/0.jsonl", many(12))
    found, names = ground.scan(), ground.artifacts()
    monkeypatch.delattr("tasks.corpus.reading.read_documents")
    assert ground.scan(ground.opened()) == found
    assert (ground.artifacts(), len(ground.manifests())) == (names, 1)


def test_other_text_is_read_though_size_and_time_are_the_same(ground: "Ground") -> None:
    path = ground.put("ant/0.jsonl", many(12, "one"))
    first, status = ground.scan(), path.stat()
    ground.put("ant/0.jsonl", many(12, "two"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert ground.scan().counts["train"] == 2 * first.counts["train"]


@pytest.mark.parametrize("place", ["folder", "memory", "glob"])
def test_a_corpus_that_moves_brings_no_new_artifact(
    ground: "Ground", tmp_path: Path, place: str
) -> None:
    ground.split |= {"heldout_fraction": 0.2, "base_fraction": 0.1}
    ground.put("ant/0.jsonl", many(40, "ant"))
    ground.put("bee/0.jsonl", many(40, "bee"))
    found, names = ground.scan(), ground.artifacts()
    url = {"folder": str(tmp_path / "elsewhere"), "memory": f"memory://{uuid.uuid4().hex}"}.get(
        place
    )
    if url is None:
        url = f"{ground.corpus}/**/*.jsonl"
    else:
        fsspec.filesystem(url.partition("://")[0] if "://" in url else "file").put(
            str(ground.corpus), url.removeprefix("memory:/"), recursive=True
        )
    ground.fields["source"] = Source(urls=[url])
    moved = ground.scan()
    assert (moved.partitions(with_open=True), moved.sets) == (
        found.partitions(with_open=True),
        found.sets,
    )
    assert (moved.domains, moved.tokenizer, moved.index) == (
        found.domains,
        found.tokenizer,
        found.index,
    )
    new = ground.artifacts() - names
    assert [path.rpartition("/")[2] for path in new] == ["stamps.json.gz"] * (place != "glob")
    assert len(ground.manifests()) == (1 if place == "glob" else 2)
    assert ground.scan() == moved


def test_a_store_that_was_copied_goes_on_as_the_first(disk: "Ground", tmp_path: Path) -> None:
    disk.put("ant/0.jsonl", many(17))
    disk.scan()
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    disk.put("ant/1.jsonl", many(17, "more"))
    there = disk.scan(Store(str(tmp_path / "copy"), tmp_path / "cache"))
    assert there.model_copy(update={"created": ""}) == disk.scan().model_copy(
        update={"created": ""}
    )
    assert len(there.partitions()) == 6


def test_tokenizer_and_base_documents_are_pinned_by_the_first_scan(ground: "Ground") -> None:
    ground.split |= {"base_fraction": 0.3}
    ground.put("ant/0.jsonl", many(40, "ant"))
    found = ground.scan()
    assert ground.made == [found.base_documents]
    ground.put("bee/0.jsonl", many(40, "bee"))
    later = ground.scan()
    assert (later.tokenizer, later.base_documents) == (found.tokenizer, found.base_documents)
    assert len(ground.made) == 1
    # Of a later scan, no document is kept for the base model.
    assert ground.sealed_texts(later)[len(ground.sealed_texts(found)) :] == many(40, "bee")


def test_base_documents_of_their_own_source_are_in_no_partition(ground: "Ground") -> None:
    texts = many(20)
    ground.base_source = ground.own_source("base", [*texts[:3], "of its own"])
    ground.put("ant/0.jsonl", texts)
    found = ground.scan()
    assert ground.texts(found.base_documents) == [*texts[:3], "of its own"]
    assert ground.sealed_texts(found) == texts[3:18]


def test_a_new_domain_brings_a_set_of_its_own_and_changes_no_other(ground: "Ground") -> None:
    ground.split |= {"heldout_fraction": 0.3}
    ground.put("ant/0.jsonl", many(30, "ant"))
    (before,) = ground.scan().evaluation_sets()
    ground.put("bee/0.jsonl", many(4, "bee"))
    assert ground.scan().evaluation_sets() == [before], "bee has no partition yet"
    ground.put("bee/1.jsonl", many(30, "more"))
    ground.put("ant/1.jsonl", many(30, "late"))
    found = ground.scan()
    assert [entry.name for entry in found.evaluation_sets()] == ["ant", "bee"]
    assert found.evaluation_sets()[0] == before
    held = {*ground.texts(found.domains["bee"].heldout)}
    assert held & {*many(30, "more")}, "a set grows until it is frozen"
    index = ground.index(found)
    late = [text for text in many(30, "late") if index[ground.digest(text)][0] == Role.HELDOUT]
    assert late
    assert {index[ground.digest(text)][1] for text in late} == {""}, "held out, and in no set"


def test_a_set_that_comes_later_loses_what_training_holds(ground: "Ground") -> None:
    texts = many(20)
    ground.put("ant/0.jsonl", texts)
    ground.scan()
    ground.sets = [ground.own_set("own", [*texts[:3], texts[19], texts[0], "new", "new"])]
    (entry,) = ground.scan().sets
    assert (entry.num_documents, entry.removed) == (1, 4)
    assert ground.texts(entry.documents) == ["new"]
    ground.put("ant/1.jsonl", ["new", *many(10, "more")])
    found = ground.scan()
    assert "new" not in ground.sealed_texts(found)
    assert found.sets == [entry]


def test_a_set_that_training_holds_whole_is_refused_by_name(ground: "Ground") -> None:
    texts = many(20)
    ground.put("ant/0.jsonl", texts)
    found = ground.scan()
    ground.sets = [ground.own_set("stale", texts[:3])]
    ground.put("ant/1.jsonl", many(10, "more"))
    with pytest.raises(ValueError, match=r"'stale' has no document left.* all 3 "):
        ground.scan()
    assert len(ground.manifests()) == 1
    ground.sets = []
    later = ground.scan()
    assert later.partitions()[: len(found.partitions())] == found.partitions()
    assert len(later.partitions()) > len(found.partitions())


def test_a_set_may_change_under_its_name_and_change_back(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", many(20))
    small = ground.own_set("own", ["a", "b", "c"], max_documents=2)
    large = small.model_copy(update={"max_documents": None})
    ground.sets = [small]
    (first,) = ground.scan().sets
    ground.sets = [large]
    (second,) = ground.scan().sets
    assert ground.texts(first.documents) == ["a", "b"]
    assert ground.texts(second.documents) == ["a", "b", "c"]
    ground.sets = [small]
    assert ground.scan().sets == [first]
    assert len(ground.manifests()) == 2


def test_two_sets_may_share_documents(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", [*many(20), "shared"])
    ground.sets = [ground.own_set("one", ["shared", "x"]), ground.own_set("two", ["shared"])]
    one, two = ground.scan().sets
    assert (ground.texts(one.documents), ground.texts(two.documents)) == (
        ["shared", "x"],
        ["shared"],
    )


def test_left_out_documents_are_counted_and_may_be_evaluated(ground: "Ground") -> None:
    ground.split |= {"partitions_per_domain": 2}
    texts = many(20)
    ground.put("ant/0.jsonl", texts)
    found = ground.scan()
    assert list(ground.partitions(found)) == ["ant-0", "ant-1"]
    assert (found.counts, found.domains["ant"].remainder) == ({"left out": 10, "train": 10}, None)
    ground.sets = [ground.own_set("own", [texts[12], texts[3]])]
    found = ground.scan()
    (entry,) = found.sets
    assert (ground.texts(entry.documents), entry.removed) == ([texts[12]], 1)
    assert ground.index(found)[ground.digest(texts[12])] == (Role.EVALUATION, "own")
    ground.put("moved/0.jsonl", texts)
    later = ground.scan()
    assert later.partitions() == found.partitions()
    assert later.counts == {
        "left out": 10,
        "train": 10,
        "known as evaluation": 1,
        "known as left out": 9,
        "known as train": 10,
    }


def test_an_open_remainder_is_named_by_what_it_holds(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", many(7))
    (sealed, first) = ground.scan().partitions(with_open=True)
    assert (sealed.name, first.name.rpartition("-")[0], first.sealed) == (
        "ant-0", "ant-1-open", False,
    )  # fmt: skip
    ground.put("ant/1.jsonl", many(1, "more"))
    (_, second) = ground.scan().partitions(with_open=True)
    assert second.name.startswith("ant-1-open-")
    assert second.name != first.name
    ground.put("ant/2.jsonl", many(2, "last"))
    assert [e.name for e in ground.scan().partitions(with_open=True)] == ["ant-0", "ant-1"]


def test_a_domain_smaller_than_a_partition_waits_and_is_reported(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", many(5))
    ground.put("bee/0.jsonl", many(2, "bee"))
    found = ground.scan()
    assert found.problems == [
        "domain 'bee' holds 42 tokens, fewer than one partition of 100: it waits for more data"
    ]
    ground.put("bee/1.jsonl", many(3, "more"))
    found = ground.scan()
    assert found.problems == []
    assert ground.partitions(found)["bee-0"] == [*many(2, "bee"), *many(3, "more")]


def test_a_corpus_that_fills_no_partition_is_refused_until_it_does(ground: "Ground") -> None:
    with pytest.raises(EmptyCorpusError):
        ground.scan()
    ground.put("ant/0.jsonl", many(4))
    with pytest.raises(ValueError, match=r"fills no partition .*'ant' holds 84 tokens.* Lower"):
        ground.scan()
    assert ground.manifests() == []
    ground.fields["short_partitions"] = True
    assert [entry.sealed for entry in ground.scan().partitions(with_open=True)] == [False]


def test_a_corpus_without_a_usable_document_says_what_is_wrong_with_it(ground: "Ground") -> None:
    ground.put_bytes("ant/0.jsonl", b'{"body": "x"}\n')
    with pytest.raises(
        ValueError, match=r"no document that can be used: .*lacks the text field 'text'"
    ):
        ground.scan()
    ground.split |= {"base_fraction": 0.5}
    with pytest.raises(ValueError, match=r"base model(.|\n)*lacks the text field 'text'"):
        ground.scan()


def test_unusable_documents_are_reported_and_the_rest_goes_on(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", many(6))
    ground.put_bytes("ant/1.jsonl", b'{"no": 1}\n{"text": " "}\n{"text": "\xff"}\n{"text": "ok"}\n')
    found = ground.scan()
    assert found.problems == [
        "ant/1.jsonl: 1 skipped, first ant/1.jsonl:0, which lacks the text field 'text'; its fields "
        "are no",
        "ant/1.jsonl: 1 skipped, first ant/1.jsonl:1, which is empty or only white space",
        "ant/1.jsonl: 1 skipped, first ant/1.jsonl:2, which is not UTF-8",
    ]
    assert found.counts == {"train": 7}
    assert ground.scan() == found


def test_a_file_whose_name_is_not_utf8_is_reported_and_the_rest_goes_on(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", many(6))
    Path(os.fsdecode(os.fsencode(ground.corpus) + b"/ant/\xff.jsonl")).write_text('{"text": "x"}')
    found = ground.scan()
    assert found.problems == ["ant/\\udcff.jsonl: has a name that is not UTF-8: rename it"]
    assert (ground.scan(), found.counts) == (found, {"train": 6})


def parquet(texts: Sequence[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": list(texts)}), sink, row_group_size=10)
    return bytes(sink.getvalue())


def zstd(texts: Sequence[str]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        # Noise, so that what comes out before the cut holds whole lines.
        for text in texts:
            noise = "".join(digest(f"{text}{number}") for number in range(2000))
            stream.write(json.dumps({"text": text, "noise": noise}).encode() + b"\n")
    return bytes(sink.getvalue())


@pytest.mark.parametrize(("name", "write"), [("1.parquet", parquet), ("1.jsonl.zst", zstd)])
def test_a_damaged_file_is_tried_again_until_it_is_whole(
    ground: "Ground", name: str, write: Callable[[Sequence[str]], bytes]
) -> None:
    ground.split |= {"base_fraction": 0.1}
    ground.put("ant/0.jsonl", many(30, "ant"))
    whole, texts = write(many(20, "damaged")), many(20, "damaged")
    ground.put_bytes(f"ant/{name}", whole[: len(whole) * 2 // 3])
    found = ground.scan()
    before = {ground.digest(text) for text in texts} & {*ground.index(found)}
    assert (0 < len(before) < len(texts)) == (write is zstd), "what precedes the cut is taken"
    assert [line for line in found.problems if "truncated" in line and "tried again" in line]
    again = ground.scan()
    assert (again, len(ground.manifests())) == (found, 1)
    ground.put("ant/2.jsonl", many(3, "late"))
    ground.put_bytes(f"ant/{name}", whole)
    healed = ground.scan()
    assert healed.problems == []
    assert healed.partitions()[: len(found.partitions())] == found.partitions()
    index = ground.index(healed)
    assert {ground.digest(text) for text in texts} <= {*index}
    placed = Counter(
        text
        for artifact in [
            *(entry.documents for entry in healed.partitions(with_open=True)),
            healed.base_documents,
        ]
        for text in ground.texts(artifact)
    )
    assert {placed[text] for text in texts} == {1}
    assert ground.scan() == healed


def test_damaged_files_of_what_is_pinned_are_an_error(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", many(30))
    path = ground.folder / "set.parquet"
    path.write_bytes(parquet(many(30, "set"))[:-100])
    source = Source(urls=[str(path)])
    ground.sets = [EvaluationSetConfig(name="own", source=source)]
    with pytest.raises(
        ValueError, match=r"evaluation set 'own' cannot be made of a part.*truncated"
    ):
        ground.scan()
    ground.sets, ground.base_source = [], source
    with pytest.raises(ValueError, match=r"base model's documents cannot be made of a part"):
        ground.scan()
    assert ground.manifests() == []


def pair(a: str, b: str) -> dict[str, Any]:
    return {"text": f"{a} {b} ".ljust(120, "."), "a": a, "b": b}


def test_two_tuples_never_become_one_domain(disk: "Ground") -> None:
    rule = DocumentFormat(domain_fields=["a", "b"])
    disk.fields["source"] = Source(urls=[str(disk.corpus)], format=rule)

    def put(name: str, *rows: dict[str, Any]) -> None:
        disk.put_bytes(name, "".join(json.dumps(row) + "\n" for row in rows).encode())

    put("0.jsonl", pair("web", "en-US"), pair("a-b", "c"))
    first = disk.scan()
    assert {*first.domains} == {"web-en-US", "a-b-c"}
    put("1.jsonl", pair("web", "en-US") | {"text": "more ".ljust(120, ".")})
    assert {*disk.partitions(disk.scan())} == {"web-en-US-0", "web-en-US-1", "a-b-c-0"}
    put("2.jsonl", pair("a", "b-c"))
    with pytest.raises(
        ValueError, match=r"2\.jsonl:0: \('a', 'b-c'\) and \('a-b', 'c'\) would both"
    ):
        disk.scan()
    assert len(disk.manifests()) == 2


# A limit that changes, and rules that do ------------------------------------------------------------


@pytest.mark.parametrize("limit", [3, None])
def test_a_limit_that_is_raised_appends_what_was_left_out(
    ground: "Ground", limit: int | None
) -> None:
    ants, bees = many(23, "ant"), many(7, "bee")
    ground.split |= {"partitions_per_domain": 1}
    ground.put("ant/0.jsonl", ants)
    ground.put("bee/0.jsonl", bees)
    first = ground.scan()
    assert first.counts == {"train": 10, "left out": 20}
    ground.split |= {"partitions_per_domain": limit}
    # The file has grown by now, so it is read as a new one too.
    ground.put("ant/0.jsonl", [*ants, "more ants, ".ljust(20, ".")])
    raised = ground.scan()
    assert (raised.chain, raised.number) == (first.chain, 1)
    assert raised.domains["ant"].partitions[:1] == first.domains["ant"].partitions
    texts = [ants[start : start + 5] for start in range(0, 20 if limit is None else 15, 5)]
    assert ground.partitions(raised) == {
        **{f"ant-{number}": part for number, part in enumerate(texts)},
        "bee-0": bees[:5],
    }
    assert sum(raised.counts.values()) == 30 + 24, "what was read again is counted once"
    assert raised.counts.get("left out", 0) == (0 if limit is None else 24 - 15)
    assert ground.scan(ground.opened()) == raised
    ground.split |= {"partitions_per_domain": 2}
    lowered = ground.scan()
    assert lowered == raised
    assert [e.name for e in lowered.partitions(limit=2)] == ["ant-0", "ant-1", "bee-0"]


def test_chains_have_the_names_that_they_had_when_the_limit_was_a_rule(ground: "Ground") -> None:
    """Written down from the commit before; with a limit, the name is no longer given."""
    ground.put("ant/0.jsonl", many(12))
    assert ground.scan().chain == "corpus.4055bad760e4e64c"


def test_a_chain_from_when_the_limit_was_a_rule_is_gone_on_with(ground: "Ground") -> None:
    ground.split |= {"partitions_per_domain": 1}
    ground.put("ant/0.jsonl", many(12))
    made = ground.scan()
    (path,) = ground.manifests()
    old = json.loads(ground.store.backend.read(path))["content"]
    for field in ("created", "limit", "stamps", "story", "base_seen"):
        del old[field]
    old["rules"]["split"]["partitions_per_domain"] = 1
    old |= {"chain": "corpus.162a6fc9963a5bc6", "files": made.files}
    ground.store.backend.create(f"manifests/{old['chain']}/000000.json", seal(old))
    ground.store.backend.delete(path)
    found = ground.scan(ground.opened())
    assert (found.chain, found.number, found.limit) == (old["chain"], 0, 1)
    assert found.domains == made.domains
    ground.split |= {"partitions_per_domain": 2}
    raised = ground.scan()
    assert (raised.chain, raised.number) == (old["chain"], 1)
    assert list(ground.partitions(raised)) == ["ant-0", "ant-1"]
    assert raised.files == made.files


def test_a_corpus_that_starts_anew_says_by_which_rule(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", many(12))
    assert ground.scan().problems == []
    ground.split |= {"tokens_per_partition": 50}
    ground.fields["source"] = Source(urls=[str(ground.corpus)], exclude_domains=["bee"])
    found = ground.scan()
    assert found.number == 0
    assert found.problems == [
        "corpus 'corpus' starts anew, by another rule (corpus.source.exclude_domains [] -> "
        '["bee"], corpus.split.tokens_per_partition 100 -> 50): partitions are made anew, and all '
        "models are trained again"
    ]
    assert ground.scan().problems == [], "it has started"


def test_how_a_corpus_goes_on_is_told(ground: "Ground") -> None:
    told: list[str] = []
    ground.put("ant/0.jsonl", many(12))
    ground.put("bee/0.jsonl", many(12, "bee"))
    ground.scan(tell=told.extend)
    assert told == []
    (ground.corpus / "bee" / "0.jsonl").unlink()
    ground.put("cow/0.jsonl", many(12, "cow"))
    found = ground.scan(tell=told.extend)
    assert re.sub(r"of \d{4}-\d\d-\d\d \d\d:\d\d UTC", "of DATE", told.pop(0)) == (
        "corpus 'corpus' goes on from its manifest 0 of DATE; new domains: cow"
    )
    assert told == [
        "1 files that were read are gone from the corpus's address (bee/0.jsonl); no file is left "
        "of bee: their documents stay, and `mixpool withdraw` lists them"
    ]
    assert "bee-0" in ground.partitions(found)


# Stamps ---------------------------------------------------------------------------------------------


def test_a_manifest_does_not_grow_with_the_files_that_were_there(ground: "Ground") -> None:
    for number in range(40):
        ground.put(f"ant/{number:02d}.jsonl", many(1, f"t{number:02d}"))
    for number in range(40, 50):
        found = ground.scan()
        ground.put(f"ant/{number:02d}.jsonl", many(1, f"t{number:02d}"))
    assert b"ant/00.jsonl" not in ground.store.backend.read(ground.manifests()[-1])
    assert len(found.stamps) < 5, "small ones are joined"
    assert {*found.files} == {f"ant/{number:02d}.jsonl" for number in range(49)}
    assert ground.scan(ground.opened()).files.keys() >= found.files.keys()


def test_files_whose_stamps_are_lost_are_read_again_and_change_nothing(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", many(12))
    found = ground.scan()
    ground.store.retract(found.stamps[0])
    again = ground.scan(ground.opened())
    assert (again.domains, again.files, again.stamps) == (found.domains, found.files, found.stamps)
    assert ground.scan(ground.opened()) == again


# Twins and pins -------------------------------------------------------------------------------------


def test_a_document_that_differs_from_an_evaluation_document_by_form_alone_is_not_trained_on(
    ground: "Ground",
) -> None:
    held = "The café is\nopen today, and on every other day of this long year"
    twins = [held.replace("é", "e\u0301"), held.upper(), f"  {held}\r\n".replace(" ", "\u00a0 ")]
    others = [f"{held}.", held.replace("é", "e"), held.replace("long ", "")]
    ground.split |= {"tokens_per_partition": len(" ".join(others).encode())}
    ground.sets = [ground.own_set("own", [held])]
    ground.put("ant/0.jsonl", [*twins, *others])
    found = ground.scan()
    assert ground.sealed_texts(found) == others
    assert found.counts == {"known as evaluation": 3, "train": 3}


def test_a_twin_of_a_held_out_document_is_not_trained_on(ground: "Ground") -> None:
    ground.split |= {"heldout_fraction": 0.3, "heldout_documents": 30, "base_fraction": 0.2}
    texts = many(40)
    ground.put("ant/0.jsonl", [*texts, *(text.upper() for text in texts)])
    found = ground.scan()
    held = {text.casefold() for text in ground.texts(found.domains["ant"].heldout)}
    ground.put("ant/1.jsonl", [text.title() for text in texts])
    later = ground.scan()
    for state in (found, later):
        entries = state.partitions(with_open=True)
        trained = [text for entry in entries for text in ground.texts(entry.documents)]
        trained += ground.texts(state.base_documents)
        assert held.isdisjoint(text.casefold() for text in trained)
    forms = {text.casefold() for text in trained}
    assert {*texts} - held == forms, "every text is either held out or trained on"
    assert 5 < len(held) < 30
    assert min(found.counts["known as heldout"], later.counts["known as heldout"]) > 5


def test_what_is_pinned_and_has_changed_at_its_address_is_noted(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", many(12))
    ground.sets = [ground.own_set("own", ["one", "two"])]
    ground.base_source = ground.own_source("base", ["three"])
    found = ground.scan()
    assert found.problems == []
    assert ground.scan().problems == []
    ground.own_set("own", ["one", "two", "and another"])
    ground.own_source("base", ["three and four"])
    again = ground.scan()
    assert again.sets == found.sets
    stays = "stays as it was first read, and its files have another size or time now: give another"
    assert again.problems == [
        f"evaluation set 'own' {stays} name to take them anew",
        f"base.source {stays} corpus.name to take them anew",
    ]
