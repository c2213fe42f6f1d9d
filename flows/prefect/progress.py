"""Progress bars as progress artifacts of Prefect runs.

An artifact appears when the work has gone on for a few seconds, is updated every few seconds, and is
removed when the work is done, so that plan, ranking and links are not lost among hundreds of finished
bars. Where the server does not answer, the bar stops and the work goes on. Work of unknown size has no
bar, as an artifact can show a percentage only.
"""

import logging
import time
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client

from storage.step import Progress
from tasks.shown import markdown

LOG = logging.getLogger("mixpool.run")

FIRST_SECONDS = 3.0
"""Work that takes less has no bar."""
UPDATE_SECONDS = 5.0


class PrefectReporter:
    """Bars as artifacts; lines to the run's log, where every ``mixpool`` logger goes."""

    def __init__(self) -> None:
        self._bars: list[_ArtifactBar] = []

    def task(self, name: str) -> Progress:
        """A bar on the task run, or the flow run, that first reports."""
        self._bars.append(_ArtifactBar(name))
        return self._bars[-1].show

    def close(self) -> None:
        """Remove the bars of work that did not come to its end."""
        for bar in self._bars:
            bar.show(1, 1, "")

    def say(self, message: str) -> None:
        """One line in the log."""
        LOG.info(message)


class _ArtifactBar:
    def __init__(self, name: str) -> None:
        self._name = name
        self._artifact: UUID | None = None
        self._next = time.monotonic() + FIRST_SECONDS

    def show(self, done: int, total: int, unit: str) -> None:
        try:
            if done >= total:
                self._remove()
            elif time.monotonic() >= self._next:
                self._next = time.monotonic() + UPDATE_SECONDS
                self._send(done, total, unit)
        except Exception as error:  # of httpx, of Prefect, of the system
            LOG.warning("%s: its progress is not shown any more (%s)", self._name, error)
            self._artifact, self._next = None, float("inf")

    def _send(self, done: int, total: int, unit: str) -> None:
        percent = 100.0 * done / total
        description = f"{markdown(self._name)}: {done:,} of {total:,} {unit}"
        if self._artifact is None:
            artifact = create_progress_artifact(percent, description=description)
            assert isinstance(artifact, UUID), "progress is reported from a task that is not async"
            self._artifact = artifact
        else:
            update_progress_artifact(self._artifact, percent, description)

    def _remove(self) -> None:
        artifact, self._artifact = self._artifact, None
        if artifact is not None:
            with get_client(sync_client=True) as client:
                client.delete_artifact(artifact)
