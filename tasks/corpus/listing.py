"""List the files of a corpus, each under a path that stays the same when the corpus moves.

A path starts at a root that the address fixes: the folder, or the last folder before a glob's first
wildcard. So it is the same in another bucket, and other files do not change it. Names alone decide
which files count. Hidden files, markers such as ``_SUCCESS`` and unknown suffixes are passed over
in a folder or under a wildcard, and refused where an address names them. Where the corpus has a
marker, the same listing says which files it covers.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeAlias

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate  # in no documentation, checked with fsspec 2026.9

from storage.backends.urls import file_system
from storage.fingerprint import fingerprint
from tasks.corpus.beside import (
    Passed,
    about_data,
    folders_above,
    is_parquet,
    is_text,
    refuse_tables,
)
from tasks.corpus.formats import CODECS, layout
from tasks.corpus.links import find

_WILDCARD = re.compile(r"[*?\[]")
_UNFINISHED = frozenset({"_temporary", "_delta_log", "__MACOSX"})
_STAMPS = "ETag etag md5Hash checksum LastModified last_modified updated mtime modified created"
_NO_STAMP = "listed"
"""Stands in a stamp where a file system has neither version nor time of a file."""
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

_UNREAD = {
    ".json": "if each line of it is a whole object, call it .jsonl, and else write JSON lines",
    ".mds": "write JSON lines or Parquet from these shards with the package that wrote them",
    ".warc": "it holds pages as they were sent: give the WET files of the crawl (.wet.gz), their text",
    ".csv": "write JSON lines or Parquet from it",
}

Listed: TypeAlias = dict[str, Mapping[str, Any]]
"""What a file system knows of files, by name."""


class EmptyCorpusError(ValueError):
    """An address of a source matches no file that can be read."""


class SourceFile(NamedTuple):
    """One file of a corpus."""

    path: str
    """Unique, and the same wherever the corpus lies."""
    url: str
    size: int
    """Bytes; 0 where unknown."""
    stamp: str
    """Changes when the size, or the file system's ETag or time of the file, does. It may spare a reading
    and never identifies anything."""
    is_marked: bool = True
    """False where a marker is asked for and lies neither in the file's folder nor above it."""
    is_aside: bool = False
    """Whether it tells about the data beside it, such as a README; only earlier scans read these."""


def url_files(
    urls: Sequence[str], marker: str | None = None, passed: Passed | None = None
) -> list[SourceFile]:
    """Every readable file that ``urls`` match (globs, folders, files), sorted by path.

    Args:
        marker: name of a file that must lie in a file's folder, or above it up to its root, for it
            to be marked. It is never read itself. A file that is given by itself then costs one
            more look, into its folder.
        passed: takes what is not read.

    A folder, and a glob with ``**``, cost one listing; another glob one for each folder it reaches, and
    one of its root where it matches Parquet files.

    Raises:
        EmptyCorpusError: a URL matches no readable file.
        ValueError: a URL names a file, or a suffix, whose format is not known; or files of a table.
    """
    listings = [_files_at(url, marker, passed or Passed()) for url in urls]
    roots = list(dict.fromkeys(root for root, _ in listings))
    prefixes = dict(zip(roots, _prefixes(roots), strict=True))
    files: dict[str, SourceFile] = {}
    for root, listed in listings:
        for file in listed:
            path = f"{prefixes[root]}/{file.path}".removeprefix("/")
            first = files.setdefault(file.url, file._replace(path=path))
            files[file.url] = first._replace(
                is_marked=first.is_marked or file.is_marked,
                is_aside=first.is_aside and file.is_aside,
            )
    return sorted(files.values())


def _prefixes(roots: Sequence[str]) -> list[str]:
    """For several roots, the fewest last components in which they differ; nothing for one root."""
    tails = [""] * len(roots)
    depth = 0
    while len({*tails}) < len(roots):
        depth += 1
        tails = ["/".join(root.split("/")[-depth:]).strip("/") for root in roots]
    return tails


def _files_at(url: str, marker: str | None, passed: Passed) -> tuple[str, list[SourceFile]]:
    filesystem, path = file_system(url)
    filesystem.invalidate_cache()
    others: list[str] = []
    for kind in _kinds(filesystem, path):
        start, root = _start(filesystem, url, path), _root(path, kind)
        listed = _listed(filesystem, path, kind, root, passed)
        files, marked = _meant_and_marked(filesystem, path, kind, root, marker, listed)
        others += files
        names = list(_readable(files, root, kind, path, passed))
        # To a depth, a listing lacks the folder of a log; only tables' own files are worth another.
        may_be_table = kind == "glob" and "**" not in path and any(map(is_parquet, names))
        at_root = filesystem.ls(f"{root}/", detail=False) if may_be_table else []
        refuse_tables([*listed, *at_root], names)
        aside: set[str] = set() if kind == "file" else about_data(names, passed.files)
        passed.files |= aside
        if not aside.issuperset(names):
            return start + root, [
                SourceFile(
                    name[len(root) :].lstrip("/"),
                    start + name,
                    *size_and_stamp(files[name], start + name),
                    marker is None or not marked.isdisjoint(folders_above(name)),
                    name in aside,
                )
                for name in names
            ]
    raise EmptyCorpusError(_nothing_at(url, others, passed.links))


def _kinds(filesystem: Any, path: str) -> Iterator[str]:
    """What may lie at a path: file, directory, or what a pattern stands for; the likely one first."""
    is_pattern = _WILDCARD.search(path) is not None
    # A name may hold what looks like a wildcard, but where each question is a request it rarely does.
    if is_pattern and not isinstance(filesystem, LocalFileSystem):
        yield "glob"
    try:
        yield str(filesystem.info(path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        if isinstance(filesystem, LocalFileSystem) and is_pattern:
            yield "glob"


def _start(filesystem: Any, url: str, path: str) -> str:
    """What stands before a file system's own path in a URL: protocol, and host where it has one."""
    whole = url.rstrip("/")
    if "://" in whole and whole.endswith(path):
        return whole.removesuffix(path)
    return str(filesystem.unstrip_protocol(path)).removesuffix(path)


def _root(path: str, kind: str) -> str:
    if kind == "directory":
        return path
    folders = path.split("/")[:-1]
    if kind == "glob":
        folders = list(takewhile(lambda folder: not _WILDCARD.search(folder), folders))
    return "/".join(folders)


def _meant_and_marked(
    filesystem: Any, path: str, kind: str, root: str, marker: str | None, listed: Listed
) -> tuple[Listed, set[str]]:
    """The files that are meant, without markers, and the folders that hold a marker."""
    marked = {folder for folder, _, last in (n.rpartition("/") for n in listed) if last == marker}
    if marker is not None and kind == "file" and filesystem.isfile(f"{root}/{marker}"):
        marked = {root}
    matches = re.compile(glob_translate(path)).match if kind == "glob" else None
    return {
        name: info
        for name, info in listed.items()
        if (marker is None or name.rpartition("/")[2] != marker)
        and (matches is None or matches(name))
    }, marked


def _listed(filesystem: Any, path: str, kind: str, root: str, passed: Passed) -> Listed:
    """All files that may be meant; for a pattern those below its root, to the depth it reaches."""
    if kind == "file":
        return {path: filesystem.info(path)}
    # What ``glob`` does as well, but markers do not match the pattern, and in object storage a name
    # can be that of a file and of a folder, of which a glob lists the folder only.
    depth = None if kind == "directory" or "**" in path else path[len(root) :].count("/")
    entries = find(filesystem, root, depth)
    lost = (name[len(root) + 1 :] for name, info in entries.items() if info["type"] == "lost")
    passed.links |= {name for name in lost if not _is_hidden(name)}
    return {name: info for name, info in entries.items() if info["type"] == "file"}


def _readable(names: Listed, root: str, kind: str, path: str, passed: Passed) -> Iterator[str]:
    last = path.rpartition("/")[2].rpartition(".")[2]
    named = kind == "file" or (kind == "glob" and not _WILDCARD.search(last))
    for name in names:
        if kind != "file" and _is_hidden(name[len(root) :]):
            continue
        if layout(name) is not None:
            yield name
        elif named:
            raise ValueError(f"{name} is in no format that can be read: {_remedy(name)}")
        elif not name.rpartition("/")[2].startswith("_"):
            passed.files.add(name)


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") or part in _UNFINISHED for part in relative.split("/"))


def _remedy(name: str) -> str:
    path = PurePosixPath(name.lower())
    suffix = PurePosixPath(path.stem).suffix if path.suffix in CODECS else path.suffix
    known = "give .jsonl, .parquet, .arrow, .wet or text files; .gz, .zst, .bz2 or .lz4 may follow"
    return _UNREAD.get(suffix, known)


def _nothing_at(url: str, others: Sequence[str], lost: set[str]) -> str:
    # Beside shards an index.json says nothing of their format.
    for name in sorted(others, key=lambda name: (is_text(name), name.endswith(".json"), name)):
        return f"{url} matches no readable file, only such as {name}: {_remedy(name)}"
    if lost:
        return f"{url} matches no file, but there are links that lead nowhere, such as {min(lost)}"
    if "{" in url:
        return f"{url} matches no file, for braces stand for themselves: give one address for each"
    return f"{url} matches no file: correct it, or take it out of the source"


def size_and_stamp(info: Mapping[str, Any], url: str = "") -> tuple[int, str]:
    """Size in bytes and stamp of a file, from what its file system knows of it."""
    # Where a file system knows nothing, the stamp is new each time, so that the file is read again.
    tokens = [info[name] for name in _STAMPS.split() if info.get(name) is not None]
    token = tokens[0] if tokens else f"{_NO_STAMP} {time.time_ns()}"
    size = info["size"] or 0
    # Other files may have the same size and time (unpacked archives, rsync -t): local ones differ
    # in inode and time of change, and a corpus at another address is read again.
    local = [info[name] for name in ("ino", "created") if "ino" in info and name in info]
    return size, " ".join(map(str, [size, token, *local, url])).rstrip().replace('"', "")


def has_stamp(file: SourceFile) -> bool:
    """Whether the stamp holds more than the size, so that two versions of a file surely differ."""
    return file.stamp.split(" ")[1:2] != [_NO_STAMP]


def dataset_files(address: str, name: str | None, split: str) -> list[SourceFile]:
    """The files of a data set of the library ``datasets``.

    The Arrow files of a saved data set are listed one by one. A folder of data files, and a data
    set on the hub, is one entry whose ``url`` is ``address``.

    Raises:
        EmptyCorpusError: there is no such folder, and the address is no hub name either.
        ValueError: a saved data set has no such split.
    """
    filesystem, root = file_system(address)
    filesystem.invalidate_cache()
    folder = root
    if filesystem.exists(f"{root}/dataset_dict.json"):
        _require_split(address, split, json.loads(filesystem.cat(f"{root}/dataset_dict.json")))
        folder = f"{root}/{split}"
    if filesystem.exists(f"{folder}/state.json"):
        return _saved_files(filesystem, address, root, folder)
    path = "/".join(filter(None, [root.rpartition("/")[2], name, split]))
    if "://" not in address and filesystem.isdir(root):
        return [SourceFile(path, address, *_folder_stamp(root))]
    if not _HUB_NAME.fullmatch(address):
        raise EmptyCorpusError(
            f"{address} is no folder that save_to_disk wrote, no local folder of data files and no "
            "hub name: correct it, or give files in urls"
        )
    from huggingface_hub import HfApi

    return [SourceFile(path, address, 0, str(HfApi().dataset_info(address).sha))]


def _require_split(address: str, split: str, description: Mapping[str, Any]) -> None:
    if split not in description["splits"]:
        have = ", ".join(description["splits"])
        raise ValueError(f"{address} has no split {split!r}: give one of {have}")


def _saved_files(filesystem: Any, address: str, root: str, folder: str) -> list[SourceFile]:
    # The folder may still hold files of an earlier, longer save; state.json names the valid ones.
    state = json.loads(filesystem.cat(f"{folder}/state.json"))
    start, parent = _start(filesystem, address, root), root.rpartition("/")[0]
    names = [f"{folder}/{file['filename']}" for file in state["_data_files"]]
    return [
        SourceFile(
            name[len(parent) :].lstrip("/"),
            start + name,
            *size_and_stamp(filesystem.info(name), start + name),
        )
        for name in sorted(names)
    ]


def _folder_stamp(root: str) -> tuple[int, str]:
    filesystem, path = file_system(root)
    files = filesystem.find(path, detail=True)
    facts = {name[len(path) :]: size_and_stamp(info) for name, info in sorted(files.items())}
    return sum(size for size, _ in facts.values()), fingerprint("data set folder", facts)
