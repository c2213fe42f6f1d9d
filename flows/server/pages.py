"""A web server for the files of a store: reports, tables and folders, for this machine's browser.

Links in Prefect's pages must begin with ``http``, while the store is a folder here or a bucket that asks
for keys. Files are read only, and requests are answered only under this machine's own names, so that no
page of another site can read the store through the browser.
"""

import html
import mimetypes
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from flows.run.index import INDEX
from storage.backends.urls import file_system

CHUNK = 1 << 20
NAMES = ["127.0.0.1", "localhost", "[::1]", "::1"]


def pages(store: str) -> Starlette:
    """The application that shows the store at a URL."""
    filesystem, root = file_system(store)

    async def show(request: Request) -> Response:
        return await run_in_threadpool(respond, filesystem, root, request.path_params["path"])

    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=NAMES)]
    return Starlette(routes=[Route("/{path:path}", show)], middleware=middleware)


def respond(filesystem: Any, root: str, path: str) -> Response:
    """A file of the store, or what is in a folder.

    Raises:
        HTTPException: 404 where there is nothing, 502 where the store does not answer.
    """
    if not path:
        return RedirectResponse(f"/{INDEX}")
    if ".." in path.split("/"):
        raise HTTPException(404, f"there is no {path}")
    location = f"{root.rstrip('/')}/{path.rstrip('/')}"
    try:
        filesystem.invalidate_cache()
        info = filesystem.info(location)
        if info["type"] == "directory":
            return _folder(filesystem, location, path)
        return _file(filesystem, location, int(info["size"]))
    except FileNotFoundError as error:
        if path == INDEX:
            return HTMLResponse(
                "<!doctype html><p>No run has ended yet: the first one writes this page."
            )
        raise HTTPException(404, f"there is no {path} in the store") from error
    except ValueError as error:  # such as a null byte
        raise HTTPException(404, f"there is no {path!r}") from error
    except OSError as error:
        raise HTTPException(502, f"the store does not answer: {error}") from error


def _file(filesystem: Any, location: str, size: int) -> Response:
    def chunks() -> Iterator[bytes]:
        with filesystem.open(location, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    kind = mimetypes.guess_type(location)[0] or "application/octet-stream"
    if location.endswith((".yaml", ".yml", ".json")):
        kind = "text/plain; charset=utf-8"  # to be read, not downloaded
    return StreamingResponse(chunks(), media_type=kind, headers={"Content-Length": str(size)})


def _folder(filesystem: Any, location: str, path: str) -> Response:
    if not path.endswith("/"):
        return RedirectResponse(f"/{path}/")
    entries = filesystem.ls(location, detail=True)
    names = sorted(
        item["name"].rstrip("/").rpartition("/")[2] + ("/" if item["type"] == "directory" else "")
        for item in entries
    )
    rows = "".join(
        f'<li><a href="{quote(name)}">{html.escape(name)}</a></li>' for name in names if name
    )
    title = html.escape(path)
    return HTMLResponse(
        f'<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><h1>{title}</h1><ul><li><a href='../'>..</a></li>{rows}</ul>"
    )
