"""An overlay answers as the store below would after the same changes, and never changes it."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.artifact import Record, describe, step_key
from storage.backends.backend import Backend
from storage.backends.overlay import OverlayBackend, overlay
from storage.backends.urls import open_backend
from storage.lease import Busy
from storage.store import ScratchStore, Store
from tests.storage.contract import OUTSIDE, assert_refused

PATHS = ("a", "x/b", "x/y/c", "x/y/d")


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, memory_url: str) -> str:
    """Where the files below lie."""
    return str(tmp_path / "below") if request.param == "local" else memory_url


def _files(backend: Backend) -> dict[str, tuple[bytes, float]]:
    return {p: (backend.read(p), info.modified) for p, info in backend.list("").items()}


def _contents(backend: Backend) -> dict[str, bytes]:
    return {path: backend.read(path) for path in backend.list("")}


changes = st.tuples(
    st.sampled_from(["create", "create_from", "put", "put_from", "delete"]),
    st.sampled_from(PATHS),
    st.binary(max_size=3),
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(PATHS), st.binary(max_size=3)), st.lists(changes))
def test_it_answers_as_a_store_with_the_same_changes(
    below: dict[str, bytes], done: list[tuple[str, str, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        lower, plain = (open_backend(f"{name}/{part}") for part in ("lower", "plain"))
        for path, data in below.items():
            lower.put(path, data)
            plain.put(path, data)
        before = _files(lower)
        above = overlay(f"{name}/lower", Path(name) / "upper")
        source = Path(name) / "source"
        for what, path, data in done:
            source.write_bytes(data)
            given_it = source if what.endswith("_from") else data
            arguments = (path,) if what == "delete" else (path, given_it)
            assert getattr(above, what)(*arguments) == getattr(plain, what)(*arguments)
            assert _contents(above) == _contents(plain)
            assert above.list("x").keys() == plain.list("x").keys()
        for path in PATHS:
            _check_reads_alike(above, plain, path, source)
        assert _files(lower) == before


def _check_reads_alike(above: Backend, plain: Backend, path: str, target: Path) -> None:
    try:
        expected = plain.read(path)
    except FileNotFoundError:
        with pytest.raises(FileNotFoundError):
            above.read(path)
        with pytest.raises(FileNotFoundError):
            above.fetch(path, target)
        local = above.local(path)
        assert local is None or not local.is_file()
    else:
        above.fetch(path, target)
        local = above.local(path)
        assert local is not None
        assert above.read(path) == target.read_bytes() == local.read_bytes() == expected


def _record(folder: Path, number: int) -> Record:
    folder.mkdir(exist_ok=True)
    (folder / "one").write_text(f"one {number}")
    (folder / "two").write_text(f"two {number}")
    config = {"number": number}
    return Record(
        step="step",
        version=1,
        key=step_key("step", 1, config, {}),
        label="label",
        config=config,
        inputs={},
        output=describe("text", folder),
    )


def _above(url: str, tmp_path: Path, kind: str = "overlay") -> Store:
    folder = tmp_path / "above"
    if kind == "scratch":
        return ScratchStore(url, folder)
    return Store(url, tmp_path / "cache", backend=overlay(url, folder))


KINDS = pytest.mark.parametrize("kind", ["overlay", "scratch"])


@KINDS
def test_an_artifact_of_which_each_has_a_part_is_read_whole(
    url: str, tmp_path: Path, kind: str
) -> None:
    """A run that was killed while it uploaded leaves some files, and a plan adds the others."""
    below, record = Store(url), _record(tmp_path / "made", 1)
    below.backend.create_from(f"{record.output.prefix}/one", tmp_path / "made" / "one")
    before = _files(below.backend)
    above = _above(url, tmp_path, kind)
    folder = above.fetch(above.commit(record, tmp_path / "made").output)
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"one": "one 1", "two": "two 1"}
    assert _files(below.backend) == before


@KINDS
def test_what_a_plan_finds_damaged_is_set_aside_for_the_plan_alone(
    url: str, tmp_path: Path, kind: str
) -> None:
    below, record = Store(url), _record(tmp_path / "made", 1)
    below.commit(record, tmp_path / "made")
    below.backend.put(f"{record.output.prefix}/two", b"rubbish")
    before = _files(below.backend)
    above = _above(url, tmp_path, kind)
    assert above.retract(record.output) == [record.path]
    assert above.find("step", record.key) is None
    folder = above.fetch(above.commit(record, tmp_path / "made").output)
    assert (folder / "two").read_text() == "two 1"
    assert _files(below.backend) == before


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_operation_takes_a_name_that_might_lead_out(url: str, tmp_path: Path, name: str) -> None:
    above = overlay(url, tmp_path / "above")
    open_backend(url).create("x/y", b"1")
    above.create("x/z", b"1")
    assert_refused(above, name, tmp_path / "file")
    assert [*above.list("")] == ["x/y", "x/z"]


@KINDS
def test_a_new_store_is_tried_without_a_trace(tmp_path: Path, kind: str) -> None:
    above = _above(str(tmp_path / "below"), tmp_path, kind)
    record = _record(tmp_path / "made", 1)
    above.commit(record, tmp_path / "made")
    assert above.find("step", record.key) == record
    assert not (tmp_path / "below").exists()


@pytest.mark.parametrize("spare", [True, False])
def test_a_scratch_store_finds_and_lists_what_a_store_would(
    url: str, tmp_path: Path, spare: bool
) -> None:
    below, plain = Store(url), Store(str(tmp_path / "plain"))
    records = [_record(tmp_path / str(number), number) for number in range(4)]
    for store in (below, plain):
        store.commit(records[0], tmp_path / "0")
    above = _above(url, tmp_path, "scratch")
    for number, record in enumerate(records):
        again = record.model_copy(update={"label": "again"})
        for store in (plain, above):
            assert store.commit(record, tmp_path / str(number), spare=spare) == record
            assert store.commit(again, tmp_path / str(number), spare=spare) == record
            assert store.find("step", record.key) == record
            assert store.has("step", record.key)
            folder = store.fetch(record.output)
            assert (folder / "one").read_text() == f"one {number}"
    for step in ("step", "", "other"):
        assert [*above.named_records(step)] == [*plain.named_records(step)]
    # Only what nobody needs is moved, and only where it is new.
    left = [(tmp_path / str(number)).exists() for number in range(4)]
    assert left == ([True, False, False, False] if spare else [True] * 4)


def test_the_clock_and_leases_leave_no_trace_either(url: str, tmp_path: Path) -> None:
    below = Store(url)
    below.backend.put("work/step/lease.0", b'{"host": "another", "pid": 1}')
    before = _files(below.backend)
    above = _above(url, tmp_path)
    with pytest.raises(Busy, match="on another"), above.lease("step"):
        raise AssertionError
    with above.lease("other"):
        assert _files(below.backend) == before
    # The mark of the clock's file would show in the folder.
    assert _files(below.backend) == before


def test_it_does_not_read_the_clock_by_writing_below(tmp_path: Path) -> None:
    open_backend(str(tmp_path / "below")).put("work/x", b"")
    stamp = (tmp_path / "below" / "work").stat().st_mtime_ns
    above = overlay(str(tmp_path / "below"), tmp_path / "above")
    assert isinstance(above, OverlayBackend)
    assert abs(above.look("work/x").age) < 60
    assert (tmp_path / "below" / "work").stat().st_mtime_ns == stamp
