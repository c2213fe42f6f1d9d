"""Read the rows of one corpus file, whatever its format, in bounded memory.

Every format becomes a stream of ``FileRow``: the fields of one document that were asked for, not
yet checked.

There are two kinds of damage. A row that cannot be used carries its ``fault``, and reading goes on.
A file that ends too early, or is not what its name says, raises ``UnreadableFileError``, because
its missing rows cannot be counted. Arrow does all decompression and raises where a stream ends
before its end marker. No reader insists on the end marker of an Arrow stream, so it is checked
here. One damage cannot be detected: a plain text or JSON lines file, or a file of several
compressed members, that was cut exactly between two lines or two members.

A document above the limit is read past in pieces. Rows of Parquet and Arrow are read by as many as
have ``_BATCH_BYTES``, by what a Parquet file says of its row groups.
"""

import codecs
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, cast

from storage.backends.urls import file_system
from tasks.corpus.columns import leaf, plain, prefixes

if TYPE_CHECKING:
    import pyarrow as pa

CODECS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
"""Suffix of a compressed file -> Arrow's name of the codec."""

JSON_LINES = frozenset({".jsonl", ".ndjson", ".jsonlines"})
"""Suffixes of JSON lines. A *compressed* .json is read so too: Dolma and C4 are named like that."""

_TEXT = """
.txt .text .md .markdown .rst .tex .bib .adoc .org .html .htm .css .scss .xml .yaml .yml .toml .sql
.py .pyi .js .jsx .mjs .ts .tsx .vue .c .h .hpp .hh .cpp .cc .cxx .cu .cuh .java .kt .scala .groovy
.go .rs .swift .m .mm .rb .php .pl .pm .lua .r .jl .hs .ml .mli .ex .exs .erl .clj .lisp .el .scm
.f .f90 .pas .cs .fs .vb .dart .zig .nim .d .v .sv .vhd .asm .s .sh .bash .zsh .fish .ps1 .bat
.cmake .mk .proto .graphql .tf .lean .agda .coq .sol .srt .vtt
"""
TEXT = frozenset(_TEXT.split())
"""Suffixes of files that are one document each."""

_ARROW_FILE = b"ARROW1"
_ARROW_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_BATCH_ROWS = 512
_BATCH_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16
"""Of many small files, asking for more memory than they need is a good part of the time."""

_FAULTS = {
    r"^UTF-16$": "is UTF-16: write it as UTF-8",
    r"^rows above": "has rows above the limit of format.max_document_bytes: write their parts as rows",
    r"^ZSTD.*too much memory": "is zstd with a window above 128 MiB: compress it with --long=27 or less",
    r"^Cannot decrypt|^Could not read encrypted": "is encrypted: write it as plain Parquet",
    r"^zlib.*(?:header check|compression method)": "holds other bytes, perhaps padding, behind its "
    "gzip data: write it again (zcat, then gzip)",
}
"""What is wrong, by a pattern of what a reader says of it."""


class UnreadableFileError(ValueError):
    """A file is truncated or not in the format that its name promises."""


class Layout(NamedTuple):
    """How a file is read, according to its name: format, codec, and the name without suffixes."""

    format: Literal["jsonl", "parquet", "arrow", "wet", "text"]
    codec: str | None
    stem: str


class FileRow(NamedTuple):
    """One document as it is in the file: ``values`` of fields, ``names`` of all fields of its row.

    ``number`` counts rows (lines, in JSON lines) from 0; None where the file is one document.
    ``fault`` says why the row holds nothing; empty where it does. Text may come as UTF-8 bytes.
    """

    number: int | None
    values: Mapping[str, object]
    names: Sequence[str]
    fault: str = ""


def layout(name: str) -> Layout | None:
    """Format and codec by the suffixes of a file's ``name``; None where they are not known."""
    stem, suffix = _cut(name.rpartition("/")[2])
    codec = CODECS.get(suffix)
    if codec:
        stem, suffix = _cut(stem)
    if suffix in JSON_LINES or (codec and suffix == ".json"):
        return Layout("jsonl", codec, stem)
    if suffix == ".wet" and codec in (None, "gzip"):
        return Layout("wet", codec, stem.removesuffix(".warc"))
    if suffix in TEXT:
        return Layout("text", codec, stem)
    if suffix in (".parquet", ".arrow") and not codec:
        return Layout("parquet" if suffix == ".parquet" else "arrow", None, stem)
    return None


def _cut(name: str) -> tuple[str, str]:
    """What ``splitext`` gives, in lower case and quicker: every file's name is cut five times."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix.lower()) if stem.strip(".") else (name, "")


def read_rows(url: str, layout: Layout, fields: Sequence[str], most: int) -> Iterator[FileRow]:
    """Rows of the file at ``url``; ``fields`` are the wanted ones, the text field first.

    Lines, texts and records above ``most`` bytes are ``above`` the limit, and not held in memory.

    Raises:
        UnreadableFileError: the file is truncated or not in its format; rows before the fault may
            have been yielded already. Errors of the network or of permissions pass unchanged.
    """
    readers = {"jsonl": _json, "parquet": _parquet, "arrow": _arrow, "wet": _wet, "text": _text}
    read = readers[layout.format]
    with _unreadable(url), _opened(url, layout.codec) as stream:
        yield from read(stream, fields, most)


def above(most: int) -> str:
    """The fault of a document of more than ``most`` bytes."""
    return f"is above {most:,} bytes: write its parts, or raise format.max_document_bytes"


def read_dataset(
    path: str, name: str | None, split: str, fields: Sequence[str]
) -> Iterator[FileRow]:
    """Rows of a split of a data set that Hugging Face ``datasets`` streams from a folder or the hub.

    Loading scripts and pickles are not executed: ``datasets`` 5 has no code for either.

    Raises:
        UnreadableFileError: a file of the data set is damaged.
        ValueError: ``datasets`` knows no such name or split; its message lists them.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    damage = (DatasetsError, zlib.error, gzip.BadGzipFile)
    with _unreadable(path, *damage):
        stream = load_dataset(path, name, split=split, streaming=True).with_format("arrow")
    with _unreadable(path, ValueError, *damage):
        tables = stream.iter(batch_size=_BATCH_ROWS)
        yield from _batches((batch for table in tables for batch in table.to_batches()), fields)


@contextmanager
def _unreadable(url: str, *more: type[Exception]) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    # A damaged length may ask for more memory than there is, and a damaged name be no UTF-8.
    except (pa.ArrowException, UnicodeDecodeError, OSError, EOFError, *more) as error:
        # Arrow reports damage as a bare OSError; subclasses and numbers come from disk or network.
        if isinstance(error, OSError) and type(error) not in (OSError, *more):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise
        known = (fault for sign, fault in _FAULTS.items() if re.search(sign, str(error)))
        fault = next(
            known, f"is truncated or not in the format of its name ({error}): write it again"
        )
        raise UnreadableFileError(f"{url} {fault}, or move it out of the corpus") from error


def _raw(url: str) -> Any:
    if url.startswith("file:///"):  # of many small files, fsspec takes a good part of the time
        return open(url.removeprefix("file://"), "rb")  # noqa: PTH123 - the quickest
    filesystem, path = file_system(url)
    return filesystem.open(path, "rb")


@contextmanager
def _opened(url: str, codec: str | None) -> Iterator[BinaryIO]:
    import pyarrow as pa

    with _raw(url) as raw:
        if codec is None:
            yield raw
        else:
            # No codec writes an empty file, but Arrow reads one as the end of a stream.
            if not (head := raw.read(2)):
                raise EOFError("the file is empty")
            if codec == "gzip" and head != b"\x1f\x8b":
                raise EOFError("it does not begin as gzip does")
            raw.seek(0)
            with pa.CompressedInputStream(raw, codec) as plain:
                yield plain


def _text(stream: BinaryIO, fields: Sequence[str], most: int) -> Iterator[FileRow]:
    parts, size = [], 0
    while part := stream.read(_SMALL_BYTES):
        parts.append(part)
        size += len(part)
        if size > most:
            yield FileRow(None, {}, (), above(most))
            return
    _require_utf_8(b"".join(parts[:1]))
    yield FileRow(None, {fields[0]: b"".join(parts)}, fields[:1])


def _json(stream: BinaryIO, _fields: Sequence[str], most: int) -> Iterator[FileRow]:
    with io.BufferedReader(cast("io.RawIOBase", stream), buffer_size=_PIECE_BYTES) as lines:
        _require_utf_8(lines.peek(2), b"{\0", b"\0{")
        for number, line in enumerate(iter(partial(lines.readline, _PIECE_BYTES), b"")):
            whole = line if len(line) < _PIECE_BYTES else _long(lines, line, most)
            if whole is None or len(whole) > most:
                yield FileRow(number, {}, (), above(most))
            elif whole.strip():
                yield _json_row(number, whole)


def _long(lines: BinaryIO, piece: bytes, most: int) -> bytes | None:
    """A line from its first piece on, without blank ones in front; None where it is above ``most``."""
    parts, size = list[bytes](), 0
    while piece:
        if size or piece.strip(b" \t\r\n"):
            size += len(piece)
            parts = [*parts, piece] if size <= most else []
        piece = b"" if piece.endswith(b"\n") else lines.readline(_PIECE_BYTES)
    return b"".join(parts) if size <= most else None


def _require_utf_8(start: bytes, *more: bytes) -> None:
    if len(start) > 2 and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, *more)):
        raise EOFError("UTF-16")


def _wet(stream: BinaryIO, fields: Sequence[str], most: int) -> Iterator[FileRow]:
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise ValueError("files of WET are read by warcio: pip install 'mixpool[warc]'") from error
    try:
        for number, record in enumerate(ArchiveIterator(stream, no_record_parse=True)):
            headers = dict(record.rec_headers.headers)
            text = record.content_stream().read(most + 1)
            if len(text) > most:
                yield FileRow(number, {}, (), above(most))
            elif len(text) < (record.length or 0):
                raise EOFError(f"record {number + 1} is cut off")
            elif record.rec_type == "conversion":
                yield FileRow(number, {**headers, fields[0]: text}, [fields[0], *headers])
            elif record.rec_type != "warcinfo":
                fault = f"is a record of {record.rec_type!r}, not of text (conversion)"
                yield FileRow(number, {}, (), fault)
    except ArchiveLoadFailed as error:
        raise EOFError(str(error)) from error


def _json_row(number: int, line: bytes) -> FileRow:
    fault, text = "", ""
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError:
        fault, text = "is not UTF-8", line.decode(errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            raise EOFError(f"line {number + 1}, the last, is cut off") from error
        return FileRow(number, {}, (), fault or "is not JSON")
    if not fault and not isinstance(value, dict):
        fault = "is no JSON object"
    return FileRow(number, {}, (), fault) if fault else FileRow(number, value, list(value))


def _parquet(stream: BinaryIO, fields: Sequence[str], most: int) -> Iterator[FileRow]:
    from pyarrow.parquet import ParquetFile

    # Pre-buffering would hold the chosen columns of all row groups at once.
    file = ParquetFile(stream, pre_buffer=False)
    names = file.schema_arrow.names
    known = {part for column in file.schema for part in prefixes(column.path)}
    columns = [next(filter(known.__contains__, prefixes(name)), name) for name in fields]
    batches = (
        batch
        for group in range(file.num_row_groups)
        for batch in file.iter_batches(
            _rows_at_once(file.metadata.row_group(group), most),
            row_groups=[group],
            columns=columns,
            use_threads=False,
        )
    )
    yield from _batches(batches, fields, names)


def _rows_at_once(group: Any, most: int) -> int:
    """Rows of a row group that have ``_BATCH_BYTES``: by its mean over all columns, as the file says.

    pyarrow 26 knows the size of each column, too, but asking an encrypted one ends the process.
    """
    mean: int = group.total_byte_size // max(1, group.num_rows)
    if mean > max(most, _BATCH_BYTES):
        raise EOFError("rows above the limit")
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, mean)))


def _arrow(stream: BinaryIO, fields: Sequence[str], _most: int) -> Iterator[FileRow]:
    from pyarrow import ipc

    if stream.read(len(_ARROW_FILE)) == _ARROW_FILE:
        file = ipc.open_file(stream)
        batches = (file.get_batch(index) for index in range(file.num_record_batches))
    else:
        _require_stream_end(stream)
        batches = ipc.open_stream(stream)
    yield from _batches(batches, fields)


def _require_stream_end(stream: BinaryIO) -> None:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - len(_ARROW_STREAM_END)))
    if stream.read() != _ARROW_STREAM_END:
        raise EOFError("the Arrow stream lacks its end marker")
    stream.seek(0)


def _batches(
    batches: "Iterable[pa.RecordBatch]", fields: Sequence[str], names: Sequence[str] | None = None
) -> Iterator[FileRow]:
    first = 0
    for batch in chain.from_iterable(map(_slices, batches)):
        rows, columns = batch.to_struct_array(), {}
        for field in fields:
            if (found := leaf(rows, field)) is not None:
                column, rest = found
                columns[field.removesuffix(f".{rest}") if rest else field] = plain(column)
        for offset in range(batch.num_rows):
            values = {name: column[offset] for name, column in columns.items()}
            yield FileRow(first + offset, values, names or batch.schema.names)
        first += batch.num_rows


def _slices(batch: "pa.RecordBatch") -> "Iterator[pa.RecordBatch]":
    """A batch in pieces of ``_BATCH_BYTES``, validated: Arrow's readers leave that to others."""
    batch.validate()
    step = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
    return (batch.slice(start, step) for start in range(0, batch.num_rows, step))
