"""What only S3 has: parts, lost answers, refusals, buckets, and stamps that browsers read."""

import http.server
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from storage.backends import s3, s3_client
from storage.backends.s3 import S3Backend
from storage.backends.s3_client import NoBucketError
from storage.backends.urls import file_system, open_backend
from storage.store import Store
from tests.faulty import Fault, FaultyProxy
from tests.servers import BUCKET

if TYPE_CHECKING:
    from tests.servers import S3Server

MIB = 1 << 20


@pytest.fixture
def url(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def backend(url: str) -> S3Backend:
    found = open_backend(url)
    assert isinstance(found, S3Backend)
    return found


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """The smallest parts that S3 takes."""
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)
    monkeypatch.setattr(s3, "RANGE_BYTES", 5 * MIB)
    return 5 * MIB


def write(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


@pytest.mark.parametrize("more", [0, 1, -1, 5 * MIB, 5 * MIB + 1, 7 * MIB])
def test_files_around_the_size_of_a_part(
    backend: S3Backend, small_parts: int, tmp_path: Path, more: int
) -> None:
    source = write(tmp_path / "source", small_parts + more)
    assert backend.create_from("big", source)
    assert not backend.create_from("big", write(tmp_path / "other", small_parts + 1))
    backend.fetch("big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes() == backend.read("big")
    again = write(tmp_path / "again", small_parts + 2)
    backend.put_from("big", again)
    assert backend.read("big") == again.read_bytes()
    assert backend.unfinished(-60) == {}


@pytest.mark.usefixtures("small_parts")
def test_of_racing_big_uploads_one_wins(backend: S3Backend, tmp_path: Path) -> None:
    sources = [write(tmp_path / str(number), 6 * MIB) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda source: backend.create_from("big", source), sources))
    assert won.count(True) == 1
    assert backend.read("big") == sources[won.index(True)].read_bytes()
    assert backend.unfinished(-60) == {}


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_nobody_finished_is_found_and_thrown_away(
    s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    backend = open_backend(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    assert isinstance(backend, S3Backend)
    key = backend._key("a folder/big")
    begun = s3_server.client().create_multipart_upload(Bucket=BUCKET, Key=key)
    (name,) = backend.unfinished(-60)
    assert name == f"a folder/big?uploadId={begun['UploadId']}"
    assert backend.unfinished(3600) == {}
    assert backend.list("") == {}
    backend.delete_each([name, name])
    assert backend.unfinished(-60) == {}


@pytest.mark.usefixtures("small_parts")
def test_a_download_never_mixes_two_versions(backend: S3Backend, tmp_path: Path) -> None:
    sources = [tmp_path / letter for letter in "ab"]
    for source in sources:
        source.write_bytes(source.name.encode() * 12 * MIB)
    backend.put_from("big", sources[0])
    stop = threading.Event()

    def replace() -> None:
        turn = 0
        while not stop.wait(0.2):
            turn += 1
            backend.put_from("big", sources[turn % 2])

    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        for _ in range(6):
            backend.fetch("big", tmp_path / "copy")
            data = (tmp_path / "copy").read_bytes()
            assert (len(data), len(set(data))) == (12 * MIB, 1)
        stop.set()
    replacing.result()


def test_pages_and_tables_say_what_they_are(backend: S3Backend, s3_server: "S3Server") -> None:
    for name in ("index.html", "run.json", "model.safetensors"):
        backend.put(name, b"x")
    client = s3_server.client()
    kinds = {
        name: client.head_object(Bucket=BUCKET, Key=backend._key(name))["ContentType"]
        for name in ("index.html", "run.json", "model.safetensors")
    }
    assert kinds == {
        "index.html": "text/html",
        "run.json": "application/json",
        "model.safetensors": "application/octet-stream",
    }


def test_a_changed_byte_that_comes_once_is_read_again(
    backend: S3Backend, s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create("x", b"what was written")
    monkeypatch.setattr(
        s3_client,
        "crc32",
        lambda data, real=s3_client.crc32, seen=[]: (
            seen.append(data) or ("flawed" if len(seen) == 1 else real(data))
        ),
    )
    assert backend.read("x") == b"what was written"
    # What rotted on the server comes back as it is: the store's own digests say so.
    facts = {"Metadata": {"crc32": "AAAAAA=="}}
    s3_server.client().put_object(Bucket=BUCKET, Key=backend._key("x"), Body=b"rot", **facts)
    assert backend.read("x") == b"rot"


@pytest.mark.parametrize("size", [0, 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 30 * MIB])
def test_a_file_of_a_corpus_is_read_in_blocks_and_none_twice(
    url: str, s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    data = os.urandom(size)
    system, path = file_system(f"{url}/some file.txt")
    with system.open(path, "wb") as file:
        file.write(data)
    with FaultyProxy(s3_server.endpoint, rate=0, seed=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        system, path = file_system(f"{url}/some file.txt")
        with system.open(path, "rb") as file:
            read = b"".join(iter(lambda: file.read(70_000), b""))
            assert read == data
        with system.open(path, "rb") as file:
            file.seek(-min(size, 10), 2)
            assert file.read() == data[-10:]
        needed = max(2, -(-size // (8 * MIB)) + 1 + (size > 8 * MIB))
        assert proxy.requests <= needed + 2 * (size == 0)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(url: str) -> None:
    system, path = file_system(f"{url}/corpus.txt")
    for turn in range(2):
        with system.open(path, "wb") as file:
            file.write(b"%d" % turn * 9 * MIB)
        if turn == 0:
            reading = system.open(path, "rb")
            assert reading.read(5) == b"00000"
    with pytest.raises(OSError, match="was replaced while it was read: run again"):
        reading.read()


def test_a_store_may_fill_a_whole_bucket(s3_server: "S3Server", url: str, tmp_path: Path) -> None:
    del url
    s3_server.make_bucket("whole-bucket")
    Store("s3://whole-bucket", tmp_path)
    assert set(Store("s3a://whole-bucket/", tmp_path, create=False).backend.list("")) == {
        "store.json"
    }


def test_a_missing_bucket_is_no_empty_store(url: str, tmp_path: Path) -> None:
    del url
    for create in (True, False):
        with pytest.raises(NoBucketError, match="there is no bucket 'nowhere': make it"):
            Store("s3://nowhere/store", tmp_path, create=create)
    with pytest.raises(NoBucketError):
        open_backend("s3://nowhere/store").list("records")


class WithoutIfMatch(S3Backend):
    """A server that ignores ``If-Match``."""

    async def _put(self, path: str, data: bytes, **condition: str) -> bool:
        condition.pop("IfMatch", None)
        return await super()._put(path, data, **condition)


def test_what_a_server_lacks_is_named_and_does_no_harm(backend: S3Backend) -> None:
    assert backend.lacks("work/check") == []
    poor = WithoutIfMatch(backend.fs, backend.root)
    (words,) = poor.lacks("work/check")
    assert words.startswith("If-Match: a lease is renewed by a look and a write")
    poor.put("x", b"1")
    assert poor.swap("x", b"1", b"2")
    assert not poor.swap("x", b"1", b"3")
    assert poor.read("x") == b"2"
    assert poor.list("work/check") == {}


def test_a_lost_answer_to_a_write_that_landed_is_no_second_write(
    url: str, s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)
    (tmp_path / "big").write_bytes(os.urandom(6 * MIB))
    with FaultyProxy(s3_server.endpoint, rate=0, seed=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        backend = open_backend(url)

        def meets(fault: Fault, method: str) -> None:
            proxy.forced.append((lambda asked, _: asked == method, fault))

        for number, fault in enumerate((Fault.LOST_ANSWER, Fault.DUPLICATE)):
            meets(fault, "PUT")
            assert backend.create(f"small {number}", b"mine")
            assert not backend.create(f"small {number}", b"mine")
            # Only the request that completes the upload; that which begins it has another query.
            completes = (lambda asked, target: asked == "POST" and "uploadId" in target, fault)
            proxy.forced.append(completes)
            assert backend.create_from(f"big {number}", tmp_path / "big")
            meets(fault, "PUT")
            assert backend.swap(f"small {number}", b"mine", b"other")
            store = Store(f"{url}/{number}", tmp_path / "cache")
            meets(fault, "PUT")
            assert store.append("chain", ".x", b"1")
            assert backend.list(f"{number}/chain").keys() == {f"{number}/chain/000000.x"}
        assert proxy.injected.total() == 8
        assert not proxy.forced


def test_one_client_for_each_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = file_system(url)
    assert file_system(f"{url}/other")[0] is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert file_system(url)[0] is not first


def test_a_client_is_not_shared_with_a_forked_child(backend: S3Backend, url: str) -> None:
    backend.put("x", b"from the parent")
    child = os.fork()
    if child == 0:  # pragma: no cover
        os._exit(0 if open_backend(url).read("x") == b"from the parent" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


REFUSAL = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"""


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server that says no to everything, as S3 does, and counts how often."""

    asked = 0

    def refuse(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403)
        body = b"" if self.command == "HEAD" else REFUSAL.encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = refuse  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def refused(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Backend]:
    """A backend whose server refuses everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        found = open_backend(url)
        assert isinstance(found, S3Backend)
        yield found
        server.shutdown()


@pytest.mark.parametrize(
    ("operation", "act"),
    [
        ("get_object", lambda backend: backend.read("a/b")),
        ("put_object", lambda backend: backend.create("a/b", b"")),
        ("put_object", lambda backend: backend.put("a/b", b"")),
        ("delete_object", lambda backend: backend.delete("a/b")),
        ("head_object", lambda backend: backend.exists("a/b")),
        ("list_objects_v2", lambda backend: backend.list("a/b")),
    ],
)
def test_a_refusal_names_operation_and_key_and_is_not_repeated(
    refused: S3Backend, operation: str, act: Any
) -> None:
    before = Refusing.asked
    with pytest.raises(PermissionError) as caught:
        act(refused)
    assert f"{operation} of s3://{refused.root}/a/b" in str(caught.value)
    assert "is refused" in str(caught.value)
    assert Refusing.asked == before + 1


def test_no_credentials_at_all(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PermissionError, match=r"needs credentials.*AWS_PROFILE"):
        open_backend(url).read("x")
