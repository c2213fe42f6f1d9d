"""The guard of serve's two ports, asked as browsers ask; and what is secret."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from flows.prefect.links import VARIABLE as LINKS
from flows.server.deploy_options import DeployOptions
from flows.server.guard import Guard, key_of, password_in
from flows.server.serve import ServeOptions

OWN = "127.0.0.1:4200"


async def page(request: Request) -> PlainTextResponse:
    """Answers everybody."""
    return PlainTextResponse(request.method)


async def socket(websocket: WebSocket) -> None:
    """Greets everybody."""
    await websocket.accept()
    await websocket.send_text("welcome")
    await websocket.close()


APP = Starlette(routes=[Route("/", page, methods=["GET", "POST"]), WebSocketRoute("/", socket)])

ASKED = [
    # What a person, a program and the server's own pages send.
    ({}, 200),
    ({"origin": f"http://{OWN}"}, 200),
    ({"host": "localhost:4200", "origin": "http://localhost:4200"}, 200),
    ({"host": "[::1]:4200"}, 200),
    # A form, a fetch or a socket of another site; of a file or a sandbox; of another port here.
    ({"origin": "https://elsewhere.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "http://127.0.0.1:9999"}, 403),
    ({"origin": "http://127.0.0.1"}, 403),
    ({"origin": "http://localhost:4200"}, 403),
    # A name whose owner has led it here: the browser takes its page for ours.
    ({"host": "elsewhere.example:4200", "origin": "http://elsewhere.example:4200"}, 400),
    ({"host": "127.0.0.1.elsewhere.example"}, 400),
    ({"host": "127.0.0.1:4200.elsewhere.example"}, 400),
    ({"host": "localhost@elsewhere.example"}, 400),
    ({"host": ""}, 400),
]


@pytest.mark.parametrize(("sent", "status"), ASKED)
@pytest.mark.parametrize("method", ["GET", "POST", "socket"])
def test_only_own_pages_and_programs_are_answered(
    method: str, sent: dict[str, str], status: int
) -> None:
    found = ask(TestClient(Guard(APP, "none")), method, {"host": OWN, **sent})
    assert found == (status, status == 200)


def ask(client: TestClient, method: str, sent: dict[str, str]) -> tuple[int, bool]:
    """Status of an answer, and whether it is the application's."""
    if method != "socket":
        answer = client.request(method, "/", headers=sent)
        return answer.status_code, answer.text == method
    try:
        with client.websocket_connect("/", headers=sent) as opened:
            return 200, opened.receive_text() == "welcome"
    except WebSocketDenialResponse as refused:
        return refused.status_code, False


def test_every_answer_has_its_policy() -> None:
    client = TestClient(Guard(APP, "frame-ancestors 'none'"), f"http://{OWN}")
    for sent in ({}, {"origin": "null"}):
        headers = client.get("/", headers=sent).headers
        assert headers["content-security-policy"] == "frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_a_server_for_others_has_any_name_and_still_its_own_pages_alone() -> None:
    client = TestClient(Guard(APP, "none", only_here=False), "http://prefect.example")
    assert client.get("/").status_code == 200
    assert client.post("/", headers={"origin": "https://prefect.example"}).status_code == 200
    assert client.post("/", headers={"origin": "https://elsewhere.example"}).status_code == 403


def test_a_home_keeps_its_password_from_other_accounts(tmp_path: Path) -> None:
    first = password_in(tmp_path)
    user, _, word = first.partition(":")
    assert user == "mixpool"
    assert len(word) >= 32
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    assert password_in(tmp_path) == first
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("")  # as a kill leaves it
    assert password_in(tmp_path) != first


def test_the_store_s_key_does_not_tell_the_password(tmp_path: Path) -> None:
    password = password_in(tmp_path)
    assert key_of(password) == key_of(password)
    assert key_of(password) != key_of(password + "x")
    assert password.partition(":")[2] not in key_of(password)


def test_a_person_s_own_password_stays_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ServeOptions(DeployOptions(store="/pool", recipe="", corpus=""), tmp_path)
    asks, answers = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
    monkeypatch.setenv(answers, "another:server-s")
    monkeypatch.delenv(asks, raising=False)
    ours = options.environment("mixpool:made")
    assert (ours[asks], ours[answers]) == ("mixpool:made", "mixpool:made")
    monkeypatch.setenv(asks, "me:mine")
    theirs = options.environment("mixpool:made")
    assert (theirs[asks], theirs[answers]) == ("me:mine", "me:mine")
    # Links to the store stay as they are.
    assert theirs[LINKS] == ours[LINKS] == f"/pool {options.pages('mixpool:made')}"
