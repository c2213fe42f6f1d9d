"""The contract of a store on real S3 servers, over real connections."""

import uuid
from typing import TYPE_CHECKING

import pytest

from storage.artifact import seal
from storage.garbage import collect
from tests.s3 import S3Door
from tests.servers import BUCKET
from tests.storage.contract import FILES, BackDoor, Client, RemoteContract, content

if TYPE_CHECKING:
    from tests.servers import S3Server


class S3Contract(RemoteContract):
    """A store below a prefix of its own in the bucket of some server."""

    stride = 19

    @pytest.fixture
    def server(self) -> "S3Server":
        raise NotImplementedError

    @pytest.fixture
    def url(self, server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> str:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        return f"s3://{BUCKET}/{uuid.uuid4().hex}/the store"

    @pytest.fixture
    def door(self, server: "S3Server", url: str) -> BackDoor:
        return S3Door(server, url)

    def test_names_that_a_disk_does_not_have_delete_nothing_of_others(self, client: Client) -> None:
        made, store = client.made(), client.open()
        made.commit(store)
        run = {"records": [made.record.path], "manifests": [], "losses": []}
        client.door.write("runs/run/run.json", seal(run))
        # A name can be a file's and a folder's, and have empty parts.
        planted = ["artifacts/model", "artifacts//x"]
        for name in planted:
            client.door.write(name, b"planted")
        assert planted[1] not in store.backend.list("")
        assert collect(store, ["run"]).artifacts == []
        assert content(client.open("another").fetch(made.record.output)) == FILES
        assert {*planted} <= {*client.door.paths()}


class TestMinistackStore(S3Contract):
    @pytest.fixture
    def server(self, s3_server: "S3Server") -> "S3Server":
        return s3_server


@pytest.mark.ceph
class TestCephStore(S3Contract):
    @pytest.fixture
    def server(self, ceph_server: "S3Server") -> "S3Server":
        return ceph_server
