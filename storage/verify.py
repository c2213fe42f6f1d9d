"""Is a file what its artifact says, and how a remote one comes into the local read cache.

A missing or changed file is a fault of the artifact, for which it is set aside and made anew. Trouble
of the machine (no permission, too many open files, a network that fails) is none and is raised: no
result is deleted because it could not be looked at.
"""

import errno
import tempfile
from pathlib import Path

from storage.artifact import Artifact, FileEntry, hash_file
from storage.backend import Backend


def faults(backend: Backend, artifact: Artifact) -> list[str]:
    """What is wrong with the artifact's files in the store, in words; re-hashes all of them."""
    found = {
        f"{artifact.prefix}/{name}": fault(backend, f"{artifact.prefix}/{name}", entry)
        for name, entry in artifact.files.items()
    }
    return [f"{path} {words}" for path, words in found.items() if words]


def fault(backend: Backend, path: str, entry: FileEntry) -> str | None:
    """What is wrong with one file of the store: ``is missing``, ``has other content`` or None."""
    if (local := backend.local(path)) is not None:
        return _fault_in(local, entry)
    with tempfile.TemporaryDirectory() as scratch:
        _download(backend, path, Path(scratch) / "file")
        return _fault_in(Path(scratch) / "file", entry)


def fill(backend: Backend, artifact: Artifact, folder: Path) -> list[str]:
    """Download what ``folder`` lacks or holds damaged; what stays wrong, in words.

    Files are replaced one by one, so that another reader of the folder never misses one.
    """
    found = {}
    for name, entry in artifact.files.items():
        found[name] = _fault_in(folder / name, entry)
        for _ in range(2):  # a flaw on the way here is none in the store: look twice
            if found[name]:
                _download(backend, f"{artifact.prefix}/{name}", folder / name)
                found[name] = _fault_in(folder / name, entry)
    return [f"{artifact.prefix}/{name} {words}" for name, words in found.items() if words]


def _download(backend: Backend, path: str, target: Path) -> None:
    """Replace ``target`` by the file at ``path``; it is gone afterwards where that is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        try:
            backend.fetch(path, Path(scratch) / "file")
        except FileNotFoundError:
            target.unlink(missing_ok=True)
        else:
            (Path(scratch) / "file").replace(target)


def _fault_in(path: Path, entry: FileEntry) -> str | None:
    try:
        return None if hash_file(path) == entry else "has other content"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "is missing"
    except OSError as error:
        if error.errno != errno.EIO:  # the disk says that it has lost the content
            raise
        return f"cannot be read: {error}"
