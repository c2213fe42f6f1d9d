"""Check whether anything has changed since the recipe's last finished run.

A schedule looks often, so a look must cost next to nothing: the newest finished run of the recipe is
picked by name, and the corpus is listed once. Nothing is written, and no lease is taken.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from flows.chain.ablation import Given
from flows.chain.recipe import Recipe
from flows.chain.recipe_file import to_yaml
from storage.artifact import CorruptError, slug, unseal
from storage.fingerprint import Config
from storage.store import Store, scratch_store
from tasks.models.given import given_tokenizer
from tasks.partitions import manifest
from tasks.partitions.arrival import look_for_files, unread_digest
from tasks.partitions.rules import chain_of, rules_of
from tasks.partitions.scan import is_whole
from tasks.tokens.tokenizer import GivenTokenizer

LOG = logging.getLogger("mixpool.landing")


def is_unchanged(store: Store, recipe: Recipe, settle_seconds: float = 0.0) -> str | None:
    """Name of the finished run of exactly this recipe after which nothing has landed; None to run.

    A run that crashed or was cancelled is no finished run. New files that wait for their marker do
    not count, nor does a damaged file that the run could not read. A given base model is assumed to
    be unchanged; a given tokenizer is read, since the name of the corpus's chain depends on it. The
    reason for None is logged.

    Args:
        settle_seconds: as for a scan: above 0, new files that still change do not count either,
            and the call takes so long.

    Raises:
        ValueError: the corpus has no files at its address, or the newest manifest is damaged.
    """
    if (run := _finished_run(store, recipe)) is None:
        LOG.info("no run of this very recipe %r has finished yet", recipe.name)
        return None
    name, content = run
    previous = manifest.latest(store, chain(store, recipe))
    if previous is None or manifest.path_of(previous) not in content["manifests"]:
        LOG.info("run %s used another manifest than the newest", name)
        return None
    new = look_for_files(recipe.corpus, previous, settle_seconds).new
    # What that run could not read, another one cannot read either, until it is written again.
    if unread_digest(new, previous.files) != content.get("unread", ""):
        LOG.info("since run %s: %s new files (%s bytes)", name, len(new), sum(f.size for f in new))
        return None
    if not is_whole(store, previous):
        LOG.info("since run %s the store has lost something that is to be made anew", name)
        return None
    return name


def _finished_run(store: Store, recipe: Recipe) -> tuple[str, Mapping[str, Any]] | None:
    """Name and content of the newest finished run of exactly this recipe, or None."""
    digest = hashlib.sha256(to_yaml(recipe).encode()).hexdigest()
    ended = re.compile(rf"runs/\w+-{re.escape(slug(recipe.name))}(-\d+)?/run\.json")
    paths = filter(ended.fullmatch, store.backend.list("runs"))
    for path in sorted(paths, key=lambda path: PurePosixPath(path).parts, reverse=True):
        content = _read(store, path)
        if content is None or content["files"].get("recipe.yaml") != digest:
            continue
        if not content["summary"].get("search"):  # which judges some mixtures only
            return PurePosixPath(path).parts[1], content
    return None


def _read(store: Store, path: str) -> Mapping[str, Any] | None:
    """The content of a ``run.json``; None, with a warning, where it is damaged or gone."""
    try:
        return unseal(store.backend.read(path), path)
    except (CorruptError, FileNotFoundError) as error:
        LOG.warning("%s; that run is passed over", error)
        return None


def chain(store: Store, recipe: Recipe) -> str:
    """Name of the chain of manifests that a scan would go on with."""
    config: Config = recipe.tokenizer
    if isinstance(recipe.tokenizer, GivenTokenizer):
        with scratch_store(store.url) as scratch:
            config = Given(digest=given_tokenizer(scratch, recipe.tokenizer)[0].digest)
    return chain_of(store, recipe.corpus, rules_of(recipe.corpus, config, recipe.base.source))
