"""Make artifacts again that a manifest names and the store has lost.

Documents are read from the corpus once more and put into the order of the index. So the artifact
gets the same bytes and the same digest, and nothing made from it runs again. A lost index is made
from the documents themselves. Documents that the corpus no longer has cannot be made again.
"""

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from storage.artifact import Artifact
from tasks.corpus import documents
from tasks.corpus.documents import DocumentWriter, StoredDocument
from tasks.corpus.listing import SourceFile
from tasks.corpus.reading import Problems, list_files
from tasks.partitions.assign import store_heldout
from tasks.partitions.freeze import freeze_set, store_base
from tasks.partitions.index import DocumentIndex, IndexEntry, Role
from tasks.partitions.job import ScanJob
from tasks.partitions.manifest import DomainState, Manifest, PartitionEntry, SetEntry
from tasks.partitions.split import place_of, store_partition
from tasks.tokens.tokenizer import Encoder

LOG = logging.getLogger("mixpool.repair")


class StoredPlace(NamedTuple):
    """Where documents lie, as the index says it."""

    artifact: Artifact
    role: str
    name: str


def places(state: Manifest) -> Iterator[StoredPlace]:
    """Every artifact of documents that a manifest names."""
    if state.base_documents is not None:
        yield StoredPlace(state.base_documents, Role.BASE, "base")
    for own in state.sets:
        yield StoredPlace(own.documents, Role.EVALUATION, own.name)
    for name, domain in state.domains.items():
        if domain.heldout is not None:
            yield StoredPlace(domain.heldout, Role.HELDOUT, name)
        for entry in [*domain.partitions, *filter(None, [domain.remainder])]:
            yield StoredPlace(entry.documents, Role.TRAIN, place_of(entry))


def repair_index(job: ScanJob, lost: set[str]) -> None:
    """Make the index again from the documents themselves, where a part of it is lost.

    Raises:
        ValueError: documents are lost as well.
    """
    kept = [artifact for artifact in job.state.index if artifact.digest not in lost]
    if len(kept) == len(job.state.index):
        return
    folder = job.folder()
    with closing(DocumentIndex(job.folder())) as index:
        for digest, origin in job.state.withdrawn.items():
            index.write(IndexEntry(digest, Role.WITHDRAWN, "", origin))
        for artifact, role, place in places(job.state):
            if artifact.digest in lost:
                raise ValueError(
                    f"both the index of {job.state.chain} and documents of {place!r} are lost: "
                    "restore the store from a copy, or start a new chain under another corpus.name"
                )
            for row in documents.read_columns(job.store.fetch(artifact), ["digest", "origin"]):
                index.write(IndexEntry(row["digest"], role, place, row["origin"]))
        index.save_new(folder)
    # Behind what is left of it, which alone knows documents that are in no artifact.
    job.update(index=[*kept, job.deposit("index", job.state.chain, folder, {})])


def repair(job: ScanJob, lost: set[str], files: list[SourceFile]) -> None:
    """Make artifacts of ``job.state`` again; ``lost`` are their digests.

    Raises:
        ValueError: the corpus, or the source of a set, no longer holds documents that were lost.
    """
    lost = lost & {place.artifact.digest for place in places(job.state)}
    if not lost:
        return
    LOG.warning("%d artifacts of documents were lost; making them again", len(lost))
    with closing(_Texts(job, lost, files)) as texts:
        state = job.state
        if (base := state.base_documents) is not None and base.digest in lost:
            writer = texts.write("base", job.index.place(Role.BASE, "base"))
            job.update(base_documents=_same_or_warn(base, store_base(job, writer)))
        domains = {n: _repair_domain(job, n, d, lost, texts) for n, d in state.domains.items()}
        sets = [_repair_set(job, entry, lost) for entry in state.sets]
    job.update(domains=domains, sets=[entry for entry in sets if entry is not None])


def _repair_domain(
    job: ScanJob, name: str, domain: DomainState, lost: set[str], texts: "_Texts"
) -> DomainState:
    def made(old: PartitionEntry | None) -> PartitionEntry | None:
        if old is None or old.documents.digest not in lost:
            return old
        entries = job.index.place(Role.TRAIN, place_of(old))
        writer = texts.write(old.name, entries, domain=name, counted=True)
        label = old.name if old.sealed else old.name.rpartition("-")[0]
        new = store_partition(job, writer, label, name, sealed=old.sealed)
        _same_or_warn(old.documents, new.documents)
        return new

    partitions = [made(old) for old in domain.partitions]
    update: dict[str, object] = {"partitions": partitions, "remainder": made(domain.remainder)}
    if domain.heldout is not None and domain.heldout.digest in lost:
        writer = texts.write(name, job.index.place(Role.HELDOUT, name), domain=name)
        update["heldout"] = _same_or_warn(domain.heldout, store_heldout(job, name, writer))
        update["num_heldout"] = writer.num_documents
    return domain.model_copy(update=update)


def _repair_set(job: ScanJob, old: SetEntry, lost: set[str]) -> SetEntry | None:
    if old.documents.digest not in lost:
        return old
    if old.identity not in job.sets:
        LOG.warning("evaluation set %r was lost and is no longer asked for: forgotten", old.name)
        return None
    new = freeze_set(job, old.identity, again=True)
    if new.num_documents != old.num_documents:
        raise ValueError(
            f"evaluation set {old.name!r} was damaged in the store, and its source has "
            f"{new.num_documents} of its {old.num_documents} documents: bring the files back, or "
            "give the set another name"
        )
    _same_or_warn(old.documents, new.documents)
    return new.model_copy(update={"removed": old.removed, "seen": old.seen})


def _same_or_warn(old: Artifact, new: Artifact) -> Artifact:
    if new.digest != old.digest:
        LOG.warning(
            "%s was made again with the same documents and other bytes (another version of "
            "pyarrow, or origins that changed): it is %s now",
            old.prefix,
            new.prefix,
        )
    return new


class _Texts:
    """The texts of lost documents by digest, read from the corpus when first needed."""

    def __init__(self, job: ScanJob, lost: set[str], files: list[SourceFile]) -> None:
        self._job = job
        self._files = files
        self._wanted = {
            (role, name) for artifact, role, name in places(job.state) if artifact.digest in lost
        }
        self._database = sqlite3.connect(job.folder() / "texts.sqlite", isolation_level=None)
        self._is_read = False

    def _read(self) -> None:
        if self._is_read:
            return
        self._is_read = True
        job, database = self._job, self._database
        database.execute("CREATE TABLE texts (digest TEXT PRIMARY KEY, domain TEXT, text TEXT)")
        database.execute("BEGIN")
        sources = [(job.corpus.source, self._files)]
        if job.base_source is not None and (Role.BASE, "base") in self._wanted:
            sources.append((job.base_source, list_files(job.base_source)))
        for source, files in sources:
            for document in job.read(files, source, Problems()):
                entry = job.index.get(document.digest)
                if entry is not None and (entry.role, entry.place) in self._wanted:
                    # The place where it was first seen also says what its domain was.
                    how = "REPLACE" if entry.origin == document.origin else "IGNORE"
                    row = (document.digest, document.domain, document.text)
                    database.execute(f"INSERT OR {how} INTO texts VALUES (?, ?, ?)", row)

    def write(
        self,
        label: str,
        entries: Iterable[IndexEntry],
        *,
        domain: str | None = None,
        counted: bool = False,
    ) -> DocumentWriter:
        """A closed writer with the documents of ``entries`` in their order."""
        self._read()
        encoder = Encoder(self._job.store.fetch(self._job.state.tokenizer)) if counted else None
        gone: list[IndexEntry] = []
        query = "SELECT domain, text FROM texts WHERE digest = ?"
        with self._job.writer() as writer:
            for entry in entries:
                held = self._database.execute(query, (entry.digest,)).fetchone()
                if held is None:
                    # What is to be withdrawn next need not be found.
                    if self._job.pending.isdisjoint({entry.digest, entry.origin}):
                        gone.append(entry)
                    continue
                own_domain, text = held
                tokens = len(encoder.encode([text])[0]) if encoder is not None else 0
                digest, origin = entry.digest, entry.origin
                writer.add(StoredDocument(digest, domain or own_domain, origin, tokens, text))
        if gone:
            raise ValueError(
                f"{label} was damaged in the store, and {len(gone)} of its documents are no longer in "
                f"the corpus, such as {gone[0].digest}, once at {gone[0].origin}: bring the files back, "
                "or list the digests in corpus.withdraw: " + " ".join(e.digest for e in gone[:20])
            )
        return writer

    def close(self) -> None:
        """Let go of the scratch file."""
        self._database.close()
