"""Stores that something else has written to: files cut, flipped, renamed, gone, or pointing elsewhere."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from storage.artifact import seal
from tests.malformed import GROUND, Case
from tests.malformed.damage import STRINGS, bytes_spoiled, spoil

COMMANDS = (
    *(f"show {what}" for what in ("runs", "partitions", "models", "losses", "ranking", "lineage")),
    *(f"show {what} --json" for what in ("runs", "ranking", "lineage")),
    "verify",
    "verify --json",
    "verify --repair",
    "gc --keep-all",
    "gc --keep-all --delete",
    "report --output out",
    "export best --weights out.yaml",
    "export best --model out",
    "export best --format yaml",
    "plan recipe.yaml",
    "plan recipe.yaml --references",
    "explain recipe.yaml",
    "withdraw recipe.yaml --id x",
    "run recipe.yaml --runtime threads=1",
)

ELSEWHERE = ("../../beside", "../beside", "/", "..", ".", "", "/etc/passwd", "beside", "artifacts")


def cases(seed: int, count: int) -> Iterator[Case]:
    """``count`` stores, one after another from ``seed``."""
    for number in range(count):
        rng = random.Random(f"stores {seed} {number}")
        command = rng.choice(COMMANDS)
        act = rng.choice((_bytes, _json, _sealed, _sealed, _sealed, _elsewhere, _moved, _kind))
        yield _case(rng, act, command)


def _case(rng: random.Random, act: Callable[[random.Random, Path], None], command: str) -> Case:
    seed, times = rng.random(), 1 if act is _kind else rng.choice((1, 1, 2, 4))

    def write(folder: Path) -> None:
        store = folder / "store"
        shutil.copytree(GROUND.store, store)
        shutil.copyfile(GROUND.recipe, folder / "recipe.yaml")
        shutil.copytree(GROUND.corpus, folder / "corpus")
        again = random.Random(seed)
        for _ in range(times):
            act(again, store)

    words = command.split()
    return Case(f"{act.__name__[1:]}: {command}", write, (*words, "--store", "store"))


def _file(rng: random.Random, store: Path, suffix: str = "") -> Path:
    """A file, as likely of one folder of the store as of another."""
    paths = sorted(path for path in store.rglob(f"*{suffix}") if path.is_file())
    for depth in (1, 2):
        top = rng.choice(sorted({path.relative_to(store).parts[:depth] for path in paths}))
        paths = [path for path in paths if path.relative_to(store).parts[:depth] == top]
    return rng.choice(paths)


def _bytes(rng: random.Random, store: Path) -> None:
    for _ in range(rng.choice((1, 1, 5))):
        path = _file(rng, store)
        path.write_bytes(bytes_spoiled(rng, path.read_bytes())[1])


def _json(rng: random.Random, store: Path) -> None:
    """A field is another, and the digest of the file is no longer right."""
    path = _file(rng, store, ".json")
    tree = [json.loads(path.read_bytes())]
    spoil(rng, tree)
    path.write_text(json.dumps(tree[0] if tree else None, default=repr), encoding="utf-8")


def _sealed(rng: random.Random, store: Path) -> None:
    """A field is another, and the file is sealed as if a newer or another program had written it."""
    path = _file(rng, store, ".json")
    tree = json.loads(path.read_bytes())
    for _ in range(rng.choice((1, 1, 3))):
        spoil(rng, tree.get("content", tree))
    _seal(path, tree)


def _seal(path: Path, tree: Any) -> None:
    try:
        path.write_bytes(seal(tree["content"]))
    except (KeyError, TypeError, ValueError):  # was not sealed, or has no canonical form
        path.write_text(json.dumps(tree, default=repr), encoding="utf-8")


def _elsewhere(rng: random.Random, store: Path) -> None:
    """A text of a sealed file names another place."""
    path = _file(rng, store, ".json")
    tree = json.loads(path.read_bytes())
    found = [*_texts(tree)]
    if found:
        parent, key = rng.choice(found)
        place = rng.choice(ELSEWHERE)
        if isinstance(parent, dict) and rng.random() < 0.3 and isinstance(key, str):
            parent[place] = parent.pop(key)
        else:
            parent[key] = place
    _seal(path, tree)


def _texts(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = [*(tree.items() if isinstance(tree, dict) else enumerate(tree))]
    for key, value in items:
        if isinstance(value, dict | list):
            yield from _texts(value)
        elif isinstance(value, str):
            yield tree, key


def _moved(rng: random.Random, store: Path) -> None:
    """A file lies under another name, is gone, or lies twice."""
    path = _file(rng, store)
    name = rng.choice(
        (*STRINGS, "000001.json", "999999999999.json", "x.json", "a.b.json", "..json")
    )
    name = name.replace("/", "_").replace("\0", "")[:60] or "x"
    other = path.with_name(name if name not in {".", ".."} else "x")
    act = rng.choice(("renamed", "gone", "copied", "exchanged", "folder", "link", "link", "loop"))
    if act == "copied":
        shutil.copyfile(path, other)
    elif act == "exchanged":
        third = _file(rng, store, path.suffix)
        first, second = path.read_bytes(), third.read_bytes()
        path.write_bytes(second)
        third.write_bytes(first)
    elif act == "renamed":
        path.rename(other)
    else:
        path.unlink()
        if act == "folder":
            path.mkdir()
            (path / "x").write_bytes(b"x")
        elif act == "link":
            path.symlink_to(rng.choice(("../" * 9 + "nowhere", "/", GROUND.folder.absolute())))
        elif act == "loop":
            path.symlink_to(path.name)


def _kind(rng: random.Random, store: Path) -> None:
    """A folder is a file, is a link to itself or elsewhere, or is empty."""
    folders = sorted(path for path in store.rglob("*") if path.is_dir())
    top = rng.choice(sorted({path.relative_to(store).parts[:2] for path in folders}))
    path = rng.choice([p for p in folders if p.relative_to(store).parts[:2] == top])
    shutil.rmtree(path)
    act = rng.choice(("file", "empty", "link", "beside", "gone"))
    if act == "file":
        path.write_bytes(b"x")
    elif act == "empty":
        path.mkdir()
    elif act == "link":
        path.symlink_to(".")
    elif act == "beside":
        path.symlink_to(store.parent.absolute() / "beside")
