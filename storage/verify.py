"""Check an artifact's files against their digests, and download them into the local read cache.

A missing or changed file is a fault of the artifact, which is then set aside and made anew. An error of
the machine (no permission, too many open files, a network that fails) is raised instead: no result is
deleted because it could not be read.
"""

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path

from storage.artifact import Artifact, FileEntry, hash_file
from storage.backends.backend import Backend, in_threads
from storage.backends.names import OutsideError

TRIES = 4
"""Downloads that must all be damaged before the file in the store counts as damaged."""
FILES = 8
"""Files of one artifact that are checked at the same time."""


def faults(backend: Backend, artifact: Artifact) -> list[str]:
    """What is wrong with the artifact's files in the store, in words; re-hashes all of them."""
    return _each(backend, artifact, lambda path, _, entry: fault(backend, path, entry))


def fault(backend: Backend, path: str, entry: FileEntry) -> str | None:
    """What is wrong with one file of the store: ``is missing``, ``has other content`` or None."""
    if (local := backend.local(path)) is not None:
        return _fault_in(local, entry)
    with tempfile.TemporaryDirectory() as scratch:
        return _download(backend, path, entry, Path(scratch) / "file")


def fill(backend: Backend, artifact: Artifact, folder: Path) -> list[str]:
    """Download the artifact's files that ``folder`` lacks or has damaged; faults that stay, in words.

    Files are replaced one by one, so that another reader of the folder never misses one.
    """

    def mend(path: str, name: str, entry: FileEntry) -> str | None:
        problem = _fault_in(folder / name, entry)
        return problem and _download(backend, path, entry, folder / name)

    return _each(backend, artifact, mend)


def _each(
    backend: Backend, artifact: Artifact, look: Callable[[str, str, FileEntry], str | None]
) -> list[str]:
    def check(name: str) -> str | None:
        path = f"{artifact.prefix}/{name}"
        try:
            words = look(path, name, artifact.files[name])
        except OutsideError:
            words = "lies behind a symbolic link that leads out of the store"
        return words and f"{path} {words}"

    if len(artifact.files) == 1:  # to start a thread takes longer than most files
        return [words for words in map(check, artifact.files) if words]
    with in_threads(backend, FILES) as pool:
        return [words for words in pool.map(check, artifact.files) if words]


def _download(backend: Backend, path: str, entry: FileEntry, target: Path) -> str | None:
    """Replace ``target`` by the file at ``path``, or delete it where that is missing; the fault."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        fresh = Path(scratch) / "file"
        problem: str | None = "is missing"
        for _ in range(TRIES):
            try:
                backend.fetch(path, fresh)
            except FileNotFoundError:
                target.unlink(missing_ok=True)
                return "is missing"
            if not (problem := _fault_in(fresh, entry)):
                break
        fresh.replace(target)
        return problem


def _fault_in(path: Path, entry: FileEntry) -> str | None:
    try:
        return None if hash_file(path) == entry else "has other content"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "is missing"
    except OSError as error:
        if error.errno != errno.EIO:  # the disk says that it has lost the content
            raise
        return f"cannot be read: {error}"
