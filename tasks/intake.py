"""What one scan reads, counts and stores, and the two configurations that tell it what to read."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from storage.artifact import Artifact
from storage.cache import Progress, deposit
from storage.fingerprint import Config
from storage.store import Store
from tasks import documents
from tasks.corpus import (
    Document,
    Problems,
    Source,
    SourceFile,
    UnreadableFileError,
    read_documents,
)
from tasks.documents import DocumentWriter, StoredDocument
from tasks.manifest import Manifest, SplitConfig
from tasks.seen import Known, Role, Seen


class CorpusConfig(Config):
    """The data that partitions are made of."""

    name: str = Field(min_length=1)
    """Name of the corpus: the chain of its manifests carries it."""
    source: Source
    """Where the documents lie and how they are read."""
    marker: str | None = None
    """Name of a file, such as _SUCCESS, that must lie in a file's folder, or in one above it up to
    the corpus root, before the file is read; files without it are left for a later scan. None reads
    every file."""
    split: SplitConfig = SplitConfig()
    """How documents are assigned to partitions, held-out sets and the base model."""
    withdraw: list[str] = []
    """Documents to take out, by sha256 of the text or by origin (path:row, where it was first
    seen); only the partition that holds one is made anew, and a withdrawn document never comes
    back."""
    short_partitions: bool = False
    """Whether the open remainder of a domain is trained too, as a short partition that becomes
    another one when it grows."""

    @field_validator("marker")
    @classmethod
    def _is_a_name(cls, marker: str | None) -> str | None:
        if marker is not None and (marker.strip() in {"", ".", ".."} or "/" in marker):
            raise ValueError(f"{marker!r} is no name of a file: give one without folders")
        return marker

    @model_validator(mode="after")
    def _marks_files(self) -> Self:
        if self.marker is not None and self.source.dataset is not None:
            raise ValueError(
                f"marker {self.marker!r} is given with source.dataset, whose files nobody lays "
                "beside a marker: take it out, or give files in source.urls"
            )
        return self


class EvaluationSetConfig(Config):
    """An evaluation set with a source of its own."""

    name: str = Field(min_length=1)
    """Name of the set."""
    source: Source
    """Where its documents lie and how they are read."""
    max_documents: int | None = Field(default=None, ge=1)
    """Documents in the set at most, the first in the order of their files; None is no limit."""


@dataclass
class Intake:
    """One attempt to bring a chain of manifests up to date."""

    store: Store
    corpus: CorpusConfig
    sets: list[EvaluationSetConfig]
    base_source: Source | None
    progress: Progress
    scratch: Path
    seen: Seen
    state: Manifest
    """The manifest so far; its ``files`` and ``withdrawn`` are this scan's own and grow."""
    pending: set[str]
    """What is to be withdrawn and was not found yet, by digest or origin."""
    counts: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)

    def update(self, **fields: object) -> None:
        """Replace fields of the manifest."""
        self.state = self.state.model_copy(update=fields)

    def folder(self) -> Path:
        """A new scratch folder."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def deposit(self, step: str, label: str, folder: Path, details: dict[str, object]) -> Artifact:
        """Move a scratch folder into the store; ``details`` tell people where it came from."""
        origin = {"chain": self.state.chain, "manifest": self.state.number}
        facts = {**details, **origin}
        stored = deposit(self.store, step, "documents", label, folder, facts).artifact
        assert stored is not None
        shutil.rmtree(folder)
        return stored

    def copied(self, artifact: Artifact | None) -> DocumentWriter:
        """A writer that begins with the documents of ``artifact``."""
        writer = DocumentWriter(self.folder())
        if artifact is not None:
            for document in documents.read_all(self.store.fetch(artifact)):
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
                yield from read_documents(file, source, problems)
            except UnreadableFileError as error:
                problems.file(file.path, f"{error}; it is tried again next time")
                continue
            if done is not None:
                done[file.path] = file.stamp
        self.progress(len(files), len(files), "files")

    def read_pinned(self, files: list[SourceFile], source: Source, what: str) -> Iterator[Document]:
        """Documents of something that is fixed for good, so that half a file is an error."""
        for file in files:
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
        self.withdraw(Known(document.digest, Role.TRAIN, "", document.origin))
        self.counts["withdrawn"] += 1
        return True

    def withdraw(self, known: Known) -> None:
        """Note that a document is withdrawn for good."""
        self.seen.write(known._replace(role=Role.WITHDRAWN, place=""))
        self.state.withdrawn[known.digest] = known.origin


def stored(document: Document, num_tokens: int) -> StoredDocument:
    """A document as it is kept in an artifact."""
    digest, domain = document.digest, document.domain
    return StoredDocument(digest, domain, document.origin, num_tokens, document.text)
