"""The index on disk is a dictionary by digest that remembers the order in which rows were written."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.partitions.index import DocumentIndex, IndexEntry, Role, is_digest, open_place

DIGESTS = [f"{number:064x}" for number in range(8)]

rows = st.builds(
    IndexEntry,
    st.sampled_from(DIGESTS),
    st.sampled_from([Role.TRAIN, Role.HELDOUT, Role.LEFT_OUT]),
    st.sampled_from(["", "ant-0", "ant/open", "ant"]),
    st.sampled_from(["a:0", "a:1", 'odd "name"\n:2']),
)


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[DocumentIndex]:
    with closing(DocumentIndex(tmp_path)) as opened:
        yield opened


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scans=st.lists(st.lists(rows, max_size=12), min_size=1, max_size=3))
def test_rows_of_all_scans_are_one_dictionary(
    tmp_path_factory: pytest.TempPathFactory, scans: list[list[IndexEntry]]
) -> None:
    saved: list[Path] = []
    expected: dict[str, IndexEntry] = {}
    for written in scans:
        with closing(DocumentIndex(tmp_path_factory.mktemp("scratch"))) as seen:
            for folder in saved:
                seen.load(folder)
            for row in written:
                expected.pop(row.digest, None)
                expected[row.digest] = row
                seen.write(row)
            check(seen, expected)
            saved.append(tmp_path_factory.mktemp("index"))
            assert seen.save_new(saved[-1]) == len({row.digest for row in written})
    with closing(DocumentIndex(tmp_path_factory.mktemp("scratch"))) as seen:
        for folder in saved:
            seen.load(folder)
        check(seen, expected)
        assert list(seen.new()) == []


def check(seen: DocumentIndex, expected: dict[str, IndexEntry]) -> None:
    assert {digest: seen.get(digest) for digest in DIGESTS} == {
        digest: expected.get(digest) for digest in DIGESTS
    }
    for origin in {row.origin for row in expected.values()}:
        assert seen.find(origin) == [r for r in expected.values() if r.origin == origin]
    for role, place in {(row.role, row.place) for row in expected.values()}:
        there = [r for r in expected.values() if (r.role, r.place) == (role, place)]
        assert list(seen.place(role, place)) == there


def test_a_row_can_be_changed_after_it_was_looked_up(seen: DocumentIndex) -> None:
    row = IndexEntry(DIGESTS[1], Role.TRAIN, open_place("ant"), "a:0")
    seen.write(row)
    assert seen.find("a:0") == list(seen.place(Role.TRAIN, "ant/open")) == [row]
    seen.write(row._replace(place="ant-0"))
    assert list(seen.place(Role.TRAIN, "ant/open")) == []
    assert seen.find(DIGESTS[1]) == [row._replace(place="ant-0")]
    assert (seen.get(DIGESTS[2]), seen.find("nowhere")) == (None, [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a" * 64, True), ("0123456789abcdef" * 4, True), ("a" * 63, False), ("g" * 64, False)],
)
def test_a_digest_is_told_from_an_origin(name: str, expected: Any) -> None:
    assert is_digest(name) == expected
