"""Documents come back whole from every format, and whatever cannot be read is counted or refused."""

import base64
import gzip
import hashlib
import io
import json
import os
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.parquet import encryption
from pydantic import ValidationError

from storage.fingerprint import canonical
from tasks.corpus import formats
from tasks.corpus.columns import plain
from tasks.corpus.formats import UnreadableFileError
from tasks.corpus.listing import EmptyCorpusError, SourceFile
from tasks.corpus.reading import Document, Problem, Problems, list_files, read_documents
from tasks.corpus.source import MOST_BYTES, DocumentFormat, Source
from tests.benchmarks.measure import peak_growth

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
PALOMA = [{"text": "one\ntwo", "id": "a/1", "subdomain": "x"}, {"text": "three", "id": "a/2"}]

texts = st.text(min_size=1).filter(str.strip)
quick = settings(max_examples=25)


def compressed(data: bytes, suffix: str) -> bytes:
    """``data`` as a file whose name ends in ``suffix`` holds it."""
    if suffix not in CODECS:
        return data
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, CODECS[suffix]) as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def json_lines(rows: Sequence[object]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows: Sequence[dict[str, Any]], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, **options)
    return sink.getvalue()


def arrow(rows: Sequence[dict[str, Any]]) -> bytes:
    return _arrow(rows, pa.ipc.new_stream)


def arrow_file(rows: Sequence[dict[str, Any]]) -> bytes:
    return _arrow(rows, pa.ipc.new_file)


def _arrow(rows: Sequence[dict[str, Any]], new: Callable[..., Any]) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(list(rows))
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue()


Write: TypeAlias = Callable[[Sequence[dict[str, Any]]], bytes]


def put(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def source(*urls: str, **fields: Any) -> Source:
    rule = {name: fields.pop(name) for name in [*fields] if name in DocumentFormat.model_fields}
    return Source(urls=list(urls), format=DocumentFormat(**rule), **fields)


def read(where: Source) -> tuple[list[Document], list[Problem]]:
    problems = Problems()
    files = list_files(where)
    return [row for file in files for row in read_documents(file, where, problems)], problems.rows()


def read_file(path: Path, data: bytes, **fields: Any) -> tuple[list[Document], list[Problem]]:
    return read(source(put(path, data), **fields))


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system memory://, empty before and after."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


FORMATS: list[tuple[str, Write]] = [
    *((f".jsonl{suffix}", lambda rows, s=suffix: compressed(json_lines(rows), s))
      for suffix in ["", *CODECS]),
    (".json.gz", lambda rows: compressed(json_lines(rows), ".gz")),
    (".ndjson", json_lines),
    (".parquet", lambda rows: parquet(rows, row_group_size=2)),
    (".arrow", arrow),
    (".arrow", arrow_file),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "write"), FORMATS)
@quick
@given(found=st.lists(texts, min_size=1, max_size=8))
def test_documents_come_back_equal_from_every_format(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    write: Write,
    found: list[str],
) -> None:
    path = tmp_path_factory.mktemp("corpus") / f"web{suffix}"
    documents, problems = read_file(path, write([{"text": text} for text in found]))
    assert documents == [
        Document(text, "web", hashlib.sha256(text.encode()).hexdigest(), f"web{suffix}:{row}")
        for row, text in enumerate(found)
    ]
    assert problems == []


@pytest.mark.parametrize("suffix", ["", *CODECS])
@quick
@given(text=texts)
def test_text_files_are_one_document_each(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, text: str
) -> None:
    path = tmp_path_factory.mktemp("corpus") / f"essay.md{suffix}"
    documents, _ = read_file(path, compressed(text.encode(), suffix))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert documents == [Document(text, "essay", digest, f"essay.md{suffix}")]


def test_palomas_layout_is_read_as_it_is(tmp_path: Path) -> None:
    data = compressed(json_lines(PALOMA), ".gz")
    put(tmp_path / "c4" / "val.jsonl.gz", data)
    documents, problems = read(source(str(tmp_path)))
    assert [(row.text, row.domain) for row in documents] == [("one\ntwo", "c4"), ("three", "c4")]
    assert problems == []
    documents, problems = read(source(str(tmp_path), domain_fields=["subdomain"]))
    assert [row.domain for row in documents] == ["x"]
    assert [row.count for row in problems] == [1]


def test_several_compressed_members_are_read_to_the_last(tmp_path: Path) -> None:
    for suffix in CODECS:
        data = b"".join(compressed(json_lines([{"text": word}]), suffix) for word in "abc")
        documents, _ = read_file(tmp_path / f"x.jsonl{suffix}", data)
        assert [row.text for row in documents] == ["a", "b", "c"]


def test_byte_order_marks_blank_lines_and_a_missing_last_newline_do_no_harm(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}'
    documents, problems = read_file(tmp_path / "x.jsonl", data)
    assert [(row.text, row.origin) for row in documents] == [("a", "x.jsonl:0"), ("b", "x.jsonl:3")]
    assert problems == []


# Faults of single documents


GOOD = b'{"text": "good", "year": 2020}\n'
JSON_FAULTS = {
    b"{no json}\n": "is not JSON",
    b"[" * 100_000 + b"\n": "is not JSON",
    b'["text"]\n': "is no JSON object",
    b'"text"\n': "is no JSON object",
    b'{"text": "\xff"}\n': "is not UTF-8",
    b'{"text": "\\ud800"}\n': "is not UTF-8",
    b'{"text": " \\n\\t", "year": 1}\n': "is empty or only white space",
    b'{"text": ""}\n': "is empty or only white space",
    b'{"text": 5}\n': "has in the text field 'text' no text but int",
    b'{"text": null}\n': "has in the text field 'text' no text but NoneType",
    b'{"body": "x", "id": 5}\n': "lacks the text field 'text'; its fields are body, id",
    b"{}\n": "lacks the text field 'text'; its fields are none",
}


@pytest.mark.parametrize("line", JSON_FAULTS, ids=JSON_FAULTS.values())
def test_a_faulty_json_line_is_counted_and_the_rest_is_read(tmp_path: Path, line: bytes) -> None:
    documents, problems = read_file(tmp_path / "x.jsonl", GOOD + line + GOOD + line + GOOD)
    assert [row.origin for row in documents] == ["x.jsonl:0", "x.jsonl:2", "x.jsonl:4"]
    assert problems == [Problem("x.jsonl", "document", 2, "x.jsonl:1", JSON_FAULTS[line])]


@pytest.mark.parametrize(
    "value", [None, [1], {"a": 1}, "", "  ", float("nan"), float("inf"), "\ud800"], ids=repr
)
def test_a_domain_field_must_hold_text_or_a_number(tmp_path: Path, value: object) -> None:
    rows = [{"text": "a", "source": value}, {"text": "b"}, {"text": "c", "source": "ok"}]
    data = json_lines(rows)
    documents, problems = read_file(tmp_path / "x.jsonl", data, domain_fields=["source"])
    assert [row.text for row in documents] == ["c"]
    assert {row.first for row in problems} == {"x.jsonl:0", "x.jsonl:1"}


def invalid(kind: pa.DataType) -> pa.Array:
    """A column of one value that says it is text and is not UTF-8."""
    return pa.array([b"\xff\xfe"], pa.binary()).view(kind)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (invalid(pa.string()), "is not UTF-8"),
        (pa.array([None], pa.string()), "no text but NoneType"),
        (pa.array([None]), "no text but NoneType"),
        (pa.array([7]), "no text but int"),
        (pa.array([["a"]]), "no text but ListType"),
        (pa.array([" "]), "is empty"),
    ],
)
def test_a_faulty_cell_is_counted(tmp_path: Path, column: pa.Array, message: str) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": column, "id": [1]}), path)
    documents, problems = read(source(str(path)))
    assert documents == []
    assert [(row.kind, row.count, row.first) for row in problems] == [
        ("document", 1, "x.parquet:0")
    ]
    assert message in problems[0].message


def test_a_table_without_the_column_counts_every_row(tmp_path: Path) -> None:
    formats: dict[str, Write] = {"x.parquet": parquet, "x.arrow": arrow}
    for name, data in formats.items():
        _, problems = read_file(tmp_path / name, data([{"body": "a", "id": 1}] * 5))
        message = "lacks the text field 'text'; its fields are body, id"
        assert problems == [Problem(name, "document", 5, f"{name}:0", message)]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.binary()])
def test_every_text_type_of_arrow_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": pa.array([b"a", b"b"]).cast(kind)}), path)
    assert [row.text for row in read(source(str(path)))[0]] == ["a", "b"]


def test_a_repeated_column_name_is_not_guessed_at(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "x.parquet")
    documents, problems = read(source(str(tmp_path)))
    assert documents == []
    assert "lacks the text field" in problems[0].message


def test_text_files_can_be_faulty_too(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", b"\xff")
    put(tmp_path / "b.txt", b"")
    put(tmp_path / "c.txt", b"good")
    documents, problems = read(source(str(tmp_path)))
    assert [row.text for row in documents] == ["good"]
    assert [(row.first, row.message) for row in problems] == [
        ("a.txt", "is not UTF-8"),
        ("b.txt", "is empty or only white space"),
    ]


def test_problems_grow_with_kinds_of_fault_and_read_well() -> None:
    problems = Problems()
    assert problems.text() == ""
    for row in range(1000):
        problems.document("a.jsonl", f"a.jsonl:{row}", "lacks it", f"; has {row}")
    problems.file("b.jsonl", "is torn")
    assert problems.rows() == [
        Problem("a.jsonl", "document", 1000, "a.jsonl:0", "lacks it; has 0"),
        Problem("b.jsonl", "file", 1, "b.jsonl", "is torn"),
    ]
    assert problems.text() == (
        "a.jsonl: 1000 skipped, first a.jsonl:0, which lacks it; has 0\nb.jsonl: is torn"
    )


# Damaged files


MANY = [{"text": f"document {number} {number * 7919 % 1009}"} for number in range(12)]


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_compressed_file_cut_anywhere_is_unreadable(
    tmp_path: Path, suffix: str, ending: bytes
) -> None:
    data = compressed(json_lines(MANY).rstrip(b"\n") + ending, suffix)
    assert len(read_file(tmp_path / f"x.jsonl{suffix}", data)[0]) == len(MANY)
    for cut in range(0, len(data), 1 if len(data) < 400 else 3):
        with pytest.raises(UnreadableFileError, match=f"x.jsonl{suffix} is truncated"):
            read_file(tmp_path / f"x.jsonl{suffix}", data[:cut])


@pytest.mark.parametrize("suffix", [".zst", ".gz"])
def test_a_compressed_file_cut_between_two_lines_is_unreadable(tmp_path: Path, suffix: str) -> None:
    sink = io.BytesIO()
    stream = pa.CompressedOutputStream(pa.PythonFile(sink, "w"), CODECS[suffix])
    cuts = []
    for row in MANY:
        stream.write(json_lines([row]))
        stream.flush()
        cuts.append(sink.tell())
    for cut in cuts:
        with pytest.raises(UnreadableFileError):
            read_file(tmp_path / f"x.jsonl{suffix}", sink.getvalue()[:cut])
    stream.close()


def test_a_damaged_file_may_have_yielded_documents(tmp_path: Path) -> None:
    data = compressed(json_lines([{"text": "x" * 1000}] * 3000), ".gz")
    where = source(put(tmp_path / "x.jsonl.gz", data[:-4]))
    (file,) = list_files(where)
    documents = read_documents(file, where, Problems())
    assert next(documents).origin == "x.jsonl.gz:0"
    with pytest.raises(UnreadableFileError):
        list(documents)


def test_a_file_without_documents_is_noted(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", b"")
    put(tmp_path / "b.jsonl", b"\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    put(tmp_path / "d.jsonl", GOOD)
    documents, problems = read(source(str(tmp_path)))
    assert [row.domain for row in documents] == ["d"]
    assert problems == [
        Problem(name, "file", 1, name, "holds no document")
        for name in ("a.jsonl", "b.jsonl", "c.parquet")
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".ARROW"])
def test_a_table_cut_anywhere_is_unreadable(tmp_path: Path, suffix: str) -> None:
    formats: dict[str, Write] = {".parquet": parquet, ".arrow": arrow, ".ARROW": arrow_file}
    data = formats[suffix](MANY)
    assert len(read_file(tmp_path / f"x{suffix}", data)[0]) == len(MANY)
    for cut in range(0, len(data), 2):
        with pytest.raises(UnreadableFileError, match="is truncated or not in the format"):
            read_file(tmp_path / f"x{suffix}", data[:cut])


def test_json_lines_cut_inside_a_line_are_unreadable(tmp_path: Path) -> None:
    data = json_lines([{"text": "a"}]) + '{"text": "ü", "n": 1}'.encode()
    whole = data.index(b"\n") + 1
    for cut in range(whole + 1, len(data)):
        with pytest.raises(UnreadableFileError, match="line 2, the last, is cut off"):
            read_file(tmp_path / "x.jsonl", data[:cut])
    assert len(read_file(tmp_path / "x.jsonl", data)[0]) == 2


def test_a_bad_byte_in_a_whole_last_line_is_a_fault_of_the_document(tmp_path: Path) -> None:
    documents, problems = read_file(tmp_path / "x.jsonl", GOOD + b'{"text": "\xff"}')
    assert len(documents) == 1
    assert [row.message for row in problems] == ["is not UTF-8"]


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.parquet", "x.arrow", "x.txt.bz2"])
@pytest.mark.parametrize("data", [b"", b"this is something else entirely, and long enough"])
def test_a_file_that_is_not_what_its_name_says_is_unreadable(
    tmp_path: Path, name: str, data: bytes
) -> None:
    with pytest.raises(UnreadableFileError, match=name):
        read_file(tmp_path / name, data)


def zstd_with_window(log: int, data: bytes) -> bytes:
    """A frame of one raw block that asks for a window of 2**log bytes (RFC 8878, 3.1.1)."""
    block = (len(data) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\x00" + bytes([log - 10 << 3]) + block + data


def test_a_zstd_window_that_arrow_does_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    assert len(read_file(path, zstd_with_window(27, GOOD))[0]) == 1
    with pytest.raises(
        UnreadableFileError, match="window above 128 MiB: compress it with --long=27"
    ):
        read_file(path, zstd_with_window(31, GOOD))


def test_bytes_behind_the_data_of_gzip_are_named(tmp_path: Path) -> None:
    data = compressed(GOOD, ".gz")
    with pytest.raises(UnreadableFileError, match=r"other bytes, perhaps padding.*zcat"):
        read_file(tmp_path / "x.jsonl.gz", data + bytes(512))
    with pytest.raises(UnreadableFileError, match="does not begin as gzip does"):
        read_file(tmp_path / "x.jsonl.gz", GOOD)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("x.jsonl", "utf-16"),
        ("x.jsonl", "utf-16-le"),
        ("x.jsonl.gz", "utf-16-be"),
        ("x.txt", "utf-16"),
    ],
)
def test_utf_16_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    data = compressed(GOOD.decode().encode(encoding), name[name.rindex(".") :])
    with pytest.raises(UnreadableFileError, match=r"is UTF-16: write it as UTF-8"):
        read_file(tmp_path / name, data)


class Plain(encryption.KmsClient):  # type: ignore[misc] # pyarrow has no types
    """Keeps keys in the open: for tests alone."""

    def wrap_key(self, key: bytes, _: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: bytes, _: str) -> bytes:
        return base64.b64decode(key)


@pytest.mark.parametrize("footer", [True, False])
def test_encrypted_parquet_is_named(tmp_path: Path, footer: bool) -> None:
    kms = encryption.KmsConnectionConfig()
    how = encryption.EncryptionConfiguration(
        footer_key="footer", column_keys={"column": ["text"]}, plaintext_footer=not footer
    )
    properties = encryption.CryptoFactory(lambda _: Plain()).file_encryption_properties(kms, how)
    table = pa.table({"text": ["a"]})
    with pq.ParquetWriter(
        tmp_path / "x.parquet", table.schema, encryption_properties=properties
    ) as writer:
        writer.write_table(table)
    with pytest.raises(UnreadableFileError, match="is encrypted: write it as plain Parquet"):
        read(source(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.xml", None),
        ("x.sql.gz", None),
        ("x.jsonl", json_lines),
        ("x.parquet", parquet),
        ("x.arrow", arrow),
    ],
)
def test_a_document_that_is_too_large_is_skipped_and_named(
    tmp_path: Path, name: str, write: Write | None
) -> None:
    texts = ["a" * 900, "x" * 1001, "b" * 900]
    data = texts[1].encode() if write is None else write([{"text": text} for text in texts])
    data = compressed(data, ".gz") if name.endswith(".gz") else data
    documents, (problem, *_) = read_file(tmp_path / name, data, max_document_bytes=1000)
    assert [document.text for document in documents] == ([] if write is None else texts[::2])
    assert problem.kind == "document"
    assert (
        "is above 1,000 bytes: write its parts, or raise format.max_document_bytes"
        in problem.message
    )


def test_the_limit_on_documents_at_its_default_is_no_rule() -> None:
    assert canonical(DocumentFormat(max_document_bytes=MOST_BYTES)) == canonical(DocumentFormat())
    assert "max_document_bytes" not in str(canonical(DocumentFormat()))
    assert "max_document_bytes" in str(canonical(DocumentFormat(max_document_bytes=1)))


def test_lines_of_any_length_take_little_memory(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    with (folder / "long.jsonl").open("wb") as file:
        file.truncate(100 << 20)  # one line, which takes no place on the disk
        file.seek(0, 2)
        file.write(b'\n{"text": "behind the line"}\n')
    with gzip.open(folder / "blank.jsonl.gz", "wb", compresslevel=1) as blank:
        for _ in range(100):
            blank.write(b" " * (1 << 20))
        blank.write(b'\n\n{"text": "behind the blanks"}\n')
    found: list[Any] = []
    where = source(str(folder), max_document_bytes=5_000_000)
    read(where)
    assert peak_growth(lambda: found.extend(read(where))) < 50 << 20
    assert [document.text for document in found[0]] == ["behind the blanks", "behind the line"]
    assert [(row.path, row.first) for row in found[1]] == [("long.jsonl", "long.jsonl:0")]


def test_a_long_line_is_the_document_that_it_was(tmp_path: Path) -> None:
    text = "é" * 1_500_000
    data = b" " * 3_000_000 + json_lines([{"text": text}]) + json_lines([{"text": "b"}])
    documents, problems = read_file(tmp_path / "x.jsonl", data)
    assert ([document.text for document in documents], problems) == ([text, "b"], [])
    with pytest.raises(UnreadableFileError, match="line 1, the last, is cut off"):
        read_file(tmp_path / "x.jsonl", data[:4_500_000])


def test_a_row_group_of_rows_above_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_BATCH_BYTES", 2500)
    data = parquet([{"text": "x" * 5000}])
    assert len(read_file(tmp_path / "x.parquet", data)[0]) == 1
    with pytest.raises(UnreadableFileError, match="has rows above the limit"):
        read_file(tmp_path / "x.parquet", data, max_document_bytes=1000)


@pytest.mark.parametrize(("name", "write"), [("x.parquet", parquet), ("x.arrow", arrow_file)])
def test_large_rows_come_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Write
) -> None:
    texts = [f"{number:02d}" * 500 for number in range(20)]
    monkeypatch.setattr(formats, "_BATCH_BYTES", 2500)
    documents, _ = read_file(tmp_path / name, write([{"text": text} for text in texts]))
    assert [document.text for document in documents] == texts
    sizes: list[int] = []

    def sized(column: pa.Array) -> list[object]:
        sizes.append(len(column))
        return plain(column)

    monkeypatch.setattr(formats, "plain", sized)
    read(source(str(tmp_path)))
    assert sum(sizes) == 20
    assert max(sizes) <= 2


def test_offsets_and_numbers_that_lead_nowhere_are_damage(tmp_path: Path) -> None:
    """Arrow's readers do not look at them."""
    offsets = pa.array([0, 2, 1, 3], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abc")])
    numbers = pa.array([0, 7], pa.int32())
    words = pa.DictionaryArray.from_arrays(numbers, pa.array(["a", "b"]), safe=False)
    for column in (texts, words):
        table = pa.Table.from_arrays([column], ["text"])
        with (
            pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        with pytest.raises(UnreadableFileError, match=r"x.arrow is truncated or not in the format"):
            read(source(str(tmp_path)))


def wet(*records: tuple[str, str, str]) -> bytes:
    """A file of these records (type, language, text), by the library itself."""
    pytest.importorskip("warcio")
    from warcio.warcwriter import WARCWriter

    sink = io.BytesIO()
    writer = WARCWriter(sink, gzip=True)
    writer.write_record(writer.create_warcinfo_record("x.wet.gz", {"software": "tests"}))
    for kind, language, text in records:
        writer.write_record(
            writer.create_warc_record(
                "http://example.org/",
                kind,
                payload=io.BytesIO(text.encode()),
                length=len(text.encode()),
                warc_content_type="text/plain",
                warc_headers_dict={"WARC-Identified-Content-Language": language},
            )
        )
    return sink.getvalue()


def test_wet_without_its_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "warcio.archiveiterator", None)
    with pytest.raises(ValueError, match=r"pip install 'mixpool\[warc\]'"):
        read_file(tmp_path / "x.wet", b"WARC/1.0")


def test_a_record_of_a_wet_file_that_is_no_text_is_skipped(tmp_path: Path) -> None:
    """Not looked into: it may lack what a record of its kind has."""
    kinds = ("warcinfo", "response", "conversion", "request", "")
    record = "WARC/1.0\r\nWARC-Type: {}\r\nContent-Length: 5\r\n\r\nhello\r\n\r\n"
    data = "".join(map(record.format, kinds)).encode()
    documents, problems = read_file(tmp_path / "x.wet", data)
    assert [row.text for row in documents] == ["hello"]
    skipped = [(row.first, row.message.partition(",")[0]) for row in problems]
    assert skipped == [
        ("x.wet:1", "is a record of 'response'"),
        ("x.wet:3", "is a record of 'request'"),
        ("x.wet:4", "is a record of ''"),
    ]


def test_each_record_of_a_wet_file_is_a_document(tmp_path: Path) -> None:
    data = wet(
        ("conversion", "eng", "one\ntwo"), ("metadata", "x", "y"), ("conversion", "deu", "drei")
    )
    documents, problems = read_file(tmp_path / "x.warc.wet.gz", data)
    assert [(row.text, row.domain, row.origin) for row in documents] == [
        ("one\ntwo", "x", "x.warc.wet.gz:1"),
        ("drei", "x", "x.warc.wet.gz:3"),
    ]
    assert [row.message for row in problems] == [
        "is a record of 'metadata', not of text (conversion)"
    ]
    language = {"domain_fields": ["WARC-Identified-Content-Language"]}
    assert [row.domain for row in read_file(tmp_path / "x.wet.gz", data, **language)[0]] == [
        "eng", "deu",
    ]  # fmt: skip
    plain = gzip.decompress(data)
    assert len(read_file(tmp_path / "x.wet", plain)[0]) == 2
    for cut in (plain[:-10], b"no record\n" * 9):
        with pytest.raises(UnreadableFileError, match="truncated or not in the format"):
            read_file(tmp_path / "x.wet", cut)
    with pytest.raises(UnreadableFileError):
        read_file(tmp_path / "x.wet.gz", data[:-10])


def test_a_file_that_went_away_is_not_called_damaged(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.parquet", "x.jsonl.zst"):
        where = source(put(tmp_path / name, b"x"))
        (file,) = list_files(where)
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError):
            list(read_documents(file, where, Problems()))


# Domains


@pytest.mark.parametrize(
    ("path", "domain"),
    [
        ("code/part-0.jsonl", "code"),
        ("code.jsonl", "code"),
        ("wiki-2024.01.jsonl", "wiki-2024.01"),
        ("v1.2/x/y.jsonl", "v1.2"),
    ],
)
def test_the_domain_is_the_first_component(tmp_path: Path, path: str, domain: str) -> None:
    put(tmp_path / path, GOOD)
    assert [row.domain for row in read(source(str(tmp_path)))[0]] == [domain]


def test_domain_fields_are_joined_and_alike_in_every_format(tmp_path: Path) -> None:
    rows = [{"text": "a", "source": "web", "year": 2020.0, "ok": True, "n": 3, "x": 1.5}]
    fields = ["source", "year", "ok", "n", "x"]
    dictionary = pa.table({**pa.Table.from_pylist(rows).to_pydict(), "source": ["web"]})
    dictionary = dictionary.set_column(1, "source", pa.array(["web"]).dictionary_encode())
    put(tmp_path / "1.jsonl", json_lines(rows))
    put(tmp_path / "2.parquet", parquet(rows))
    put(tmp_path / "3.arrow", arrow(rows))
    pq.write_table(dictionary, tmp_path / "4.parquet")
    documents, problems = read(source(str(tmp_path), domain_fields=fields))
    assert problems == []
    assert [row.domain for row in documents] == ["web-2020-true-3-1.5"] * 4


def test_dots_reach_into_objects_structs_and_json_in_text(tmp_path: Path) -> None:
    rows = [
        {
            "text": "a",
            "meta": {"set": {"name": "pile"}, "n": 1},
            "said": '{"set": {"name": "pile"}}',
        }
    ]
    inner = pa.array(["pile"]).dictionary_encode()
    table = pa.Table.from_pylist(rows)
    struct = pa.StructArray.from_arrays([inner, pa.array([[1.5]])], names=["name", "much"])
    meta = pa.StructArray.from_arrays([struct, pa.array([1])], names=["set", "n"])
    put(tmp_path / "1.jsonl", json_lines(rows))
    put(tmp_path / "2.parquet", parquet(rows))
    put(tmp_path / "3.arrow", arrow(rows))
    pq.write_table(table.set_column(1, "meta", meta), tmp_path / "4.parquet")
    for fields, domain in ((["meta.set.name", "meta.n"], "pile-1"), (["said.set.name"], "pile")):
        documents, problems = read(source(str(tmp_path), domain_fields=fields))
        assert problems == []
        assert [row.domain for row in documents] == [domain] * 4
    for field in ("meta.set", "meta.other", "said.set.name.first", "text.set", "meta.n.x"):
        documents, problems = read(source(str(tmp_path), domain_fields=[field]))
        assert documents == []
        assert [row.count for row in problems] == [1] * 4


def test_a_whole_name_with_a_dot_wins_and_empty_structs_are_faults(tmp_path: Path) -> None:
    rows = [{"text": "a", "meta.x": "whole", "meta": {"x": "inner", "y.z": "odd"}}]
    formats: dict[str, Write] = {"1.jsonl": json_lines, "2.parquet": parquet, "3.arrow": arrow}
    for name, write in formats.items():
        put(tmp_path / name, write(rows))
    documents, _ = read(source(str(tmp_path), domain_fields=["meta.x", "meta.y.z"]))
    assert [row.domain for row in documents] == ["whole-odd"] * 3
    null: list[dict[str, Any]] = [{"text": "a", "meta": None}, {"text": "b", "meta": {"x": "ok"}}]
    documents, problems = read_file(tmp_path / "4.parquet", parquet(null), domain_fields=["meta.x"])
    assert [(row.text, row.domain) for row in documents] == [("b", "ok")]
    assert "no text or number" in problems[0].message


def test_of_a_struct_only_the_wanted_leaf_is_read(tmp_path: Path) -> None:
    rows = [{"text": "a", "meta": {"name": "pile", "rest": os.urandom(1 << 16).hex()}}] * 8
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    rest = pq.ParquetFile(path).metadata.row_group(0).column(2)
    assert rest.path_in_schema == "meta.rest"
    data[rest.data_page_offset : rest.data_page_offset + 64] = bytes(64)
    documents, _ = read_file(path, bytes(data), domain_fields=["meta.name"])
    assert [row.domain for row in documents] == ["pile"] * 8
    with pytest.raises(UnreadableFileError):
        read_file(path, bytes(data), domain_fields=["meta.rest"])


def test_a_field_that_rows_lack_may_be_that_of_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "lang=en%2FGB" / "year=2020" / "0.parquet", parquet([{"text": "a"}]))
    put(tmp_path / "lang=de" / "year=2021" / "1.jsonl", json_lines([{"text": "b", "lang": "own"}]))
    documents, problems = read(source(str(tmp_path), domain_fields=["lang", "year"]))
    assert problems == []
    assert {row.text: row.domain for row in documents} == {"a": "en/GB-2020", "b": "own-2021"}


def test_the_text_field_can_be_the_domain_field(tmp_path: Path) -> None:
    formats: dict[str, Write] = {"x.parquet": parquet, "x.arrow": arrow, "x.jsonl": json_lines}
    for name, data in formats.items():
        fields = {"text_field": "body", "domain_fields": ["body"]}
        documents, _ = read_file(tmp_path / name, data([{"body": "a"}]), **fields)
        assert [(row.text, row.domain) for row in documents] == [("a", "a")]


word = st.text(string.ascii_lowercase, min_size=1, max_size=5)


@quick
@given(source_name=word, year=st.integers(1900, 2100), rest=word)
def test_the_groups_of_a_pattern_are_the_domain(
    tmp_path_factory: pytest.TempPathFactory, source_name: str, year: int, rest: str
) -> None:
    root = tmp_path_factory.mktemp("corpus")
    put(root / source_name / str(year) / f"{rest}.jsonl", GOOD)
    documents, _ = read(source(str(root), domain_pattern=r"^(\w+)/(\d+)/"))
    assert [row.domain for row in documents] == [f"{source_name}-{year}"]


def test_an_optional_group_may_be_absent_and_a_path_without_match_is_a_problem(
    tmp_path: Path,
) -> None:
    put(tmp_path / "a.jsonl", GOOD)
    put(tmp_path / "b-1.jsonl", GOOD)
    put(tmp_path / "9.jsonl", GOOD)
    documents, problems = read(source(str(tmp_path), domain_pattern=r"^([a-z])(?:-(\d))?"))
    assert [row.domain for row in documents] == ["a", "b-1"]
    message = "its path does not match domain_pattern '^([a-z])(?:-(\\\\d))?'"
    assert problems == [Problem("9.jsonl", "file", 1, "9.jsonl", message)]


def test_patterns_whose_groups_join_to_one_name_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a-1" / "0.jsonl", GOOD)
    put(tmp_path / "a" / "1.jsonl", GOOD)
    where = source(str(tmp_path), domain_pattern=r"^([a-z]-\d|[a-z])/(?:([1-9]))?")
    joined: dict[str, tuple[str, ...]] = {}
    first, second = list_files(where)
    assert [row.domain for row in read_documents(first, where, Problems(), joined)] == ["a-1"]
    with pytest.raises(ValueError, match=r"would both be domain 'a-1'"):
        list(read_documents(second, where, Problems(), joined))


def test_a_constant_domain_and_the_choice_of_domains(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", GOOD)
    put(tmp_path / "b.jsonl", GOOD)
    put(tmp_path / "c.parquet", b"damaged, and never opened where it is not wanted")
    where = str(tmp_path)
    only = str(tmp_path / "*.jsonl")
    assert {row.domain for row in read(source(only, domain="all"))[0]} == {"all"}
    assert [row.domain for row in read(source(where, include_domains=["b"]))[0]] == ["b"]
    assert [row.domain for row in read(source(where, exclude_domains=["b", "c"]))[0]] == ["a"]
    years = source(only, domain_fields=["year"], exclude_domains=["2020"])
    assert read(years) == ([], [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"domain_pattern": "("}, "is no regular expression"),
        ({"domain_pattern": "abc"}, "has no group"),
        ({"domain_pattern": "(a)", "domain_fields": ["x"]}, "domain_fields and domain_pattern"),
        ({"domain": "a", "domain_fields": ["x"]}, "domain_fields and domain all say"),
        ({"domain": ""}, "at least 1 character"),
        ({"text_field": ""}, "at least 1 character"),
    ],
)
def test_a_contradictory_format_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DocumentFormat(**fields)


# Sources and listings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either urls"),
        ({"urls": []}, "give either urls"),
        ({"urls": ["a"], "dataset": "b"}, "give either urls"),
        ({"urls": ["a"], "dataset_name": "b"}, "without dataset"),
        ({"urls": ["a"], "include_domains": []}, "at least 1 item"),
        ({"urls": ["a"], "include_domains": ["x"], "exclude_domains": ["x"]}, "in both"),
        ({"urls": ["zip://a::s3://b/c.zip"]}, "chains file systems"),
    ],
)
def test_a_contradictory_source_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Source(**fields)


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:geheim@bucket/x.jsonl",
        "s3://me:ge/heim@bucket/x.jsonl",
        "sftp://me:geheim@host/x",
        "https://host/x.jsonl?X-Amz-Signature=geheim",
        "https://host/x.jsonl?a=1&sig=geheim",
    ],
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    for fields in ({"urls": [url]}, {"dataset": url}):
        with pytest.raises(ValidationError, match="carries credentials") as caught:
            Source(**fields)
        assert "geheim" not in str(caught.value)
        assert "heim" not in str(caught.value)


def paths(where: Source) -> list[str]:
    return [file.path for file in list_files(where)]


def test_paths_stay_when_the_corpus_moves(tmp_path: Path, memory: Any) -> None:
    names = ["code/a.jsonl", "code/deep/b.parquet", "web/a.jsonl.zst", "z.txt"]
    for name in names:
        put(tmp_path / "one" / "corpus" / name, b"x")
        put(tmp_path / "two" / "other" / name, b"x")
        memory.pipe(f"/bucket/{name}", b"x")
    roots = [tmp_path / "one" / "corpus", tmp_path / "two" / "other", "memory://bucket"]
    for root in [*roots, (tmp_path / "one" / "corpus").as_uri()]:
        for address in (str(root), f"{root}/", f"{root}/**"):
            assert paths(source(address)) == names
        assert paths(source(f"{root}/*/a.jsonl*")) == ["code/a.jsonl", "web/a.jsonl.zst"]
        assert paths(source(f"{root}/code/a.jsonl")) == ["a.jsonl"]


def test_urls_and_facts_of_listed_files_are_those_of_the_file(tmp_path: Path, memory: Any) -> None:
    put(tmp_path / "a.jsonl", GOOD)
    memory.pipe("/b/a.jsonl", GOOD)
    for root in (str(tmp_path), "memory://b"):
        (file,) = list_files(source(root))
        filesystem, path = fsspec.core.url_to_fs(file.url)
        assert filesystem.cat(path) == GOOD
        assert file.size == len(GOOD)
        (again,) = list_files(source(root))
        assert again == file


def test_the_stamp_changes_with_the_file(tmp_path: Path) -> None:
    where = source(put(tmp_path / "a.jsonl", GOOD))
    (before,) = list_files(where)
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    (after,) = list_files(where)
    put(tmp_path / "a.jsonl", GOOD * 2)
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    (larger,) = list_files(where)
    assert len({before.stamp, after.stamp, larger.stamp}) == 3


def test_new_files_are_seen_although_the_file_system_keeps_listings(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", GOOD)
    assert paths(source(str(tmp_path))) == ["a.jsonl"]
    put(tmp_path / "b.jsonl", GOOD)
    assert paths(source(str(tmp_path))) == ["a.jsonl", "b.jsonl"]


def test_several_roots_are_told_apart_by_their_names(tmp_path: Path, memory: Any) -> None:
    for name in ("code", "web", "old/web"):
        put(tmp_path / name / "a.jsonl", GOOD)
    code, web, old = (str(tmp_path / name / "*.jsonl") for name in ("code", "web", "old/web"))
    assert paths(source(code, web)) == ["code/a.jsonl", "web/a.jsonl"]
    parent = tmp_path.name
    assert paths(source(web, old)) == sorted([f"{parent}/web/a.jsonl", "old/web/a.jsonl"])
    memory.pipe("/web/a.jsonl", GOOD)
    assert len(set(paths(source(code, web, old, "memory://web/a.jsonl")))) == 4
    files = [str(tmp_path / "code/a.jsonl"), code, str(tmp_path / "code")]
    assert paths(source(*files)) == ["a.jsonl"]


def test_a_file_matched_twice_is_listed_once(tmp_path: Path) -> None:
    put(tmp_path / "code" / "a.jsonl", GOOD)
    put(tmp_path / "web.jsonl", GOOD)
    root = tmp_path.name
    where = source(str(tmp_path), str(tmp_path / "code" / "*.jsonl"))
    assert paths(where) == [f"{root}/code/a.jsonl", f"{root}/web.jsonl"]


def test_hidden_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    for name in [
        "a.jsonl", "_b.py", ".c.jsonl", ".git/d.txt", "_SUCCESS", "_temporary/0/e.parquet",
        "f.json", "g.jsonl.md5", "h.bin", "i.jsonl.xz", "LICENSE", "_delta_log/0.jsonl",
    ]:  # fmt: skip
        put(tmp_path / name, GOOD)
    assert paths(source(str(tmp_path))) == ["_b.py", "a.jsonl"]
    assert paths(source(str(tmp_path / "*"))) == ["_b.py", "a.jsonl"]
    assert paths(source(str(tmp_path / "**" / "*.jsonl"))) == ["a.jsonl"]
    assert paths(source(str(tmp_path / ".c.jsonl"))) == [".c.jsonl"]
    assert paths(source(str(tmp_path / "*.jsonl*"))) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("x.json", "call it .jsonl"),
        ("*.json", "call it .jsonl"),
        ("x.bin", "give .jsonl, .parquet"),
        ("*.bin", "give .jsonl, .parquet"),
        ("LICENSE", "give .jsonl, .parquet"),
    ],
)
def test_a_named_format_that_is_not_known_is_refused(
    tmp_path: Path, url: str, message: str
) -> None:
    for name in ("a.jsonl", "x.json", "x.bin", "LICENSE"):
        put(tmp_path / name, b"{}")
    with pytest.raises(ValueError, match=message):
        list_files(source(str(tmp_path / url)))


def test_an_address_that_matches_nothing_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", GOOD)
    put(tmp_path / "other" / "x.bin", GOOD)
    good = str(tmp_path / "a.jsonl")
    for url, message in {
        "missing.jsonl": "matches no file",
        "*.parquet": "matches no file",
        "a.jsonl/*": "matches no file",
        "other": r"only such as .*x\.bin",
    }.items():
        with pytest.raises(EmptyCorpusError, match=message) as caught:
            list_files(source(good, str(tmp_path / url)))
        assert url in str(caught.value)


def test_a_name_with_wildcard_characters_can_be_given_exactly(tmp_path: Path) -> None:
    put(tmp_path / "a[1].jsonl", GOOD)
    put(tmp_path / "a1.jsonl", GOOD)
    assert paths(source(str(tmp_path / "a[1].jsonl"))) == ["a[1].jsonl"]


# Data sets of the library datasets


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, without network, with its cache in a folder of the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    library = pytest.importorskip("datasets")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    return library


ROWS = [{"text": f"text {number}", "year": 2000 + number % 2} for number in range(10)]


def test_a_saved_data_set_is_read(tmp_path: Path, datasets: Any) -> None:
    saved = tmp_path / "here" / "saved"
    datasets.Dataset.from_list(ROWS).shuffle(seed=1).save_to_disk(saved, num_shards=2)
    put(saved / "data-00002-of-00003.arrow", b"left over from an earlier save")
    where = Source(dataset=str(saved))
    documents, problems = read(where)
    assert problems == []
    assert {row.text for row in documents} == {row["text"] for row in ROWS}
    assert {row.domain for row in documents} == {"saved"}
    names = [f"saved/data-0000{shard}-of-00002.arrow" for shard in range(2)]
    assert paths(where) == names
    moved = (tmp_path / "here").rename(tmp_path / "there") / "saved"
    assert paths(Source(dataset=moved.as_uri())) == names


def test_the_split_of_a_saved_data_set_is_chosen(tmp_path: Path, datasets: Any) -> None:
    splits = {name: datasets.Dataset.from_list(ROWS[:count]) for name, count in
              {"train": 2, "test": 3}.items()}  # fmt: skip
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    where = Source(dataset=str(tmp_path / "saved"), split="test",
                   format=DocumentFormat(domain_fields=["year"]))  # fmt: skip
    documents, _ = read(where)
    assert [row.domain for row in documents] == ["2000", "2001", "2000"]
    assert documents[0].origin == "saved/test/data-00000-of-00001.arrow:0"
    with pytest.raises(ValueError, match="has no split 'dev': give one of train, test"):
        list_files(Source(dataset=str(tmp_path / "saved"), split="dev"))


def test_a_folder_of_data_files_is_streamed(tmp_path: Path, datasets: Any) -> None:  # noqa: ARG001
    put(tmp_path / "mine" / "train-0.jsonl", json_lines(ROWS))
    put(tmp_path / "mine" / "test-0.jsonl", json_lines(ROWS[:1]))
    where = Source(dataset=str(tmp_path / "mine"), format=DocumentFormat(domain_fields=["year"]))
    (file,) = list_files(where)
    documents, problems = read(where)
    assert problems == []
    assert [(row.text, row.domain) for row in documents] == [
        (row["text"], str(row["year"])) for row in ROWS
    ]
    assert documents[3].origin == "mine/train:3"
    assert file.size == len(json_lines(ROWS)) + len(json_lines(ROWS[:1]))
    put(tmp_path / "mine" / "train-0.jsonl", json_lines(ROWS[1:]))
    assert list_files(where)[0].stamp != file.stamp
    test = Source(dataset=str(tmp_path / "mine"), split="test")
    assert [(row.text, row.domain) for row in read(test)[0]] == [("text 0", "mine")]
    with pytest.raises(ValueError, match="dev"):
        read(Source(dataset=str(tmp_path / "mine"), split="dev"))


def test_a_damaged_file_of_a_streamed_folder_is_unreadable(
    tmp_path: Path,
    datasets: Any,  # noqa: ARG001
) -> None:
    whole = compressed(json_lines(ROWS * 100), ".gz")
    for name, data in {"x.jsonl": json_lines(ROWS)[:-20], "x.jsonl.gz": whole[:-20]}.items():
        put(tmp_path / name[2:] / name, data)
        with pytest.raises(UnreadableFileError, match="is truncated"):
            read(Source(dataset=str(tmp_path / name[2:])))


def test_neither_folder_nor_hub_name(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/x/a.jsonl", GOOD)
    for address in (str(tmp_path / "missing"), "memory://x"):
        with pytest.raises(EmptyCorpusError, match=address):
            list_files(Source(dataset=address))


def test_a_hub_name_asks_the_hub(datasets: Any) -> None:  # noqa: ARG001
    with pytest.raises(ConnectionError):
        list_files(Source(dataset="nobody/nothing"))


def test_a_source_file_sorts_by_path() -> None:
    one, two = SourceFile("a", "z", 2, "y"), SourceFile("b", "a", 1, "x")
    assert sorted([two, one]) == [one, two]
