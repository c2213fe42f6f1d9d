"""The contract of a store on real S3 servers, over real connections."""

import uuid
from typing import TYPE_CHECKING

import pytest

from tests.s3 import S3Door
from tests.servers import BUCKET
from tests.storage.contract import BackDoor, RemoteContract

if TYPE_CHECKING:
    from tests.servers import Ministack, S3Server


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


class TestMotoStore(S3Contract):
    @pytest.fixture
    def server(self, moto_server: "S3Server") -> "S3Server":
        return moto_server


class TestMinistackStore(S3Contract):
    @pytest.fixture
    def server(self, ministack_server: "Ministack") -> "S3Server":
        return ministack_server.server


@pytest.mark.ceph
class TestCephStore(S3Contract):
    @pytest.fixture
    def server(self, ceph_server: "S3Server") -> "S3Server":
        return ceph_server
