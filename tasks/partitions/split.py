"""Split documents into partitions: append-only, sealed at a token budget, held out by digest.

Each document is judged alone, by the sha256 of its text, so the outcome does not depend on what
else arrived or when. Below ``heldout_fraction`` it is held out; in the next ``base_fraction`` it is
for the base model (first scan only). Every other goes to its domain's open partition, which is
sealed when it holds the token budget and never changes again.
"""

import hashlib
from collections.abc import Collection

from tasks.corpus.documents import DocumentWriter
from tasks.corpus.reading import Document
from tasks.partitions.config import SplitConfig
from tasks.partitions.index import IndexEntry, Role, open_place
from tasks.partitions.job import ScanJob, stored
from tasks.partitions.manifest import DomainState, PartitionEntry


def role_of(digest: str, split: SplitConfig, *, with_base: bool) -> str:
    """What a new document is for: decided by its digest alone, so the same for ever.

    The digest is hashed once more, because corpora are themselves often sampled by a digest.
    """
    share = int(hashlib.sha256(f"mixpool:role:{digest}".encode()).hexdigest()[:15], 16) / 16**15
    if share < split.heldout_fraction:
        return Role.HELDOUT
    if with_base and share < split.heldout_fraction + split.base_fraction:
        return Role.BASE
    return Role.TRAIN


class DomainSplitter:
    """Assigns one domain's documents, starting from the state that the last scan left."""

    def __init__(self, job: ScanJob, domain: str, state: DomainState) -> None:
        self.domain = domain
        self._job = job
        self._state = state
        self._partitions = list(state.partitions)
        self._added = 0
        remainder = state.remainder
        self._writer = job.copied(None if remainder is None else remainder.documents)

    @property
    def is_full(self) -> bool:
        """Whether the domain has all its partitions."""
        limit = self._job.state.limit
        return limit is not None and len(self._partitions) >= limit

    def add(self, document: Document, num_tokens: int) -> None:
        """Assign one new document; where the domain has all its partitions, it is left out."""
        split, job = self._job.corpus.split, self._job
        if self.is_full:
            job.counts["left out"] += 1
            job.index.write(IndexEntry(document.digest, Role.LEFT_OUT, "", document.origin))
            return
        job.counts["train"] += 1
        self._added += 1
        self._writer.add(stored(document, num_tokens))
        if self._writer.num_tokens >= split.tokens_per_partition:
            self._seal()

    @property
    def _next_name(self) -> str:
        # A withdrawal may have emptied a partition in between: count on from the last name.
        if not self._partitions:
            return f"{self.domain}-0"
        return f"{self.domain}-{int(self._partitions[-1].name.rpartition('-')[2]) + 1}"

    def _seal(self) -> None:
        name = self._next_name
        for row in self._writer.documents():
            self._job.index.write(IndexEntry(row.digest, Role.TRAIN, name, row.origin))
        self._writer.close()
        entry = store_partition(self._job, self._writer, name, self.domain, sealed=True)
        self._partitions.append(entry)
        self._writer = self._job.copied(None)

    def finish(self) -> DomainState:
        """The state after this scan; the open remainder is stored if it changed."""
        if not self._added:
            return self._state
        remainder = None
        if self._writer.num_documents:
            self._writer.close()
            name = f"{self._next_name}-open"
            remainder = store_partition(self._job, self._writer, name, self.domain, sealed=False)
        return self._state.model_copy(
            update={"partitions": self._partitions, "remainder": remainder}
        )


def store_partition(
    job: ScanJob, writer: DocumentWriter, name: str, domain: str, *, sealed: bool
) -> PartitionEntry:
    """Deposit a closed writer's documents as a partition."""
    sizes = {
        "num_documents": writer.num_documents,
        "num_tokens": writer.num_tokens,
        "num_bytes": writer.num_bytes,
    }
    step = "partition" if sealed else "remainder"
    made = job.deposit(step, name, writer.folder, {"domain": domain, **sizes})
    # A remainder that grows is another partition, so its name carries its content.
    shown = name if sealed else f"{name}-{made.digest[:6]}"
    return PartitionEntry(name=shown, domain=domain, documents=made, sealed=sealed, **sizes)


def place_of(entry: PartitionEntry) -> str:
    """The place of a partition's documents in the index."""
    return entry.name if entry.sealed else open_place(entry.domain)


def rewrite(job: ScanJob, entry: PartitionEntry, without: Collection[str]) -> PartitionEntry | None:
    """The same partition without some digests; None where no document is left."""
    writer = job.copied(entry.documents, without)
    writer.close()
    if not writer.num_documents:
        return None
    name = entry.name if entry.sealed else entry.name.rpartition("-")[0]
    return store_partition(job, writer, name, entry.domain, sealed=entry.sealed)
