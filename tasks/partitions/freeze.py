"""Fix what stays for good: evaluation sets with a source of their own, and the base documents.

Evaluation documents are registered before any training document of the same scan is read, so a
document in both is lost to training, and so is its twin (see ``tasks.partitions.twins``). A set that
comes later loses the documents that training already holds.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from storage.artifact import Artifact
from storage.fingerprint import fingerprint
from tasks.corpus.documents import DocumentWriter
from tasks.corpus.listing import EmptyCorpusError, SourceFile
from tasks.corpus.reading import Document, Problems, list_files
from tasks.corpus.source import Source
from tasks.partitions.arrival import seen_digest
from tasks.partitions.config import EvaluationSetConfig
from tasks.partitions.index import IndexEntry, Role
from tasks.partitions.job import ScanJob, stored
from tasks.partitions.manifest import Manifest, SetEntry
from tasks.partitions.split import role_of
from tasks.readable import listed


def freeze_sets(job: ScanJob) -> list[SetEntry]:
    """Read the evaluation sets that the chain does not know yet.

    Raises:
        ValueError: training data already holds every document of a set, or a file is damaged.
    """
    known = {entry.identity for entry in job.state.sets}
    return [freeze_set(job, identity) for identity in job.sets if identity not in known]


def changed_since(
    state: Manifest, sets: Mapping[str, EvaluationSetConfig], base_source: Source | None
) -> Iterator[str]:
    """Which pinned things have other files at their address than when they were read, in words.

    Args:
        state: what was known before this scan.
        sets: the evaluation sets that are asked for, by identity.
    """
    seen = {entry.identity: entry.seen for entry in state.sets}
    pinned = [
        (f"evaluation set {config.name!r}", config.source, seen.get(identity))
        for identity, config in sets.items()
    ]
    if base_source is not None:
        pinned.append(("base.source", base_source, state.base_seen))
    for what, source, digest in pinned:
        try:
            is_same = not digest or seen_digest(list_files(source)) == digest
        except EmptyCorpusError:
            is_same = False
        except (ValueError, OSError):  # nobody can tell now, and nothing depends on it
            is_same = True
        if not is_same:
            name = "corpus.name" if what == "base.source" else "name"
            yield (
                f"{what} stays as it was first read, and its files have another size or time now: give "
                f"another {name} to take them anew"
            )


def set_identity(config: EvaluationSetConfig) -> str:
    """The identity of an evaluation set within a chain: the fingerprint of its configuration."""
    return fingerprint("set", config)


def freeze_set(job: ScanJob, identity: str, *, again: bool = False) -> SetEntry:
    """Store a set; ``again``, when its artifact was lost, only what was in a set before."""
    config = job.sets[identity]
    chosen = _Chosen(job, config, again)
    with job.writer() as writer:
        what = f"evaluation set {config.name!r}"
        files = job.list_pinned(config.source, what)
        for document in job.read_pinned(files, config.source, what, again=again):
            if chosen.wants(document):
                writer.add(stored(document, 0))
                job.twins.add([document.text])
            if len(chosen.taken) == config.max_documents:
                break
    if not chosen.taken:
        raise ValueError(
            f"evaluation set {config.name!r} has no document left: training data already holds all "
            f"{len(chosen.removed)} that can be used; give documents of its own, or take it out of the "
            "recipe" + (f"\n{problems}" if (problems := _shown(job.problems)) else "")
        )
    sizes: dict[str, Any] = {"num_documents": len(chosen.taken), "removed": len(chosen.removed)}
    artifact = job.deposit("evaluation-set", config.name, writer.folder, {**sizes})
    return SetEntry(
        name=config.name,
        identity=identity,
        domain=None,
        documents=artifact,
        **sizes,
        seen=seen_digest(files),
    )


class _Chosen:
    """Which documents an evaluation set takes, and which it loses to training."""

    def __init__(self, job: ScanJob, config: EvaluationSetConfig, again: bool) -> None:
        self._job = job
        self._name = config.name
        self._again = again
        self.taken: set[str] = set()
        self.removed: set[str] = set()

    def wants(self, document: Document) -> bool:
        """Judge one document, and register it where nothing else holds it."""
        job, digest = self._job, document.digest
        entry = job.index.get(digest)
        # Not by origin: paths of a set may be the same as paths of the corpus.
        refused = entry is None and (self._again or job.is_refused(document, digest))
        if digest in self.taken or refused:
            return False
        if entry is not None and entry.role in {Role.TRAIN, Role.BASE, Role.WITHDRAWN}:
            self.removed.add(digest)
            return False
        self.taken.add(digest)
        if entry is None or not entry.place:
            job.index.write(IndexEntry(digest, Role.EVALUATION, self._name, document.origin))
        return True


def collect_base(job: ScanJob, files: list[SourceFile]) -> Artifact | None:
    """The documents of tokenizer and base model: of their own source, or a share of this scan's.

    Raises:
        ValueError: there is none, or a file of their own source is damaged.
    """
    if job.base_source is None and not job.corpus.split.base_fraction:
        return None
    # The corpus is read once more after this and says the same of its faults again.
    problems = Problems()
    with job.writer() as writer:
        for document in _base_candidates(job, files, problems):
            is_twin = document.text in job.twins or document.text in job.heldout_twins
            if job.index.get(document.digest) is None and not is_twin:
                job.index.write(IndexEntry(document.digest, Role.BASE, "base", document.origin))
                job.base_twins.add([document.text])
                writer.add(stored(document, 0))
    if not writer.num_documents:
        raise ValueError(
            "no document is left for the base model: raise corpus.split.base_fraction "
            f"({job.corpus.split.base_fraction}) or give base.source\n"
            + (_shown(problems) or _shown(job.problems))
        )
    return store_base(job, writer)


def store_base(job: ScanJob, writer: DocumentWriter) -> Artifact:
    """Deposit a closed writer's documents as those of tokenizer and base model."""
    details: dict[str, object] = {"num_documents": writer.num_documents}
    return job.deposit("base", job.corpus.name, writer.folder, details)


def _base_candidates(
    job: ScanJob, files: list[SourceFile], problems: Problems
) -> Iterator[Document]:
    if (source := job.base_source) is not None:
        files = job.list_pinned(source, "the base model's documents")
        job.update(base_seen=seen_digest(files))
        for document in job.read_pinned(files, source, "the base model's documents"):
            if not job.is_refused(document, document.digest):
                yield document
        return
    for document in job.read(files, job.corpus.source, problems):
        role = role_of(document.digest, job.corpus.split, with_base=True)
        if role == Role.TRAIN or not job.pending.isdisjoint({document.digest, document.origin}):
            continue
        if role == Role.BASE:
            yield document
        else:  # so that its twins are known before anything goes to a partition
            job.heldout_twins.add([document.text])


def _shown(problems: Problems) -> str:
    return listed(problems.text().splitlines(), between="\n")
