"""Look what is new in a corpus and assign it; publish the next manifest of the chain.

Not a step: it depends on what earlier scans decided. It never changes what they decided either: a
crash before the manifest is published leaves artifacts that nothing names, and a second scan that
publishes first makes this one start over from there. With nothing new it costs one listing.
"""

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.artifact import Artifact
from storage.cache import Progress, deposit_key
from storage.fingerprint import Config, canonical, fingerprint
from storage.store import Store
from tasks import manifest
from tasks.assign import assign
from tasks.corpus import Source, SourceFile, list_files
from tasks.freeze import collect_base, freeze_sets
from tasks.intake import CorpusConfig, EvaluationSetConfig, Intake
from tasks.manifest import DomainState, Manifest
from tasks.repair import repair
from tasks.seen import Seen
from tasks.tokenizer import Encoder
from tasks.withdraw import withdraw

LOG = logging.getLogger("mixpool.scan")

ATTEMPTS = 5

MakeTokenizer = Callable[[Artifact | None], Artifact]
"""The chain's tokenizer, made from the base documents where it is to be trained."""


def scan(
    store: Store,
    corpus: CorpusConfig,
    sets: list[EvaluationSetConfig],
    tokenizer: Config,
    make_tokenizer: MakeTokenizer,
    *,
    base_source: Source | None = None,
    progress: Progress = lambda done, total, unit: None,
    scratch: str | None = None,
) -> Manifest:
    """Bring the corpus's chain up to date and return its newest manifest.

    Args:
        tokenizer: what identifies the tokenizer: the digest of a given one, or how it is trained.
        make_tokenizer: called once in a chain's life, with the base documents.
        base_source: documents for the base model that are no part of the corpus.

    Raises:
        EmptyCorpusError: an address matches nothing.
        ValueError: no domain fills one partition; an evaluation set lost all its documents.
    """
    rules = rules_of(corpus, tokenizer, base_source)
    chain = manifest.chain_name(corpus.name, rules)
    for _ in range(ATTEMPTS):
        files = list_files(corpus.source)
        previous = manifest.latest(store, chain)
        if previous is not None and is_current(store, previous, files, corpus, sets):
            return previous
        with tempfile.TemporaryDirectory(dir=scratch, prefix="mixpool-scan-") as folder:
            seen = Seen(Path(folder))
            state = _start(chain, rules, previous)
            job = Intake(store, corpus, sets, base_source, progress, Path(folder), seen, state)
            found = _advance(job, previous, files, make_tokenizer)
            seen.close()
        if previous is not None and _same(previous, found):
            return previous.model_copy(update={"problems": found.problems})
        if manifest.publish(store, found):
            return found
        LOG.info("another run published %s first; scanning again", manifest.path_of(found))
    raise RuntimeError(f"{ATTEMPTS} other scans of {chain} were faster; run again")


def rules_of(corpus: CorpusConfig, tokenizer: Config, base: Source | None) -> dict[str, Any]:
    """What a chain belongs to: every rule that decides where a document goes, and no address."""
    source = corpus.source
    return {
        "split": canonical(corpus.split),
        "format": canonical(source.format),
        "include_domains": source.include_domains and sorted(source.include_domains),
        "exclude_domains": sorted(source.exclude_domains),
        "tokenizer": canonical(tokenizer),
        "base": None if base is None else canonical(base.format),
    }


def is_current(
    store: Store,
    previous: Manifest,
    files: list[SourceFile],
    corpus: CorpusConfig,
    sets: list[EvaluationSetConfig],
) -> bool:
    """Whether nothing has changed since ``previous``: files, sets, withdrawals, stored documents."""
    known = {entry.identity for entry in previous.sets}
    withdrawn = {*previous.withdrawn, *previous.withdrawn.values()}
    return (
        all(previous.files.get(file.path) == file.stamp for file in files)
        and all(fingerprint("set", config) in known for config in sets)
        and all(name in withdrawn for name in corpus.withdraw)
        and not missing(store, previous)
        and _has_tokenizer(store, previous)
    )


DEPOSITS = ("partition", "remainder", "heldout", "evaluation-set", "index", "base")


def missing(store: Store, state: Manifest) -> list[Artifact]:
    """Artifacts of the manifest that no record names any more: set aside because they rotted."""
    return [
        artifact
        for artifact in state.artifacts()
        if artifact.digest != state.tokenizer.digest
        and not any(store.has(step, deposit_key(step, artifact)) for step in DEPOSITS)
    ]


def _has_tokenizer(store: Store, state: Manifest) -> bool:
    return any(r.output.digest == state.tokenizer.digest for r in store.records("tokenizer"))


def _same(previous: Manifest, found: Manifest) -> bool:
    ignored = {"number", "problems", "counts"}
    return previous.model_dump(exclude=ignored) == found.model_dump(exclude=ignored)


def _start(chain: str, rules: dict[str, Any], previous: Manifest | None) -> Manifest:
    if previous is not None:
        return previous.model_copy(
            update={"number": previous.number + 1, "files": dict(previous.files)}
        )
    nothing = Artifact(kind="none", digest="", files={})
    return Manifest(
        chain=chain,
        number=0,
        rules=rules,
        tokenizer=nothing,
        base_documents=None,
        files={},
        domains={},
        sets=[],
        withdrawn={},
        index=[],
        counts={},
        problems=[],
    )


def _advance(
    job: Intake,
    previous: Manifest | None,
    files: list[SourceFile],
    make_tokenizer: MakeTokenizer,
) -> Manifest:
    if previous is not None:
        repair(job, missing(job.store, previous), files)
    for index in job.state.index:
        job.seen.load(job.store.fetch(index))
    sets = freeze_sets(job)
    new = [file for file in files if job.state.files.get(file.path) != file.stamp]
    state, base, tokenizer = job.state, job.state.base_documents, job.state.tokenizer
    if previous is None:
        base = collect_base(job, new)
    if previous is None or not _has_tokenizer(job.store, state):
        tokenizer = make_tokenizer(base)
    domains = withdraw(job, dict(state.domains))
    domains = assign(job, new, domains, Encoder(job.store.fetch(tokenizer)))
    _check_some_partition(domains, job)
    return state.model_copy(
        update={
            "tokenizer": tokenizer,
            "base_documents": base,
            "domains": domains,
            "sets": [*state.sets, *sets],
            "withdrawn": {**state.withdrawn, **job.withdrawn},
            "index": [*state.index, *_save_index(job)],
            "counts": dict(sorted((Counter(state.counts) + job.counts).items())),
            "problems": [*job.problems.text().splitlines(), *_waiting(domains, job.corpus)],
        }
    )


def _save_index(job: Intake) -> list[Artifact]:
    folder = job.scratch / "index"
    if not job.seen.save_new(folder):
        shutil.rmtree(folder)
        return []
    return [job.deposit("index", job.state.chain, folder, {})]


def _check_some_partition(domains: dict[str, DomainState], job: Intake) -> None:
    if any(state.partitions for state in domains.values()):
        return
    if job.corpus.short_partitions and any(state.remainder for state in domains.values()):
        return
    problems = job.problems.text()
    raise ValueError(
        f"corpus {job.corpus.name!r} fills no partition of "
        f"{job.corpus.split.tokens_per_partition:,} tokens: "
        + ("; ".join(_waiting(domains, job.corpus)) or "it has no usable document")
        + ". Lower corpus.split.tokens_per_partition, or set corpus.short_partitions"
        + (f"\n{problems}" if problems else "")
    )


def _waiting(domains: dict[str, DomainState], corpus: CorpusConfig) -> list[str]:
    return [
        f"domain {domain!r} holds {state.remainder.num_tokens if state.remainder else 0:,} tokens, "
        f"fewer than one partition of {corpus.split.tokens_per_partition:,}: it waits for more data"
        for domain, state in sorted(domains.items())
        if not state.partitions
    ]
