"""A deadline, set by the caller, that ends the retries of a request."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_LIMIT: ContextVar[float] = ContextVar("limit", default=float("inf"))


class UnreachableError(OSError):
    """A server kept failing until the deadline; the message names the server and the request."""


def current_limit() -> float:
    """Seconds for which this thread or task may retry a request; infinite outside ``limited``."""
    return _LIMIT.get()


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Inside the block, requests of this thread or task are retried for ``seconds`` at most."""
    token = _LIMIT.set(seconds)
    try:
        yield
    finally:
        _LIMIT.reset(token)
