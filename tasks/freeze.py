"""What is fixed once and stays: evaluation sets with a source of their own, and the base documents.

Evaluation documents are registered before any training document of the same scan is read, so the
training data loses what both hold. A set that comes later loses what training already holds.
"""

from storage.artifact import Artifact
from storage.fingerprint import fingerprint
from tasks.corpus import Problems, SourceFile, list_files
from tasks.documents import DocumentWriter
from tasks.intake import EvaluationSetConfig, Intake, stored
from tasks.manifest import SetEntry
from tasks.seen import Known, Role
from tasks.split import role_of


def freeze_sets(job: Intake) -> list[SetEntry]:
    """Read the evaluation sets that the chain does not know yet.

    Raises:
        ValueError: training data already holds every document of a set.
    """
    known = {entry.identity for entry in job.state.sets}
    return [
        _freeze_set(job, config) for config in job.sets if fingerprint("set", config) not in known
    ]


def _freeze_set(job: Intake, config: EvaluationSetConfig) -> SetEntry:
    removed = 0
    taken: set[str] = set()
    with DocumentWriter(job.folder()) as writer:
        for document in job.read(list_files(config.source), config.source):
            if config.max_documents is not None and len(taken) >= config.max_documents:
                break
            role = job.seen.role(document.digest)
            if role in {Role.TRAIN, Role.BASE, Role.WITHDRAWN}:
                removed += 1
            elif document.digest not in taken:
                taken.add(document.digest)
                writer.add(stored(document, 0))
                if role is None:
                    known = (document.digest, Role.EVALUATION, config.name, document.origin)
                    job.seen.write(Known(*known))
    if not taken:
        raise ValueError(
            f"evaluation set {config.name!r} has no document left: {removed} were read and training "
            "data already holds them all; " + (job.problems.text() or "give documents of its own")
        )
    details: dict[str, object] = {"num_documents": len(taken), "removed": removed}
    artifact = job.deposit("evaluation-set", config.name, writer.folder, details)
    return SetEntry(
        name=config.name,
        identity=fingerprint("set", config),
        domain=None,
        documents=artifact,
        num_documents=len(taken),
        removed=removed,
    )


def collect_base(job: Intake, files: list[SourceFile]) -> Artifact | None:
    """The documents of tokenizer and base model: of their own source, or a share of this scan's."""
    source = job.base_source or job.corpus.source
    if job.base_source is None and not job.corpus.split.base_fraction:
        return None
    own = list_files(source) if job.base_source is not None else files
    # The corpus is read once more after this and says the same of its faults again.
    problems = job.problems if job.base_source is not None else Problems()
    with DocumentWriter(job.folder()) as writer:
        for document in job.read(own, source, problems):
            wanted = job.base_source is not None or (
                role_of(document.digest, job.corpus.split, with_base=True) == Role.BASE
            )
            if wanted and job.seen.role(document.digest) is None:
                job.seen.write(Known(document.digest, Role.BASE, "base", document.origin))
                writer.add(stored(document, 0))
    if not writer.num_documents:
        raise ValueError(
            "no document is left for the base model: raise corpus.split.base_fraction "
            f"({job.corpus.split.base_fraction}) or give base.source"
        )
    details: dict[str, object] = {"num_documents": writer.num_documents}
    return job.deposit("base", job.corpus.name, writer.folder, details)
