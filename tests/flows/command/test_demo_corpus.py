"""The demo's corpus, really gathered from this environment."""

import hashlib
import json
import re
import time
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.command import demo_corpus
from flows.command.demo_corpus import DOMAINS, Domain, Gathered, gather, pieces

NAMES = [domain.name for domain in DOMAINS]
RUNS = st.tuples(st.sampled_from("aé;},\n"), st.integers(1, 1500)).map(lambda run: run[0] * run[1])
TEXTS = st.lists(RUNS, max_size=20).map("".join)


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Gathered]:
    return gather(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def rows(gathered: dict[str, Gathered]) -> dict[str, list[dict[str, str]]]:
    return {
        name: [json.loads(line) for line in found.path.read_bytes().decode().split("\n")[:-1]]
        for name, found in gathered.items()
    }


def _folder(gathered: dict[str, Gathered]) -> Path:
    return gathered["python"].path.parents[1]


def test_each_domain_lies_where_it_belongs(gathered: dict[str, Gathered]) -> None:
    files = {path.relative_to(_folder(gathered)) for path in _folder(gathered).rglob("*.*")}
    assert files == {Path(domain.place, f"{domain.name}.jsonl") for domain in DOMAINS}
    assert Counter(domain.place for domain in DOMAINS) == {
        "base": 2,
        "corpus": 5,
        "arriving": 1,
        "evaluation": 3,
    }


@pytest.mark.parametrize("domain", DOMAINS, ids=NAMES)
def test_each_domain_has_enough_text_and_many_documents(
    domain: Domain, gathered: dict[str, Gathered], rows: dict[str, list[dict[str, str]]]
) -> None:
    found = gathered[domain.name]
    texts = [row["text"] for row in rows[domain.name]]
    assert (found.num_documents, found.num_bytes) == (len(texts), sum(map(_num_bytes, texts)))
    trained = domain.place != "evaluation"
    assert (450_000 if trained else 150_000) <= found.num_bytes <= 700_000
    assert found.num_documents >= (150 if trained else 60)


def _num_bytes(text: str) -> int:
    return len(text.encode())


@pytest.mark.parametrize("domain", DOMAINS, ids=NAMES)
def test_documents_are_whole(domain: Domain, rows: dict[str, list[dict[str, str]]]) -> None:
    for row in rows[domain.name]:
        assert row.keys() == {"text", "id", "domain"}
        assert row["domain"] == domain.name
        assert 400 <= len(row["text"]) <= 4000
        assert row["text"].strip()
        assert "\r" not in row["text"]
        assert re.search(domain.pattern, row["id"].rpartition("#")[0])
        assert not row["id"].startswith(("/", "..", "mixpool", "flows/", "tasks/", "storage/"))


def test_no_document_and_no_id_occurs_twice(rows: dict[str, list[dict[str, str]]]) -> None:
    documents = [row for domain_rows in rows.values() for row in domain_rows]
    assert len({row["text"] for row in documents}) == len(documents)
    assert len({(row["domain"], row["id"]) for row in documents}) == len(documents)


@pytest.mark.parametrize("name", NAMES)
def test_documents_stand_in_the_order_of_their_digests(
    name: str, rows: dict[str, list[dict[str, str]]]
) -> None:
    digests = [hashlib.sha256(row["text"].encode()).hexdigest() for row in rows[name]]
    assert digests == sorted(digests)


@pytest.mark.parametrize("name", NAMES)
def test_few_documents_mostly_repeat_another_of_their_domain(
    name: str, rows: dict[str, list[dict[str, str]]]
) -> None:
    """Held-out documents that are near copies of trained ones would make losses meaningless."""
    runs = [_five_line_runs(row["text"]) for row in rows[name]]
    count = Counter(run for of_document in runs for run in of_document)
    repeated = [sum(count[run] > 1 for run in found) > len(found) / 2 for found in runs]
    assert sum(repeated) <= 0.03 * len(repeated)


def _five_line_runs(text: str) -> set[tuple[str, ...]]:
    lines = [line.strip() for line in re.split(r"[\n;]", text) if line.strip()]
    return {tuple(lines[start : start + 5]) for start in range(len(lines) - 4)}


def test_what_only_developers_install_is_not_in_the_corpus() -> None:
    project = tomllib.loads(Path(__file__).parents[3].joinpath("pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    developers = {re.split(r"[><=]", line)[0].lower() for line in extras["test"] + extras["dev"]}
    assert developers.isdisjoint(demo_corpus._required())


def test_what_is_required_indirectly_is_found() -> None:
    assert {"torch", "sympy", "botocore", "numpy", "sqlalchemy"} <= demo_corpus._required()


def test_a_second_call_changes_nothing_and_is_instant(gathered: dict[str, Gathered]) -> None:
    before = {name: found.path.stat().st_mtime_ns for name, found in gathered.items()}
    start = time.perf_counter()
    again = gather(_folder(gathered))
    assert time.perf_counter() - start < 1.0
    assert again == gathered
    assert {name: found.path.stat().st_mtime_ns for name, found in again.items()} == before


def test_a_domain_alone_is_the_same_as_with_all(
    gathered: dict[str, Gathered], tmp_path: Path
) -> None:
    alone = gather(tmp_path, domains=["prose"])
    assert [path.name for path in tmp_path.rglob("*.*")] == ["prose.jsonl"]
    assert alone["prose"].path.read_bytes() == gathered["prose"].path.read_bytes()


def test_the_first_domain_keeps_a_document_that_two_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = DOMAINS[0]
    monkeypatch.setattr(demo_corpus, "DOMAINS", (python, python._replace(name="copy")))
    gather(tmp_path)
    first, second = (
        set(
            re.findall(
                r'^{"text": (.*), "id": ', (tmp_path / python.place / name).read_text(), re.M
            )
        )
        for name in ("python.jsonl", "copy.jsonl")
    )
    assert min(len(first), len(second)) > 100
    assert first.isdisjoint(second)


def test_near_copies_and_unreadable_files_are_left_out(tmp_path: Path) -> None:
    lines = [f"the line with the number {number}" for number in range(20)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(lines[::-1]), encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 500)
    domain = Domain("copies", "corpus", ("copies",), r"\.txt$")
    _install(tmp_path, ["a.txt", "b.txt", "latin.txt", "removed-since.txt"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert len(demo_corpus.choose(domain)) == 1


def _install(folder: Path, files: list[str]) -> None:
    """Make ``folder`` a place where a package named ``copies`` is installed."""
    info = folder / "copies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: copies\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))


def test_too_little_text_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    poor = Domain("cobol", "corpus", ("pyyaml", "not-installed"), r"\.cob$")
    monkeypatch.setattr(demo_corpus, "DOMAINS", (poor,))
    with pytest.raises(ValueError, match=r"'cobol' needs 450,000 .* holds 0.*pyyaml, not-inst"):
        gather(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_domain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no demo domain 'pyhton': choose from python, cpp"):
        gather(tmp_path, domains=["pyhton"])


@given(TEXTS)
def test_pieces_are_the_text_less_a_short_end(text: str) -> None:
    position = 0
    for piece in pieces(text):
        assert 400 <= len(piece) <= 4000
        start = text.index(piece, position)
        assert is_short(text[position:start])
        position = start + len(piece)
    assert is_short(text[position:])


def is_short(left_out: str) -> bool:
    """Whether it holds only pieces, of more than 3,000 characters, that are mostly empty lines."""
    return len(left_out.replace("\n", "")) < 400 * (1 + len(left_out) // 3000)


def test_minified_code_is_cut_at_the_end_of_statements() -> None:
    cut = pieces("let a=f(1,2);" * 2000)
    assert len("".join(cut)) > 25_000
    assert all(piece.startswith("let a") and piece.endswith(");") for piece in cut)


def test_every_source_package_is_required_by_mixpool() -> None:
    named = {package for domain in DOMAINS for package in domain.packages if " " not in package}
    assert named <= demo_corpus._required()
    assert all(metadata.version(package) for package in named)
