"""Every fault does what its line says, and without faults the proxy cannot be told from the server.

The server is a real one in a process of its own. Clients try once only: what they see is what the
proxy did. What the server holds is asked of the server itself, past the proxy.
"""

import base64
import http.client
import io
import random
import socket
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError, HTTPClientError

from tests.faulty import Fault, FaultyProxy
from tests.servers import S3Server, free_port

MIB = 1 << 20
BUCKET = "bucket"


@pytest.fixture(scope="module")
def server(s3_server: S3Server) -> str:
    """The URL of a real S3 server with one bucket."""
    with s3(s3_server.endpoint) as client:
        client.create_bucket(Bucket=BUCKET)
    return s3_server.endpoint


def s3(url: str) -> closing[Any]:
    """A client that tries once and does not check sums of answers."""
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(
            retries={"total_max_attempts": 1},
            max_pool_connections=64,
            response_checksum_validation="when_required",
        ),
    )
    return closing(client)


@pytest.fixture(scope="module")
def direct(server: str) -> Iterator[Any]:
    """A client of the server itself."""
    with s3(server) as client:
        yield client


@pytest.fixture
def proxy(server: str) -> Iterator[FaultyProxy]:
    """A proxy that only does what it is forced to."""
    with FaultyProxy(server, rate=0, seed=1) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultyProxy) -> Iterator[Any]:
    """A client of the proxy."""
    with s3(proxy.endpoint) as client:
        yield client


@pytest.fixture
def key() -> str:
    """A name that nothing has yet."""
    return f"some/{uuid.uuid4().hex}"


def always(_method: str, _target: str) -> bool:
    return True


def code(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    answer = error.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def has(direct: Any, key: str) -> bool:
    found = direct.list_objects_v2(Bucket=BUCKET, Prefix=key)
    return bool(found["KeyCount"])


def read(client: Any, key: str, **how: str) -> bytes:
    data: bytes = client.get_object(Bucket=BUCKET, Key=key, **how)["Body"].read()
    return data


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        (Fault.UNAVAILABLE, (503, "ServiceUnavailable")),
        (Fault.SLOW_DOWN, (503, "SlowDown")),
        (Fault.INTERNAL, (500, "InternalError")),
        (Fault.CONFLICT, (409, "ConditionalRequestConflict")),
    ],
)
def test_refused(
    proxy: FaultyProxy, client: Any, direct: Any, key: str, fault: Fault, answer: tuple[int, str]
) -> None:
    proxy.forced.append((always, fault))
    with pytest.raises(ClientError) as error:
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x" * MIB, IfNoneMatch="*")
    assert code(error) == answer
    assert not has(direct, key)
    assert proxy.log == [("PUT", f"/{BUCKET}/{key}", fault)]
    client.put_object(Bucket=BUCKET, Key=key, Body=b"x" * MIB, IfNoneMatch="*")
    assert has(direct, key)


def test_refused_head_has_no_body(proxy: FaultyProxy) -> None:
    proxy.forced.append((always, Fault.UNAVAILABLE))
    url = urlsplit(proxy.endpoint)
    # Clients read ahead and drop what they read: none of them would show a body.
    with socket.create_connection((url.hostname, url.port or 0)) as raw, raw.makefile("rb") as said:
        raw.sendall(b"HEAD /bucket/key HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        head, _, body = said.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert body == b""


def test_conflict_is_for_conditional_writes_only(proxy: FaultyProxy, client: Any, key: str) -> None:
    proxy.forced.append((always, Fault.CONFLICT))
    with pytest.raises(ClientError) as error:
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    assert code(error) == (500, "InternalError")
    assert proxy.injected == {Fault.INTERNAL: 1}


@pytest.mark.parametrize(("fault", "arrives"), [(Fault.RESET, False), (Fault.LOST_ANSWER, True)])
def test_connection_lost(
    proxy: FaultyProxy, client: Any, direct: Any, key: str, fault: Fault, arrives: bool
) -> None:
    proxy.forced.append((always, fault))
    with pytest.raises((ConnectionClosedError, HTTPClientError)):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    assert has(direct, key) is arrives
    assert proxy.injected == {fault: 1}


def test_duplicate_create_fails_although_it_landed(
    proxy: FaultyProxy, client: Any, direct: Any, key: str
) -> None:
    body = random.Random(0).randbytes(20 * MIB)  # more than stays in memory
    proxy.forced.append((always, Fault.DUPLICATE))
    with pytest.raises(ClientError) as error:
        client.put_object(Bucket=BUCKET, Key=key, Body=body, IfNoneMatch="*")
    assert code(error) == (412, "PreconditionFailed")
    assert read(direct, key) == body
    assert proxy.injected == {Fault.DUPLICATE: 1}


def test_truncated_says_the_full_length(proxy: FaultyProxy, direct: Any, key: str) -> None:
    body = random.Random(1).randbytes(3 * MIB)
    direct.put_object(Bucket=BUCKET, Key=key, Body=body)
    proxy.forced.append((always, Fault.TRUNCATED))
    with ask(proxy, presigned(direct, "get_object", key)) as answer:
        assert answer.getheader("Content-Length") == str(len(body))
        with pytest.raises(http.client.IncompleteRead) as error:
            answer.read()
    assert body.startswith(error.value.partial)
    assert proxy.injected == {Fault.TRUNCATED: 1}


def test_truncated_without_a_body_is_a_lost_answer(
    proxy: FaultyProxy, client: Any, direct: Any, key: str
) -> None:
    proxy.forced.append((always, Fault.TRUNCATED))
    with pytest.raises((ConnectionClosedError, HTTPClientError)):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    assert has(direct, key)
    assert proxy.injected == {Fault.LOST_ANSWER: 1}


def test_late(server: str, direct: Any, key: str) -> None:
    direct.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    with FaultyProxy(server, rate=1, seed=1, faults=[Fault.LATE], late=(0.3, 0.4)) as proxy:
        start = time.monotonic()
        with ask(proxy, presigned(direct, "get_object", key)) as answer:
            assert answer.read() == b"x"
        assert time.monotonic() - start > 0.3
        assert proxy.injected == {Fault.LATE: 1}


@pytest.mark.parametrize("how", [{}, {"Range": "bytes=1000-2000999"}], ids=["whole", "range"])
def test_flipped_is_one_bit(
    proxy: FaultyProxy, client: Any, direct: Any, key: str, how: dict[str, str]
) -> None:
    direct.put_object(Bucket=BUCKET, Key=key, Body=random.Random(2).randbytes(3 * MIB))
    proxy.forced.append((always, Fault.FLIPPED))
    flipped, sound = (int.from_bytes(read(of, key, **how)) for of in (client, direct))
    assert (flipped ^ sound).bit_count() == 1
    assert proxy.injected == {Fault.FLIPPED: 1}


def test_flipped_spares_all_but_objects(
    proxy: FaultyProxy, client: Any, direct: Any, key: str
) -> None:
    requests: list[Callable[[Any], object]] = [
        lambda of: of.list_objects_v2(Bucket=BUCKET, Prefix=key)["Contents"],
        lambda of: of.get_object_tagging(Bucket=BUCKET, Key=key)["TagSet"],
        lambda of: of.head_object(Bucket=BUCKET, Key=key)["ETag"],
    ]
    direct.put_object(Bucket=BUCKET, Key=key, Body=b"sound", Tagging="a=b")
    for request in requests:
        proxy.forced.append((always, Fault.FLIPPED))
        assert request(client) == request(direct)
    proxy.forced.append((always, Fault.FLIPPED))
    with pytest.raises(ClientError, match="NoSuchKey"):
        read(client, f"{key}-absent")
    assert not proxy.forced
    assert not proxy.injected


def test_forced_waits_for_its_request(proxy: FaultyProxy, client: Any, key: str) -> None:
    proxy.forced.append((lambda method, target: method == "GET", Fault.UNAVAILABLE))
    client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    with pytest.raises(ClientError, match="ServiceUnavailable"):
        read(client, key)
    assert read(client, key) == b"x"
    assert [fault for _, _, fault in proxy.log] == [None, Fault.UNAVAILABLE, None]


def work(client: Any, folder: str) -> None:
    """The same requests each time, whatever comes of them."""
    name = {"Bucket": BUCKET, "Key": f"{folder}/a"}
    requests: list[Callable[[], object]] = [
        lambda: client.put_object(**name, Body=b"x" * 100),
        lambda: client.put_object(**name, Body=b"y" * 100, IfNoneMatch="*"),
        lambda: client.get_object(**name)["Body"].read(),
        lambda: client.get_object(**name, Range="bytes=10-19")["Body"].read(),
        lambda: client.head_object(**name),
        lambda: client.list_objects_v2(Bucket=BUCKET, Prefix=folder),
    ]
    for _ in range(5):
        for request in requests:
            attempt(request)


def attempt(request: Callable[[], object]) -> bool:
    """Whether it came through."""
    try:
        request()
    except (BotoCoreError, ClientError):
        return False
    return True


def schedule(server: str, seed: int, folder: str) -> list[tuple[str, str, Fault | None]]:
    with FaultyProxy(server, rate=0.5, seed=seed, late=(0.001, 0.002)) as proxy:
        with s3(proxy.endpoint) as client:
            work(client, folder)
        return proxy.log


def test_a_seed_is_a_schedule(server: str, direct: Any) -> None:
    logs = []
    for seed in (1, 1, 2):
        direct.delete_object(Bucket=BUCKET, Key="seeded/a")
        logs.append(schedule(server, seed, "seeded"))
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]
    assert len({fault for _, _, fault in logs[0]}) > 5


def parts_refused(server: str) -> list[Fault | None]:
    """What the parts of an upload that the server does not know meet."""
    upload = {"Bucket": BUCKET, "Key": "parts", "UploadId": uuid.uuid4().hex}
    with (
        FaultyProxy(server, rate=0.5, seed=5, faults=[Fault.UNAVAILABLE]) as proxy,
        s3(proxy.endpoint) as client,
    ):
        for number in range(1, 17):
            attempt(partial(client.upload_part, **upload, PartNumber=number, Body=b""))
        return [fault for _, _, fault in proxy.log]


def test_upload_ids_do_not_change_the_schedule(server: str) -> None:
    met = parts_refused(server)
    assert met == parts_refused(server)
    assert set(met) == {None, Fault.UNAVAILABLE}


@pytest.mark.parametrize("longest", [0, 1, 3])
def test_longest_bounds_the_row(server: str, key: str, longest: int) -> None:
    faults = [Fault.UNAVAILABLE, Fault.RESET]
    with (
        FaultyProxy(server, rate=1, seed=1, faults=faults, longest=longest) as proxy,
        s3(proxy.endpoint) as client,
    ):
        came_through = [
            attempt(lambda: client.put_object(Bucket=BUCKET, Key=key, Body=b"x")) for _ in range(12)
        ]
    rows = [len(list(row)) for passed, row in groupby(came_through) if not passed]
    assert rows == [longest] * (12 // (longest + 1) if longest else 0)


def test_pick_and_rate(server: str, key: str) -> None:
    def is_get(method: str, target: str) -> bool:
        return method == "GET" and key in target

    with (
        FaultyProxy(server, rate=1, seed=1, faults=[Fault.SLOW_DOWN], pick=is_get) as proxy,
        s3(proxy.endpoint) as client,
    ):
        assert attempt(lambda: client.put_object(Bucket=BUCKET, Key=key, Body=b"x"))
        assert not attempt(lambda: read(client, key))
        proxy.rate = 0
        assert attempt(lambda: read(client, key))
        assert (proxy.requests, proxy.injected) == (3, {Fault.SLOW_DOWN: 1})


def test_without_faults_bytes_stay_as_they_are(
    proxy: FaultyProxy, client: Any, direct: Any, key: str
) -> None:
    body = random.Random(3).randbytes(20 * MIB)
    name = {"Bucket": BUCKET, "Key": key}
    upload = {**name, "UploadId": client.create_multipart_upload(**name)["UploadId"]}

    def send(number: int) -> dict[str, Any]:
        part = body[(number - 1) * 5 * MIB : number * 5 * MIB]
        tag = client.upload_part(**upload, PartNumber=number, Body=part)["ETag"]
        return {"PartNumber": number, "ETag": tag}

    def fetch(start: int) -> bytes:
        return read(client, key, Range=f"bytes={start}-{start + 3 * MIB - 1}")

    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(send, range(1, 5)))
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        ranges = b"".join(threads.map(fetch, range(0, len(body), 3 * MIB)))
    assert read(direct, key) == body
    assert read(client, key) == body
    assert ranges == body
    assert not proxy.injected


@contextmanager
def echo(port: int) -> Iterator[list[dict[str, str]]]:
    """A server that answers with the body it got, in chunks; gives the headers it got."""
    heard: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            heard.append(dict(self.headers))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
            for piece in (*pieces, b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield heard
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def ask(proxy: FaultyProxy, target: str, body: bytes = b"") -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET over a connection of its own, as a client without any S3 sees it."""
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=30)
    with closing(connection):
        connection.request("GET", target, body)
        with connection.getresponse() as answer:
            yield answer


def presigned(direct: Any, operation: str, key: str) -> str:
    """Path and query that let a client without any S3 do the operation."""
    name = {"Bucket": BUCKET, "Key": key}
    url = urlsplit(direct.generate_presigned_url(operation, Params=name))
    return f"{url.path}?{url.query}"


def test_fields_arrive_as_they_were_sent() -> None:
    port = free_port()
    with echo(port) as heard, FaultyProxy(f"http://127.0.0.1:{port}", rate=0, seed=1) as proxy:
        with ask(proxy, "/a?b=c%20d") as answer:
            assert answer.status == 200
        assert heard[0]["Host"] == urlsplit(proxy.endpoint).netloc


@pytest.mark.parametrize("fault", [None, Fault.TRUNCATED, Fault.FLIPPED])
def test_a_chunked_answer_gets_a_length(fault: Fault | None) -> None:
    port, body = free_port(), random.Random(4).randbytes(12345)
    with echo(port), FaultyProxy(f"http://127.0.0.1:{port}", rate=0, seed=1) as proxy:
        if fault:
            proxy.forced.append((always, fault))
        with ask(proxy, "/bucket/key", body) as answer:
            assert answer.getheader("Content-Length") == "12345"
            if fault is Fault.TRUNCATED:
                with pytest.raises(http.client.IncompleteRead):
                    answer.read()
            else:
                got, sent = int.from_bytes(answer.read()), int.from_bytes(body)
                assert (got ^ sent).bit_count() == (fault is Fault.FLIPPED)


def test_a_server_that_dies_and_comes_back() -> None:
    port = free_port()
    with FaultyProxy(f"http://127.0.0.1:{port}", rate=0, seed=1) as proxy:
        for _ in range(2):
            assert not answers(proxy)
            with echo(port), ask(proxy, "/a", b"back") as answer:
                assert answer.read() == b"back"
        assert [fault for _, _, fault in proxy.log] == [None] * 4


def framed(pieces: list[bytes]) -> Iterator[bytes]:
    """As S3 clients frame what they sign or sum up on the way: aws-chunked, with a trailer."""
    total = base64.b64encode(zlib.crc32(b"".join(pieces)).to_bytes(4))
    for piece in (*pieces, b""):
        yield b"%x\r\n" % len(piece)
        yield piece + b"\r\n" if piece else b"x-amz-checksum-crc32:" + total + b"\r\n\r\n"


@pytest.mark.parametrize("is_framed", [False, True], ids=["chunked", "aws-chunked"])
def test_chunked_requests_share_a_connection(
    proxy: FaultyProxy, direct: Any, key: str, is_framed: bool
) -> None:
    pieces = [random.Random(5).randbytes(size) for size in (1, MIB, 70_000)]
    headers = {"Content-Encoding": "aws-chunked"} if is_framed else {}
    headers |= {"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"} if is_framed else {}
    target = presigned(direct, "put_object", key)
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=30)
    with closing(connection):
        for fault, status in ((Fault.UNAVAILABLE, 503), (Fault.DUPLICATE, 200), (None, 200)):
            if fault:
                proxy.forced.append((always, fault))
            body: Iterable[bytes] = framed(pieces) if is_framed else iter(pieces)
            connection.request("PUT", target, body, headers, encode_chunked=True)
            with connection.getresponse() as answer:
                answer.read()
            assert (answer.status, bool(connection.sock)) == (status, True)
    assert read(direct, key) == b"".join(pieces)


def test_a_client_that_waits_to_be_told_to_go_on(client: Any, direct: Any, key: str) -> None:
    sent: dict[str, Any] = {}
    client.meta.events.register("before-send.s3", lambda request, **_: sent.update(request.headers))
    body = random.Random(6).randbytes(2 * MIB)
    client.put_object(Bucket=BUCKET, Key=key, Body=io.BytesIO(body))  # files are sent so
    assert sent["Expect"] == b"100-continue"
    assert read(direct, key) == body


def persist(request: Callable[[], object]) -> bool:
    """Whether one of 12 tries came through: more than three rows of faults can swallow."""
    return any(attempt(request) for _ in range(12))


def check(client: Any, key: str, body: bytes) -> None:
    if read(client, key) != body:
        raise HTTPClientError(error="a flipped bit")


def test_a_client_with_patience_loses_nothing(server: str, direct: Any) -> None:
    """32 threads at once, each over a connection of its own."""
    bodies = {f"patience/{number}": random.Random(number).randbytes(20_000) for number in range(96)}

    def write_and_read(to: Any, name: str) -> bool:
        is_written = persist(lambda: to.put_object(Bucket=BUCKET, Key=name, Body=bodies[name]))
        return is_written and persist(lambda: check(to, name, bodies[name]))

    with (
        FaultyProxy(server, rate=0.5, seed=7, late=(0.001, 0.05)) as proxy,
        s3(proxy.endpoint) as patient,
        ThreadPoolExecutor(32) as threads,
    ):
        assert all(threads.map(partial(write_and_read, patient), bodies))
        assert {*proxy.injected} == {*Fault} - {Fault.CONFLICT}
    for name, body in bodies.items():
        assert read(direct, name) == body


def test_errors_of_a_predicate_are_not_taken_for_faults(server: str) -> None:
    def broken(method: str, target: str) -> bool:
        raise KeyError(method + target)

    proxy = FaultyProxy(server, rate=1, seed=1, pick=broken)
    with pytest.raises(ExceptionGroup, match="errors of the proxy itself") as error, proxy:
        assert not answers(proxy)
    assert error.group_contains(KeyError)


def answers(proxy: FaultyProxy) -> bool:
    try:
        with ask(proxy, "/a"):
            return True
    except ConnectionError:
        return False


@pytest.mark.parametrize("url", ["127.0.0.1:9000", "http://127.0.0.1", "https://127.0.0.1:9000"])
def test_an_upstream_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=url):
        FaultyProxy(url, rate=0, seed=1)
