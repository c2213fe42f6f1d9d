"""Whatever rots in a store is found, set aside and made again, bit by bit as it was.

One run is made; then, in copies of its store, one file at a time is flipped, cut, emptied, deleted,
edited or exchanged for another of its kind.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.chain.recipe import Recipe
from flows.run.execute import RunResult, execute
from flows.runners.inline import InlineRunner
from storage import audit, garbage, lineage
from storage.artifact import CorruptError
from storage.audit import Fault
from storage.step import Runtime

if TYPE_CHECKING:
    from tests.conftest import TinyRecipe
    from tests.integration.conftest import Shelf

pytestmark = pytest.mark.slow

Shelves = Callable[[str], "Shelf"]

RUNTIME = Runtime(threads=1)

ARTIFACTS = {
    "model": "train/birds-0",
    "base-model": "train/base",
    "initial": "initialise/initial",
    "tokens": "tokenize/law-0",
    "documents": "partition/birds-0",
    "heldout": "heldout/sums",
    "remainder": "remainder/birds",
    "base-documents": "base/tiny",
    "index": "index/tiny",
    "windows": "window/birds",
    "tokenizer": "tokenizer/tiny",
}
"""Something of each kind, by the beginning of its record's name."""

FILES = {
    "manifest": "manifests/*/000000.json",
    "losses": "losses/*/000000.parquet",
    "evaluation": "losses/*/evaluation.json",
    "run": "runs/*/run.json",
    "recipe": "runs/*/recipe.yaml",
    "ranking": "runs/*/ranking.parquet",
    "report": "runs/*/report.html",
}
"""Everything else that is checked."""


@pytest.fixture(scope="module")
def recipe(tiny_recipe: "TinyRecipe", tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two runs' worth of seconds: three partitions, six mixtures, an open remainder."""
    return tiny_recipe(
        tmp_path_factory.mktemp("corpus"),
        "corpus.source.include_domains=[birds, law, sums]",
        "corpus.split.partitions_per_domain=null",
        "corpus.split.tokens_per_partition=1500",
        "train.steps=2",
        "base.train.steps=2",
    )


@pytest.fixture(scope="module")
def intact(shelves: Shelves, recipe: Recipe) -> "Shelf":
    """What a run has made."""
    shelf = shelves("intact")
    _run(shelf, recipe)
    shelf.check_sound()
    return shelf


@pytest.fixture
def copy(intact: "Shelf", shelves: Shelves, tmp_path: Path) -> "Shelf":
    """A copy of it to damage."""
    shelf = shelves(f"copy {tmp_path.name}")
    shutil.copytree(intact.path, shelf.path, dirs_exist_ok=True)
    return shelf


def _run(shelf: "Shelf", recipe: Recipe) -> RunResult:
    return execute(InlineRunner(shelf.store, RUNTIME), recipe)


def _verify(shelf: "Shelf") -> list[Fault]:
    return audit.verify(shelf.store, lambda done, total, unit: None)


def _record(shelf: "Shelf", what: str) -> Path:
    (path,) = shelf.path.glob(f"records/{ARTIFACTS[what]}*.json")
    return path


def _content(shelf: "Shelf", what: str) -> Path:
    """The largest file of an artifact."""
    record = shelf.store.read_record(_record(shelf, what).relative_to(shelf.path).as_posix())
    folder = shelf.path / record.output.prefix
    return max(folder.rglob("*.*"), key=lambda path: path.stat().st_size)


def _file(shelf: "Shelf", what: str) -> Path:
    (path,) = shelf.path.glob(FILES[what])
    return path


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """The last byte is gone."""
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    """The file is there and holds nothing."""
    path.write_bytes(b"")


def delete(path: Path) -> None:
    """The file is gone."""
    path.unlink()


def edit(path: Path) -> None:
    """A digit is another, which leaves JSON as valid as before."""
    data = path.read_bytes()
    place = next(i for i in range(len(data) // 2, len(data)) if data[i : i + 1].isdigit())
    digit = (int(data[place : place + 1]) + 1) % 10
    path.write_bytes(data[:place] + b"%d" % digit + data[place + 1 :])


def exchange(path: Path) -> None:
    """It and another file of the kind have changed places."""
    top = path.parent.parent if path.parent.parent.name in {"records", "runs"} else path.parents[1]
    others = [p for p in sorted(top.rglob(f"*{path.suffix}")) if p.name != "run.json"]
    other = next(p for p in others if p.read_bytes() != path.read_bytes())
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    other.write_bytes(mine)


DAMAGES = {damage.__name__: damage for damage in (flip, cut, empty, delete, edit, exchange)}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete", "exchange"])
@pytest.mark.parametrize("what", ARTIFACTS)
def test_damage_of_an_artifact_is_found(copy: "Shelf", what: str, damage: str) -> None:
    DAMAGES[damage](_content(copy, what))
    assert f"records/{ARTIFACTS[what].partition('/')[0]}/" in str(_verify(copy))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete", "edit", "exchange"])
@pytest.mark.parametrize("what", ARTIFACTS)
def test_damage_of_a_record_is_found(copy: "Shelf", what: str, damage: str) -> None:
    DAMAGES[damage](_record(copy, what))
    assert _verify(copy)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete", "edit"])
@pytest.mark.parametrize("what", FILES)
def test_damage_of_another_file_is_found(copy: "Shelf", what: str, damage: str) -> None:
    path = _file(copy, what)
    DAMAGES[damage](path)
    # Nothing names these, and nothing is lost with them.
    untraced = damage == "delete" and what in {"losses", "evaluation", "run"}
    assert bool(_verify(copy)) == (not untraced)


def _outputs(shelf: "Shelf") -> dict[str, str]:
    """Digest of everything made, by key; an index may come back in another order."""
    records = [record for record in shelf.store.records() if record.step != "index"]
    return {record.key: record.output.digest for record in records}


def _check_made_again(copy: "Shelf", intact: "Shelf", recipe: Recipe) -> RunResult:
    audit.repair(copy.store, _verify(copy))
    result = _run(copy, recipe)
    assert _outputs(copy) == _outputs(intact)
    assert copy.losses() == intact.losses()
    copy.check_sound()
    return result


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        *zip(ARTIFACTS, ["flip", "cut", "delete", "empty"] * 3, strict=False),
        ("model", "exchange"),
        ("tokens", "exchange"),
    ],
)
def test_a_damaged_artifact_is_made_again(
    copy: "Shelf", intact: "Shelf", recipe: Recipe, what: str, damage: str
) -> None:
    DAMAGES[damage](_content(copy, what))
    result = _check_made_again(copy, intact, recipe)
    if damage != "exchange":
        trained = {"model": ["birds-0"], "base-model": ["base"]}.get(what, [])
        assert result.summary["trained"] == trained


@pytest.mark.parametrize(
    ("what", "damage"), [*zip(ARTIFACTS, ["edit", "delete", "flip", "exchange"] * 3, strict=False)]
)
def test_what_a_damaged_record_named_is_made_again(
    copy: "Shelf", intact: "Shelf", recipe: Recipe, what: str, damage: str
) -> None:
    DAMAGES[damage](_record(copy, what))
    _check_made_again(copy, intact, recipe)


@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_damage_that_nobody_looked_for_is_found_when_it_is_used(
    copy: "Shelf", intact: "Shelf", recipe: Recipe, what: str
) -> None:
    """Without ``verify`` the run that reads it stops, having set it aside, and the next goes on."""
    (copy.path / "losses").rename(copy.path / "gone")
    shutil.rmtree(copy.path / "gone")
    flip(_content(copy, what))
    flip(_content(copy, "windows"))
    for _ in range(2):
        with pytest.raises(CorruptError, match="run again, and it is made anew"):
            _run(copy, recipe)
    _run(copy, recipe)
    assert copy.losses() == intact.losses()


@pytest.mark.parametrize("damage", ["flip", "delete", "empty"])
def test_damaged_losses_are_evaluated_again(
    copy: "Shelf", intact: "Shelf", recipe: Recipe, damage: str
) -> None:
    DAMAGES[damage](_file(copy, "losses"))
    result = _check_made_again(copy, intact, recipe)
    assert result.summary["trained"] == []
    assert result.summary["losses_evaluated"] == len(intact.losses())


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "edit"])
def test_a_damaged_manifest_stops_a_run_and_says_what_to_do(
    copy: "Shelf", intact: "Shelf", recipe: Recipe, damage: str
) -> None:
    path = _file(copy, "manifest")
    DAMAGES[damage](path)
    assert audit.repair(copy.store, _verify(copy)) == []
    with pytest.raises(CorruptError, match=r"000000\.json .*move it away") as raised:
        _run(copy, recipe)
    assert path.relative_to(copy.path).as_posix() in str(raised.value)
    path.rename(path.with_name("damaged"))
    result = _run(copy, recipe)
    assert (result.summary["trained"], result.summary["losses_evaluated"]) == ([], 0)
    assert copy.losses() == intact.losses()


def test_a_manifest_in_the_place_of_another_is_found(copy: "Shelf", recipe: Recipe) -> None:
    path = _file(copy, "manifest")
    path.rename(path.with_name("000001.json"))
    assert "is number 0 of" in str(_verify(copy))
    with pytest.raises(CorruptError, match="is number 0 of"):
        _run(copy, recipe)


@pytest.mark.parametrize("damage", ["flip", "empty"])
def test_gc_deletes_nothing_while_a_manifest_or_run_is_damaged(copy: "Shelf", damage: str) -> None:
    (name,) = lineage.run_folders(copy.store)
    DAMAGES[damage](_file(copy, "manifest"))
    with pytest.raises(CorruptError, match="nothing is deleted"):
        garbage.find_garbage(copy.store, [name])
    DAMAGES[damage](_file(copy, "run"))
    with pytest.raises(CorruptError, match=f"delete runs/{name} to go on"):
        garbage.find_garbage(copy.store, [name])


def test_a_run_in_the_folder_of_another_is_found(copy: "Shelf") -> None:
    (name,) = lineage.run_folders(copy.store)
    (copy.path / "runs" / name).rename(copy.path / "runs" / "20000101T000000Z-other")
    assert f"is that of the run {name}" in str(_verify(copy))


def test_a_file_put_into_a_model_is_found_and_set_aside(
    copy: "Shelf", intact: "Shelf", recipe: Recipe
) -> None:
    stray = _content(copy, "model").with_name("model-extra.safetensors")
    stray.write_bytes(b"weights of somebody else")
    (fault,) = _verify(copy)
    assert fault.path == stray.relative_to(copy.path).as_posix()
    result = _check_made_again(copy, intact, recipe)
    assert result.summary["trained"] == []
    assert not stray.exists()
