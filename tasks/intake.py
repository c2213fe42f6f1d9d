"""What one scan reads, counts and stores, and the two configurations that tell it what to read."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from storage.artifact import Artifact
from storage.cache import Progress, deposit
from storage.fingerprint import Config
from storage.store import Store
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
from tasks.seen import Seen


class CorpusConfig(Config):
    """The data that partitions are made of."""

    name: str = Field(min_length=1)
    """Name of the corpus: the chain of its manifests carries it."""
    source: Source
    """Where the documents lie and how they are read."""
    split: SplitConfig = SplitConfig()
    """How documents are assigned to partitions, held-out sets and the base model."""
    withdraw: list[str] = []
    """Documents to take out, by sha256 of the text or by origin (``path:row``); only the partition
    that holds one is made anew, and a withdrawn document never comes back."""
    short_partitions: bool = False
    """Whether the open remainder of a domain is trained too, as a short partition that becomes
    another one when it grows."""


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
    """The manifest so far; its ``files`` grow as files are read to their end."""
    counts: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)
    withdrawn: dict[str, str] = field(default_factory=dict)

    def deposit(self, step: str, label: str, folder: Path, details: dict[str, object]) -> Artifact:
        """Store documents; ``details`` tell people where they came from."""
        origin = {"chain": self.state.chain, "manifest": self.state.number}
        facts = {**details, **origin}
        stored = deposit(self.store, step, "documents", label, folder, facts).artifact
        assert stored is not None
        return stored

    def folder(self) -> Path:
        """A new scratch folder."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def read(
        self, files: list[SourceFile], source: Source, problems: Problems | None = None
    ) -> Iterator[Document]:
        """Documents of all files; a damaged file is reported and tried again by the next scan."""
        problems = self.problems if problems is None else problems
        for number, file in enumerate(files):
            self.progress(number, len(files), "files")
            try:
                yield from read_documents(file, source, problems)
            except UnreadableFileError as error:
                problems.file(file.path, f"{error}; it is tried again next time")
                continue
            if source is self.corpus.source:
                self.state.files[file.path] = file.stamp
        self.progress(len(files), len(files), "files")

    def store_heldout(self, domain: str, kept: list[StoredDocument]) -> dict[str, object]:
        """Fields of ``DomainState`` for these held-out documents."""
        if not kept:
            return {"heldout": None, "num_heldout": 0, "frozen": False}
        with DocumentWriter(self.folder()) as writer:
            for stored in kept:
                writer.add(stored)
        details: dict[str, object] = {"domain": domain, "num_documents": len(kept)}
        artifact = self.deposit("heldout", domain, writer.folder, details)
        return {"heldout": artifact, "num_heldout": len(kept)}


def stored(document: Document, num_tokens: int) -> StoredDocument:
    """A document as it is kept in an artifact."""
    digest, domain = document.digest, document.domain
    return StoredDocument(digest, domain, document.origin, num_tokens, document.text)
