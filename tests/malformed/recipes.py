"""Recipes that are no recipes: strange fields, strange YAML, strange --set and --runtime."""

import copy
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from flows.chain.recipe_file import RecipeDumper, RecipeLoader
from tests.malformed import GROUND, Case
from tests.malformed.damage import STRINGS, bytes_spoiled, places, spoil, strange

COMMANDS = (
    "plan",
    "plan",
    "plan",
    "explain",
    "plan --references",
    "plan --search",
    "withdraw --id x",
)


@functools.cache
def _sound() -> Any:
    return yaml.load(GROUND.given.read_bytes(), Loader=RecipeLoader)


def cases(seed: int, count: int) -> Iterator[Case]:
    """``count`` recipes, one after another from ``seed``."""
    for number in range(count):
        rng = random.Random(f"recipes {seed} {number}")
        make = rng.choice((_fields, _fields, _fields, _text, _syntax, _options))
        what, text, options = make(rng)
        command, *more = rng.choice(COMMANDS).split()
        yield Case(
            f"{make.__name__[1:]}: {what}",
            _writer(text),
            (command, "recipe.yaml", *more, "--store", "store", *options),
        )


def _writer(data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "recipe.yaml").write_bytes(data)

    return write


def _dumped(tree: Any) -> bytes:
    return yaml.dump(tree, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True).encode(
        "utf-8", "surrogatepass"
    )


Made = tuple[str, bytes, list[str]]


def _fields(rng: random.Random) -> Made:
    """One or more fields of the tree are another."""
    tree = copy.deepcopy(_sound())
    what = [spoil(rng, tree) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
    return what[0], _dumped(tree), []


def _text(rng: random.Random) -> Made:
    """Bytes of the file are others."""
    what, data = bytes_spoiled(rng, GROUND.given.read_bytes())
    return what, data, []


def _syntax(rng: random.Random) -> Made:
    """YAML that is valid, or nearly, and no recipe."""
    depth, many = rng.choice((3, 30, 300, 3000)), rng.choice((3, 9))
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * many)}]" for n in range(1, many + 1)]
    sound = GROUND.given.read_text(encoding="utf-8")
    name, text = rng.choice(
        (
            ("deep list", "name: " + "[" * depth + "]" * depth),
            ("open list", "name: " + "[" * depth),
            ("deep mapping", "name: " + "{a: " * depth + "}" * depth),
            ("deep block", "\n".join(" " * n + "a:" for n in range(depth // 10 + 1))),
            ("aliases", "\n".join(["a0: &a0 [x]", *levels, f"name: *a{many}", sound])),
            ("an alias to itself", f"x: &x [*x]\n{sound}"),
            ("a field that is itself", f"{sound}\nsearch: &s {{objective: *s}}"),
            ("an alias to nothing", f"{sound}\nx: *nothing"),
            ("a merge of itself", f"x: &x\n  <<: *x\n{sound}"),
            ("a merge of text", f"<<: text\n{sound}"),
            ("an object", f"name: !!python/object/apply:os.getcwd []\n{sound}"),
            ("an unknown tag", f"name: !x y\n{sound}"),
            ("two documents", f"{sound}\n---\n{sound}"),
            ("a set", "!!set {name, corpus}"),
            ("text", rng.choice(STRINGS)),
            ("a key that is a list", f"? [a, b]\n: c\n{sound}"),
            ("a key that is a mapping", f"? {{a: b}}\n: c\n{sound}"),
            ("a field twice", f"{sound}\nname: other"),
            ("tabs", sound.replace("  ", "\t")),
            ("lines of Windows", sound.replace("\n", "\r\n")),
            ("a number of many digits", f"{sound}\nx: {'9' * depth * 3}"),
            ("a number in base 60", f"{sound}\nx: {':'.join(['1'] * depth)}"),
            ("a date", f"name: 2026-13-45\n{sound}"),
            ("binary", f"name: !!binary '=x='\n{sound}"),
            ("an integer that is none", f"x: !!int 'x'\n{sound}"),
            ("a timestamp that is none", f"x: !!timestamp 'x'\n{sound}"),
            ("an odd directive", f"%YAML 9.9\n---\n{sound}"),
        )
    )
    code = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"))
    return f"{name}, {code}", text.encode(code, "replace"), []


def _options(rng: random.Random) -> Made:
    """A sound recipe with options that are not."""
    tree = _sound()
    place = list(rng.choice([*places(tree)]))
    if rng.random() < 0.3:
        place.insert(rng.randrange(len(place) + 1), rng.choice(("", "x", "0", "-1", "99", "²")))
    value = yaml.dump(
        strange(rng), Dumper=RecipeDumper, default_flow_style=True, width=10**9, allow_unicode=True
    ).removesuffix("\n...\n")
    path = ".".join(map(str, place))
    option = "--set"
    if rng.random() < 0.3:
        option = "--runtime"
        path = rng.choice(
            (
                "device",
                "threads",
                "batch_tokens",
                "micro_batch",
                "shards",
                "chunk",
                "scratch",
                "x",
                "energy",
            )
        )
    word = rng.choice((f"{path}={value}", f"{path}={value}", f"{path}={value[:3]}", path, value))
    # No command line can hold this byte, nor so long a word.
    return f"{option} {word[:60]!r}", _dumped(tree), [option, word.replace("\0", "")[:100_000]]
