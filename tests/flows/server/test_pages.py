"""A store over http: what lies there as it lies there, nothing beside it, and for this machine alone."""

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin

import pytest
from starlette.testclient import TestClient

from flows.server.pages import CHUNK, pages
from tests.servers import BUCKET, free_port

if TYPE_CHECKING:
    from tests.servers import S3Server

FILES = {
    "index.html": b"<h1>index</h1>",
    "runs/one/report.html": b"<h1>report</h1>",
    "runs/one/run.json": b'{"name": "one"}',
    "runs/one/recipe.yaml": b"name: one\n",
    "runs/one/ranking.parquet": b"PAR1" + bytes(2 * CHUNK),
    "runs/a <b> & c: 50%?/report.html": b"<h1>strange</h1>",
}

BESIDE = b"not of the store"
KEY = "key"


def client(store: str, host: str = "127.0.0.1:4201") -> TestClient:
    """A browser that asks for ``http://host/KEY``; faults inside are answers."""
    return TestClient(pages(store, KEY), f"http://{host}/{KEY}", raise_server_exceptions=False)


@pytest.fixture(params=["disk", "s3"])
def browser(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    """A browser that looks at a store on disk, and at one in a bucket."""
    if request.param == "disk":
        url = write_to_disk(tmp_path)
    else:
        url = write_to_s3(request.getfixturevalue("s3_server"), monkeypatch)
    with client(url) as found:
        yield found


def write_to_disk(folder: Path) -> str:
    """Write the files, and one beside the store; the store's address."""
    for name, data in FILES.items():
        file = folder / "store" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (folder / "secret").write_bytes(BESIDE)
    return str(folder / "store")


def write_to_s3(server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> str:
    """The same in a bucket."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    prefix, s3 = uuid.uuid4().hex, server.client()
    for name, data in FILES.items():
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}/store/{name}", Body=data)
    s3.put_object(Bucket=BUCKET, Key=f"{prefix}/secret", Body=BESIDE)
    return f"s3://{BUCKET}/{prefix}/store"


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_lies_there(browser: TestClient, name: str) -> None:
    answer = browser.get(quote(f"/{name}"))
    assert (answer.status_code, answer.content) == (200, FILES[name])
    assert answer.headers["content-length"] == str(len(FILES[name]))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("report.html", "text/html"),
        ("run.json", "text/plain"),
        ("recipe.yaml", "text/plain"),
        ("ranking.parquet", "application/"),
    ],
)
def test_text_is_shown_and_tables_are_downloaded(browser: TestClient, name: str, kind: str) -> None:
    assert browser.get(f"/runs/one/{name}").headers["content-type"].startswith(kind)


def test_begins_with_the_index(browser: TestClient) -> None:
    answer = browser.get("/")
    assert (answer.url.path, answer.content) == (f"/{KEY}/index.html", FILES["index.html"])


def test_a_folder_lists_what_is_in_it(browser: TestClient) -> None:
    answer = browser.get("/runs")
    assert (answer.status_code, answer.url.path) == (200, f"/{KEY}/runs/")
    assert '<a href="one/">one/</a>' in answer.text
    names = ["ranking.parquet", "recipe.yaml", "report.html", "run.json"]
    links = [f'<a href="{name}">{name}</a>' for name in names]
    listed = browser.get("/runs/one/").text
    assert [listed.index(one) for one in links] == sorted(listed.index(one) for one in links)


def test_names_of_data_are_no_markup_and_their_links_lead_there(browser: TestClient) -> None:
    listed = browser.get("/runs/").text
    assert "a &lt;b&gt; &amp; c: 50%?/</a>" in listed
    assert "<b>" not in listed
    (link,) = re.findall(r'href="(a.*?)"', listed)
    answer = browser.get(f"{urljoin('/runs/', link)}report.html")
    assert answer.content == b"<h1>strange</h1>"


def test_what_is_not_there_is_not_found(browser: TestClient) -> None:
    for path in ("/runs/two/report.html", "/nothing", "/nothing/"):
        answer = browser.get(path)
        assert answer.status_code == 404
        assert path.strip("/") in answer.text


@pytest.mark.parametrize(
    "path",
    ["/%2e%2e/secret", "/runs/%2e%2e/%2e%2e/secret", "/..%2fsecret", "/runs/..%2f..%2fsecret"],
)
def test_nothing_beside_the_store_is_shown(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    assert answer.status_code == 404
    assert BESIDE not in answer.content


def test_whole_paths_stay_in_the_store(tmp_path: Path) -> None:
    with client(write_to_disk(tmp_path)) as found:
        answer = found.get(f"http://127.0.0.1:4201/{KEY}/{tmp_path}/secret")
    assert (answer.status_code, answer.url.path) == (404, f"/{KEY}/{tmp_path}/secret")


@pytest.mark.parametrize("link", ["runs/one/away", "runs/away", "away", "index.html"])
def test_links_lead_nowhere_beside_the_store(tmp_path: Path, link: str) -> None:
    store = Path(write_to_disk(tmp_path))
    (store / link).unlink(missing_ok=True)
    (store / link).symlink_to(tmp_path)
    with client(str(store)) as found:
        for path in (link, f"{link}/", f"{link}/secret"):
            answer = found.get(f"/{path}")
            assert (answer.status_code == 404) or "No run has ended yet" in answer.text
            assert BESIDE not in answer.content
            assert b"href" not in answer.content
        (store / link).unlink()
        (store / link).symlink_to(tmp_path / "secret")
        assert BESIDE not in found.get(f"/{link}").content


def test_a_store_may_lie_behind_a_link_and_have_links_inside(tmp_path: Path) -> None:
    store = Path(write_to_disk(tmp_path))
    (tmp_path / "place").symlink_to(store)
    (store / "newest").symlink_to("runs/one")
    with client(str(tmp_path / "place")) as found:
        assert found.get("/newest/report.html").content == FILES["runs/one/report.html"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    store = Path(write_to_disk(tmp_path))
    os.mkfifo(store / "pipe")
    with client(str(store)) as found:
        assert found.get("/pipe").status_code == 404


@pytest.mark.parametrize("path", ["/", "/index.html", "/wrong/index.html", "//index.html", "/keys"])
def test_who_has_no_key_sees_nothing(browser: TestClient, path: str) -> None:
    answer = browser.get(f"http://127.0.0.1:4201{path}")
    assert answer.status_code == 404
    assert answer.text == "open the address that `mixpool serve` prints for the store"


@pytest.mark.parametrize(
    "path", ["/index.html", "/runs/", "/runs/one/run.json", "/runs/one/ranking.parquet", "/nothing"]
)
def test_a_browser_runs_nothing_of_a_store_and_tells_nobody(browser: TestClient, path: str) -> None:
    headers = browser.get(path).headers
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "sandbox allow-downloads", "frame-ancestors 'none'"} < set(policy)
    assert not [rule for rule in policy if "script" in rule or "same-origin" in rule]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:4201", 200),
        ("127.0.0.1", 200),
        ("elsewhere.example:4201", 400),
        ("127.0.0.1.elsewhere.example", 400),
    ],
)
def test_only_this_machine_is_answered(tmp_path: Path, host: str, status: int) -> None:
    with client(write_to_disk(tmp_path), host) as found:
        answer = found.get("/index.html")
    assert answer.status_code == status
    assert (FILES["index.html"] in answer.content) == (status == 200)


def test_nothing_can_be_written(browser: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert browser.request(method, "/index.html").status_code == 405
    assert browser.get("/index.html").content == FILES["index.html"]


def test_a_new_file_is_seen_at_once(tmp_path: Path) -> None:
    with client(write_to_disk(tmp_path)) as found:
        assert "two" not in found.get("/runs/").text
        (tmp_path / "store" / "runs" / "two").mkdir()
        assert '<a href="two/">' in found.get("/runs/").text


def test_a_store_that_does_not_answer_is_said(
    s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write_to_s3(s3_server, monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MIXPOOL_PATIENCE_SECONDS", "1")
    with client(url) as found:
        answer = found.get("/index.html")
    assert answer.status_code == 502
    assert "the store does not answer" in answer.text
