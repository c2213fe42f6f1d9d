"""Read the rows of one corpus file, whatever its format, in bounded memory.

Every format becomes a stream of ``FileRow``: the fields of one document that were asked for, not
yet checked.

There are two kinds of damage. A row that cannot be used carries its ``fault``, and reading goes on.
A file that ends too early, or is not what its name says, raises ``UnreadableFileError``, because
its missing rows cannot be counted. Arrow does all decompression and raises where a stream ends
before its end marker. No reader insists on the end marker of an Arrow stream, so it is checked
here. One damage cannot be detected: a plain text or JSON lines file, or a file of several
compressed members, that was cut exactly between two lines or two members.
"""

import codecs
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, cast

from storage.backends.urls import file_system

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


class UnreadableFileError(ValueError):
    """A file is truncated or not in the format that its name promises."""


class Layout(NamedTuple):
    """How a file is read, according to its name: format, codec, and the name without suffixes."""

    format: Literal["jsonl", "parquet", "arrow", "text"]
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
    path = PurePosixPath(name)
    codec = CODECS.get(path.suffix.lower())
    inner = PurePosixPath(path.stem) if codec else path
    suffix = inner.suffix.lower()
    if suffix in JSON_LINES or (codec and suffix == ".json"):
        return Layout("jsonl", codec, inner.stem)
    if suffix in TEXT:
        return Layout("text", codec, inner.stem)
    if suffix in (".parquet", ".arrow") and not codec:
        return Layout("parquet" if suffix == ".parquet" else "arrow", None, inner.stem)
    return None


def read_rows(url: str, layout: Layout, fields: Sequence[str]) -> Iterator[FileRow]:
    """Rows of the file at ``url``; ``fields`` are the wanted ones, the text field first.

    Raises:
        UnreadableFileError: the file is truncated or not in its format; rows before the fault may
            have been yielded already. Errors of the network or of permissions pass unchanged.
    """
    read = {"jsonl": _json, "parquet": _parquet, "arrow": _arrow, "text": _text}[layout.format]
    with _unreadable(url), _opened(url, layout.codec) as stream:
        yield from read(stream, fields)


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
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError, *more) as error:
        # Arrow reports damage as a bare OSError; subclasses and numbers come from disk or network.
        if isinstance(error, OSError) and type(error) not in (OSError, *more):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableFileError(
            f"{url} is truncated or not in the format of its name ({error}): "
            "write it again, or move it out of the corpus"
        ) from error


@contextmanager
def _opened(url: str, codec: str | None) -> Iterator[BinaryIO]:
    import pyarrow as pa

    filesystem, path = file_system(url)
    with filesystem.open(path, "rb") as raw:
        if codec is None:
            yield raw
        else:
            # No codec writes an empty file, but Arrow reads one as the end of a stream.
            if not raw.read(1):
                raise EOFError("the file is empty")
            raw.seek(0)
            with pa.CompressedInputStream(raw, codec) as plain:
                yield plain


def _text(stream: BinaryIO, fields: Sequence[str]) -> Iterator[FileRow]:
    yield FileRow(None, {fields[0]: stream.read()}, fields[:1])


def _json(stream: BinaryIO, _fields: Sequence[str]) -> Iterator[FileRow]:
    with io.BufferedReader(cast("io.RawIOBase", stream), buffer_size=1 << 20) as lines:
        for number, line in enumerate(lines):
            if line.strip():
                yield _json_row(number, line)


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


def _parquet(stream: BinaryIO, fields: Sequence[str]) -> Iterator[FileRow]:
    from pyarrow.parquet import ParquetFile

    # Pre-buffering would hold the chosen columns of all row groups at once.
    file = ParquetFile(stream, pre_buffer=False)
    names = file.schema_arrow.names
    columns = [name for name in dict.fromkeys(fields) if name in names]
    batches = file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
    yield from _batches(batches, fields, names)


def _arrow(stream: BinaryIO, fields: Sequence[str]) -> Iterator[FileRow]:
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
    for batch in batches:
        present = batch.schema.names
        usable = [name for name in dict.fromkeys(fields) if present.count(name) == 1]
        columns = [_plain(batch.column(name)) for name in usable]
        for offset in range(batch.num_rows):
            values = {name: column[offset] for name, column in zip(usable, columns, strict=True)}
            yield FileRow(first + offset, values, names or present)
        first += batch.num_rows


def _plain(column: "pa.Array") -> list[object]:
    """Python values of a column: text as bytes, for Arrow decodes lazily and may raise on bad UTF-8.

    A column that is neither text nor number gives its type in place of each value: that costs
    nothing, and it is refused downstream whatever it holds.
    """
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    texts = (pa.string(), pa.large_string(), pa.string_view())
    if kind in (*texts, pa.binary(), pa.large_binary(), pa.binary_view()):
        return list(column.cast(pa.large_binary()).to_pylist())
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    return (
        list(column.to_pylist())
        if any(is_kind(kind) for is_kind in numbers)
        else [kind] * len(column)
    )
