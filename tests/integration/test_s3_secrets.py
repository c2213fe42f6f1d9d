"""Credentials are used and never kept: not in the store, the logs, the caches or Prefect's database."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.chain.recipe_file import to_yaml
from tests.servers import BUCKET

if TYPE_CHECKING:
    from tests.conftest import TinyRecipe
    from tests.servers import S3Server

pytestmark = pytest.mark.slow

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED4KEYID",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+key0123456789",
    "AWS_SESSION_TOKEN": "planted-session-token-0123456789",
}
IN_PROFILE = {"aws_access_key_id": "AKIAPROFILE7KEYID", "aws_secret_access_key": "profile/secret+1"}


class Desk:
    """A person's home folder, from which commands run; everything that they say is kept."""

    def __init__(self, folder: Path, server: "S3Server") -> None:
        self.folder = folder
        self.said = b""
        hidden = {*server.environment, *SECRETS, "AWS_PROFILE"}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.base = {k: v for k, v in kept.items() if k not in hidden} | {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "150",
            "TMPDIR": str(folder / "tmp"),
        }
        (folder / "tmp").mkdir()

    def mixpool(self, *arguments: str, **environment: str) -> int:
        """Run the command line in a process of its own; its exit status."""
        command = [str(Path(sys.executable).with_name("mixpool")), *arguments]
        done = subprocess.run(
            command, env=self.base | environment, cwd=self.folder, capture_output=True, check=False
        )
        self.said += done.stdout + done.stderr
        return done.returncode

    def leavings(self) -> Iterator[tuple[str, bytes]]:
        """Every file that is left, and every word that was said."""
        yield "the output", self.said
        for path in self.folder.rglob("*"):
            if path.is_file() and ".aws" not in path.parts:
                yield str(path), path.read_bytes()


def test_no_secret_is_left_anywhere(
    s3_server: "S3Server", tiny_recipe: "TinyRecipe", tmp_path: Path
) -> None:
    desk = Desk(tmp_path, s3_server)
    only = "corpus.source.include_domains=[birds, law]"
    tiny_recipe(tmp_path)
    where = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    client = s3_server.client()
    prefix = where.removeprefix(f"s3://{BUCKET}/")
    for path in (tmp_path / "corpus").iterdir():
        client.upload_file(str(path), BUCKET, f"{prefix}/corpus/{path.name}")
    recipe = tiny_recipe(tmp_path, only, f"corpus.source.urls=['{where}/corpus/*.jsonl']")
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    (tmp_path / ".aws").mkdir()
    lines = "\n".join(f"{name} = {value}" for name, value in IN_PROFILE.items())
    (tmp_path / ".aws" / "credentials").write_text(f"[planted]\n{lines}\n")

    store = f"{where}/store"
    here = ("recipe.yaml", "--store", store)
    nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "MIXPOOL_PATIENCE_SECONDS": "1"}
    in_url = f"s3://AKIA:{SECRETS['AWS_SECRET_ACCESS_KEY']}@{BUCKET}/x"
    done = [
        desk.mixpool("run", *here, "--prefect", **SECRETS),
        desk.mixpool("run", *here, AWS_PROFILE="planted"),
        desk.mixpool("verify", "--store", store, AWS_PROFILE="planted"),
    ]
    assert done == [0] * 3, desk.said.decode()[-3000:]
    # Failures tell more than successes.
    failed = [
        desk.mixpool("run", "recipe.yaml", "--store", "s3://no-such-bucket/x", **SECRETS),
        desk.mixpool("show", "--store", store, **SECRETS, **nobody),
        desk.mixpool("show", "--store", store, AWS_PROFILE="unheard-of"),
        desk.mixpool("show", "--store", in_url),
    ]
    assert failed == [1] * 4, desk.said.decode()[-3000:]

    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    keys = [found["Key"] for page in pages for found in page["Contents"]]
    stored = [(key, client.get_object(Bucket=BUCKET, Key=key)) for key in keys]
    assert any(key.endswith("index.html") for key in keys)
    left = [*desk.leavings()]
    left += [
        (key, found["Body"].read() + repr(found["Metadata"]).encode()) for key, found in stored
    ]
    left += [("the keys", "\n".join(keys).encode())]
    assert any("prefect" in name and b"SQLite" in data for name, data in left)
    assert b"there is no bucket" in desk.said
    for secret in (*SECRETS.values(), *IN_PROFILE.values()):
        assert [name for name, data in left if secret.encode() in data] == []
