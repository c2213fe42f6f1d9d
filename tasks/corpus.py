"""A corpus: where it lies, what its documents and their domains are, and what was wrong with them.

A document is its text, and the sha256 of that is its name: moving, renaming or recompressing files
changes nothing. Nothing is dropped silently: a document that cannot be used is counted in
``Problems`` with its reason and origin, and reading goes on; a damaged file raises, since nobody
knows what it lacks. Files are listed in ``tasks.listing``, their rows read in ``tasks.readers``.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from typing import NamedTuple, Self

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from storage.fingerprint import Config
from storage.secrets import PLAIN_ADDRESS, has_user, is_signed, shows_user
from tasks.listing import EmptyCorpusError, SourceFile, dataset_files, url_files
from tasks.readers import Row, UnreadableFileError, layout, read_dataset, read_rows

__all__ = [
    "Document",
    "DocumentFormat",
    "EmptyCorpusError",
    "Problem",
    "Problems",
    "Source",
    "SourceFile",
    "UnreadableFileError",
    "list_files",
    "read_documents",
]

_SHOWN_FIELDS = 20
# For forms, which keep what is filled in: the model itself says better what is wrong.
_PLAIN: JsonDict = {"items": {"type": "string", "pattern": PLAIN_ADDRESS}}


class DocumentFormat(Config):
    """How a document and its domain are found in a file."""

    text_field: str = Field(default="text", min_length=1)
    """Field or column that holds a document's text, in JSON lines, Parquet and Arrow files."""

    domain_fields: list[str] = Field(default=[])
    """Fields whose values, joined by "-", are a document's domain, such as source and year."""

    domain_pattern: str | None = None
    """Regular expression searched in a file's path below the corpus root; its groups, joined by
    "-", are the domain. Where no domain setting is given, the domain is the first folder of that
    path, or the file's name without suffixes where it lies in no folder."""

    domain: str | None = Field(default=None, min_length=1)
    """One domain for all documents; excludes the two other settings."""

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
            if has_user(address) or shows_user(address) or is_signed(address):
                raise ValueError(
                    f"an address at {address.split('://')[0]}:// holds credentials: configurations "
                    "are stored and shown; give them in the environment or in fsspec's own files"
                )
            if "::" in address:
                raise ValueError(f"{address} chains file systems: unpack the archive first")
        return self

    def wants(self, domain: str) -> bool:
        """Whether documents of ``domain`` are to be read."""
        included = self.include_domains is None or domain in self.include_domains
        return included and domain not in self.exclude_domains


class Document(NamedTuple):
    """One document; ``digest`` is the sha256 of its UTF-8 text, ``origin`` its ``path:row``."""

    text: str
    domain: str
    digest: str
    origin: str


class Problem(NamedTuple):
    """One kind of fault in one file: how often, and where first. ``kind`` is file or document."""

    path: str
    kind: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which no row needs
    first: str
    message: str


class Problems:
    """Counts what could not be used; memory grows with files and kinds of fault, not documents."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], Problem] = {}

    def document(self, path: str, origin: str, fault: str, detail: str = "") -> None:
        """Count a skipped document; equal ``fault``s of a file add up, with the first ``detail``."""
        self._add(fault, Problem(path, "document", 1, origin, f"{fault}{detail}"))

    def file(self, path: str, message: str) -> None:
        """Note that a file as a whole could not be used."""
        self._add(message, Problem(path, "file", 1, path, message))

    def _add(self, fault: str, new: Problem) -> None:
        old = self._rows.get((new.path, new.kind, fault))
        row = new if old is None else old._replace(count=old.count + 1)
        self._rows[new.path, new.kind, fault] = row

    def rows(self) -> list[Problem]:
        """All problems, sorted by path, kind and count."""
        return sorted(self._rows.values())

    def text(self) -> str:
        """One line per problem, for a person; empty where there is none."""
        return "\n".join(
            f"{row.path}: {row.message}"
            if row.kind == "file"
            else f"{row.path}: {row.count} skipped, first {row.first}, which {row.message}"
            for row in self.rows()
        )


class _FaultyDocumentError(ValueError):
    """Why a document is skipped: a fault without the document's own values, and a detail."""


def list_files(source: Source, marker: str | None = None) -> list[SourceFile]:
    """Every file of ``source``, sorted by path, as it is now; for ``marker`` see ``url_files``.

    Raises:
        EmptyCorpusError: an address matches no readable file.
        ValueError: an address names a file whose format is not known, or a split that is not there.
    """
    if source.dataset is not None:
        return dataset_files(source.dataset, source.dataset_name, source.split)
    return url_files(source.urls, marker)


def read_documents(file: SourceFile, source: Source, problems: Problems) -> Iterator[Document]:
    """Stream the wanted documents of one file; what cannot be used is counted in ``problems``.

    Raises:
        UnreadableFileError: the file is truncated or not in its format; documents before the fault
            have been yielded then. It is not added to ``problems``: the caller decides.
    """
    try:
        constant = _path_domain(file.path, source.format)
    except _FaultyDocumentError as error:
        return problems.file(file.path, str(error))
    if constant is not None and not source.wants(constant):
        return None
    row = None
    for row in _rows(file, source):
        origin = file.path if row.number is None else f"{file.path}:{row.number}"
        try:
            domain = constant or _row_domain(row, source.format)
            if source.wants(domain):
                yield _document(row, source.format, domain, origin)
        except _FaultyDocumentError as error:
            problems.document(file.path, origin, *error.args)
    return None if row else problems.file(file.path, "holds no document")


def _rows(file: SourceFile, source: Source) -> Iterator[Row]:
    fields = [source.format.text_field, *source.format.domain_fields]
    if file.url == source.dataset:
        return read_dataset(file.url, source.dataset_name, source.split, fields)
    known = layout(file.url)
    assert known is not None, f"{file.url} was not listed by list_files"
    return read_rows(file.url, known, fields)


def _path_domain(path: str, rule: DocumentFormat) -> str | None:
    """The domain of all documents in a file, or None where each document's fields tell it."""
    if rule.domain_fields or rule.domain is not None:
        return rule.domain
    if rule.domain_pattern is None:
        first, slash, _ = path.partition("/")
        known = None if slash else layout(first)
        return known.stem if known else first
    match = re.search(rule.domain_pattern, path)
    domain = "-".join(filter(None, match.groups())) if match else ""
    if not domain:
        raise _FaultyDocumentError(
            f"its path does not match domain_pattern {rule.domain_pattern!r}"
        )
    return domain


def _row_domain(row: Row, rule: DocumentFormat) -> str:
    return "-".join(_domain_part(row, field) for field in rule.domain_fields)


def _domain_part(row: Row, field: str) -> str:
    match _value(row, field, "domain field"):
        case bool() as value:
            return str(value).lower()
        case int() as value:
            return str(value)
        case float() as value if math.isfinite(value):
            return str(int(value)) if value.is_integer() else repr(value)
        case (str() | bytes()) as value if value.strip():
            return _decoded(value)[0]
        case value:
            raise _FaultyDocumentError(
                f"has in the domain field {field!r} no text or number", f" but {value!r:.40}"
            )


def _document(row: Row, rule: DocumentFormat, domain: str, origin: str) -> Document:
    value = _value(row, rule.text_field, "text field")
    if not isinstance(value, str | bytes):
        fault = f"has in the text field {rule.text_field!r} no text"
        raise _FaultyDocumentError(fault, f" but {type(value).__name__}")
    text, data = _decoded(value)
    if not text.strip():
        raise _FaultyDocumentError("is empty or only white space")
    return Document(text, domain, hashlib.sha256(data).hexdigest(), origin)


def _value(row: Row, field: str, role: str) -> object:
    if row.fault:
        raise _FaultyDocumentError(row.fault)
    if field not in row.values:
        names = ", ".join(sorted(row.names)[:_SHOWN_FIELDS]) or "none"
        raise _FaultyDocumentError(f"lacks the {role} {field!r}", f"; its fields are {names}")
    return row.values[field]


def _decoded(value: str | bytes) -> tuple[str, bytes]:
    try:
        return (value, value.encode()) if isinstance(value, str) else (value.decode(), value)
    except UnicodeError:
        raise _FaultyDocumentError("is not UTF-8") from None
