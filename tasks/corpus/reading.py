"""Turn the rows of a corpus's files into documents, and count those that cannot be used.

A document is its text, and the sha256 of the text is its name: moving, renaming or recompressing
files changes nothing. Nothing is dropped silently: ``Problems`` counts every unusable document with
its reason and origin, and reading goes on. A damaged file raises, since nobody knows what it lacks.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from tasks.corpus.formats import FileRow, layout, read_dataset, read_rows
from tasks.corpus.listing import SourceFile, dataset_files, url_files
from tasks.corpus.source import DocumentFormat, Source

_SHOWN_FIELDS = 20


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
            names = source.format.domain_fields
            domain = constant or "-".join(_domain_part(row, name) for name in names)
            if source.wants(domain):
                yield _document(row, source.format, domain, origin)
        except _FaultyDocumentError as error:
            problems.document(file.path, origin, *error.args)
    return None if row else problems.file(file.path, "holds no document")


def _rows(file: SourceFile, source: Source) -> Iterator[FileRow]:
    fields = [source.format.text_field, *source.format.domain_fields]
    if file.url == source.dataset:
        return read_dataset(file.url, source.dataset_name, source.split, fields)
    file_layout = layout(file.url)
    assert file_layout is not None, f"{file.url} was not listed by list_files"
    return read_rows(file.url, file_layout, fields)


def _path_domain(path: str, rule: DocumentFormat) -> str | None:
    """The domain of all documents in a file, or None where each document's fields name it."""
    if rule.domain_fields or rule.domain is not None:
        return rule.domain
    if rule.domain_pattern is None:
        first, slash, _ = path.partition("/")
        file_layout = None if slash else layout(first)
        return file_layout.stem if file_layout else first
    match = re.search(rule.domain_pattern, path)
    domain = "-".join(filter(None, match.groups())) if match else ""
    if not domain:
        raise _FaultyDocumentError(
            f"its path does not match domain_pattern {rule.domain_pattern!r}"
        )
    return domain


def _domain_part(row: FileRow, field: str) -> str:
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


def _document(row: FileRow, rule: DocumentFormat, domain: str, origin: str) -> Document:
    value = _value(row, rule.text_field, "text field")
    if not isinstance(value, str | bytes):
        fault = f"has in the text field {rule.text_field!r} no text"
        raise _FaultyDocumentError(fault, f" but {type(value).__name__}")
    text, data = _decoded(value)
    if not text.strip():
        raise _FaultyDocumentError("is empty or only white space")
    return Document(text, domain, hashlib.sha256(data).hexdigest(), origin)


def _value(row: FileRow, field: str, role: str) -> object:
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
