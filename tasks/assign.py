"""New documents to where they belong: held-out sets by digest, partitions by domain and budget."""

from collections.abc import Iterable, Iterator

from storage.artifact import Artifact
from tasks.corpus import Document, SourceFile
from tasks.documents import DocumentWriter
from tasks.intake import Intake, stored
from tasks.manifest import DomainState
from tasks.seen import Known, Role, open_place
from tasks.split import DomainSplitter, role_of
from tasks.tokenizer import Encoder

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1 << 20

HeldOut = dict[str, DocumentWriter]
"""Held-out documents by domain, where this scan adds some to those that are kept."""


def assign(job: Intake, files: list[SourceFile], encoder: Encoder) -> dict[str, DomainState]:
    """Read new files and assign their documents; the state of every domain afterwards."""
    splitters: dict[str, DomainSplitter] = {}
    heldout: HeldOut = {}
    for batch in _batches(_training(job, files, heldout)):
        lengths = map(len, encoder.encode([document.text for document in batch]))
        for document, num_tokens in zip(batch, lengths, strict=True):
            domain = document.domain
            if domain not in splitters:
                splitters[domain] = DomainSplitter(job, domain, _state(job, domain))
            splitters[domain].add(document, num_tokens)
    domains = {name: splitter.finish() for name, splitter in splitters.items()}
    names = sorted({*job.state.domains, *domains, *heldout})
    return {
        name: _with_heldout(job, name, domains.get(name, _state(job, name)), heldout.get(name))
        for name in names
    }


def _state(job: Intake, domain: str) -> DomainState:
    return job.state.domains.get(domain, DomainState())


def _batches(found: Iterable[Document]) -> Iterator[list[Document]]:
    # By characters as well: an encoding takes a hundred times the memory of its text.
    batch: list[Document] = []
    size = 0
    for document in found:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _training(job: Intake, files: list[SourceFile], heldout: HeldOut) -> Iterator[Document]:
    """New documents that are for training; held-out ones are put aside on the way."""
    split, done = job.corpus.split, job.state.files
    for document in job.read(files, job.corpus.source, job.problems, done):
        digest, origin = document.digest, document.origin
        known = job.seen.get(digest)
        if known is not None:
            job.counts[_told(job, known, document)] += 1
        elif job.is_refused(document, digest, origin):
            continue
        # Base documents of the first scan are known by now; later ones go to partitions.
        elif role_of(digest, split, with_base=False) == Role.HELDOUT:
            job.counts["held out"] += 1
            _hold_out(job, document, heldout)
        else:
            # Written before it is assigned: the same text may stand again in this very batch.
            job.seen.write(Known(digest, Role.TRAIN, open_place(document.domain), origin))
            yield document


def _told(job: Intake, known: Known, document: Document) -> str:
    # The first scan meets each base document a second time.
    again = job.state.number == 0 and known.role == Role.BASE and known.origin == document.origin
    return Role.BASE if again else f"known as {known.role}"


def _hold_out(job: Intake, document: Document, heldout: HeldOut) -> None:
    """Keep it for its domain's evaluation set, unless that is frozen or full."""
    domain = document.domain
    state = _state(job, domain)
    number = heldout[domain].num_documents if domain in heldout else state.num_heldout
    keep = not state.frozen and number < job.corpus.split.heldout_documents
    place = domain if keep else ""
    job.seen.write(Known(document.digest, Role.HELDOUT, place, document.origin))
    if keep:
        if domain not in heldout:
            heldout[domain] = job.copied(state.heldout)
        heldout[domain].add(stored(document, 0))


def _with_heldout(
    job: Intake, domain: str, state: DomainState, writer: DocumentWriter | None
) -> DomainState:
    kept: Artifact | None = state.heldout
    number = state.num_heldout
    if writer is not None:
        writer.close()
        kept, number = store_heldout(job, domain, writer), writer.num_documents
    frozen = state.frozen or (kept is not None and bool(state.partitions))
    return state.model_copy(update={"heldout": kept, "num_heldout": number, "frozen": frozen})


def store_heldout(job: Intake, domain: str, writer: DocumentWriter) -> Artifact:
    """Deposit a closed writer's documents as the held-out documents of a domain."""
    details: dict[str, object] = {"domain": domain, "num_documents": writer.num_documents}
    return job.deposit("heldout", domain, writer.folder, details)
