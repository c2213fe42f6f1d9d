"""Addresses in Prefect's pages lead to what lies in the store, and hold no secrets."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from flows.prefect.links import PRESIGNED_SECONDS, VARIABLE, address, is_clickable, link
from tests.servers import BUCKET

if TYPE_CHECKING:
    from tests.servers import S3Server


def test_without_links_a_file_has_its_own_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store" / "runs").mkdir(parents=True)
    report = tmp_path / "store" / "runs" / "report.html"
    report.write_text("text")
    assert link("store", "runs/report.html") == report.as_uri()
    assert link("s3://bucket/store/", "runs/report.html") == "s3://bucket/store/runs/report.html"
    assert address("store") == (tmp_path / "store").as_uri()
    assert not is_clickable(link("store", "runs/report.html"))


def test_each_store_has_the_start_that_is_given_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        f"{tmp_path} http://127.0.0.1:4201/",
        " s3://bucket/pool https://console.example/bucket?prefix=pool/ ",
    ]
    monkeypatch.setenv(VARIABLE, ",".join(entries))
    monkeypatch.chdir(tmp_path.parent)
    found = link(tmp_path.name, "runs/one two/report.html")
    assert found == "http://127.0.0.1:4201/runs/one%20two/report.html"
    assert is_clickable(found)
    assert link(f"file://{tmp_path}/", "index.html") == "http://127.0.0.1:4201/index.html"
    assert link("s3://bucket/pool/", "runs/", is_folder=True) == (
        "https://console.example/bucket?prefix=pool/runs/"
    )
    # Another store that begins with the same letters.
    assert link("s3://bucket/pool2", "index.html") == "s3://bucket/pool2/index.html"


def test_signed_address_opens_the_file_for_a_week_and_holds_no_secret(
    s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(VARIABLE, "presigned")
    prefix = uuid.uuid4().hex
    store, path = f"s3://{BUCKET}/{prefix}", "runs/a b/report.html"
    s3_server.client().put_object(Bucket=BUCKET, Key=f"{prefix}/{path}", Body=b"<h1>report</h1>")
    found = link(store, path)
    assert is_clickable(found)
    assert httpx.get(found).text == "<h1>report</h1>"
    assert s3_server.secret_key not in found
    query = parse_qs(urlsplit(found).query)
    signed = {name.lower() for name in query}
    assert signed & {"signature", "x-amz-signature"}
    assert query.get("X-Amz-Expires", [str(PRESIGNED_SECONDS)]) == [str(PRESIGNED_SECONDS)]
    assert link(store, "runs/", is_folder=True) == f"{store}/runs"


def test_a_pair_goes_before_signing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "s3://bucket/pool https://pages.example/,presigned")
    assert link("s3://bucket/pool", "index.html") == "https://pages.example/index.html"
