"""The index page names everything by links that lead somewhere, whatever things are called."""

import json
import logging
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

from flows.chain.recipe import Recipe
from flows.run import index
from flows.run.execute import execute
from flows.run.index import refresh_index, write_index
from flows.runners.inline import InlineRunner
from storage import audit, garbage, lineage
from storage.artifact import Record, describe, seal, step_key
from storage.backends.local import LocalBackend
from storage.backends.urls import open_backend
from storage.step import Runtime
from storage.store import Store
from tests.flows.conftest import Place, mixpool, mixpool_json

HOSTILE = "<script>alert(\"x\")</script> & 'ä' 日本 a%20b?#:"


class Page(HTMLParser):
    """What a browser makes of a page: its tags, its words, where its links lead."""

    def __init__(self, store: Path | str) -> None:
        super().__init__()
        self._store = Path(store)
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.links: list[str] = []
        self.feed((self._store / "index.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in {"href", "src"}]

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        """All words, one space apart."""
        return " ".join(self.words)

    def files(self) -> set[str]:
        """The files of the store that are linked; every link must lead to one."""
        found = set()
        for link in self.links:
            parts = urlsplit(link)
            if link.startswith("#"):
                continue
            assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
            assert (self._store / unquote(parts.path)).is_file(), link
            found.add(unquote(parts.path))
        return found


def run_again(place: Place, *overrides: str) -> str:
    """Carry out a place's recipe; the name of the run."""
    runner = InlineRunner(Store(place.store), Runtime(threads=1))
    return execute(runner, place.load(*overrides)).folder.removeprefix("runs/")


def record(store: Store, folder: Path, step: str, label: str, **files: str) -> Record:
    """Commit what a step might have made under a label."""
    folder.mkdir()
    for name, text in (files or {"config.json": label}).items():
        (folder / name).write_text(text)
    config = {"steps": 3, "label": label}
    made = Record(
        step=step,
        version=1,
        key=step_key(step, 1, config, {}),
        label=label,
        config=config,
        inputs={},
        output=describe("model" if step == "train" else "documents", folder),
        details={"final_loss": 1.5, "domain": label, "num_documents": 7, "num_tokens": 12345},
        cost={"seconds": 2.0},
        provenance={"created": f"2026-11-21T00:{len(folder.name):02}:00.000+00:00"},
    )
    return store.commit(made, folder)


def ended(store: Store, name: str, recipe: str, mixture: str = "a + b") -> None:
    """Leave the folder of a run that has ended."""
    best = {"mixture": mixture, "k": 2, "perplexity": 12.3456, "bits_per_byte": 1.0}
    content = {
        "name": name,
        "recipe": recipe,
        "created": "2026-11-21T00:00:00.000+00:00",
        "summary": {
            "partitions": 2,
            "mixtures": 3,
            "trained": ["a", "b"],
            "losses_evaluated": 1234,
            "best": {"macro mean": best, recipe: best},
        },
    }
    ranking = pd.DataFrame(
        [{"objective": "macro mean", "rank": 1, "tied": True, **best}, {"objective": "x", **best}]
    )
    store.backend.create(f"runs/{name}/ranking.parquet", ranking.to_parquet())
    store.backend.create(f"runs/{name}/run.json", seal(content))


# A real store --------------------------------------------------------------------------------


def contents(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())["content"])


def test_everything_is_linked_and_every_link_leads_to_a_file(finished: Place) -> None:
    root = Path(finished.store)
    expected = {path for path in root.glob("losses/*/*") if path.is_file()}
    for made in [*root.glob("records/train/*"), *root.glob("records/partition/*")]:
        output = contents(made)["output"]
        folder = root / "artifacts" / output["kind"] / output["digest"]
        expected |= {made, *(folder / name for name in output["files"])}
    names = ("report.html", "ranking.parquet", "losses.parquet", "recipe.yaml", "run.json")
    expected |= {run / name for run in root.glob("runs/*") for name in names}
    assert Page(root).files() == {path.relative_to(root).as_posix() for path in expected}
    assert sum(path.name == "model.safetensors" for path in expected) == 7
    assert sum(path.name == "documents.parquet" for path in expected) == 6


def test_the_page_says_what_show_says(finished: Place) -> None:
    page = Page(finished.store)
    (run,) = mixpool_json("show", "runs", "--store", finished.store)
    assert f"{run['run']} report.html" in page.text
    ranking = mixpool_json("show", "ranking", "--store", finished.store, "--most", "10")
    for row in ranking:
        mark = "=" if row["tied"] else ""
        figures = f"{row['perplexity']:.3f} {row['bits_per_byte']:.4f}"
        assert f"{row['rank']}{mark} {row['mixture']} {row['k']} {figures}" in page.text
    for name in ("birds", "sums"):
        options = ["--objective", name, "--most", "1"]
        (best,) = mixpool_json("show", "ranking", "--store", finished.store, *options)
        assert f"{name} {best['mixture']} {best['k']} {best['perplexity']:.3f}" in page.text
    for model in mixpool_json("show", "models", "--store", finished.store):
        assert f"B {model['steps']} {model['final loss']:.4f}" in page.text
    assert "left out" not in page.text


def test_the_page_needs_nothing_else_and_tells_how_to_load_a_model(finished: Place) -> None:
    page = Page(finished.store)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    (command,) = (line for line in _lines(finished.store) if "aws s3 cp --recursive" in line)
    folder = command.partition("STORE/")[2].partition(" ")[0]
    assert (Path(finished.store) / folder / "model.safetensors").is_file()
    assert finished.store not in "\n".join(_lines(finished.store))


def _lines(store: str) -> list[str]:
    return (Path(store) / "index.html").read_text(encoding="utf-8").splitlines()


def test_gc_and_verify_do_not_mind_the_page(finished: Place) -> None:
    store = Store(finished.store, create=False)
    found = garbage.find_garbage(store, [*lineage.run_folders(store)])
    assert not any("index.html" in path for paths in found[:-1] for path in paths)
    assert audit.verify(store, lambda done, total, unit: None) == []


def test_each_run_and_gc_write_it_again(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    (first,) = (path.name for path in Path(place.store).glob("runs/*"))
    second = run_again(place, "train.steps=2", "mixtures.spaces.0.sizes=[1]", "name=other")
    page = Page(place.store)
    files = page.files()
    assert {f"runs/{name}/report.html" for name in (first, second)} <= files
    assert page.text.index(second) < page.text.index(first), "the newest first"
    assert sum(path.endswith("model.safetensors") for path in files) == 7 + 6

    mixpool("gc", "--keep", first, "--store", place.store)
    assert Page(place.store).text == page.text, "nothing was deleted"
    mixpool("gc", "--keep", first, "--delete", "--store", place.store)
    page = Page(place.store)
    files = page.files()
    assert second not in page.text
    assert sum(path.endswith("model.safetensors") for path in files) == 7


def test_a_run_whose_page_cannot_be_written_warns_and_ends_well(
    finished: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = finished.copy(tmp_path)
    page = Path(place.store) / "index.html"
    page.unlink()
    (page / "in the way").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "mixpool.run"):
        run = run_again(place)
    assert (Path(place.store) / "runs" / run / "run.json").is_file()
    (warning,) = (found for found in caplog.records if found.name == "mixpool.run")
    assert f"{place.store}/index.html is out of date" in warning.getMessage()


# Stores made by hand -------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(str(tmp_path / "store"))


def test_an_empty_store(store: Store) -> None:
    write_index(store)
    page = Page(store.url)
    assert page.files() == set()
    assert page.text.count("None yet.") == 3


def test_names_are_text_and_their_links_lead_to_the_files(store: Store, tmp_path: Path) -> None:
    files = {'we ird "<ü>?#%41.json': "1", "b&amp;:c": "2"}
    record(store, tmp_path / "made", "train", HOSTILE, **files)
    record(store, tmp_path / "documents", "partition", HOSTILE)
    name = "20261121T000000Z-a \"b' <u>ü&#?%41"
    ended(store, name, HOSTILE, mixture=HOSTILE)
    write_index(store)
    page = Page(store.url)
    assert not page.tags & {"script", "u"}
    found = page.files()
    assert {f"runs/{name}/run.json", f"runs/{name}/ranking.parquet"} <= found
    assert {*files} <= {path.rpartition("/")[2] for path in found}
    shown = " ".join(HOSTILE.split())
    # The run's best, the recipe, its ranking, the set and its best, model, partition and domain.
    assert page.text.count(shown) == 8
    assert name in page.text


def test_a_run_that_never_ended(store: Store) -> None:
    ended(store, "20261121T000000Z-a", "a")
    store.backend.create("runs/20261121T000001Z-b/recipe.yaml", b"name: b")
    store.backend.create("runs/20261121T000002Z-c/report.html", b"")
    write_index(store)
    page = Page(store.url)
    assert "20261121T000001Z-b recipe.yaml not ended" in page.text
    assert "20261121T000002Z-c report.html not ended" in page.text
    assert "20261121T000000Z-a ranking.parquet run.json 2026-11-21 00:00 2 3 2 1,234" in page.text
    page.files()


def test_of_each_kind_only_the_newest_are_shown(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most in ("RUNS", "RANKINGS", "MODELS", "PARTITIONS", "PARTS"):
        monkeypatch.setattr(index, f"MOST_{most}", 2)
    for number in range(4):
        ended(store, f"2026112{number}T000000Z-run", f"recipe{number}")
        for step in ("train", "partition"):
            # The longer the folder's name, the later the record claims to be made.
            folder = tmp_path / (step + "x" * number)
            record(store, folder, step, f"{step}{number}")
        store.backend.create(f"losses/key/{number:06d}.parquet", b"")
    write_index(store)
    page = Page(store.url)
    page.files()
    shown = [f"{kind}{n}" for kind in ("recipe", "train", "partition") for n in range(4)]
    assert [name for name in shown if name not in page.words] == [
        f"{kind}{n}" for kind in ("recipe", "train", "partition") for n in (0, 1)
    ]
    assert page.text.count("Only the newest 2 are here; 2 older ones are left out.") == 5
    for what in ("runs", "ranking --run RUN", "models", "partitions", "losses"):
        assert f"mixpool show {what} --store STORE lists all." in page.text


def test_of_many_records_only_those_that_are_shown_are_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MOST_MODELS", 2)
    made = [record(store, tmp_path / f"train{n}", "train", f"train{n}") for n in range(4)]
    assert len(made) == 4
    read: list[str] = []
    plain = store.backend.read

    def noted(path: str) -> bytes:
        read.append(path)
        return plain(path)

    monkeypatch.setattr(store.backend, "read", noted)
    write_index(store)
    assert len([path for path in read if path.startswith("records/train/")]) == 2


def test_only_the_newest_ranking_of_each_recipe_is_read(store: Store) -> None:
    for number, recipe in enumerate("aabab"):
        ended(store, f"2026112{number}T000000Z-{recipe}", recipe)
    watched = Watched(store)
    write_index(watched.store)
    assert sorted(path for path in watched.reads if path.endswith(".parquet")) == [
        "runs/20261123T000000Z-a/ranking.parquet",
        "runs/20261124T000000Z-b/ranking.parquet",
    ]


def test_a_ranking_that_cannot_be_read_is_said_to_be(store: Store) -> None:
    ended(store, "20261121T000000Z-a", "a")
    store.backend.put("runs/20261121T000000Z-a/ranking.parquet", b"PAR1 broken")
    write_index(store)
    page = Page(store.url)
    assert "ranking.parquet could not be read" in page.text
    assert "a a + b 2 12.346" in page.text, "the best of each set is in run.json"


def test_a_damaged_run_is_named_in_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.backend.create("runs/20261121T000000Z-a/run.json", b"{}")
    with caplog.at_level(logging.WARNING, "mixpool.run"):
        refresh_index(store)
    assert "20261121T000000Z-a/run.json" in caplog.text
    assert not (Path(store.url) / "index.html").exists()


# Two runs that end together ------------------------------------------------------------------


class Watched(LocalBackend):
    """Notes what is read; something may happen just before the index page is put."""

    def __init__(self, store: Store, *meanwhile: Callable[[], object]) -> None:
        super().__init__(open_backend(store.url).fs, store.url)
        self.reads: list[str] = []
        self.puts = 0
        self._meanwhile = iter(meanwhile)
        self.store = Store(store.url, backend=self)

    def read(self, path: str) -> bytes:
        self.reads.append(path)
        return super().read(path)

    def put(self, path: str, data: bytes) -> None:
        if path == "index.html":
            self.puts += 1
            next(self._meanwhile, lambda: None)()
        super().put(path, data)


def test_the_page_that_is_put_last_has_both_runs(store: Store) -> None:
    def other_run() -> None:
        ended(store, "20261121T000000Z-other", "other")
        write_index(Store(store.url))
        assert "20261121T000000Z-other" in Page(store.url).words

    ended(store, "20261121T000000Z-mine", "mine")
    watched = Watched(store, other_run)
    write_index(watched.store)
    page = Page(store.url)
    assert {"20261121T000000Z-mine", "20261121T000000Z-other"} <= {*page.words}
    assert "runs/20261121T000000Z-other/run.json" in page.files()
    assert watched.puts == 2


def test_a_run_deleted_meanwhile_leaves_no_dead_link(store: Store) -> None:
    for name in ("a", "b"):
        ended(store, f"20261121T000000Z-{name}", name)
    doomed = Path(store.url) / "runs" / "20261121T000000Z-b"
    watched = Watched(store, lambda: shutil.rmtree(doomed))
    write_index(watched.store)
    assert Page(store.url).files() == {
        "runs/20261121T000000Z-a/ranking.parquet",
        "runs/20261121T000000Z-a/run.json",
    }


def test_runs_of_a_real_chain_that_end_together(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    small = ["corpus.source.include_domains=[birds, law]", "train.steps=2", "base.train.steps=2"]
    names: list[str] = []

    def run(store: Store, name: str) -> None:
        recipe = tiny_recipe(tmp_path, *small, f"name={name}")
        names.append(execute(InlineRunner(store, Runtime(threads=1)), recipe).folder)

    store = Store(str(tmp_path / "store"))
    run(Watched(store, lambda: run(store, "second")).store, "first")
    assert len({*names}) == 2
    assert {f"{name}/report.html" for name in names} <= Page(store.url).files()
