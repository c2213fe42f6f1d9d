"""`python -m tests.moto_server PORT`: moto's S3 on the loopback address, one request at a time.

By itself moto answers in many threads, looks whether an object is there, and writes it later: now and
then two of sixteen racing conditional creates win. Behind a lock it keeps the promise that S3 gives.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple


class OneByOne:
    """A WSGI application that never answers two requests at once."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The whole answer of the application."""
        with self._lock:
            return list(self._application(environ, start_response))


if __name__ == "__main__":
    run_simple(
        "127.0.0.1",
        int(sys.argv[1]),
        OneByOne(DomainDispatcherApplication(create_backend_app)),
        threaded=True,
        request_handler=MotoRequestHandler,
    )
