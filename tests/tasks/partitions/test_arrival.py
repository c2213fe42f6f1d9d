"""What is not complete is not read, whatever arrives in which order; and looking costs one listing."""

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.backends.urls import file_system
from tasks.corpus.listing import EmptyCorpusError
from tasks.corpus.reading import list_files
from tasks.corpus.source import Source
from tasks.partitions import manifest
from tasks.partitions.arrival import look_for_files
from tasks.partitions.config import CorpusConfig
from tasks.partitions.manifest import Manifest
from tasks.partitions.rules import rules_of
from tasks.partitions.scan import scan
from tests.faulty import FaultyProxy
from tests.servers import BUCKET
from tests.tasks.conftest import Named

if TYPE_CHECKING:
    from tests.servers import S3Server
    from tests.tasks.conftest import Ground

MARKER = "_SUCCESS"


def texts(name: str, count: int = 6) -> list[str]:
    """Texts of 20 tokens: five of them fill a partition."""
    return [f"{name} {number:03d}".ljust(19, ".") for number in range(count)]


def scanned(ground: "Ground", settle_seconds: float = 0.0) -> Manifest:
    return scan(
        ground.store,
        ground.config(),
        ground.sets,
        Named(),
        ground.make_tokenizer,
        scratch=str(ground.folder),
        settle_seconds=settle_seconds,
    )


def marked(root: str, marker: str = MARKER) -> dict[str, bool]:
    """What the listing says of each file."""
    return {f.path: f.is_marked for f in list_files(Source(urls=[root]), marker)}


# The marker ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", ["", " ", "a/b", "/", ".", "..", "_SUCCESS/"])
def test_a_marker_that_is_no_name_is_refused(marker: str) -> None:
    with pytest.raises(ValueError, match="is no name of a file: give one without folders"):
        CorpusConfig(name="c", source=Source(urls=["x"]), marker=marker)


def test_a_data_set_has_no_marker() -> None:
    with pytest.raises(ValueError, match=r"'_SUCCESS' is given with source\.dataset.*source\.urls"):
        CorpusConfig(name="c", source=Source(dataset="x"), marker=MARKER)


def test_the_marker_belongs_to_no_chain() -> None:
    plain = CorpusConfig(name="c", source=Source(urls=["x"]))
    with_marker = plain.model_copy(update={"marker": MARKER})
    assert rules_of(plain, Named(), None) == rules_of(with_marker, Named(), None)


TREE = ["a/0.jsonl", "a/deep/1.jsonl", "a/deep/er/2.jsonl", "b/3.jsonl", "4.jsonl"]


@pytest.fixture(params=["disk", "memory", "s3"])
def root(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An empty folder, on three kinds of file systems."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        for variable, value in server.environment.items():
            monkeypatch.setenv(variable, value)
    urls = {"disk": str(tmp_path), "memory": f"memory://{name}", "s3": f"s3://{BUCKET}/{name}"}
    yield urls[request.param]
    if request.param == "memory":
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def lay(root: str, *names: str) -> None:
    """Write files of a few bytes; markers are empty."""
    filesystem, path = file_system(root)
    for name in names:
        filesystem.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(f"{path}/{name}", b"" if name.endswith(MARKER) else b'{"text":"x"}\n')


def test_a_marker_covers_its_folder_and_all_below(root: str) -> None:
    lay(root, *TREE)
    assert {*marked(root).values()} == {False}
    lay(root, f"a/deep/{MARKER}")
    below = {"a/deep/1.jsonl", "a/deep/er/2.jsonl"}
    for address in (root, f"{root}/", f"{root}/**", f"{root}/**/*.jsonl"):
        assert marked(address) == {path: path in below for path in TREE}
    lay(root, MARKER)
    assert marked(root) == dict.fromkeys(TREE, True)
    # Paths are counted from it, and so are markers.
    assert marked(f"{root}/a/*.jsonl") == {"0.jsonl": False}
    assert marked(f"{root}/a/deep") == {"1.jsonl": True, "er/2.jsonl": True}


def test_a_glob_with_a_marker_matches_what_it_matches_without(root: str) -> None:
    odd = ["a/[x]y.jsonl", "a/.hidden.jsonl", "a/_temporary/5.jsonl", "a/z.parquet"]
    lay(root, *TREE, *odd, f"a/{MARKER}", f"a/d/{MARKER}")
    for pattern in (
        "*.jsonl",
        "*/*.jsonl",
        "**/*.jsonl",
        "a/**",
        "[ab]/?.jsonl",
        "a/[[]x]*",
        "a/d*/*",
    ):
        address = f"{root}/{pattern}"
        found = list_files(Source(urls=[address]))
        assert found
        again = list_files(Source(urls=[address]), MARKER)
        assert [f._replace(is_marked=True) for f in again] == found
        inside = "" if pattern.startswith("a/") else "a/"
        assert [f.is_marked for f in again] == [f.path.startswith(inside) for f in found]


def test_a_single_file_looks_for_the_marker_in_its_folder(root: str) -> None:
    lay(root, "a/0.jsonl", MARKER)
    assert marked(f"{root}/a/0.jsonl") == {"0.jsonl": False}
    lay(root, f"a/{MARKER}")
    assert marked(f"{root}/a/0.jsonl") == {"0.jsonl": True}


def test_a_marker_with_the_name_of_data_is_no_data(tmp_path: Path) -> None:
    lay(str(tmp_path), "a/0.jsonl", "a/done.txt", "b/1.jsonl")
    for address in (f"{tmp_path}", f"{tmp_path}/*/*"):
        assert marked(address, "done.txt") == {"a/0.jsonl": True, "b/1.jsonl": False}
    assert "a/done.txt" in marked(str(tmp_path), "other.txt")


def test_a_file_at_two_addresses_needs_a_marker_at_one(tmp_path: Path) -> None:
    lay(str(tmp_path), "a/b/0.jsonl", f"a/{MARKER}")
    both = [str(tmp_path / "a/b"), str(tmp_path / "a")]
    for urls in (both, both[::-1]):
        (file,) = list_files(Source(urls=urls), MARKER)
        assert file.is_marked
    (file,) = list_files(Source(urls=both[:1]), MARKER)
    assert not file.is_marked


def test_a_corpus_without_any_file_is_empty_whatever_the_marker(tmp_path: Path) -> None:
    lay(str(tmp_path), f"a/{MARKER}")
    for address in ("a", "a/*", "missing/*.jsonl", "a/missing.jsonl"):
        with pytest.raises(EmptyCorpusError, match="matches no file"):
            marked(str(tmp_path / address))


def listings(proxy: FaultyProxy) -> int:
    return sum(
        "list-type=2" in target and "max-keys=1&" not in target for _, target, _ in proxy.log
    )


def test_a_marker_costs_no_request(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    lay(root, *TREE, *(f"{folder}/{MARKER}" for folder in ("a", "b", "a/deep")))
    for address in (root, f"{root}/**/*.jsonl", f"{root}/*/*.jsonl", f"{root}/a/*.jsonl"):
        with FaultyProxy(s3_server.endpoint, rate=0, seed=0) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            list_files(Source(urls=[address]))
            plain, plain_listings = proxy.requests, listings(proxy)
            list_files(Source(urls=[address]), MARKER)
            assert 0 < proxy.requests - plain <= plain
            assert 0 < listings(proxy) - plain_listings <= plain_listings
            if address == root or "**" in address:
                assert plain_listings == 1


def test_files_wait_for_their_marker_and_alone_publish_nothing(ground: "Ground") -> None:
    ground.fields["marker"] = MARKER
    ground.put("ant/0.jsonl", texts("ant"))
    (ground.corpus / "ant" / MARKER).touch()
    first = scanned(ground)
    assert first.problems == []
    for number in range(4):
        ground.put(f"bee/{number}.jsonl", texts(f"bee {number}"))
    for _ in range(2):
        found = scanned(ground)
        assert found.problems == [
            "4 new files wait for a marker _SUCCESS in the same folder or above: "
            "bee/0.jsonl, bee/1.jsonl, bee/2.jsonl, ..."
        ]
        assert (found.number, {*found.files}) == (0, {"ant/0.jsonl"})
        assert len(ground.manifests()) == 1
    (ground.corpus / "bee" / MARKER).touch()
    found = scanned(ground)
    assert (found.number, found.problems, len(found.files)) == (1, [], 5)
    # What is known is known without a marker, too.
    (ground.corpus / "ant" / MARKER).unlink()
    assert scanned(ground).number == 1
    ground.put("ant/0.jsonl", texts("ant", 7))
    (note,) = scanned(ground).problems
    assert note.startswith("1 new file waits for a marker")
    assert note.endswith(": ant/0.jsonl")


def test_published_manifests_do_not_tell_of_what_waits(disk: "Ground") -> None:
    disk.fields["marker"] = MARKER
    disk.put("ant/0.jsonl", texts("ant"))
    disk.put("bee/0.jsonl", texts("bee"))
    (disk.corpus / "ant" / MARKER).touch()
    found = scanned(disk)
    assert "bee/0.jsonl" in found.problems[0]
    assert manifest.read_manifest(disk.store, manifest.path_of(found)).problems == []


def test_a_first_scan_needs_one_complete_file(ground: "Ground") -> None:
    ground.fields["marker"] = MARKER
    ground.put("ant/0.jsonl", texts("ant"))
    with pytest.raises(EmptyCorpusError, match=r"complete yet: 1 new file waits.*ant/0\.jsonl"):
        scanned(ground)
    ground.put("bee/0.jsonl", texts("bee", 2))
    (ground.corpus / "bee" / MARKER).touch()
    with pytest.raises(ValueError, match=r"(?s)fills no partition.*1 new file waits.*ant/0"):
        scanned(ground)
    assert ground.manifests() == []


def test_lost_documents_are_found_again_in_files_that_wait(ground: "Ground") -> None:
    ground.fields["marker"] = MARKER
    ground.put("ant/0.jsonl", texts("ant"))
    (ground.corpus / "ant" / MARKER).touch()
    before = scanned(ground)
    (ground.corpus / "ant" / MARKER).unlink()
    ground.put("ant/0.jsonl", texts("ant", 7))
    ground.store.retract(before.partitions()[0].documents)
    found = scanned(ground)
    assert ground.partitions(found) == {"ant-0": texts("ant")[:5]}
    assert found.files == before.files


steps = st.lists(
    st.one_of(
        st.tuples(st.just("file"), st.sampled_from(["a", "b", "b/c"]), st.integers(0, 40)),
        st.tuples(st.just("mark"), st.sampled_from(["", "a", "b", "b/c"]), st.just(0)),
        st.tuples(st.just("scan"), st.just(""), st.just(0)),
    ),
    max_size=14,
)


@given(steps=steps)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whenever_markers_come_all_is_read_once_and_nothing_before(
    new_ground: Callable[[], "Ground"], steps: list[tuple[str, str, int]]
) -> None:
    many, single = new_ground(), new_ground()
    for ground in (many, single):
        ground.fields["marker"] = MARKER
        # So that any scan has a partition.
        ground.put("start/0.jsonl", texts("start"))
        (ground.corpus / "start" / MARKER).touch()
    folders = {"start"}
    for number, (what, folder, count) in enumerate([*steps, ("mark", "", 0), ("scan", "", 0)]):
        if what == "file":
            # A text that two domains have belongs to the one that is read first.
            for ground in (many, single):
                ground.put(f"{folder}/{number}.jsonl", texts(f"{folder} {count % 9}", 1 + count))
        elif what == "mark":
            folders.add(folder)
            for ground in (many, single):
                (ground.corpus / folder).mkdir(exist_ok=True, parents=True)
                (ground.corpus / folder / MARKER).touch()
        else:
            found = scanned(many)
            covered = {
                str(path.relative_to(many.corpus))
                for path in many.corpus.rglob("*.jsonl")
                if folders
                & {"" if str(p) == "." else str(p) for p in path.relative_to(many.corpus).parents}
            }
            assert {*found.files} == covered
    whole = scanned(single)
    assert {*whole.files} == {*found.files}
    assert {*single.index(whole)} == {*many.index(found)}
    assert found.problems == whole.problems


# Files that settle ---------------------------------------------------------------------------------


@contextmanager
def appending(path: Path, seconds: float = 0.02) -> Iterator[threading.Event]:
    """A writer that appends a line every so many seconds until it is told to stop."""
    stop, before = threading.Event(), path.stat().st_size if path.exists() else 0

    def write() -> None:
        number = 0
        with path.open("a", buffering=1) as file:
            while not stop.is_set():
                file.write(json.dumps({"text": f"growing {number}"}) + "\n")
                number += 1
                time.sleep(seconds)

    writer = threading.Thread(target=write)
    writer.start()
    while not path.exists() or path.stat().st_size == before:
        time.sleep(0.01)
    try:
        yield stop
    finally:
        stop.set()
        writer.join()


def test_a_file_that_is_being_written_waits_until_it_is_done(ground: "Ground") -> None:
    ground.put("ant/0.jsonl", texts("ant"))
    ground.put("bee/0.jsonl", texts("bee"))
    growing = ground.corpus / "bee" / "1.jsonl"
    with appending(growing):
        found = scanned(ground, 0.3)
        assert {*found.files} == {"ant/0.jsonl", "bee/0.jsonl"}
        assert found.problems == [
            "1 new file waits for the next scan, still changing within 0.3 s: bee/1.jsonl"
        ]
        assert scanned(ground, 0.3).number == 0
        assert len(ground.manifests()) == 1
    done = scanned(ground, 0.3)
    assert (done.number, done.problems) == (1, [])
    lines = [json.loads(line)["text"] for line in growing.read_text().splitlines()]
    assert {ground.digest(text) for text in lines} <= {*ground.index(done)}


def test_a_known_file_that_is_appended_to_waits_too(ground: "Ground") -> None:
    path = ground.put("ant/0.jsonl", texts("ant"))
    first = scanned(ground, 0.05)
    with appending(path):
        found = scanned(ground, 0.3)
        assert found.files == first.files
        assert "ant/0.jsonl" in found.problems[0]
    assert scanned(ground, 0.05).files != first.files


def test_a_first_scan_of_growing_files_names_one(ground: "Ground") -> None:
    (ground.corpus / "ant").mkdir()
    with (
        appending(ground.corpus / "ant" / "0.jsonl"),
        pytest.raises(EmptyCorpusError, match=r"'corpus' .* changing within 0\.3 s: ant/0\.jsonl"),
    ):
        scanned(ground, 0.3)
    assert ground.manifests() == []


class Counted(LocalFileSystem):  # type: ignore[misc] # fsspec has no types
    """The local disk, which counts how often it is listed from the top."""

    protocol = "counted"
    finds = 0

    def find(self, path: str, **kwargs: Any) -> Any:
        Counted.finds += 1
        return super().find(path, **kwargs)


class Mute(LocalFileSystem):  # type: ignore[misc] # fsspec has no types
    """The local disk, which tells nothing but names and sizes."""

    protocol = "mute"

    def info(self, path: Any, **kwargs: Any) -> Any:
        told = super().info(path, **kwargs)
        return {name: told[name] for name in ("name", "size", "type")}


@pytest.fixture
def counted(ground: "Ground") -> "Ground":
    fsspec.register_implementation("counted", Counted, clobber=True)
    ground.fields["source"] = Source(urls=[f"counted://{ground.corpus}"])
    Counted.finds = 0
    return ground


def test_only_what_is_new_is_listed_twice_and_waited_for(counted: "Ground") -> None:
    counted.fields["marker"] = MARKER
    counted.put("ant/0.jsonl", texts("ant"))
    (counted.corpus / "ant" / MARKER).touch()
    scanned(counted)
    assert Counted.finds == 1
    # An hour: whoever waits does not come back.
    assert scanned(counted, 3600).number == 0
    assert Counted.finds == 2
    counted.put("bee/0.jsonl", texts("bee"))
    assert scanned(counted, 3600).problems
    assert Counted.finds == 3
    (counted.corpus / "bee" / MARKER).touch()
    begin = time.monotonic()
    assert scanned(counted, 0.2).number == 1
    assert time.monotonic() - begin >= 0.2
    assert Counted.finds == 5


def test_what_arrives_vanishes_or_loses_its_marker_while_others_settle(disk: "Ground") -> None:
    disk.fields["marker"] = MARKER
    for name in ("ant", "bee", "cow"):
        disk.put(f"{name}/0.jsonl", texts(name))
        (disk.corpus / name / MARKER).touch()

    def change() -> None:
        disk.put("ant/1.jsonl", texts("late"))
        shutil.rmtree(disk.corpus / "bee")
        (disk.corpus / "cow" / MARKER).unlink()

    timer = threading.Timer(0.15, change)
    timer.start()
    landed = look_for_files(disk.config(), None, 0.5)
    timer.join()
    assert [file.path for file in landed.new] == ["ant/0.jsonl"]
    assert [file.path for file in landed.files] == ["ant/0.jsonl", "ant/1.jsonl", "cow/0.jsonl"]
    assert [note.rpartition(": ")[2] for note in landed.notes] == ["cow/0.jsonl", "ant/1.jsonl"]


def test_a_file_system_that_tells_nothing_cannot_say_what_has_settled(disk: "Ground") -> None:
    fsspec.register_implementation("mute", Mute, clobber=True)
    disk.put("ant/0.jsonl", texts("ant"))
    disk.fields["source"] = Source(urls=[f"mute://{disk.corpus}"])
    with pytest.raises(
        ValueError, match=r"ant/0\.jsonl .*set settle_seconds to 0, and have a mark"
    ):
        scanned(disk, 0.01)
    assert scanned(disk).number == 0


@pytest.mark.parametrize("names", [[b"a\xff.jsonl"], [b"a.jsonl", b"b\xff.jsonl", b"c.jsonl"]])
def test_names_that_no_json_holds_can_be_told(disk: "Ground", names: Sequence[bytes]) -> None:
    disk.fields["marker"] = MARKER
    disk.put("ant/0.jsonl", texts("ant"))
    (disk.corpus / "ant" / MARKER).touch()
    for name in names:
        (disk.corpus / os.fsdecode(name)).write_text('{"text": "x"}\n')
    (note,) = scanned(disk).problems
    assert "\\udcff" in note
    assert note.encode()
