"""The configurations of a corpus: its source, its split into partitions, its evaluation sets."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from storage.fingerprint import Config
from tasks.corpus.source import Source


class SplitConfig(Config):
    """How documents are assigned: other rules start the corpus anew, but for the limit on partitions."""

    tokens_per_partition: int = Field(default=1_000_000, ge=1)
    """Tokens at which a partition is full and sealed, end-of-text tokens included."""
    heldout_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of documents, chosen by digest, that never enter training; the first of each domain
    become its evaluation set."""
    heldout_documents: int = Field(default=1000, ge=1)
    """Documents in a domain's evaluation set at most."""
    base_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the first scan's documents, chosen by digest, that train the tokenizer and the base
    model and are in no partition."""
    partitions_per_domain: int | None = Field(default=None, ge=1)
    """Partitions of one domain at most; later documents are left out until it is raised. None is no
    limit."""


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
