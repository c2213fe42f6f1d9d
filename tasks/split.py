"""Documents to partitions: append-only, sealed by token budget, held out by digest.

Each document is judged alone, by the sha256 of its text, so that the outcome does not depend on what
else arrived or when: held out below ``heldout_fraction``, for the base model in the next
``base_fraction`` (first scan only), else to its domain's open partition, which is sealed when it
holds the token budget and never changes again.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from storage.artifact import Artifact
from tasks import documents
from tasks.corpus import Document
from tasks.documents import DocumentWriter, StoredDocument
from tasks.manifest import DomainState, PartitionEntry, SplitConfig
from tasks.seen import Known, Role, Seen

Deposit = Callable[[str, str, Path, dict[str, object]], Artifact]
"""Stores a folder of documents: (step, label, folder, details) to the artifact."""


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

    def __init__(
        self,
        domain: str,
        state: DomainState,
        split: SplitConfig,
        seen: Seen,
        scratch: Path,
        deposit: Deposit,
        fetch: Callable[[PartitionEntry], Path],
    ) -> None:
        self.domain = domain
        self.left_out = 0
        self._state = state
        self._split = split
        self._seen = seen
        self._scratch = scratch
        self._deposit = deposit
        self._partitions = list(state.partitions)
        self._added = 0
        self._writer = self._next_writer()
        if state.remainder is not None:
            for stored in documents.read_all(fetch(state.remainder)):
                self._append(stored)

    @property
    def is_full(self) -> bool:
        """Whether the domain has as many partitions as the rules allow."""
        limit = self._split.partitions_per_domain
        return limit is not None and len(self._partitions) >= limit

    def _next_writer(self) -> DocumentWriter:
        return DocumentWriter(self._scratch / str(len(self._partitions)))

    def add(self, document: Document, num_tokens: int) -> None:
        """Assign one new document; it is counted in ``left_out`` where the domain is full."""
        if self.is_full:
            self.left_out += 1
            known = (document.digest, Role.LEFT_OUT, self.domain, document.origin)
            self._seen.write(Known(*known))
            return
        self._added += 1
        self._append(
            StoredDocument(document.digest, self.domain, document.origin, num_tokens, document.text)
        )

    def _append(self, stored: StoredDocument) -> None:
        self._writer.add(stored)
        if self._writer.num_tokens >= self._split.tokens_per_partition:
            self._seal()

    def _seal(self) -> None:
        name = f"{self.domain}-{len(self._partitions)}"
        entry = self._store(name, sealed=True)
        for row in documents.read(self._writer.folder, ["digest", "origin"]):
            self._seen.write(Known(row["digest"], Role.TRAIN, name, row["origin"]))
        self._partitions.append(entry)
        self._writer = self._next_writer()

    def _store(self, name: str, *, sealed: bool) -> PartitionEntry:
        writer = self._writer
        writer.close()
        return store_partition(writer, name, self.domain, self._deposit, sealed=sealed)

    def finish(self) -> DomainState:
        """The state after this scan; the open remainder is stored if it changed."""
        grown = self._added > 0 or len(self._partitions) > len(self._state.partitions)
        if not grown:
            self._writer.close()
            return self._state
        remainder = None
        if self._writer.num_documents:
            remainder = self._store(f"{self.domain}-{len(self._partitions)}-open", sealed=False)
        else:
            self._writer.close()
        return self._state.model_copy(
            update={"partitions": self._partitions, "remainder": remainder}
        )


def store_partition(
    writer: DocumentWriter, name: str, domain: str, deposit: Deposit, *, sealed: bool
) -> PartitionEntry:
    """Deposit a closed writer's documents as a partition."""
    details: dict[str, object] = {
        "domain": domain,
        "num_documents": writer.num_documents,
        "num_tokens": writer.num_tokens,
        "num_bytes": writer.num_bytes,
    }
    stored = deposit("partition" if sealed else "remainder", name, writer.folder, details)
    # A remainder that grows is another partition, so its name carries its content.
    shown = name if sealed else f"{name}-{stored.digest[:6]}"
    return PartitionEntry(
        name=shown,
        domain=domain,
        documents=stored,
        num_documents=writer.num_documents,
        num_tokens=writer.num_tokens,
        num_bytes=writer.num_bytes,
        sealed=sealed,
    )


def rewrite(
    entry: PartitionEntry, source: Iterator[StoredDocument], folder: Path, deposit: Deposit
) -> PartitionEntry | None:
    """The same partition with other documents; None where none are left."""
    with DocumentWriter(folder) as writer:
        for stored in source:
            writer.add(stored)
    if not writer.num_documents:
        return None
    name = entry.name if entry.sealed else entry.name.rpartition("-")[0]
    return store_partition(writer, name, entry.domain, deposit, sealed=entry.sealed)
