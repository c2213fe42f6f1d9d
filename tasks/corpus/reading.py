"""Turn the rows of a corpus's files into documents, and count those that cannot be used.

A document is its text, and the sha256 of the text is its name: moving, renaming or recompressing
files changes nothing. Nothing is dropped silently: ``Problems`` counts every unusable document with
its reason and origin, and reading goes on. A damaged file raises, since nobody knows what it lacks.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote

from tasks.corpus.beside import Passed
from tasks.corpus.columns import prefixes
from tasks.corpus.formats import FileRow, above, layout, read_dataset, read_rows
from tasks.corpus.listing import SourceFile, dataset_files, url_files
from tasks.corpus.source import DocumentFormat, Source
from tasks.shown import line

_SHOWN_FIELDS = 20
_ABSENT = object()

Joined: TypeAlias = dict[str, tuple[str, ...]]
"""The parts of which each domain's name was joined."""


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
            line(f"{row.path}: {row.message}")
            if row.kind == "file"
            else line(f"{row.path}: {row.count} skipped, first {row.first}, which {row.message}")
            for row in self.rows()
        )


class _FaultyDocumentError(ValueError):
    """Why a document is skipped: a fault without the document's own values, and a detail."""


def list_files(
    source: Source, marker: str | None = None, passed: Passed | None = None
) -> list[SourceFile]:
    """Every file of ``source``, sorted by path, as it is now; for the rest see ``url_files``.

    Raises:
        EmptyCorpusError: an address matches no readable file.
        ValueError: an address names a file whose format is not known, or a split that is not there.
    """
    if source.dataset is not None:
        return dataset_files(source.dataset, source.dataset_name, source.split)
    return url_files(source.urls, marker, passed)


def read_documents(
    file: SourceFile, source: Source, problems: Problems, joined: Joined | None = None
) -> Iterator[Document]:
    """Stream the wanted documents of one file; what cannot be used is counted in ``problems``.

    ``joined`` keeps the parts of each domain's name, and grows.

    Raises:
        UnreadableFileError: the file is truncated or not in its format; documents before the fault
            have been yielded then. It is not added to ``problems``: the caller decides.
        ValueError: two domains of different parts have one name.
    """
    joined = {} if joined is None else joined
    try:
        parts = _path_parts(file.path, source.format)
    except _FaultyDocumentError as error:
        return problems.file(file.path, str(error))
    constant = None if parts is None else _name(parts, joined, file.path)
    if constant is not None and not source.wants(constant):
        return None
    folders = _folder_fields(file.path)
    row = None
    for row in _rows(file, source):
        origin = file.path if row.number is None else f"{file.path}:{row.number}"
        try:
            names = source.format.domain_fields
            domain = constant or _name(
                tuple(_domain_part(row, name, folders) for name in names), joined, origin
            )
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
    return read_rows(file.url, file_layout, fields, source.format.max_document_bytes)


def _name(parts: tuple[str, ...], joined: Joined, origin: str) -> str:
    """The domain of these parts, joined by "-"; ValueError where that is another domain's name."""
    name = _joined(parts)
    if len(parts) > 1 and (first := joined.setdefault(name, parts)) != parts:
        raise ValueError(
            f"{origin}: {parts} and {first} would both be domain {name!r}: write one field, or one "
            "folder, that tells them apart, and make it the domain"
        )
    return name


def _joined(parts: tuple[str, ...]) -> str:
    return "-".join(filter(None, parts))


def _path_parts(path: str, rule: DocumentFormat) -> tuple[str, ...] | None:
    """What the domain of all documents in a file is made of; None where their fields say it."""
    if rule.domain_fields or rule.domain is not None:
        return (rule.domain,) if rule.domain else None
    if rule.domain_pattern is None:
        first, slash, _ = path.partition("/")
        file_layout = None if slash else layout(first)
        return (file_layout.stem if file_layout else first,)
    match = re.search(rule.domain_pattern, path)
    if match is None or not any(match.groups()):
        raise _FaultyDocumentError(
            f"its path does not match domain_pattern {rule.domain_pattern!r}"
        )
    return tuple(group or "" for group in match.groups())


def path_domains(paths: Iterable[str], rule: DocumentFormat) -> set[str]:
    """The domains of files whose paths name them."""
    domains: set[str] = set()
    for path in paths:
        with suppress(_FaultyDocumentError):
            domains.add(_joined(_path_parts(path, rule) or ()))
    return domains - {""}


def _folder_fields(path: str) -> dict[str, object]:
    """Fields that folders name, as Hive and Spark write them: lang=en."""
    pairs = (folder.split("=", 1) for folder in path.split("/")[:-1] if "=" in folder)
    return {name: unquote(value) for name, value in pairs}


def _domain_part(row: FileRow, field: str, folders: Mapping[str, object]) -> str:
    match _value(row, field, "domain field", folders):
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
    value = _value(row, rule.text_field, "text field", {})
    if not isinstance(value, str | bytes):
        fault = f"has in the text field {rule.text_field!r} no text"
        raise _FaultyDocumentError(fault, f" but {type(value).__name__}")
    text, data = _decoded(value)
    if len(data) > rule.max_document_bytes:
        raise _FaultyDocumentError(above(rule.max_document_bytes))
    if not text.strip():
        raise _FaultyDocumentError("is empty or only white space")
    return Document(text, domain, hashlib.sha256(data).hexdigest(), origin)


def _value(row: FileRow, field: str, role: str, folders: Mapping[str, object]) -> object:
    if row.fault:
        raise _FaultyDocumentError(row.fault)
    if field in row.values:
        return row.values[field]
    for place in (row.values, folders):
        if (found := _inside(place, field)) is not _ABSENT:
            return found
    names = ", ".join(sorted(row.names)[:_SHOWN_FIELDS]) or "none"
    raise _FaultyDocumentError(f"lacks the {role} {field!r}", f"; its fields are {names}")


def _inside(value: object, field: str) -> object:
    """The value of a field: dots reach into objects, and into JSON in a text; a whole name wins."""
    if not field:
        return value
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return _ABSENT
    if isinstance(value, Mapping):
        for head in prefixes(field):
            if head in value:
                return _inside(value[head], field[len(head) + 1 :])
    return _ABSENT


def _decoded(value: str | bytes) -> tuple[str, bytes]:
    try:
        return (value, value.encode()) if isinstance(value, str) else (value.decode(), value)
    except UnicodeError:
        raise _FaultyDocumentError("is not UTF-8") from None
