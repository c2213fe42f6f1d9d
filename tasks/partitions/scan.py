"""Scan a corpus: assign its new documents and publish the next manifest of the chain.

A scan is no step, because it depends on what earlier scans decided. It never changes what they
decided. A crash before the manifest is published leaves artifacts that nothing names. Where another
scan publishes first, this one starts over from there. With nothing new it costs one listing.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from storage.artifact import Artifact, digest_of
from storage.cache import deposit_key
from storage.fingerprint import Config
from storage.provenance import now
from storage.step import Progress
from storage.store import Store
from tasks.corpus.listing import SourceFile
from tasks.corpus.source import Source
from tasks.partitions import manifest
from tasks.partitions.arrival import Arrivals, look_for_files, story, unread_digest
from tasks.partitions.assign import assign
from tasks.partitions.config import CorpusConfig, EvaluationSetConfig
from tasks.partitions.freeze import changed_since, collect_base, freeze_sets, set_identity
from tasks.partitions.index import DocumentIndex
from tasks.partitions.job import ScanJob
from tasks.partitions.manifest import DomainState, Manifest
from tasks.partitions.repair import repair, repair_index
from tasks.partitions.rules import chain_of, rules_of, starts_anew
from tasks.partitions.stamps import save_stamps
from tasks.partitions.withdraw import report_unknown, withdraw
from tasks.readable import listed
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
    tell: Callable[[list[str]], None] = lambda lines: None,
) -> Manifest:
    """Bring the corpus's chain up to date and return its newest manifest.

    Its ``problems`` also name new files that wait for a later scan; these alone publish nothing.

    Args:
        tokenizer: what identifies the tokenizer: the digest of a given one, or how it is trained.
        make_tokenizer: called once in a chain's life, with the base documents.
        base_source: documents for the base model that are no part of the corpus.
        settle_seconds: for how long a new file must have stayed as it is (see ``tasks.partitions.arrival``).
        threads: processes that encode at most; None is one for each core.
        tell: called with how the corpus goes on from its chain, in words.

    Raises:
        EmptyCorpusError: an address matches nothing, or, in a first scan, no complete file.
        ValueError: no domain fills one partition; an evaluation set lost all its documents.
    """
    rules, own = rules_of(corpus, tokenizer, base_source), {set_identity(s): s for s in sets}
    chain = chain_of(store, corpus, rules)
    for _ in range(ATTEMPTS):
        previous = manifest.latest(store, chain)
        arrivals = look_for_files(corpus, previous, settle_seconds)
        if previous is not None and is_current(store, previous, arrivals.new, corpus, own):
            tell(story(corpus, previous, previous, arrivals.files))
            notes = [*arrivals.notes, *changed_since(previous, own, base_source)]
            return _as_run_sees_it(previous, own, arrivals._replace(notes=notes))
        anew = [*starts_anew(store, corpus.name, rules)] if previous is None else []
        with (
            tempfile.TemporaryDirectory(dir=scratch, prefix="mixpool-scan-") as folder,
            closing(DocumentIndex(Path(folder))) as index,
        ):
            state = _start_manifest(chain, rules, previous, corpus)
            pending = {name for name in corpus.withdraw if name not in _withdrawn(state)}
            root = Path(folder)
            job = ScanJob(store, corpus, own, base_source, progress, root, index, state, pending)
            again = _to_read_again(previous, state, arrivals)
            _advance(job, arrivals, again, make_tokenizer, threads)
        current = job.state
        if previous is not None and _same(previous, current):
            current = previous.model_copy(update={"problems": current.problems})
        elif not manifest.publish(store, current):
            LOG.info("another run published %s first; scanning again", manifest.path_of(current))
            continue
        notes = [*anew, *arrivals.notes]
        if previous is not None:
            tell(story(corpus, previous, current, arrivals.files))
            notes += changed_since(previous, own, base_source)
        return _as_run_sees_it(current, own, arrivals._replace(notes=notes))
    raise RuntimeError(f"{ATTEMPTS} other scans of {chain} were faster; run again")


def _as_run_sees_it(
    state: Manifest, sets: Mapping[str, EvaluationSetConfig], arrivals: Arrivals
) -> Manifest:
    """The manifest for one run: only the run's own sets, with the files that wait or were not read."""
    # The chain may know a set of the same name from another recipe.
    own_sets = [entry for entry in state.sets if entry.identity in sets]
    of_run = {"sets": own_sets, "problems": [*state.problems, *arrivals.notes]}
    return state.model_copy(update={**of_run, "unread": unread_digest(arrivals.new, state.files)})


def _withdrawn(state: Manifest) -> set[str]:
    return {*state.withdrawn, *state.withdrawn.values()}


def is_current(
    store: Store,
    previous: Manifest,
    new: list[SourceFile],
    corpus: CorpusConfig,
    sets: Collection[str],
) -> bool:
    """Whether nothing has changed since ``previous``: files, sets, withdrawals, stored documents.

    ``new`` are the files that are to be read (see ``tasks.partitions.arrival.look_for_files``), ``sets``
    the identities of the evaluation sets that are asked for.
    """
    return (
        not new
        and {entry.identity for entry in previous.sets}.issuperset(sets)
        and _withdrawn(previous).issuperset(corpus.withdraw)
        and not (previous.counts.get("left out") and _limit(previous, corpus) != previous.limit)
        and is_whole(store, previous)
    )


def _limit(previous: Manifest | None, corpus: CorpusConfig) -> int | None:
    """The most partitions of a domain that the corpus was ever to have."""
    limits = [corpus.split.partitions_per_domain, *([previous.limit] if previous else [])]
    return None if None in limits else max(filter(None, limits))


def _to_read_again(
    previous: Manifest | None, state: Manifest, arrivals: Arrivals
) -> list[SourceFile]:
    """Every complete file, where documents that were left out have room now."""
    if previous is None or previous.limit == state.limit or not previous.counts.get("left out"):
        return []
    new = {*arrivals.new}
    return [f for f in arrivals.files if f in new or state.files.get(f.path) == f.stamp]


def is_whole(store: Store, state: Manifest) -> bool:
    """Whether the store still has everything that a manifest names."""
    return not missing(store, state) and _has_tokenizer(store, state)


DEPOSITS = ("partition", "remainder", "heldout", "evaluation-set", "index", "base", "stamps")


def missing(store: Store, state: Manifest) -> set[str]:
    """Digests of artifacts that no record names any more: set aside because they rotted."""
    return {
        artifact.digest
        for artifact in state.artifacts()
        if artifact.digest != state.tokenizer.digest and not _is_recorded(store, artifact)
    }


def _is_recorded(store: Store, artifact: Artifact) -> bool:
    if any(store.has(step, deposit_key(step, artifact)) for step in DEPOSITS):
        return True
    # Another process may have stored it since this one listed the records.
    keys = ((step, deposit_key(step, artifact)) for step in DEPOSITS)
    return any(store.find(*key, fresh=True) is not None for key in keys)


def _has_tokenizer(store: Store, state: Manifest) -> bool:
    return any(r.output.digest == state.tokenizer.digest for r in store.records("tokenizer"))


def _same(previous: Manifest, current: Manifest) -> bool:
    ignored = {"number", "created", "problems", "counts"}
    return previous.model_dump(exclude=ignored) == current.model_dump(exclude=ignored)


def _start_manifest(
    chain: str, rules: dict[str, Any], previous: Manifest | None, corpus: CorpusConfig
) -> Manifest:
    made: dict[str, Any] = {"created": now(), "limit": _limit(previous, corpus)}
    if previous is not None:
        return previous.model_copy(
            update={
                **made,
                "number": previous.number + 1,
                "files": dict(previous.files),
                "withdrawn": dict(previous.withdrawn),
                "joined": dict(previous.joined),
            }
        )
    nothing = Artifact(kind="none", digest=digest_of({}), files={})
    return Manifest(
        **made,
        chain=chain,
        number=0,
        rules=rules,
        tokenizer=nothing,
        base_documents=None,
        files={},
        domains={},
        sets=[],
        withdrawn={},
        joined={},
        index=[],
        counts={},
        problems=[],
    )


def _advance(
    job: ScanJob,
    arrivals: Arrivals,
    again: list[SourceFile],
    make_tokenizer: MakeTokenizer,
    threads: int | None,
) -> None:
    """Bring ``job.state`` up to date."""
    if job.state.number == 0:
        job.update(sets=freeze_sets(job))
        job.update(base_documents=collect_base(job, arrivals.new))
        job.update(tokenizer=_tokenizer(job, make_tokenizer))
    else:
        _restore(job, arrivals.files, make_tokenizer)
        job.update(domains=withdraw(job))
        job.know_twins()
        job.update(sets=[*job.state.sets, *freeze_sets(job)])
    encoders = Encoders(job.store.fetch(job.state.tokenizer), threads)
    job.update(domains=assign(job, arrivals.new, encoders, again))
    report_unknown(job)
    _check_some_partition(job, arrivals.notes)
    folder, index = job.folder(), job.state.index
    if job.index.save_new(folder):
        index = [*index, job.deposit("index", job.state.chain, folder, {})]
    waiting = _waiting(job.state.domains, job.corpus)
    kept = [artifact for artifact in job.state.stamps if _is_recorded(job.store, artifact)]
    job.update(
        index=index,
        stamps=save_stamps(job, kept),
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
    if pinned.files and _has_tokenizer(job.store, job.state):
        return pinned
    made = make_tokenizer(job.state.base_documents)
    if pinned.files and made.digest != pinned.digest:
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
    waiting = _waiting(domains, corpus)
    problems = listed([*job.problems.text().splitlines(), *notes], between="\n")
    if not waiting:
        why = problems or "all of its documents are used elsewhere, or withdrawn"
        raise ValueError(f"corpus {corpus.name!r} has no document that can be used: {why}")
    raise ValueError(
        f"corpus {corpus.name!r} fills no partition of "
        f"{corpus.split.tokens_per_partition:,} tokens: {listed(waiting, between='; ')}. "
        "Lower corpus.split.tokens_per_partition, or set corpus.short_partitions"
        + (f"\n{problems}" if problems else "")
    )


def _waiting(domains: dict[str, DomainState], corpus: CorpusConfig) -> list[str]:
    return [
        f"domain {domain!r:.80} holds {state.remainder.num_tokens if state.remainder else 0:,} tokens, "
        f"fewer than one partition of {corpus.split.tokens_per_partition:,}: it waits for more data"
        for domain, state in sorted(domains.items())
        if not state.partitions
    ]
