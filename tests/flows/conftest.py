"""A finished run that tests of the command line, of exports and of validation look at."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.chain.recipe import Recipe
from flows.chain.recipe_file import load_recipe, to_yaml
from flows.command.main import app


@dataclass(frozen=True)
class Place:
    """A folder with a corpus, a recipe and a store."""

    folder: Path

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def recipe(self) -> str:
        return str(self.folder / "recipe.yaml")

    @property
    def store(self) -> str:
        return str(self.folder / "store")

    def load(self, *overrides: str) -> Recipe:
        return load_recipe(self.recipe, overrides)

    def copy(self, folder: Path) -> "Place":
        """The same with a store that may be changed; corpus and recipe stay where they are."""
        shutil.copytree(self.store, folder / "store")
        shutil.copyfile(self.recipe, folder / "recipe.yaml")
        return Place(folder)


def mixpool(*words: str | Path | int) -> Result:
    """Call the command line; a traceback fails the test."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def mixpool_json(*words: str | Path) -> Any:
    """Call the command line with ``--json``; stdout must be one document and the code 0."""
    result = mixpool(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def new_place(tiny_recipe: Callable[..., Recipe]) -> Callable[[Path], Place]:
    """``new_place(folder)`` writes a corpus and a recipe for it."""

    def make(folder: Path) -> Place:
        text = to_yaml(tiny_recipe(folder))
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        return Place(folder)

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, new_place: Callable[[Path], Place]) -> Place:
    """A place whose recipe was run once; tests do not change it."""
    place = new_place(tmp_path_factory.mktemp("finished"))
    result = mixpool("run", place.recipe, "--store", place.store)
    assert result.exit_code == 0, result.stderr
    return place
