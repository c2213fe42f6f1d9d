"""Assign new documents: to held-out sets by digest, to partitions by domain and token budget."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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


def assign(
    job: ScanJob, files: list[SourceFile], encoders: Encoders, again: list[SourceFile]
) -> dict[str, DomainState]:
    """Read new files and assign their documents; the state of every domain afterwards.

    Args:
        again: files to read for documents that were left out, before any other; empty where no
            domain has room for them.
    """
    splitters: dict[str, DomainSplitter] = {}
    heldout: HeldOut = {}

    def splitter(domain: str) -> DomainSplitter:
        if domain not in splitters:
            splitters[domain] = DomainSplitter(job, domain, _state(job, domain))
        return splitters[domain]

    new = job.read(files, job.corpus.source, job.problems, job.state.files)
    read = itertools.chain(_left_out(job, again, splitter), new)
    documents = _training(job, _counted(job, read, encoders), heldout)
    # The index entry of a document depends on where these batches end, so they stay as they are.
    for batch in batches(documents, BATCH_CHARACTERS, _length, BATCH_DOCUMENTS):
        for document, num_tokens in batch:
            splitter(document.domain).add(document, num_tokens)
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


def _left_out(
    job: ScanJob, files: list[SourceFile], splitter: Callable[[str], DomainSplitter]
) -> Iterator[Document]:
    """Documents that were left out and whose domain has room now, as if they were new."""
    for document in job.read(files, job.corpus.source, job.problems):
        entry = job.index.get(document.digest)
        if entry is None or entry.role != Role.LEFT_OUT or splitter(document.domain).is_full:
            continue
        job.index.forget(document.digest)
        job.counts[Role.LEFT_OUT] -= 1
        yield document._replace(origin=entry.origin)


def _counted(job: ScanJob, documents: Iterable[Document], encoders: Encoders) -> Iterator[Counted]:
    """Documents with their numbers of tokens, counted some batches ahead of their turn.

    Documents that the index already knows are not counted: their number is 0.
    """
    sent: deque[list[tuple[Document, bool]]] = deque()

    def texts() -> Iterator[list[str]]:
        for batch in text_batches(documents, attrgetter("text")):
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
        elif document.text in job.twins:
            job.counts[f"known as {Role.EVALUATION}"] += 1
        # Base documents of the first scan are known by now; later ones go to partitions.
        elif role_of(digest, split, with_base=False) == Role.HELDOUT:
            job.counts["held out"] += 1
            _hold_out(job, document, heldout)
        elif document.text in job.heldout_twins:
            job.counts[f"known as {Role.HELDOUT}"] += 1
        else:
            # Written before it is assigned: the same text may stand again in this very batch.
            job.index.write(IndexEntry(digest, Role.TRAIN, open_place(document.domain), origin))
            yield document, num_tokens


def _hold_out(job: ScanJob, document: Document, heldout: HeldOut) -> None:
    """Keep it for its domain's evaluation set, unless that is frozen or full, or its twin is trained on."""
    domain = document.domain
    state = _state(job, domain)
    number = heldout[domain].num_documents if domain in heldout else state.num_heldout
    keep = not state.frozen and number < job.corpus.split.heldout_documents
    keep = keep and document.text not in job.base_twins
    job.heldout_twins.add([document.text])
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
