"""The S3 servers that other tests stand on do what those tests take for granted."""

import itertools
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from tests.ceph import Ceph
from tests.s3 import S3Door
from tests.servers import BUCKET, Ministack, S3Server, free_port, is_answered, launch

ROOT = Path(__file__).parents[1]
ALL = ["s3_server", pytest.param("ceph_server", marks=pytest.mark.ceph)]


@pytest.fixture(params=ALL)
def server(request: pytest.FixtureRequest) -> S3Server:
    """A server of each kind."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def prefix() -> str:
    """A place of a test's own in the bucket that all share."""
    return uuid.uuid4().hex


@pytest.fixture
def door(server: S3Server, prefix: str) -> S3Door:
    """The way into that place."""
    return S3Door(server, f"s3://{BUCKET}/{prefix}")


@pytest.fixture
def ministack(tmp_path: Path) -> Iterator[Ministack]:
    """A server that a test may kill."""
    ministack = Ministack(tmp_path)
    try:
        ministack.start()
        ministack.server.make_bucket(BUCKET)
        yield ministack
    finally:
        ministack.stop()


def status(error: ClientError) -> int:
    """HTTP status of a refusal."""
    found: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return found


def create(client: Any, key: str, data: bytes) -> int:
    """HTTP status of a conditional create."""
    try:
        client.put_object(Bucket=BUCKET, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        return status(error)
    return 200


def send_in_parts(client: Any, key: str, parts: Sequence[bytes]) -> None:
    """Write an object by an upload in parts."""
    upload = {"Bucket": BUCKET, "Key": key}
    upload["UploadId"] = client.create_multipart_upload(**upload)["UploadId"]
    sent = [
        {
            "PartNumber": number,
            "ETag": client.upload_part(PartNumber=number, Body=part, **upload)["ETag"],
        }
        for number, part in enumerate(parts, 1)
    ]
    client.complete_multipart_upload(MultipartUpload={"Parts": sent}, **upload)


def objects(client: Any) -> list[dict[str, Any]]:
    """Key, size, ETag and time of each object in the bucket."""
    found: list[dict[str, Any]] = client.list_objects_v2(Bucket=BUCKET)["Contents"]
    return found


def is_gone(endpoint: str, seconds: float = 10) -> bool:
    """Whether a server stops answering in some time."""
    deadline = time.monotonic() + seconds
    while is_answered(endpoint) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_answered(endpoint)


def test_a_second_conditional_create_is_refused(
    server: S3Server, door: S3Door, prefix: str
) -> None:
    client = server.client()
    assert [create(client, f"{prefix}/x", data) for data in (b"first", b"second")] == [200, 412]
    assert door.read("x") == b"first"


def test_of_16_racing_threads_exactly_one_creates(
    server: S3Server, door: S3Door, prefix: str
) -> None:
    client, start = server.client(), threading.Barrier(16)

    def attempt(turn: int, number: int) -> int:
        start.wait()
        return create(client, f"{prefix}/{turn}", b"%d" % number)

    with ThreadPoolExecutor(16) as pool:
        for turn in range(10):
            answers = list(pool.map(attempt, [turn] * 16, range(16)))
            assert answers.count(200) == 1
            assert set(answers) == {200, 412}
            assert door.read(str(turn)) == b"%d" % answers.index(200)


def test_the_door_reads_writes_deletes_and_lists(
    server: S3Server, door: S3Door, prefix: str
) -> None:
    assert door.paths() == []
    door.write("b/größe", b"1")
    door.write("a", b"")
    door.write("a", b"2")
    S3Door(server, f"s3://{BUCKET}/{prefix}-other").write("x", b"")
    assert door.paths() == ["a", "b/größe"]
    assert (door.read("a"), door.read("b/größe")) == (b"2", b"1")
    door.delete("a")
    assert door.paths() == ["b/größe"]
    with pytest.raises(ClientError, match="NoSuchKey"):
        door.read("a")


def test_the_door_of_a_bucket_sees_all_of_it_however_many_pages(ministack: Ministack) -> None:
    whole = S3Door(ministack.server, f"s3://{BUCKET}")
    below = S3Door(ministack.server, f"s3://{BUCKET}/below/it/")
    paths = [f"{number:04}" for number in range(1001)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: below.write(path, b""), paths))
    assert below.paths() == paths
    assert whole.paths() == [f"below/it/{path}" for path in paths]


def test_ministack_keeps_what_it_has_through_a_kill(ministack: Ministack) -> None:
    client, door = ministack.server.client(), S3Door(ministack.server, f"s3://{BUCKET}")
    ministack.server.make_bucket("empty-bucket")
    parts = (b"a" * (5 << 20), b"b")
    send_in_parts(client, "sent/in parts", parts)
    facts = {"ContentType": "text/plain", "Metadata": {"writer": "me"}}
    client.put_object(Bucket=BUCKET, Key="x", Body=b"1", **facts)
    before = objects(client)

    ministack.kill()
    assert is_gone(ministack.server.endpoint, 0)
    ministack.restart()

    assert objects(client) == before
    assert [len(entry["ETag"]) for entry in before] == [len('"-2"') + 32, len('""') + 32]
    assert (door.read("sent/in parts"), door.read("x")) == (b"".join(parts), b"1")
    head = client.head_object(Bucket=BUCKET, Key="x")
    assert {name: head[name] for name in facts} == facts
    assert create(client, "x", b"2") == 412
    buckets = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    assert sorted(buckets) == ["empty-bucket", BUCKET]


def test_a_port_that_is_taken_is_told(ministack: Ministack, tmp_path: Path) -> None:
    port = urlsplit(ministack.server.endpoint).port
    with pytest.raises(RuntimeError, match=f"something else listens at .*:{port}"):
        Ministack(tmp_path / "other", port).start()


def test_a_server_that_fails_says_why(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 3; .*/log says:\nno luck"):
        launch(["sh", "-c", "echo no luck; exit 3"], tmp_path / "log", endpoint)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_server_to_play_with_ends_with_its_process(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "tests.servers", "ministack", "--data", str(tmp_path)]
    command += ["--port", str(free_port())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = list(itertools.takewhile(lambda line: "Ctrl-C" not in line, process.stdout))
        told = dict(line.removeprefix("export ").strip().split("=", 1) for line in said)
        names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        server = S3Server(*(told[name] for name in names))
        assert told == server.environment
        S3Door(server, f"s3://{BUCKET}").write("x", b"1")
        process.send_signal(number)
    assert process.returncode == (0 if number == signal.SIGINT else -number)
    assert is_gone(server.endpoint)


@pytest.mark.ceph
def test_ceph_refuses_a_wrong_secret(ceph_server: S3Server) -> None:
    S3Door(ceph_server, f"s3://{BUCKET}").write("x", b"1")
    stranger = S3Door(replace(ceph_server, secret_key="wrong"), f"s3://{BUCKET}")
    for act in (stranger.paths, lambda: stranger.read("x"), lambda: stranger.write("x", b"2")):
        with pytest.raises(ClientError) as caught:
            act()
        assert status(caught.value) == 403


def test_without_its_programs_ceph_names_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"radosgw.* not found; .*: apt-get install .* radosgw"):
        Ceph(tmp_path)
