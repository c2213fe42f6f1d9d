"""Every kind of output of a real run whose names are hostile: each shows them, and obeys none."""

import csv
import html.parser
import json
import re
import unicodedata
from pathlib import Path

import pytest

from flows.chain.recipe_file import to_yaml
from flows.chain.runner import Quiet
from flows.prefect.artifacts import plan_page, summary_page
from flows.run import stored
from flows.run.folder import read_report
from flows.runners.planner import plan
from storage.step import Runtime
from storage.store import Store
from tasks.report.specs import plot_specs
from tests.conftest import TINY_DOMAINS, TinyRecipe, write_corpus
from tests.flows.conftest import Place, mixpool

NAMES = ["=1+1|`x`$y$", "@b\n# Heading\t", "-c</script><u>\u202e"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: TinyRecipe) -> Place:
    """A finished run over three domains with such names, whose recipe has one, too."""
    folder = tmp_path_factory.mktemp("hostile")
    corpus = write_corpus(folder)
    for number, domain in enumerate(TINY_DOMAINS):
        file = corpus / f"{domain}.jsonl"
        rows = [json.loads(row) for row in file.read_text().splitlines()]
        texts = [json.dumps({**row, "name": NAMES[number % len(NAMES)]}) for row in rows]
        file.write_text("\n".join(texts) + "\n")
    fields = "corpus.source.format.domain_fields=[name]"
    recipe = tiny_recipe(folder, fields, f"name={json.dumps(NAMES[2])}")
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    result = mixpool("run", folder / "recipe.yaml", "--store", folder / "store")
    assert result.exit_code == 0, result.stderr
    prints(result.stdout + result.stderr)
    assert r"@b\n# Heading\t" in result.stdout
    return Place(folder)


def prints(text: str) -> None:
    """Nothing but what prints, spaces and line breaks."""
    odd = {c for c in text if not (c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs")}
    assert odd == set()
    assert not re.search(r"^# Heading", text, re.MULTILINE)


@pytest.mark.parametrize(
    "words",
    [
        ["show", "runs"],
        ["show", "partitions"],
        ["show", "models"],
        ["show", "ranking"],
        ["show", "lineage"],
        ["show", "ranking", "--json"],
        ["export", "best", "--format", "yaml", "--output", "weights.yaml"],
    ],
    ids=" ".join,
)
def test_the_terminal(
    place: Place, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mixpool(*words, "--store", place.store)
    assert result.exit_code == 0, result.stderr
    prints(result.stdout + result.stderr)


def test_plans_and_errors(place: Place) -> None:
    for words in (["plan"], ["explain", "--set", "train.steps=6"]):
        result = mixpool(words[0], place.recipe, *words[1:], "--store", place.store)
        assert result.exit_code == 0, result.stderr
        prints(result.stdout + result.stderr)
    result = mixpool("export", NAMES[1], "--format", "yaml", "--store", place.store)
    assert result.exit_code == 1
    prints(result.stderr)


class Page(html.parser.HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        del attrs
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_pages(place: Place) -> None:
    run = max((Path(place.store) / "runs").iterdir())
    for file in (run / "report.html", Path(place.store) / "index.html"):
        page = Page(file.read_text(encoding="utf-8"))
        assert not page.tags & {"u", "script"}
        assert "-c</script><u>\\u202e" in "".join(page.words)
        prints("".join(page.words))


def test_pictures_and_tables(place: Place, tmp_path: Path) -> None:
    store = Store(place.store)
    specs = plot_specs(read_report(store, stored.find_run(store, None)))
    prints("\n".join(json.dumps(spec, ensure_ascii=False) for spec in specs.values()))
    done = [
        mixpool("report", "--store", place.store, "--output", tmp_path / name, *more)
        for name, more in (("safe", []), ("raw", ["--csv-raw"]))
    ]
    assert [result.exit_code for result in done] == [0, 0], done[0].stderr
    prints(done[0].stdout + done[0].stderr)
    assert len([*(tmp_path / "safe" / "plots").iterdir()]) == len(specs)
    formulas = {
        name: [cell for file in (tmp_path / name).rglob("*.csv") for cell in formulas_of(file)]
        for name in ("safe", "raw")
    }
    assert formulas["safe"] == []
    assert {"=1+1|`x`$y$-0", "-c</script><u>\u202e-0"} <= {*formulas["raw"]}


def formulas_of(file: Path) -> list[str]:
    """The cells that a spreadsheet would take for a formula."""
    with file.open(encoding="utf-8", newline="") as lines:
        cells = [cell for row in csv.reader(lines) for cell in row]
    return [
        cell for cell in cells if cell[:1] in {*"=+-@\t\r"} - {""} and not re.match(r"-[\d.]", cell)
    ]


def test_markdown(place: Place, tmp_path: Path) -> None:
    store = Store(place.store)
    result = mixpool("export", "best", "--store", place.store, "--model", tmp_path / "model")
    assert result.exit_code == 0, result.stderr
    recipe = place.load("train.steps=6")
    pages = [
        (tmp_path / "model" / "README.md").read_text(encoding="utf-8"),
        "\n".join(summary_page(store, stored.find_run(store, None))),
        "\n".join(plan_page(recipe.name, plan(place.store, recipe, Runtime(), Quiet()))),
    ]
    for page in pages:
        prints(page)
        assert page.count("```") % 2 == 0
        outside = "".join(page.split("```")[::2])
        assert "<u>" not in outside
        for block in re.findall(r"(?:^\|.*\n?)+", outside, re.MULTILINE):
            bars = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
            assert len(bars) == 1, block
    assert any("&lt;u&gt;" in page for page in pages)
