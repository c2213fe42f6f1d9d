"""Read a folder that somebody else made, such as a published tokenizer or model, as data.

Its files are plain ones in it (or where the hub's cache has them), its JSON is sound, and no library
fetches anything on its behalf. What is wrong is one sentence, without the folder's address: ``named``
puts that before it.
"""

import json
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from storage.cache import is_full
from tasks.shown import line

JSON_BYTES = 1 << 27
"""Bytes of a JSON file at most; those of the largest published vocabularies have a fourth of it."""


class FolderError(ValueError):
    """Something in a given folder cannot be used; says which file and what to do, in one line."""

    def __init__(self, message: str) -> None:
        # Names and values from the folder may be anything, also what no terminal can print.
        super().__init__(line(" ".join(message.split())))


@contextmanager
def named(address: str) -> Iterator[None]:
    """Put the folder's address before a ``FolderError`` of the block, which is a ValueError then."""
    try:
        yield
    except FolderError as error:
        raise ValueError(f"{address}: {error}") from error


@contextmanager
def loading(folder: Path, problem: str, remedy: str) -> Iterator[None]:
    """A block in which libraries load a folder: quiet and offline; their errors are ``FolderError``."""
    try:
        with _QUIET:
            yield
    except BaseException as error:
        if is_full(error) or isinstance(error, FolderError):
            raise
        # A panic of Rust code in tokenizers is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        words = str(error).replace(f"{folder}/", "").replace(str(folder), "the folder")
        # A KeyError has nothing but the key.
        words = words if " " in words else f"{type(error).__name__} {words}".strip()
        said = textwrap.shorten(words, 400)
        raise FolderError(f"{problem} ({said}): {remedy}") from error


class _Quiet:
    """Without transformers' log and bars, and without the hub, while a block runs in any thread."""

    def __init__(self) -> None:
        self._lock, self._blocks = threading.Lock(), 0
        self._before: tuple[int, bool, bool] = (0, False, False)

    def __enter__(self) -> None:
        from huggingface_hub import constants
        from transformers.utils import logging

        with self._lock:
            if not self._blocks:
                has_bars = logging.is_progress_bar_enabled()
                self._before = (logging.get_verbosity(), has_bars, constants.HF_HUB_OFFLINE)
                logging.set_verbosity(logging.CRITICAL)
                logging.disable_progress_bar()
                constants.HF_HUB_OFFLINE = True
            self._blocks += 1

    def __exit__(self, *_: object) -> None:
        from huggingface_hub import constants
        from transformers.utils import logging

        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                verbosity, has_bars, constants.HF_HUB_OFFLINE = self._before
                logging.set_verbosity(verbosity)
                if has_bars:
                    logging.enable_progress_bar()


_QUIET = _Quiet()


def files_of(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """Files of a folder by name, with links followed; JSON files are read once.

    Raises:
        FolderError: a link leads elsewhere, something is no file, or a JSON file holds no object.
    """
    root = folder.resolve()
    snapshots, repository = root.parent.name, root.parent.parent
    is_hub = snapshots == "snapshots" and repository.name.startswith("models--")
    roots = {root, repository / "blobs"} if is_hub else {root}
    files = {}
    # A glob leaves out links that lead to nothing.
    for path in sorted(folder.iterdir()):
        if not any(fnmatchcase(path.name, pattern) for pattern in patterns):
            continue
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise FolderError(f"{path.name} is a link to nothing: fetch the file again") from error
        if roots.isdisjoint(target.parents):
            raise FolderError(
                f"{path.name} is a link out of the folder, to {target}: give the folder of that "
                "file, or put the file itself here"
            )
        if target.is_dir() and not path.suffix:  # some have a folder "tokenizer" beside the files
            continue
        if not target.is_file():
            raise FolderError(f"{path.name} is no file: put the file of that name there")
        files[path.name] = target
    return files


def read_json(name: str, path: Path) -> dict[str, Any]:
    """The object in a JSON file that the folder has as ``name``. Raises FolderError."""
    if (size := path.stat().st_size) > JSON_BYTES:
        raise FolderError(
            f"{name} has {size:,} bytes, more than the {JSON_BYTES:,} that are read: give a smaller one"
        )
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{name} is no JSON ({error}): fetch the file again") from error
    if not isinstance(tree, dict):
        raise FolderError(f"{name} holds {tree!r:.40} and no JSON object: fetch the file again")
    return tree
