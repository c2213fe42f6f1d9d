"""Documents come back in order and in full, in files whose bytes depend on nothing else."""

import resource
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus import documents
from tasks.corpus.documents import DocumentWriter, StoredDocument

texts = st.text(st.characters(exclude_categories=["Cs"]))
stored = st.builds(StoredDocument, texts, texts, texts, st.integers(0, 2**40), texts)


def write(folder: Path, found: list[StoredDocument]) -> DocumentWriter:
    with DocumentWriter(folder) as writer:
        for document in found:
            writer.add(document)
    return writer


@settings(max_examples=50)
@given(found=st.lists(stored, max_size=8))
def test_documents_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, found: list[StoredDocument]
) -> None:
    folder = tmp_path_factory.mktemp("documents")
    writer = write(folder / "x", found)
    assert list(documents.read_all(folder / "x")) == found
    assert [row["text"] for row in documents.read_columns(folder / "x", ["text"])] == [
        d.text for d in found
    ]
    assert (writer.num_documents, writer.num_tokens, writer.num_bytes) == (
        len(found),
        sum(document.num_tokens for document in found),
        sum(len(document.text.encode()) for document in found),
    )
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["documents.parquet"]


def test_row_groups_are_cut_by_bytes_and_bytes_are_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 100_000)
    found = [StoredDocument(f"{n}", "ant", f"a:{n}", n, f"{n} " * 5000) for n in range(30)]
    write(tmp_path / "one", found)
    monkeypatch.setattr(documents, "SPOOL_BYTES", 10)
    write(tmp_path / "two", found)
    one, two = (tmp_path / name / "documents.parquet" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    sizes = [len(document.text) for document in found]
    groups = pq.ParquetFile(one).metadata
    rows = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
    assert sum(rows) == 30
    start = 0
    for number in rows[:-1]:
        assert (
            sum(sizes[start : start + number - 1]) < 100_000 <= sum(sizes[start : start + number])
        )
        start += number


def test_many_writers_need_no_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        writers = [DocumentWriter(tmp_path / str(number)) for number in range(300)]
        for writer in writers:
            writer.add(StoredDocument("d", "ant", "a:0", 1, "x" * 100_000))
        for writer in writers:
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(len(list(documents.read_all(writer.folder))) == 1 for writer in writers)
