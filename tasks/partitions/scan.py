"""Scan a corpus: assign its new documents and publish the next manifest of the chain.

A scan is no step, because it depends on what earlier scans decided. It never changes what they
decided. A crash before the manifest is published leaves artifacts that nothing names. Where another
scan publishes first, this one starts over from there. With nothing new it costs one listing.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from storage.artifact import Artifact
from storage.cache import deposit_key
from storage.fingerprint import Config, canonical
from storage.step import Progress
from storage.store import Store
from tasks.corpus.listing import SourceFile
from tasks.corpus.source import Source
from tasks.partitions import manifest
from tasks.partitions.arrival import Arrivals, look_for_files, unread_digest
from tasks.partitions.assign import assign
from tasks.partitions.config import CorpusConfig, EvaluationSetConfig
from tasks.partitions.freeze import collect_base, freeze_sets, set_identity
from tasks.partitions.index import DocumentIndex
from tasks.partitions.job import ScanJob
from tasks.partitions.manifest import DomainState, Manifest
from tasks.partitions.repair import repair, repair_index
from tasks.partitions.withdraw import report_unknown, withdraw
from tasks.tokens.processes import Encoders

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
    settle_seconds: float = 0.0,
    threads: int | None = None,
) -> Manifest:
    """Bring the corpus's chain up to date and return its newest manifest.

    Its ``problems`` also name new files that wait for a later scan; these alone publish nothing.

    Args:
        tokenizer: what identifies the tokenizer: the digest of a given one, or how it is trained.
        make_tokenizer: called once in a chain's life, with the base documents.
        base_source: documents for the base model that are no part of the corpus.
        settle_seconds: for how long a new file must have stayed as it is (see ``tasks.partitions.arrival``).
        threads: processes that encode at most; None is one for each core.

    Raises:
        EmptyCorpusError: an address matches nothing, or, in a first scan, no complete file.
        ValueError: no domain fills one partition; an evaluation set lost all its documents.
    """
    rules = rules_of(corpus, tokenizer, base_source)
    chain = manifest.chain_name(corpus.name, rules)
    for _ in range(ATTEMPTS):
        previous = manifest.latest(store, chain)
        arrivals = look_for_files(corpus, previous, settle_seconds)
        if previous is not None and is_current(store, previous, arrivals.new, corpus, sets):
            return _as_run_sees_it(previous, sets, arrivals)
        with (
            tempfile.TemporaryDirectory(dir=scratch, prefix="mixpool-scan-") as folder,
            closing(DocumentIndex(Path(folder))) as index,
        ):
            state = _start_manifest(chain, rules, previous)
            pending = {name for name in corpus.withdraw if name not in _withdrawn(state)}
            root = Path(folder)
            job = ScanJob(store, corpus, sets, base_source, progress, root, index, state, pending)
            _advance(job, arrivals, make_tokenizer, threads)
        current = job.state
        if previous is not None and _same(previous, current):
            previous = previous.model_copy(update={"problems": current.problems})
            return _as_run_sees_it(previous, sets, arrivals)
        if manifest.publish(store, current):
            return _as_run_sees_it(current, sets, arrivals)
        LOG.info("another run published %s first; scanning again", manifest.path_of(current))
    raise RuntimeError(f"{ATTEMPTS} other scans of {chain} were faster; run again")


def _as_run_sees_it(
    state: Manifest, sets: list[EvaluationSetConfig], arrivals: Arrivals
) -> Manifest:
    """The manifest for one run: only the run's own sets, with the files that wait or were not read."""
    # The chain may know a set of the same name from another recipe.
    identities = {set_identity(config) for config in sets}
    own_sets = [entry for entry in state.sets if entry.identity in identities]
    of_run = {"sets": own_sets, "problems": [*state.problems, *arrivals.notes]}
    return state.model_copy(update={**of_run, "unread": unread_digest(arrivals.new, state.files)})


def _withdrawn(state: Manifest) -> set[str]:
    return {*state.withdrawn, *state.withdrawn.values()}


def rules_of(corpus: CorpusConfig, tokenizer: Config, base: Source | None) -> dict[str, Any]:
    """What a chain belongs to: every rule that decides where a document goes.

    The corpus's address is none of them, so it may move. That of the base model's own documents is:
    they are pinned by the first scan, and others must not seem to have been used.
    """
    source = corpus.source
    return {
        "split": canonical(corpus.split),
        "format": canonical(source.format),
        "include_domains": source.include_domains and sorted(source.include_domains),
        "exclude_domains": sorted(source.exclude_domains),
        "tokenizer": canonical(tokenizer),
        "base": None if base is None else canonical(base),
    }


def is_current(
    store: Store,
    previous: Manifest,
    new: list[SourceFile],
    corpus: CorpusConfig,
    sets: list[EvaluationSetConfig],
) -> bool:
    """Whether nothing has changed since ``previous``: files, sets, withdrawals, stored documents.

    ``new`` are the files that are to be read (see ``tasks.partitions.arrival.look_for_files``).
    """
    identities = {entry.identity for entry in previous.sets}
    return (
        not new
        and all(set_identity(config) in identities for config in sets)
        and _withdrawn(previous).issuperset(corpus.withdraw)
        and is_whole(store, previous)
    )


def is_whole(store: Store, state: Manifest) -> bool:
    """Whether the store still has everything that a manifest names."""
    return not missing(store, state) and _has_tokenizer(store, state)


DEPOSITS = ("partition", "remainder", "heldout", "evaluation-set", "index", "base")


def missing(store: Store, state: Manifest) -> set[str]:
    """Digests of artifacts that no record names any more: set aside because they rotted."""
    return {
        artifact.digest
        for artifact in state.artifacts()
        if artifact.digest != state.tokenizer.digest and not _is_recorded(store, artifact)
    }


def _is_recorded(store: Store, artifact: Artifact) -> bool:
    keys = [(step, deposit_key(step, artifact)) for step in DEPOSITS]
    # Another process may have stored it since this one listed the records.
    return any(store.has(*key) for key in keys) or any(
        store.find(*key, fresh=True) is not None for key in keys
    )


def _has_tokenizer(store: Store, state: Manifest) -> bool:
    return any(r.output.digest == state.tokenizer.digest for r in store.records("tokenizer"))


def _same(previous: Manifest, current: Manifest) -> bool:
    ignored = {"number", "problems", "counts"}
    return previous.model_dump(exclude=ignored) == current.model_dump(exclude=ignored)


def _start_manifest(chain: str, rules: dict[str, Any], previous: Manifest | None) -> Manifest:
    if previous is not None:
        return previous.model_copy(
            update={
                "number": previous.number + 1,
                "files": dict(previous.files),
                "withdrawn": dict(previous.withdrawn),
            }
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
    job: ScanJob, arrivals: Arrivals, make_tokenizer: MakeTokenizer, threads: int | None
) -> None:
    """Bring ``job.state`` up to date."""
    if job.state.number == 0:
        job.update(sets=freeze_sets(job))
        job.update(base_documents=collect_base(job, arrivals.new))
        job.update(tokenizer=_tokenizer(job, make_tokenizer))
    else:
        _restore(job, arrivals.files, make_tokenizer)
        job.update(domains=withdraw(job))
        job.update(sets=[*job.state.sets, *freeze_sets(job)])
    encoders = Encoders(job.store.fetch(job.state.tokenizer), threads)
    job.update(domains=assign(job, arrivals.new, encoders))
    report_unknown(job)
    _check_some_partition(job, arrivals.notes)
    folder, index = job.folder(), job.state.index
    if job.index.save_new(folder):
        index = [*index, job.deposit("index", job.state.chain, folder, {})]
    waiting = _waiting(job.state.domains, job.corpus)
    job.update(
        index=index,
        counts=dict(sorted((Counter(job.state.counts) + job.counts).items())),
        problems=[*job.problems.text().splitlines(), *waiting],
    )


def _restore(job: ScanJob, files: list[SourceFile], make_tokenizer: MakeTokenizer) -> None:
    """Load what the last scan knew, and make again what the store has lost of it."""
    lost = missing(job.store, job.state)
    repair_index(job, lost)
    for artifact in job.state.index:
        job.index.load(job.store.fetch(artifact))
    # Base documents make the tokenizer, and the tokenizer counts the tokens of partitions.
    if (base := job.state.base_documents) is not None:
        repair(job, lost & {base.digest}, files)
    job.update(tokenizer=_tokenizer(job, make_tokenizer))
    repair(job, missing(job.store, job.state), files)


def _tokenizer(job: ScanJob, make_tokenizer: MakeTokenizer) -> Artifact:
    pinned = job.state.tokenizer
    if pinned.digest and _has_tokenizer(job.store, job.state):
        return pinned
    made = make_tokenizer(job.state.base_documents)
    if pinned.digest and made.digest != pinned.digest:
        raise ValueError(
            f"the tokenizer of {job.state.chain} was lost, and made again it is another one "
            f"({made.digest[:10]}, not {pinned.digest[:10]}), perhaps by another version of "
            "tokenizers: restore it from a copy of the store, or start a new chain under another "
            "corpus.name"
        )
    return made


def _check_some_partition(job: ScanJob, notes: list[str]) -> None:
    domains, corpus = job.state.domains, job.corpus
    if any(state.partitions for state in domains.values()):
        return
    if corpus.short_partitions and any(state.remainder for state in domains.values()):
        return
    waiting = "; ".join(_waiting(domains, corpus)) or "it has no usable document"
    problems = "\n".join(filter(None, [job.problems.text(), *notes]))
    raise ValueError(
        f"corpus {corpus.name!r} fills no partition of "
        f"{corpus.split.tokens_per_partition:,} tokens: {waiting}. "
        "Lower corpus.split.tokens_per_partition, or set corpus.short_partitions"
        + (f"\n{problems}" if problems else "")
    )


def _waiting(domains: dict[str, DomainState], corpus: CorpusConfig) -> list[str]:
    return [
        f"domain {domain!r} holds {state.remainder.num_tokens if state.remainder else 0:,} tokens, "
        f"fewer than one partition of {corpus.split.tokens_per_partition:,}: it waits for more data"
        for domain, state in sorted(domains.items())
        if not state.partitions
    ]
