"""Resume points of a step that is being built: the one mutable place of the store.

A checkpoint is a folder ``checkpoint.<position>`` and, written last, ``checkpoint.json`` with the
digests of its files. A crash between the two leaves the older checkpoint in force; a damaged one is
reported and counts as none, because starting over is slow and resuming from rubbish is wrong.
"""

import logging
from pathlib import Path

from storage.artifact import Artifact, CorruptError, describe, hash_file, seal, unseal
from storage.backend import Backend

LOG = logging.getLogger("mixpool.checkpoint")


class Checkpoints:
    """The resume points below one folder of ``work/``."""

    def __init__(self, backend: Backend, folder: str) -> None:
        self._backend = backend
        self._folder = folder
        self._index = f"{folder}/checkpoint.json"

    def save(self, source: Path, position: int) -> None:
        """Make the files in ``source`` the resume point at ``position``; drop older ones."""
        artifact = describe("checkpoint", source)
        for name in artifact.files:
            self._backend.put_from(f"{self._at(position)}/{name}", source / name)
        content = {"position": position, "artifact": artifact}
        self._backend.put(self._index, seal(content))
        self._delete_all(keep=f"{self._at(position)}/")

    def load(self, target: Path) -> int | None:
        """Copy the latest resume point into ``target``; its position, or None where there is none.

        Where it is damaged, that is logged, ``target`` holds none of it, and the answer is None.
        """
        try:
            position, artifact = self._read()
        except FileNotFoundError:
            return None
        except CorruptError as error:
            return self._unusable(error)
        try:
            self._copy(artifact, position, target)
        except CorruptError as error:
            for name in artifact.files:
                (target / name).unlink(missing_ok=True)
            return self._unusable(error)
        return position

    def _read(self) -> tuple[int, Artifact]:
        content = unseal(self._backend.read(self._index), self._index)
        assert isinstance(content, dict)
        return int(str(content["position"])), Artifact.model_validate(content["artifact"])

    @staticmethod
    def _unusable(error: CorruptError) -> None:
        LOG.warning("%s; starting from the beginning", error)

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
        self._delete_all(keep=None)

    def _delete_all(self, keep: str | None) -> None:
        for path in self._backend.list(self._folder):
            is_checkpoint = path.startswith(f"{self._folder}/checkpoint.")
            kept = path == self._index or (keep is not None and path.startswith(keep))
            if is_checkpoint and not kept:
                self._backend.delete(path)

    def _at(self, position: int) -> str:
        return f"{self._folder}/checkpoint.{position:09d}"
