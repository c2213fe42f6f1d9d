"""A web server for the files of a store: reports, tables and folders, for this machine's browser.

Links in Prefect's pages must begin with ``http``, while the store is a folder here or a bucket that asks
for keys. Files are read only, and only by whose address begins with the key. Whatever a file of the store
is, a browser runs nothing of it: mixpool's own pages are pictures and text.
"""

import hmac
import html
import mimetypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fsspec.implementations.local import LocalFileSystem
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from flows.run.index import INDEX
from flows.server.guard import Guard
from storage.backends.urls import file_system

CHUNK = 1 << 20
POLICY = (
    "sandbox allow-downloads; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No script, no form, no frame, nothing fetched; and none of the rights of the page's address."""


def pages(store: str, key: str) -> Starlette:
    """The application that shows the store at a URL, at ``/KEY/``."""
    filesystem, root = file_system(store)

    async def show(request: Request) -> Response:
        given, _, path = request.path_params["path"].partition("/")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise HTTPException(404, "open the address that `mixpool serve` prints for the store")
        if not path:
            return RedirectResponse(f"/{key}/{INDEX}")
        return await run_in_threadpool(respond, filesystem, root, path, f"/{key}")

    middleware = [Middleware(Guard, policy=POLICY)]
    return Starlette(routes=[Route("/{path:path}", show)], middleware=middleware)


def respond(filesystem: Any, root: str, path: str, start: str) -> Response:
    """A file of the store, or what is in a folder; addresses are ``START/PATH``.

    Raises:
        HTTPException: 404 where there is nothing, 502 where the store does not answer.
    """
    location = f"{root.rstrip('/')}/{path.rstrip('/')}"
    try:
        if ".." in path.split("/") or _leads_out(filesystem, root, location):
            raise FileNotFoundError(path)
        filesystem.invalidate_cache()
        info = filesystem.info(location)
        if info["type"] == "directory":
            return _folder(filesystem, location, path, start)
        if info["type"] != "file":  # such as a pipe, which would be waited for
            raise FileNotFoundError(path)
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


def _leads_out(filesystem: Any, root: str, location: str) -> bool:
    """Whether symbolic links lead from a folder on disk to something beside it."""
    if not isinstance(filesystem, LocalFileSystem):
        return False
    return not Path(os.path.realpath(location)).is_relative_to(os.path.realpath(root))


def _file(filesystem: Any, location: str, size: int) -> Response:
    def chunks() -> Iterator[bytes]:
        with filesystem.open(location, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    kind = mimetypes.guess_type(location)[0] or "application/octet-stream"
    if location.endswith((".yaml", ".yml", ".json")):
        kind = "text/plain; charset=utf-8"  # to be read, not downloaded
    return StreamingResponse(chunks(), media_type=kind, headers={"Content-Length": str(size)})


def _folder(filesystem: Any, location: str, path: str, start: str) -> Response:
    if not path.endswith("/"):
        return RedirectResponse(f"{start}/{quote(path)}/")
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
