"""The state of one scan, which assigning, freezing, withdrawing and repairing share."""

import itertools
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage.artifact import Artifact
from storage.cache import deposit
from storage.step import Progress
from storage.store import Store
from tasks.corpus import documents
from tasks.corpus.beside import Passed
from tasks.corpus.documents import DocumentWriter, StoredDocument
from tasks.corpus.formats import UnreadableFileError
from tasks.corpus.listing import SourceFile
from tasks.corpus.reading import Document, Problems, list_files, read_documents
from tasks.corpus.source import Source
from tasks.partitions.config import CorpusConfig, EvaluationSetConfig
from tasks.partitions.index import DocumentIndex, IndexEntry, Role
from tasks.partitions.manifest import Manifest
from tasks.partitions.twins import Twins


@dataclass
class ScanJob:
    """One scan: its settings, and the manifest, index and counts that it brings up to date."""

    store: Store
    corpus: CorpusConfig
    sets: dict[str, EvaluationSetConfig]
    """The evaluation sets that are asked for, by identity."""
    base_source: Source | None
    progress: Progress
    scratch: Path
    index: DocumentIndex
    state: Manifest
    """The manifest so far; its ``files``, ``withdrawn`` and ``joined`` are this scan's own and grow."""
    pending: set[str]
    """What is to be withdrawn and was not found yet, by digest or origin."""
    counts: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)
    twins: Twins = field(default_factory=Twins)
    """Of the evaluation sets with a source of their own."""
    heldout_twins: Twins = field(default_factory=Twins)
    """Of the documents that are held out."""
    base_twins: Twins = field(default_factory=Twins)
    """Of the base documents of a first scan."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def update(self, **fields: object) -> None:
        """Replace fields of the manifest."""
        self.state = self.state.model_copy(update=fields)

    def know_twins(self) -> None:
        """Know the texts of all evaluation documents of earlier scans."""
        heldout = (state.heldout for state in self.state.domains.values())
        for twins, artifacts in (
            (self.twins, [entry.documents for entry in self.state.sets]),
            (self.heldout_twins, [*filter(None, heldout)]),
        ):
            for artifact in artifacts:
                rows = documents.read_columns(self.store.fetch(artifact), ["text"])
                twins.add(row["text"] for row in rows)

    def folder(self) -> Path:
        """A new scratch folder."""
        folder = self._place()
        folder.mkdir()
        return folder

    def writer(self) -> DocumentWriter:
        """A writer into a new scratch folder."""
        return DocumentWriter(self._place())

    def _place(self) -> Path:
        return self.scratch / str(next(self._numbers))

    def deposit(self, step: str, label: str, folder: Path, details: dict[str, object]) -> Artifact:
        """Move a scratch folder into the store; ``details`` are facts for people."""
        origin = {"chain": self.state.chain, "manifest": self.state.number}
        facts = {**details, **origin}
        made = deposit(self.store, step, "documents", label, folder, facts, spare=True).built
        if folder.exists():
            shutil.rmtree(folder)
        return made

    def copied(self, artifact: Artifact | None, without: Collection[str] = ()) -> DocumentWriter:
        """A writer that begins with the documents of ``artifact``, but for some digests."""
        writer = self.writer()
        if artifact is not None:
            for document in documents.read_all(self.store.fetch(artifact)):
                if document.digest not in without:
                    writer.add(document)
        return writer

    def read(
        self,
        files: list[SourceFile],
        source: Source,
        problems: Problems,
        done: dict[str, str] | None = None,
    ) -> Iterator[Document]:
        """Documents of the corpus; a damaged file is reported and tried again by the next scan.

        Stamps of files that were read to their end go to ``done``.
        """
        for number, file in enumerate(files):
            self.progress(number, len(files), "files")
            if (name := file.path.encode(errors="backslashreplace").decode()) != file.path:
                problems.file(name, "has a name that is not UTF-8: rename it")
                continue
            try:
                joined = None if done is None else self.state.joined
                yield from read_documents(file, source, problems, joined)
            except UnreadableFileError as error:
                problems.file(file.path, f"{error}; it is tried again next time")
                continue
            if done is not None:
                done[file.path] = file.stamp
        self.progress(len(files), len(files), "files")

    def list_pinned(self, source: Source, what: str) -> list[SourceFile]:
        """The files of something that is fixed for good; what is passed over is noted."""
        passed = Passed()
        files = list_files(source, passed=passed)
        for note in passed.notes():
            self.problems.file(what, note)
        return files

    def read_pinned(
        self, files: list[SourceFile], source: Source, what: str, *, again: bool = False
    ) -> Iterator[Document]:
        """Documents of something that is fixed for good, so that half a file is an error.

        ``again`` reads what an earlier version read as well.
        """
        for file in files:
            if file.is_aside and not again:
                continue
            try:
                yield from read_documents(file, source, self.problems)
            except UnreadableFileError as error:
                raise ValueError(
                    f"{what} cannot be made of a part of its files: {error}"
                ) from error

    def is_refused(self, document: Document, *names: str) -> bool:
        """Whether a new document is to be withdrawn under one of its ``names``; it is noted then."""
        if self.pending.isdisjoint(names):
            return False
        self.pending.difference_update(names)
        self.withdraw(IndexEntry(document.digest, Role.TRAIN, "", document.origin))
        self.counts["withdrawn"] += 1
        return True

    def withdraw(self, entry: IndexEntry) -> None:
        """Note that a document is withdrawn for good."""
        self.index.write(entry._replace(role=Role.WITHDRAWN, place=""))
        self.state.withdrawn[entry.digest] = entry.origin


def stored(document: Document, num_tokens: int) -> StoredDocument:
    """A document as it is kept in an artifact."""
    digest, domain = document.digest, document.domain
    return StoredDocument(digest, domain, document.origin, num_tokens, document.text)
