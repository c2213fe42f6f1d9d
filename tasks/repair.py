"""Make again what a manifest names and the store has lost.

Documents are read from the corpus once more and put into the order in which the index has them, so
that the artifact gets the same bytes and the same digest, and nothing below it runs again. A lost
index is made from the documents themselves. What the corpus no longer has cannot be made again.
"""

import logging
import sqlite3
from collections.abc import Iterable

from storage.artifact import Artifact
from tasks import documents
from tasks.corpus import SourceFile, list_files
from tasks.documents import DocumentWriter, StoredDocument
from tasks.intake import Intake
from tasks.manifest import DomainState, PartitionEntry
from tasks.seen import Known, Role, Seen, open_place
from tasks.tokenizer import Encoder

LOG = logging.getLogger("mixpool.repair")


def repair(job: Intake, lost: list[Artifact], files: list[SourceFile]) -> None:
    """Make the ``lost`` artifacts of ``job.state`` again.

    Raises:
        ValueError: the corpus no longer holds documents that were lost.
    """
    if not lost:
        return
    digests = {artifact.digest for artifact in lost}
    LOG.warning("%d artifacts of the corpus were lost; making them again", len(digests))
    _repair_index(job, digests)
    seen = Seen(job.folder())
    for index in job.state.index:
        seen.load(job.store.fetch(index))
    texts = _Texts(job, seen, files)
    state = job.state
    if state.base_documents is not None and state.base_documents.digest in digests:
        base = texts.store("base", job.corpus.name, seen.place(Role.BASE, "base"), counted=False)
        state = state.model_copy(update={"base_documents": base})
    domains = {
        name: _repair_domain(name, domain, digests, texts, seen)
        for name, domain in state.domains.items()
    }
    # A set of its own is simply read again: its documents are known as evaluation documents.
    sets = [entry for entry in state.sets if entry.documents.digest not in digests]
    job.state = state.model_copy(update={"domains": domains, "sets": sets})
    texts.close()
    seen.close()


def _repair_domain(
    name: str, domain: DomainState, lost: set[str], texts: "_Texts", seen: Seen
) -> DomainState:
    def entry(old: PartitionEntry | None) -> PartitionEntry | None:
        if old is None or old.documents.digest not in lost:
            return old
        place = old.name if old.sealed else open_place(name)
        step = "partition" if old.sealed else "remainder"
        made = texts.store(step, old.name, seen.place(Role.TRAIN, place), counted=True)
        return old.model_copy(update={"documents": made})

    update: dict[str, object] = {
        "partitions": [entry(old) for old in domain.partitions],
        "remainder": entry(domain.remainder),
    }
    if domain.heldout is not None and domain.heldout.digest in lost:
        rows = list(seen.place(Role.HELDOUT, name))[: domain.num_heldout]
        update["heldout"] = texts.store("heldout", name, rows, counted=False)
    return domain.model_copy(update=update)


def _repair_index(job: Intake, lost: set[str]) -> None:
    if not any(index.digest in lost for index in job.state.index):
        return
    seen, state = Seen(job.folder()), job.state
    places = [(state.base_documents, Role.BASE, "base")]
    places += [(entry.documents, Role.EVALUATION, entry.name) for entry in state.sets]
    for name, domain in state.domains.items():
        places.append((domain.heldout, Role.HELDOUT, name))
        places += [(entry.documents, Role.TRAIN, entry.name) for entry in domain.partitions]
        if domain.remainder is not None:
            places.append((domain.remainder.documents, Role.TRAIN, open_place(name)))
    for digest, origin in state.withdrawn.items():
        seen.write(Known(digest, Role.WITHDRAWN, "", origin))
    for artifact, role, place in places:
        if artifact is not None and artifact.digest in lost:
            raise ValueError(
                f"both the index of {state.chain} and documents of {place!r} are lost: restore the "
                "store from a copy, or start a new chain under another corpus.name"
            )
        if artifact is not None:
            for row in documents.read(job.store.fetch(artifact), ["digest", "origin"]):
                seen.write(Known(row["digest"], role, place, row["origin"]))
    folder = job.folder() / "index"
    seen.save_new(folder)
    seen.close()
    index = job.deposit("index", state.chain, folder, {})
    job.state = state.model_copy(update={"index": [index]})


class _Texts:
    """The corpus's texts by digest, read when first needed into a scratch table."""

    def __init__(self, job: Intake, seen: Seen, files: list[SourceFile]) -> None:
        self._job = job
        self._seen = seen
        self._files = files
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
        if job.base_source is not None:
            sources.append((job.base_source, list_files(job.base_source)))
        for source, files in sources:
            for document in job.read(files, source):
                if self._seen.role(document.digest) in {Role.TRAIN, Role.BASE, Role.HELDOUT}:
                    row = (document.digest, document.domain, document.text)
                    database.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", row)

    def store(self, step: str, label: str, rows: Iterable[Known], *, counted: bool) -> Artifact:
        """Deposit the documents of ``rows`` in their order."""
        self._read()
        encoder = Encoder(self._job.store.fetch(self._job.state.tokenizer)) if counted else None
        with DocumentWriter(self._job.folder()) as writer:
            for known in rows:
                found = self._database.execute(
                    "SELECT domain, text FROM texts WHERE digest = ?", (known.digest,)
                ).fetchone()
                if found is None:
                    raise ValueError(
                        f"{label} was damaged in the store, and its document {known.origin} "
                        f"({known.digest}) is no longer in the corpus: bring the file back, or list "
                        "the digest in corpus.withdraw under a new corpus.name"
                    )
                domain, text = found
                tokens = len(encoder.encode([text])[0]) if encoder is not None else 0
                writer.add(StoredDocument(known.digest, domain, known.origin, tokens, text))
        details: dict[str, object] = {"num_documents": writer.num_documents}
        return self._job.deposit(step, label, writer.folder, details)

    def close(self) -> None:
        """Let go of the scratch file."""
        self._database.close()
