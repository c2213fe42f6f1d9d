"""How long a caller is willing to wait, said where it is known and heard where requests are repeated."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_LIMIT: ContextVar[float] = ContextVar("limit", default=float("inf"))


class UnreachableError(OSError):
    """A server failed for longer than anybody wants to wait; the message says where and at what."""


def current_limit() -> float:
    """Seconds that ``limited`` allows this thread or task."""
    return _LIMIT.get()


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """No request of this thread is waited for longer, where waiting would be worse than failing."""
    token = _LIMIT.set(seconds)
    try:
        yield
    finally:
        _LIMIT.reset(token)
