"""Who may ask the servers of `mixpool serve`: this machine's person, and their own pages.

A browser lets a page of any site send requests here, by address or by a name that its owner leads here
(DNS rebinding), and open sockets, which CORS does not bind. Other accounts of the machine reach the ports,
too. So a request must name this machine and come from no other page, and whoever asks must know a secret.
No cookie holds it: a browser sends those to every port of a host, whosesoever server listens there.
"""

import hmac
import re
import secrets
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
NAMES = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")

PASSWORD = "password"
"""The file of a home that holds ``user:password``."""
DOOR = "/mixpool"
"""Where a browser takes the password, of which it tells nobody: it stands behind a ``#``."""

POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
"""Prefect's page asks this server alone (3.8.8 asks a tracker, though analytics are off), and is in no
frame, where it could be clicked unseen."""

# Where Prefect's page keeps what a person types when it asks; checked with Prefect 3.8.8.
DOOR_PAGE = """<!doctype html><meta charset="utf-8"><title>mixpool</title><script>
if (location.hash) localStorage.setItem("prefect-password", btoa(location.hash.slice(1)))
location.replace("/")
</script>"""


def password_in(home: Path) -> str:
    """``user:password`` of the servers of a home; made where it has none. Raises OSError."""
    file = home / PASSWORD
    file.touch(mode=0o600)
    file.chmod(0o600)
    if not file.read_text().strip():
        file.write_text(f"mixpool:{secrets.token_urlsafe(24)}\n")
    return file.read_text().strip()


def key_of(password: str) -> str:
    """What the store's addresses begin with; who sees one can read the store, and do no more."""
    return hmac.new(password.encode(), b"the store's pages", "sha256").hexdigest()[:40]


class Guard:
    """An application for requests by this machine's names, if ``only_here``, and from its own pages."""

    def __init__(self, app: ASGIApp, policy: str, *, only_here: bool = True) -> None:
        """``policy`` is the content policy of every answer."""
        self._app, self._only_here = app, only_here
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or open a socket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        app = self._app
        if self._only_here and not NAMES.fullmatch(host):
            app = PlainTextResponse(f"this server is not called {host!r}", 400)
        elif any(origin.partition("://")[2] != host for origin in headers.getlist("origin")):
            app = PlainTextResponse("this server answers only its own pages", 403)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await app(scope, receive, send_guarded)


def serve_prefect() -> None:
    """Run Prefect's server behind a guard, as its settings in the environment say, until a signal."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    async def door(request: Request) -> HTMLResponse:
        del request
        return HTMLResponse(DOOR_PAGE)

    settings = get_current_settings().server
    app = create_app(final=True)
    app.router.routes.insert(0, Route(DOOR, door))
    uvicorn.run(
        Guard(app, POLICY, only_here=settings.api.host in LOOPBACK),
        host=settings.api.host,
        port=settings.api.port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
    )
