"""Links are what they lead to; tables are refused; what is no document is passed over, and said so."""

from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest

from tasks.corpus.beside import Passed
from tasks.corpus.listing import EmptyCorpusError
from tasks.corpus.reading import list_files
from tasks.corpus.source import Source

if TYPE_CHECKING:
    from tests.tasks.conftest import Ground

ROW = b'{"text": "good"}\n'


def lay(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(ROW)


def documents(*urls: object) -> tuple[list[str], list[str]]:
    """Paths of the files that a new scan reads, and notes."""
    passed = Passed()
    files = list_files(Source(urls=[str(url) for url in urls]), passed=passed)
    return [file.path for file in files if not file.is_aside], passed.notes()


# Links


def test_links_to_files_and_folders_are_read_below_the_root(tmp_path: Path) -> None:
    lay(tmp_path, "real/a.jsonl", "real/deep/b.jsonl", "corpus/c.jsonl")
    corpus = tmp_path / "corpus"
    (corpus / "one.jsonl").symlink_to("../real/a.jsonl")
    (corpus / "more").symlink_to(tmp_path / "real")
    (tmp_path / "linked").symlink_to(corpus)
    everything = ["c.jsonl", "more/a.jsonl", "more/deep/b.jsonl", "one.jsonl"]
    for address in (corpus, tmp_path / "linked", corpus / "**", corpus / "**" / "*.jsonl"):
        assert documents(address) == (everything, [])
    assert documents(corpus / "*.jsonl") == (["c.jsonl", "one.jsonl"], [])
    assert documents(corpus / "*" / "*.jsonl") == (["more/a.jsonl"], [])
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.jsonl").symlink_to(tmp_path / "real" / "a.jsonl")
    assert documents(tmp_path / "only") == (["x.jsonl"], [])


def test_a_link_has_the_size_and_stamp_of_what_it_leads_to(tmp_path: Path) -> None:
    lay(tmp_path, "real.jsonl")
    (tmp_path / "corpus").mkdir()
    link = tmp_path / "corpus" / "x.jsonl"
    link.symlink_to("../real.jsonl")
    where = Source(urls=[str(link.parent)])
    (before,) = list_files(where)
    assert before.size == len(ROW)
    link.unlink()
    link.symlink_to("../real.jsonl")
    assert list_files(where) == [before]
    (tmp_path / "real.jsonl").write_bytes(ROW * 2)
    (after,) = list_files(where)
    assert (after.size, after.stamp != before.stamp) == (2 * len(ROW), True)


def test_circles_end_and_broken_links_are_said(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.jsonl", "b/2.jsonl")
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a.jsonl").symlink_to("../a")
    (tmp_path / "a" / "self.jsonl").symlink_to("self.jsonl")
    (tmp_path / "a" / "gone.jsonl").symlink_to("nowhere")
    (tmp_path / "a" / ".hidden.jsonl").symlink_to("nowhere")
    found, (note,) = documents(tmp_path)
    assert found == ["a/1.jsonl", "a/to_b/2.jsonl", "b/2.jsonl", "b/to_a.jsonl/1.jsonl"]
    assert note.startswith(
        "links that lead nowhere, or back to where they lie: a/gone.jsonl, a/self"
    )
    assert ".hidden" not in note
    with pytest.raises(
        EmptyCorpusError, match=r"matches no file, but there are links.*gone\.jsonl"
    ):
        documents(tmp_path / "a" / "gon*.jsonl")


# Tables


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "Delta"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
    ],
)
def test_tables_with_a_log_are_refused(tmp_path: Path, log: str, kind: str) -> None:
    lay(tmp_path, f"t/{log}", "t/x/a.parquet", "plain/b.parquet", "t/c.jsonl")
    for address in ("", "t", "**/*.parquet", "t/**", "t/?/*.parquet"):
        with pytest.raises(ValueError, match=f"t is a table of {kind}, whose files also hold rows"):
            documents(tmp_path / address)
    for address in ("plain", "*/*.jsonl"):
        assert len(documents(tmp_path / address)[0]) == 1


def test_a_pattern_in_a_delta_table_sees_its_log(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    lay(tmp_path, "t/_delta_log/0.json", "t/a.parquet")
    for name in ("_delta_log/0.json", "a.parquet"):
        files.pipe(f"/log/t/{name}", ROW)
    for root in (str(tmp_path), "memory://log"):
        with pytest.raises(ValueError, match="t is a table of Delta"):
            documents(f"{root}/t/*.parquet")
    files.rm("/log", recursive=True)


# What is no document


def test_cards_beside_data_are_no_documents(tmp_path: Path) -> None:
    lay(tmp_path, "README.md", "LICENSE.txt", "data/train.parquet", "data/dataset_card.md")
    lay(tmp_path, "docs/README.md", "docs/guide.md", "readmes.txt")
    found, (note,) = documents(tmp_path)
    assert found == ["data/train.parquet", "docs/README.md", "docs/guide.md", "readmes.txt"]
    assert note.startswith("passed over: 1 LICENSE.txt, 1 README.md, 1 dataset_card.md; a file")
    assert documents(tmp_path / "docs") == (["README.md", "guide.md"], [])
    assert documents(tmp_path / "README.md", tmp_path)[0] == sorted(["README.md", *found])


def test_formats_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    lay(tmp_path, "a.csv.gz", "b.csv.gz", "c.bin", "d.jsonl", "_SUCCESS", ".x.crc", "LICENSE")
    lay(tmp_path, "e.jsonl.md5", "f.unknown.bin")
    assert documents(tmp_path)[1] == [
        "passed over: 2 .csv.gz, 2 .bin, 1 LICENSE, 1 .md5; a file that is named by itself in urls "
        "is read, or refused with the reason"
    ]
    assert documents(tmp_path / "*.jsonl")[1] == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.csv.gz", "README.md"], "a.csv.gz: write JSON lines or Parquet from it"),
        (["index.json", "shard.00000.mds.zstd", "README.md"], "zstd: .* from these shards"),
        (["a.warc.gz"], r"give the WET files of the crawl \(\.wet\.gz\)"),
        (["a.json"], r"if each line of it is a whole object, call it \.jsonl"),
    ],
)
def test_a_readme_alone_is_no_corpus_of_data(
    tmp_path: Path, names: list[str], message: str
) -> None:
    lay(tmp_path, *names)
    with pytest.raises(EmptyCorpusError, match=f"(?s)matches no readable file, only .*{message}"):
        documents(tmp_path)


def test_braces_are_told_of(tmp_path: Path) -> None:
    lay(tmp_path, "a.jsonl", "{a,c}.txt")
    with pytest.raises(EmptyCorpusError, match="braces stand for themselves: give one address"):
        documents(tmp_path / "{a,b}.jsonl")
    assert documents(tmp_path / "{a,c}.txt")[0] == ["{a,c}.txt"]


def long(name: str) -> str:
    """A text that fills a partition."""
    return name.ljust(120, ".")


def test_notes_reach_the_run_and_old_documents_stay(disk: "Ground") -> None:
    disk.put_bytes("README.md", long("card").encode())
    first = disk.scan()
    assert disk.partitions(first) == {"README-0": [long("card")]}
    disk.put("ant/train-0.jsonl", [long("ant")])
    disk.put("ant/test-0.jsonl", [long("test")])
    disk.put_bytes("ant/README.md", long("another").encode())
    (disk.corpus / "ant" / "y.jsonl").symlink_to("nowhere")
    second = disk.scan()
    assert {*disk.partitions(second)} == {"README-0", "ant-0", "ant-1"}
    assert second.domains["README"] == first.domains["README"]
    assert [note.partition(";")[0] for note in second.problems] == [
        "passed over: 2 README.md",
        "links that lead nowhere, or back to where they lie: ant/y.jsonl",
        "files that are named after another split than train are read too, unless their "
        "domain is left out: ant/test-0.jsonl",
    ]
    assert disk.scan() == second
    disk.store.retract(first.partitions()[0].documents)
    assert disk.scan().domains == second.domains


def test_sources_and_parts_of_words_are_no_splits(disk: "Ground") -> None:
    disk.put("train/0.jsonl", [long("ant")])
    disk.put("latest/0.jsonl", [long("bee")])
    disk.put_bytes("train/test.py", long("code").encode())
    assert disk.scan().problems == []


def test_cards_in_a_set_of_its_own_are_passed_over_too(disk: "Ground") -> None:
    disk.put("ant/0.jsonl", [long("ant")])
    own = disk.own_set("own", ["held"])
    folder = Path(own.source.urls[0]).parent
    (folder / "README.md").write_text("a card")
    source = Source(urls=[str(folder)])
    disk.sets = [own.model_copy(update={"source": source})]
    found = disk.scan()
    assert disk.texts(found.sets[0].documents) == ["held"]
    assert found.problems[0].startswith("evaluation set 'own': passed over: 1 README.md")
