"""Where a corpus lies, and which fields of its files are a document's text and domain.

Files are listed in ``tasks.corpus.listing``, their rows read in ``tasks.corpus.formats``, and documents
made of rows in ``tasks.corpus.reading``.
"""

import re
from typing import Self

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from storage.backends.secrets import PLAIN_ADDRESS, refuse_secret
from storage.fingerprint import NEUTRAL, Config

# For forms, which keep what is filled in: the model itself says better what is wrong.
_PLAIN: JsonDict = {"items": {"type": "string", "pattern": PLAIN_ADDRESS}}

MOST_BYTES = 16_000_000


class DocumentFormat(Config):
    """How a document and its domain are found in a file."""

    text_field: str = Field(default="text", min_length=1)
    """Field or column that holds a document's text, in JSON lines, Parquet and Arrow files; dots
    reach into it as in domain_fields."""

    domain_fields: list[str] = Field(default=[])
    """Fields whose values, joined by "-", are a document's domain, such as source and year. Dots reach
    into objects, structs, and objects written as text (meta.source). A field that documents lack
    may be a folder's (lang=en), and those of WET files are their records' headers."""

    domain_pattern: str | None = None
    """Regular expression searched in a file's path below the corpus root; its groups, joined by
    "-", are the domain. Where no domain setting is given, the domain is the first folder of that
    path, or the file's name without suffixes where it lies in no folder."""

    domain: str | None = Field(default=None, min_length=1)
    """One domain for all documents; excludes the two other settings."""

    max_document_bytes: int = Field(
        default=MOST_BYTES, ge=1, le=1 << 30, json_schema_extra={NEUTRAL: MOST_BYTES}
    )
    """Bytes of a document at most (in JSON lines also of its whole line): larger ones are skipped
    and counted. While a document is assigned, memory holds some twenty times its size."""

    @field_validator("domain_pattern")
    @classmethod
    def _pattern_has_groups(cls, pattern: str | None) -> str | None:
        try:
            groups = 1 if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        if not groups:
            raise ValueError(f"{pattern!r} has no group: put parentheses around the domain's name")
        return pattern

    @model_validator(mode="after")
    def _has_one_rule(self) -> Self:
        rules = ("domain_fields", "domain_pattern", "domain")
        given = [name for name in rules if getattr(self, name) not in (None, [])]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} all say what the domain is: give one of them")
        return self


class Source(Config):
    """Where the documents of a corpus or an evaluation set lie, and which of them are wanted."""

    model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a password

    urls: list[str] = Field(default=[], json_schema_extra=_PLAIN)
    """Files, folders (every readable file below) or globs (** reaches into folders), local or at
    any address that fsspec knows (s3://, gs://, file://, memory://). Paths are counted from the
    folder, or from a glob's last folder before its first wildcard; with several such roots, a path
    begins with the root's own name."""

    dataset: str | None = None
    """Instead of urls: a data set of the library datasets, as the address of a folder that its
    save_to_disk wrote, a local folder of data files, or a name on the Hugging Face hub."""

    dataset_name: str | None = None
    """Name of a configuration of the data set; none stands for its default."""

    split: str = "train"
    """Split of the data set; a saved data set that has no splits is read whole."""

    format: DocumentFormat = DocumentFormat()
    """How a document and its domain are found in a file."""

    exclude_domains: list[str] = Field(default=[])
    """Domains whose documents are left out."""

    include_domains: list[str] | None = Field(default=None, min_length=1)
    """The only domains whose documents are read; none stands for all."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if bool(self.urls) == bool(self.dataset):
            raise ValueError("give either urls (at least one) or dataset")
        if self.dataset_name is not None and not self.dataset:
            raise ValueError("dataset_name is given without dataset: urls have no configurations")
        both = sorted({*self.exclude_domains} & {*(self.include_domains or ())})
        if both:
            raise ValueError(f"{both} are in both include_domains and exclude_domains")
        return self

    @model_validator(mode="after")
    def _has_plain_addresses(self) -> Self:
        for address in filter(None, [*self.urls, self.dataset]):
            refuse_secret(address)
            if "::" in address:
                raise ValueError(f"{address} chains file systems: unpack the archive first")
        return self

    def wants(self, domain: str) -> bool:
        """Whether documents of ``domain`` are to be read."""
        included = self.include_domains is None or domain in self.include_domains
        return included and domain not in self.exclude_domains
