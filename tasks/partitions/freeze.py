"""Fix what stays for good: evaluation sets with a source of their own, and the base documents.

Evaluation documents are registered before any training document of the same scan is read, so a
document in both is lost to training. A set that comes later loses the documents that training
already holds.
"""

from collections.abc import Iterator

from storage.artifact import Artifact
from storage.fingerprint import fingerprint
from tasks.corpus.documents import DocumentWriter
from tasks.corpus.listing import SourceFile
from tasks.corpus.reading import Document, Problems, list_files
from tasks.partitions.config import EvaluationSetConfig
from tasks.partitions.index import IndexEntry, Role
from tasks.partitions.job import ScanJob, stored
from tasks.partitions.manifest import SetEntry
from tasks.partitions.split import role_of


def freeze_sets(job: ScanJob) -> list[SetEntry]:
    """Read the evaluation sets that the chain does not know yet.

    Raises:
        ValueError: training data already holds every document of a set, or a file is damaged.
    """
    identities = {entry.identity for entry in job.state.sets}
    return [
        freeze_set(job, config) for config in job.sets if set_identity(config) not in identities
    ]


def set_identity(config: EvaluationSetConfig) -> str:
    """The identity of an evaluation set within a chain: the fingerprint of its configuration."""
    return fingerprint("set", config)


def freeze_set(job: ScanJob, config: EvaluationSetConfig, *, again: bool = False) -> SetEntry:
    """Store a set; ``again``, when its artifact was lost, only what was in a set before."""
    chosen = _Chosen(job, config, again)
    with DocumentWriter(job.folder()) as writer:
        files, what = list_files(config.source), f"evaluation set {config.name!r}"
        for document in job.read_pinned(files, config.source, what):
            if chosen.wants(document):
                writer.add(stored(document, 0))
            if len(chosen.taken) == config.max_documents:
                break
    if not chosen.taken:
        raise ValueError(
            f"evaluation set {config.name!r} has no document left: training data already holds all "
            f"{len(chosen.removed)} that can be used; give documents of its own, or take it out of the "
            "recipe" + (f"\n{problems}" if (problems := job.problems.text()) else "")
        )
    sizes = {"num_documents": len(chosen.taken), "removed": len(chosen.removed)}
    artifact = job.deposit("evaluation-set", config.name, writer.folder, {**sizes})
    identity = set_identity(config)
    return SetEntry(name=config.name, identity=identity, domain=None, documents=artifact, **sizes)


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
    with DocumentWriter(job.folder()) as writer:
        for document in _base_candidates(job, files, problems):
            if job.index.get(document.digest) is None:
                job.index.write(IndexEntry(document.digest, Role.BASE, "base", document.origin))
                writer.add(stored(document, 0))
    if not writer.num_documents:
        raise ValueError(
            "no document is left for the base model: raise corpus.split.base_fraction "
            f"({job.corpus.split.base_fraction}) or give base.source\n"
            + (problems.text() or job.problems.text())
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
        for document in job.read_pinned(list_files(source), source, "the base model's documents"):
            if not job.is_refused(document, document.digest):
                yield document
        return
    for document in job.read(files, job.corpus.source, problems):
        is_base = role_of(document.digest, job.corpus.split, with_base=True) == Role.BASE
        if is_base and job.pending.isdisjoint({document.digest, document.origin}):
            yield document
