"""Resume points of a step that is being built: the one mutable place of the store.

A checkpoint is a folder ``checkpoint.<position>`` and, written last, ``checkpoint.json`` with the
digests of its files. After a crash between the two, the older checkpoint counts. A damaged one is
logged and ignored: starting over is slow, but resuming from damaged files is wrong.

``BackgroundSaves`` writes and uploads in a thread, one resume point at a time, while the work goes on.
"""

import contextvars
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from storage.artifact import Artifact, CorruptError, describe, hash_file, seal, unseal
from storage.backends.backend import Backend

LOG = logging.getLogger("mixpool.checkpoint")


class Checkpoints:
    """The resume points below one folder of ``work/``."""

    def __init__(self, backend: Backend, folder: str) -> None:
        self._backend = backend
        self._folder = folder
        self._index = f"{folder}/checkpoint.json"

    def save(
        self, source: Path, position: int, is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Make the files in ``source`` the resume point at ``position``; drop older ones.

        ``is_wanted`` is called before each change; where it returns False, the older one stays.
        """
        artifact = describe("checkpoint", source)
        for name in artifact.files:
            if not is_wanted():
                return
            self._backend.put_from(f"{self._at(position)}/{name}", source / name)
        if not is_wanted():
            return
        content = {"position": position, "artifact": artifact}
        self._backend.put(self._index, seal(content))
        if not is_wanted():  # another run may have gone on from it, and saved a newer one
            return
        self._delete_all(keep=f"{self._at(position)}/")

    def load(self, target: Path) -> int | None:
        """Copy the latest resume point into ``target``; its position, or None where there is none.

        Where it is damaged, that is logged, ``target`` holds none of it, and the answer is None.
        """
        names: list[str] = []
        try:
            content = unseal(self._backend.read(self._index), self._index)
            position = int(str(content["position"]))
            artifact = Artifact.model_validate(content["artifact"])
            names += artifact.files
            self._copy(artifact, position, target)
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError) as error:
            is_told = isinstance(error, CorruptError)
            words = error if is_told else f"{self._index} is no resume point"
            LOG.warning("%s; starting from the beginning", words)
            for name in names:
                (target / name).unlink(missing_ok=True)
            return None
        return position

    def _copy(self, artifact: Artifact, position: int, target: Path) -> None:
        for name, entry in artifact.files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._backend.fetch(f"{self._at(position)}/{name}", target / name)
            except FileNotFoundError as error:
                raise CorruptError(f"{self._at(position)}/{name} is missing") from error
            if hash_file(target / name) != entry:
                raise CorruptError(f"{self._at(position)}/{name} is damaged")

    def clear(self) -> None:
        """Remove every resume point, once the step's output is committed."""
        self._backend.delete(self._index)
        self._delete_all(keep=self._index)

    def _delete_all(self, keep: str) -> None:
        for path in self._backend.list(self._folder):
            is_checkpoint = path.startswith(f"{self._folder}/checkpoint.")
            if is_checkpoint and not path.startswith((self._index, keep)):
                self._backend.delete(path)

    def _at(self, position: int) -> str:
        return f"{self._folder}/checkpoint.{position:09d}"


class BackgroundSaves:
    """Saves resume points while the ``with`` block goes on with its work, at most one at a time.

    The error of a failed save is raised by the next ``save`` or ``wait``. The end of the block waits
    for the last save. Where the block failed, it waits ``patience`` seconds at most: then the save is
    given up and the older resume point stays. An error of that last save is only logged, since the
    work that needed the resume point is over.

    Args:
        checkpoints: where they are saved.
        scratch: folder for their files; None is the system's temporary folder.
        patience: seconds.
    """

    def __init__(self, checkpoints: Checkpoints, scratch: str | None, patience: float) -> None:
        self._checkpoints, self._scratch, self._patience = checkpoints, scratch, patience
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._given_up = threading.Event()
        self._began = self._longest = 0.0

    @property
    def is_saving(self) -> bool:
        """Whether one is being saved now."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def longest(self) -> float:
        """Seconds that the slowest save has taken, the present one so far included."""
        return max(self._longest, time.monotonic() - self._began if self.is_saving else 0.0)

    def save(self, write: Callable[[Path], object], position: int) -> None:
        """Wait for the save before, then begin to save the files that ``write`` puts into a folder.

        ``write`` is called in a thread: the data it writes must not change meanwhile.
        """
        self.wait()
        self._began = time.monotonic()
        # What holds for this thread's requests (their time limit) holds for the other's.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(
            target=run, args=(self._save, write, position), name="mixpool-checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the save that goes on; after ``seconds`` it is given up.

        Raises:
            Exception: the error of the save.
            TimeoutError: the save was given up.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._given_up.set()
                raise TimeoutError(f"it was not uploaded within {seconds:g} s")
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _save(self, write: Callable[[Path], object], position: int) -> None:
        try:
            with tempfile.TemporaryDirectory(dir=self._scratch) as name:
                write(Path(name))
                self._checkpoints.save(Path(name), position, lambda: not self._given_up.is_set())
        except BaseException as error:  # raised again in the thread that waits
            self._error = error
        finally:
            self._longest = max(self._longest, time.monotonic() - self._began)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._given_up.is_set():
            return
        try:
            self.wait(None if kind is None else self._patience)
        except BaseException as failure:
            self._given_up.set()
            if not isinstance(failure, Exception):
                raise
            LOG.warning("the last resume point could not be saved (%s)", failure)
