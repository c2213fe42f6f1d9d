"""With nothing new a look costs a handful of requests and writes nothing; each version has one id."""

import json
import logging
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.chain.unchanged import is_unchanged
from storage.artifact import seal, unseal
from storage.lineage import run_folders
from storage.store import Store
from tasks.partitions import manifest
from tests.faulty import FaultyProxy
from tests.flows.conftest import Place, mixpool_json
from tests.servers import BUCKET

if TYPE_CHECKING:
    from flows.server.events import LandedData
    from tests.servers import S3Server

ROOT = Path(__file__).parents[3]
LINE = json.dumps({"text": "something new that nobody has said before"}) + "\n"
MARKED = "corpus.marker=_SUCCESS"


# These bring Prefect, which no process needs that only collects tests.


def look_at(uri: str) -> "LandedData":
    from flows.server import events

    return events.look_at(uri)


def landing_id(corpus: str, uri: str, etag: str | None, size: int | None) -> uuid.UUID:
    from flows.server import events

    return events.landing_id(corpus, uri, etag, size)


def run(place: Place, *overrides: str) -> str:
    """Run the recipe; the name of the run."""
    words = [word for override in overrides for word in ("--set", override)]
    mixpool_json("run", place.recipe, "--store", place.store, *words)
    return max(run_folders(Store(place.store)))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, new_place: Callable[[Path], Place]) -> Place:
    """A run of the recipe, and one that wants a marker."""
    place = new_place(tmp_path_factory.mktemp("landing"))
    (place.corpus / "_SUCCESS").touch()
    run(place, MARKED)
    run(place)
    return place


@pytest.fixture
def place(template: Place, tmp_path: Path) -> Iterator[Place]:
    """The same with a store of its own; the corpus is tidied up."""
    before = {*template.corpus.rglob("*")}
    copy = template.copy(tmp_path)
    yield copy
    for path in sorted({*template.corpus.rglob("*")} - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def files(place: Place) -> dict[str, bytes]:
    root = Path(place.store)
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# Is there anything to do? -------------------------------------------------------------------------


def test_with_nothing_new_the_newest_run_stands_and_nothing_is_written(place: Place) -> None:
    store, before = Store(place.store), files(place)
    newest = max(run_folders(store))
    assert is_unchanged(store, place.load()) == newest
    found = is_unchanged(store, place.load(MARKED))
    assert found is not None
    assert found < newest
    assert files(place) == before


def test_new_data_is_something_to_do_until_a_run_has_used_it(
    place: Place, template: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mixpool.landing")
    (template.corpus / "birds-2.jsonl").write_text(LINE)
    assert is_unchanged(Store(place.store), place.load()) is None
    assert f"1 new files ({len(LINE)} bytes)" in caplog.text
    name = run(place)
    assert is_unchanged(Store(place.store), place.load()) == name
    # The other recipe shares the chain of manifests and has not run with the newest.
    assert is_unchanged(Store(place.store), place.load(MARKED)) is None
    assert "another manifest than the newest" in caplog.text


def test_a_new_file_without_its_marker_is_nothing_new(place: Place, template: Place) -> None:
    landed = template.corpus / "in"
    overrides = [
        MARKED,
        f"corpus.source.urls=['{landed}/*/*.jsonl']",
        "corpus.source.format.domain_pattern=/(\\w+)\\.",
    ]
    (landed / "first").mkdir(parents=True)
    for path in template.corpus.glob("*.jsonl"):
        shutil.copy(path, landed / "first")
    (landed / "first" / "_SUCCESS").touch()
    name = run(place, *overrides)
    (landed / "second").mkdir()
    (landed / "second" / "birds.jsonl").write_text(LINE)
    assert is_unchanged(Store(place.store), place.load(*overrides)) == name
    (landed / "second" / "_SUCCESS").touch()
    assert is_unchanged(Store(place.store), place.load(*overrides)) is None


def test_what_cannot_be_read_is_tried_once_for_each_version(place: Place, template: Place) -> None:
    store, damaged = Store(place.store), template.corpus / "damaged.jsonl.gz"
    everything = f"corpus.source.urls=['{template.corpus}']"
    wanted = (everything, "corpus.withdraw=['birds.jsonl:999']")
    damaged.write_bytes(b"no gzip")
    assert is_unchanged(store, place.load(*wanted)) is None
    name = run(place, *wanted)
    assert is_unchanged(store, place.load(*wanted)) == name
    damaged.write_bytes(b"no gzip either")
    assert is_unchanged(store, place.load(*wanted)) is None


def test_a_file_that_still_grows_is_nothing_new_to_who_waits(place: Place, template: Place) -> None:
    path = template.corpus / "birds-2.jsonl"
    writer = subprocess.Popen(
        ["/bin/sh", "-c", f"while :; do echo '{LINE.strip()}' >> {path}; sleep 0.02; done"]
    )
    try:
        while not path.exists():
            pass
        assert is_unchanged(Store(place.store), place.load()) is None
        assert is_unchanged(Store(place.store), place.load(), 0.4) is not None
    finally:
        writer.kill()
        writer.wait()
    assert is_unchanged(Store(place.store), place.load(), 0.1) is None


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=0.002",
        "name=other",
        "corpus.split.heldout_documents=3",
        "mixtures.spaces.0.sizes=[1]",
    ],
)
def test_another_recipe_has_no_finished_run(place: Place, override: str) -> None:
    assert is_unchanged(Store(place.store), place.load(override)) is None


def test_a_run_that_never_ended_does_not_count(place: Place) -> None:
    store = Store(place.store)
    older, newest = sorted(run_folders(store))
    (Path(place.store) / "runs" / newest / "run.json").unlink()
    assert is_unchanged(store, place.load()) is None
    found = is_unchanged(store, place.load(MARKED))
    assert found is not None
    assert found == older


def test_the_newest_of_many_runs_is_found_by_name(place: Place) -> None:
    store = Store(place.store)
    newest = max(run_folders(store))
    content: Any = unseal(store.backend.read(f"runs/{newest}/run.json"), newest)
    stale = {**content, "manifests": ["manifests/other/000000.json"]}
    # Of the same second, the one with the greater number is later; others have other names.
    for name, written in [
        (f"{newest}-2", content),
        ("20000101T000000Z-tiny", stale),
        ("29990101T000000Z-tiny-big", stale),
        ("29990101T000000Z-big-tiny", stale),
    ]:
        store.backend.create(f"runs/{name}/run.json", seal(written))
    found = is_unchanged(store, place.load())
    assert found is not None
    assert found == f"{newest}-2"
    store.backend.create(f"runs/{newest}-3/run.json", seal(stale))
    assert is_unchanged(store, place.load()) is None


def test_a_search_of_the_same_recipe_is_no_run_of_it(place: Place) -> None:
    words = ["search.evaluations=8", "search.start=6", "search.descent=null"]
    changes = [word for change in words for word in ("--set", change)]
    mixpool_json("search", place.recipe, "--store", place.store, *changes)
    recipe = place.load(*words)
    assert is_unchanged(Store(place.store), recipe) is None
    newest = run(place, *words)
    found = is_unchanged(Store(place.store), recipe)
    assert found is not None
    assert found == newest


def test_a_damaged_run_is_passed_over_with_a_warning(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(place.store)
    newest = max(run_folders(store))
    data = store.backend.read(f"runs/{newest}/run.json")
    store.backend.create(f"runs/{newest}-2/run.json", data.replace(b'"tiny"', b'"tinx"'))
    store.backend.create(f"runs/{newest}-3/run.json", b"{")
    assert is_unchanged(store, place.load()) == newest
    assert caplog.text.count("that run is passed over") == 2


def test_lost_documents_are_something_to_do(place: Place) -> None:
    store = Store(place.store)
    (path,) = list(store.backend.list("manifests"))
    lost = manifest.read_manifest(store, path).partitions()[0].documents
    store.retract(lost)
    assert is_unchanged(Store(place.store), place.load()) is None


def test_a_given_tokenizer_is_looked_at(place: Place, tmp_path: Path) -> None:
    store = Store(place.store)
    (record,) = store.records("tokenizer")
    folder = tmp_path / "given"
    shutil.copytree(store.fetch(record.output), folder)
    override = f"tokenizer={{kind: given, path: {folder}}}"
    name = run(place, override)
    before = files(place)
    assert is_unchanged(store, place.load(override)) == name
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        text.replace('"byte_fallback": false', '"byte_fallback": true')
    )
    assert is_unchanged(store, place.load(override)) is None
    assert files(place) == before


def test_a_look_costs_one_listing_of_the_corpus_and_one_read_of_a_run(
    place: Place, template: Place, s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    put(template.corpus, f"{url}/corpus")
    overrides = f"corpus.source.urls=['{url}/corpus']", MARKED
    name = run(place, *overrides)
    put(Path(place.store), f"{url}/store")
    with FaultyProxy(s3_server.endpoint, rate=0, seed=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = Store(f"{url}/store", create=False)
        opened = proxy.requests
        assert is_unchanged(store, place.load(*overrides)) == name
        log = proxy.log[opened:]
    assert {method for method, _, _ in log} == {"GET", "HEAD"}
    lists = [target for _, target, _ in log if "list-type=2" in target]
    assert sum("corpus" in target and "max-keys=1&" not in target for target in lists) == 1
    reads = [target for method, target, _ in log if method == "GET" and target not in lists]
    assert sum("/runs/" in target for target in reads) == 1
    # The newest manifest, the stamps that it names, and the tokenizer's record.
    assert len(reads) == 4


def put(folder: Path, url: str) -> None:
    """Copy a folder to object storage, past the code under test."""
    system, path = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    for file in filter(Path.is_file, folder.rglob("*")):
        system.pipe_file(f"{path}/{file.relative_to(folder)}", file.read_bytes())


LOOK = """
import logging, sys
from pathlib import Path
from flows.chain.recipe_file import load_recipe
from flows.chain.unchanged import is_unchanged
from storage.store import Store
assert is_unchanged(Store(sys.argv[1], create=False), load_recipe(sys.argv[2]))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_looking_imports_nothing_heavy(place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, place.store, place.recipe],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    heavy = {"torch", "transformers", "tokenizers", "datasets", "pandas", "pyarrow", "prefect"}
    assert heavy.isdisjoint(done.stdout.split())


# What has landed? ---------------------------------------------------------------------------------


def test_ids_are_those_of_earlier_versions() -> None:
    assert (
        str(landing_id("Web 2026", "s3://b/k.jsonl", "abc", 3))
        == "fba46f8e-3004-5c70-ad5b-0c053a5b8ff7"
    )
    assert (
        str(landing_id("any", "s3://b/k.jsonl", None, None))
        == "3c20184e-b93f-5ee3-9e83-443047e2243b"
    )


parts = st.tuples(
    st.sampled_from(["any", "tiny"]),
    st.text(),
    st.none() | st.text('ab-"[], '),
    st.none() | st.integers(0, 99),
)


@given(parts, parts)
def test_only_the_same_version_has_the_same_id(one: Any, other: Any) -> None:
    def bare(version: Any) -> Any:
        corpus, uri, etag, size = version
        return corpus, uri, etag and etag.strip('"'), size

    assert (landing_id(*one) == landing_id(*other)) == (bare(one) == bare(other))
    assert landing_id(*one).version == 5


def test_on_s3_an_object_is_known_by_its_etag(
    s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    client, key = s3_server.client(), f"{uuid.uuid4().hex}/a.jsonl"
    uri = f"s3://{BUCKET}/{key}"
    sent = client.put_object(Bucket=BUCKET, Key=key, Body=b"one")
    first = look_at(uri)
    assert (first.uri, first.etag, first.size) == (uri, sent["ETag"].strip('"'), 3)
    # As in a notification of the bucket, which has no quotes.
    assert (
        look_at(uri).id("tiny")
        == first.id("tiny")
        == landing_id("tiny", uri, sent["ETag"].strip('"'), 3)
    )
    client.put_object(Bucket=BUCKET, Key=key, Body=b"two")
    second = look_at(uri)
    assert second.size == first.size
    assert second.id("tiny") != first.id("tiny")
    client.put_object(Bucket=BUCKET, Key=key, Body=b"one")
    assert look_at(uri).id("tiny") == first.id("tiny")

    folder = uri.rpartition("/")[0]
    alone = look_at(folder)
    assert (alone.size, look_at(f"{folder}/")) == (3, alone)
    client.put_object(Bucket=BUCKET, Key=f"{key}.gz", Body=b"more")
    assert look_at(folder).id("tiny") != alone.id("tiny")
    for missing in (f"{uri}.md5", f"{folder}/sub", f"{folder}/*.jsonl"):
        with pytest.raises(
            ValueError, match=r"nothing has landed at s3://.*no such file or folder"
        ):
            look_at(missing)


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_elsewhere_by_what_the_file_system_tells(kind: str, tmp_path: Path) -> None:
    root = str(tmp_path / "in") if kind == "disk" else f"memory://{uuid.uuid4().hex}"
    system, path = fsspec.core.url_to_fs(root)
    system.makedirs(f"{path}/deep")
    with pytest.raises(ValueError, match=r"the folder is empty"):
        look_at(root)
    system.pipe_file(f"{path}/a.jsonl", b"one")
    system.pipe_file(f"{path}/deep/b.jsonl", b"three")
    file, folder = look_at(f"{root}/a.jsonl"), look_at(root)
    assert (file.size, folder.size) == (3, 8)
    assert (look_at(f"{root}/a.jsonl").id("tiny"), look_at(root).id("tiny")) == (
        file.id("tiny"),
        folder.id("tiny"),
    )
    system.pipe_file(f"{path}/a.jsonl", b"two")
    assert look_at(f"{root}/a.jsonl").id("tiny") != file.id("tiny")
    assert look_at(root).id("tiny") != folder.id("tiny")
    system.rm(path, recursive=True)
    with pytest.raises(ValueError, match="no such file or folder"):
        look_at(f"{root}/a.jsonl/x")


def test_a_name_that_is_not_utf_8_has_landed_too(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.jsonl"))).write_bytes(b"x")
    assert look_at(str(tmp_path)).size == 1


@pytest.mark.parametrize(
    "uri", ["s3://me:geheim@bucket/x", "https://host/x?X-Amz-Signature=geheim", "sftp://u@h/x"]
)
def test_credentials_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ValueError, match="credentials") as caught:
        look_at(uri)
    assert "geheim" not in str(caught.value)
