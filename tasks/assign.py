"""New documents to where they belong: held-out sets by digest, partitions by domain and budget."""

from collections.abc import Iterator
from pathlib import Path

from tasks import documents
from tasks.corpus import Document, SourceFile
from tasks.documents import StoredDocument
from tasks.intake import Intake, stored
from tasks.manifest import DomainState, PartitionEntry
from tasks.seen import Known, Role, open_place
from tasks.split import DomainSplitter, role_of
from tasks.tokenize import batched
from tasks.tokenizer import Encoder

BATCH = 128


def assign(
    job: Intake, files: list[SourceFile], domains: dict[str, DomainState], encoder: Encoder
) -> dict[str, DomainState]:
    """Read new files and assign their documents; the state of every domain afterwards."""
    splitters: dict[str, DomainSplitter] = {}
    heldout: dict[str, list[StoredDocument]] = {}
    for batch in batched(_training(job, files, domains, heldout), BATCH):
        lengths = map(len, encoder.encode([document.text for document in batch]))
        for document, num_tokens in zip(batch, lengths, strict=True):
            domain = document.domain
            if domain not in splitters:
                splitters[domain] = _splitter(job, domain, domains.get(domain, DomainState()))
            splitters[domain].add(document, num_tokens)
    for domain, splitter in splitters.items():
        domains[domain] = splitter.finish()
        job.counts["left out"] += splitter.left_out
    for domain in sorted({*domains, *heldout}):
        state = domains.get(domain, DomainState())
        domains[domain] = _with_heldout(job, domain, state, heldout.get(domain, []))
    return dict(sorted(domains.items()))


def _splitter(job: Intake, domain: str, state: DomainState) -> DomainSplitter:
    def fetch(entry: PartitionEntry) -> Path:
        return job.store.fetch(entry.documents)

    split = job.corpus.split
    return DomainSplitter(domain, state, split, job.seen, job.folder(), job.deposit, fetch)


def _training(
    job: Intake,
    files: list[SourceFile],
    domains: dict[str, DomainState],
    heldout: dict[str, list[StoredDocument]],
) -> Iterator[Document]:
    """New documents that are for training; held-out ones are put aside on the way."""
    split, first = job.corpus.split, job.state.number == 0
    for document in job.read(files, job.corpus.source):
        role = job.seen.role(document.digest)
        if role is not None:
            if not (first and role == Role.BASE):
                job.counts[f"known as {role}"] += 1
            continue
        # Base documents of the first scan are known by now; later ones go to partitions.
        role = role_of(document.digest, split, with_base=False)
        if role == Role.TRAIN:
            # Written before it is assigned: the same text may stand again in this very batch.
            place = open_place(document.domain)
            job.seen.write(Known(document.digest, role, place, document.origin))
            job.counts["train"] += 1
            yield document
            continue
        job.counts["held out"] += 1
        job.seen.write(Known(document.digest, role, document.domain, document.origin))
        state = domains.get(document.domain, DomainState())
        waiting = heldout.setdefault(document.domain, [])
        if not state.frozen and state.num_heldout + len(waiting) < split.heldout_documents:
            waiting.append(stored(document, 0))


def _with_heldout(
    job: Intake, domain: str, state: DomainState, new: list[StoredDocument]
) -> DomainState:
    update: dict[str, object] = {}
    if new:
        old = [] if state.heldout is None else documents.read_all(job.store.fetch(state.heldout))
        update = job.store_heldout(domain, [*old, *new])
    has_set = update.get("heldout", state.heldout) is not None
    update["frozen"] = state.frozen or (has_set and bool(state.partitions))
    return state.model_copy(update=update)
