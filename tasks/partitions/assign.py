"""Assign new documents: to held-out sets by digest, to partitions by domain and token budget."""

from collections import deque
from collections.abc import Iterable, Iterator
from operator import attrgetter

from storage.artifact import Artifact
from tasks.corpus.documents import DocumentWriter, batches
from tasks.corpus.listing import SourceFile
from tasks.corpus.reading import Document
from tasks.partitions.index import IndexEntry, Role, open_place
from tasks.partitions.job import ScanJob, stored
from tasks.partitions.manifest import DomainState
from tasks.partitions.split import DomainSplitter, role_of
from tasks.tokens.processes import Encoders, text_batches

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1 << 20

Counted = tuple[Document, int]
"""A document and its number of tokens, end-of-text included."""

HeldOut = dict[str, DocumentWriter]
"""Held-out documents by domain, where this scan adds some to those that are kept."""


def assign(job: ScanJob, files: list[SourceFile], encoders: Encoders) -> dict[str, DomainState]:
    """Read new files and assign their documents; the state of every domain afterwards."""
    splitters: dict[str, DomainSplitter] = {}
    heldout: HeldOut = {}
    documents = _training(job, _counted(job, files, encoders), heldout)
    # The index entry of a document depends on where these batches end, so they stay as they are.
    for batch in batches(documents, BATCH_CHARACTERS, _length, BATCH_DOCUMENTS):
        for document, num_tokens in batch:
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


def _length(counted: Counted) -> int:
    return len(counted[0].text)


def _state(job: ScanJob, domain: str) -> DomainState:
    return job.state.domains.get(domain, DomainState())


def _counted(job: ScanJob, files: list[SourceFile], encoders: Encoders) -> Iterator[Counted]:
    """Documents with their numbers of tokens, counted some batches ahead of their turn.

    Documents that the index already knows are not counted: their number is 0.
    """
    read = job.read(files, job.corpus.source, job.problems, job.state.files)
    sent: deque[list[tuple[Document, bool]]] = deque()

    def texts() -> Iterator[list[str]]:
        for batch in text_batches(read, attrgetter("text")):
            sent.append([(document, document.digest in job.index) for document in batch])
            yield [document.text for document, is_known in sent[-1] if not is_known]

    for batch_counts in encoders.count(texts()):
        counts = iter(batch_counts)
        for document, is_known in sent.popleft():
            yield document, 0 if is_known else next(counts)


def _training(job: ScanJob, documents: Iterable[Counted], heldout: HeldOut) -> Iterator[Counted]:
    """New documents that are for training; held-out ones are put aside on the way."""
    split = job.corpus.split
    for document, num_tokens in documents:
        digest, origin = document.digest, document.origin
        entry = job.index.get(digest)
        if entry is not None:
            # The first scan meets each base document a second time.
            again = job.state.number == 0 and entry.role == Role.BASE and entry.origin == origin
            job.counts[Role.BASE if again else f"known as {entry.role}"] += 1
        elif job.is_refused(document, digest, origin):
            continue
        # Base documents of the first scan are known by now; later ones go to partitions.
        elif role_of(digest, split, with_base=False) == Role.HELDOUT:
            job.counts["held out"] += 1
            _hold_out(job, document, heldout)
        else:
            # Written before it is assigned: the same text may stand again in this very batch.
            job.index.write(IndexEntry(digest, Role.TRAIN, open_place(document.domain), origin))
            yield document, num_tokens


def _hold_out(job: ScanJob, document: Document, heldout: HeldOut) -> None:
    """Keep it for its domain's evaluation set, unless that is frozen or full."""
    domain = document.domain
    state = _state(job, domain)
    number = heldout[domain].num_documents if domain in heldout else state.num_heldout
    keep = not state.frozen and number < job.corpus.split.heldout_documents
    place = domain if keep else ""
    job.index.write(IndexEntry(document.digest, Role.HELDOUT, place, document.origin))
    if keep:
        if domain not in heldout:
            heldout[domain] = job.copied(state.heldout)
        heldout[domain].add(stored(document, 0))


def _with_heldout(
    job: ScanJob, domain: str, state: DomainState, writer: DocumentWriter | None
) -> DomainState:
    kept: Artifact | None = state.heldout
    number = state.num_heldout
    if writer is not None:
        writer.close()
        kept, number = store_heldout(job, domain, writer), writer.num_documents
    frozen = state.frozen or (kept is not None and bool(state.partitions))
    return state.model_copy(update={"heldout": kept, "num_heldout": number, "frozen": frozen})


def store_heldout(job: ScanJob, domain: str, writer: DocumentWriter) -> Artifact:
    """Deposit a closed writer's documents as the held-out documents of a domain."""
    details: dict[str, object] = {"domain": domain, "num_documents": writer.num_documents}
    return job.deposit("heldout", domain, writer.folder, details)
