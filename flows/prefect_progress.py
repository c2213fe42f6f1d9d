"""Progress of long work as progress artifacts of the run that does it.

An artifact appears with the first report and is updated every two seconds at most. Showing progress
must never end the work that is shown: where the server does not answer, the bar stops and the work
goes on. Work that does not know its total has no bar: a percentage is all that one can show.
"""

import logging
import time
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from storage.cache import Progress

LOG = logging.getLogger("mixpool.run")

UPDATE_SECONDS = 2.0


class PrefectReporter:
    """Bars as artifacts; lines to the run's log, where every ``mixpool`` logger goes."""

    def task(self, name: str) -> Progress:
        """A bar on the task run, or the flow run, that first reports."""
        return _Bar(name).show

    def say(self, message: str) -> None:
        """One line in the log."""
        LOG.info(message)


class _Bar:
    def __init__(self, name: str) -> None:
        self._name = name
        self._artifact: UUID | None = None
        self._next = 0.0

    def show(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        # Work that is done at its first report needs no bar; a bar always gets its end.
        wanted = self._artifact is not None if done >= total else now >= self._next
        if not total or not wanted:
            return
        self._next = now + UPDATE_SECONDS
        try:
            self._send(done, total, unit)
        except Exception as error:  # of httpx, of Prefect, of the system
            LOG.warning("%s: its progress is not shown any more (%s)", self._name, error)
            self._artifact, self._next = None, float("inf")

    def _send(self, done: int, total: int, unit: str) -> None:
        percent = 100.0 * done / total
        description = f"{self._name}: {done:,} of {total:,} {unit}"
        if self._artifact is None:
            made = create_progress_artifact(percent, description=description)
            assert isinstance(made, UUID), "progress is reported from a task that is not async"
            self._artifact = made
        else:
            update_progress_artifact(self._artifact, percent, description)
