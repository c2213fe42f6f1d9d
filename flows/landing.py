"""Data that lands: whether there is anything to do, and one name for each thing that landed.

A schedule looks often, so looking must cost next to nothing when there is nothing new: the newest
finished run of the recipe is found by name, and the corpus is listed once. Nothing is written, and no
lease is taken. An event may be delivered twice, so its id follows from what landed: address, version
and size of a file, or of all files in a folder.
"""

import hashlib
import logging
import re
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pydantic import ValidationError

from flows.ablation import Given
from flows.planner import scratch_store
from flows.recipe import Recipe, TrainBase, to_yaml
from storage.artifact import CorruptError, dashed, slug, unseal
from storage.fingerprint import Config, canonical_bytes, fingerprint
from storage.place import file_system
from storage.store import Store
from tasks import manifest
from tasks.arrival import look, unread_digest
from tasks.corpus import Source
from tasks.listing import size_and_stamp
from tasks.outside import given_tokenizer
from tasks.scan import is_whole, rules_of
from tasks.tokenizer import GivenTokenizer

LOG = logging.getLogger("mixpool.landing")

NAMESPACE = uuid.UUID("0b9f6a52-5a0e-4f0c-9a3d-6d2f6a1c7e41")
"""Of the ids that ``landing_id`` gives; never changed, or an event repeated across an upgrade would
start a second run."""

# Is there anything to do? -------------------------------------------------------------------------


class Unchanged(NamedTuple):
    """Nothing is to be done: what a finished run found is still the answer."""

    run: str
    """Name of the run: its folder in the store is ``runs/<name>``."""
    num_files: int
    """Files of the corpus that it knows."""


def is_unchanged(store: Store, recipe: Recipe, settle_seconds: float = 0.0) -> Unchanged | None:
    """The finished run of exactly this recipe after which nothing has landed; None to run the chain.

    A run that crashed or was cancelled is no finished run. New files that wait for their marker are
    nothing new, nor is a damaged file that the run could not read. A given base model is taken to be
    what it was, as nothing but data is looked at; a given tokenizer is read, since the corpus's chain
    depends on it. Why not is logged.

    Args:
        settle_seconds: as for a scan: with more than 0, new files that still change are nothing new
            either, at the price of the wait.

    Raises:
        ValueError: the corpus has no files at its address, or the newest manifest is damaged.
    """
    if (run := _finished_run(store, recipe)) is None:
        LOG.info("no run of this very recipe %r has finished yet", recipe.name)
        return None
    name, content = run
    previous = manifest.latest(store, _chain(store, recipe))
    if previous is None or manifest.path_of(previous) not in content["manifests"]:
        LOG.info("run %s used another manifest than the newest", name)
        return None
    new = look(recipe.corpus, previous, settle_seconds).new
    # What that run could not read, another one cannot read either, until it is written again.
    if unread_digest(new, previous.files) != content.get("unread", ""):
        LOG.info("since run %s: %s new files (%s bytes)", name, len(new), sum(f.size for f in new))
        return None
    if not is_whole(store, previous):
        LOG.info("since run %s the store has lost something that is to be made anew", name)
        return None
    return Unchanged(name, len(previous.files))


def _finished_run(store: Store, recipe: Recipe) -> tuple[str, Mapping[str, Any]] | None:
    """Name and content of the newest; runs of other recipes are told by their names, mostly."""
    wanted = hashlib.sha256(to_yaml(recipe).encode()).hexdigest()
    ended = re.compile(rf"runs/\w+-{re.escape(slug(recipe.name))}(-\d+)?/run\.json")
    paths = filter(ended.fullmatch, store.backend.list("runs"))
    for path in sorted(paths, key=lambda path: PurePosixPath(path).parts, reverse=True):
        content = _read(store, path)
        if content is None or content["files"].get("recipe.yaml") != wanted:
            continue
        if not content["summary"].get("search"):  # which judges some mixtures only
            return PurePosixPath(path).parts[1], content
    return None


def _read(store: Store, path: str) -> Mapping[str, Any] | None:
    """What a ``run.json`` holds; None, with a warning, where it is damaged or gone."""
    try:
        content = unseal(store.backend.read(path), path)
    except (CorruptError, FileNotFoundError) as error:
        LOG.warning("%s; that run is passed over", error)
        return None
    assert isinstance(content, dict)
    return content


def _chain(store: Store, recipe: Recipe) -> str:
    """Name of the chain of manifests that a scan would go on with."""
    config: Config = recipe.tokenizer
    if isinstance(recipe.tokenizer, GivenTokenizer):
        with scratch_store(store.url) as scratch:
            config = Given(digest=given_tokenizer(scratch, recipe.tokenizer).digest)
    base = recipe.base.source if isinstance(recipe.base, TrainBase) else None
    return manifest.chain_name(recipe.corpus.name, rules_of(recipe.corpus, config, base))


# What has landed? ---------------------------------------------------------------------------------


class Landing(NamedTuple):
    """One version of a file, or of all files in a folder."""

    uri: str
    """Where it lies, without a slash at its end."""
    etag: str
    """The file system's ETag, or what else tells one version from another."""
    size: int
    """Bytes, of all files together."""

    def id(self, corpus: str) -> uuid.UUID:
        """The same for the same version in the same corpus, however often it is asked for."""
        return landing_id(corpus, self.uri, self.etag, self.size)


def landing_id(corpus: str, uri: str, etag: str | None, size: int | None) -> uuid.UUID:
    """The id of an event: one for each corpus and each version of what lies at ``uri``.

    Quotes around the ETag do not count: S3 leaves them out of its notifications. Where neither ETag
    nor size is known, all versions have one id.
    """
    version = [dashed(corpus), uri, None if etag is None else etag.strip('"'), size]
    return uuid.uuid5(NAMESPACE, canonical_bytes(version).decode())


def look_at(uri: str) -> Landing:
    """Ask the file system for the version of the file, or of the files in the folder, at ``uri``.

    A folder is listed once. Each file that is added to it gives it another id, so it is to be looked
    at when it is complete.

    Raises:
        ValueError: there is nothing at ``uri``, the folder is empty, or the address holds credentials.
        OSError: the file system cannot be asked.
    """
    try:
        Source(urls=[uri])  # refuses credentials, also those in a query
    except ValidationError as error:
        raise ValueError(f"this cannot have landed: {error.errors()[0]['msg']}") from None
    uri = uri if "://" in uri else str(Path(uri).expanduser().resolve())
    filesystem, path = file_system(uri)
    filesystem.invalidate_cache()
    uri = uri.rstrip("/")
    try:
        info = filesystem.info(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"nothing has landed at {uri}: there is no such file or folder") from None
    if info["type"] != "directory":
        size, stamp = size_and_stamp(info)
        return Landing(uri, _etag(info) or stamp, size)
    return _folder(uri, path, filesystem.find(path, detail=True))


def _folder(uri: str, path: str, found: Mapping[str, Mapping[str, Any]]) -> Landing:
    facts = {_json(name[len(path) :]): size_and_stamp(info) for name, info in found.items()}
    if not facts:
        raise ValueError(f"nothing has landed at {uri}: the folder is empty")
    size = sum(size for size, _ in facts.values())
    return Landing(uri, fingerprint("landing", facts), size)


def _json(name: str) -> str:
    # A disk may hold a name that is not UTF-8.
    return name.encode(errors="backslashreplace").decode()


def _etag(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or "").strip('"')
