"""End a piece of work: its run failed or was interrupted, or its time limit is over."""

import threading
import time
from collections.abc import Callable

from storage.step import Progress, Runtime


class Stopped(Exception):  # noqa: N818 - a consequence, not a fault
    """The run has failed elsewhere or was interrupted, so this piece of it goes no further."""


def check(stop: threading.Event) -> None:
    """Raise Stopped where the run is to end."""
    if stop.is_set():
        raise Stopped("another part of the run failed, or it was interrupted")


def checked(progress: Progress, check: Callable[[], None]) -> Progress:
    """Progress that calls ``check`` at each report, whose error ends the work."""

    def show(done: int, total: int, unit: str) -> None:
        check()
        progress(done, total, unit)

    return show


class TimeLimitError(RuntimeError):
    """A piece of work took longer than the runtime allows."""


class Watch:
    """Checks stop and time limit of one piece of work; made when the work begins."""

    def __init__(self, title: str, runtime: Runtime, stop: threading.Event) -> None:
        self._title, self._stop = f"{title} on {runtime.device}", stop
        self._hours = runtime.time_limit_hours or float("inf")
        self._began = time.monotonic()

    def check(self) -> None:
        """Raise Stopped or TimeLimitError where it is to end."""
        check(self._stop)
        if time.monotonic() - self._began > 3600 * self._hours:
            raise TimeLimitError(
                f"{self._title} took longer than the time limit of {self._hours:g} hours and was "
                "ended; its resume point and everything committed are kept, and the next run goes on "
                "from there: run again, with a higher time_limit_hours in the runtime if it needs one"
            )
