"""Damage to bytes and to plain data, drawn from a generator of random numbers."""

import copy
import random
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]

STRINGS = (
    "",
    " ",
    "0",
    "null",
    "nan",
    "../beside",
    "/",
    ".",
    "a/b",
    "\0",
    "\n",
    "\x1b[31m",
    "ä" * 300,
    "a" * 100_000,
    "\u202e\u2028\ufeff",
    "😀",
    "[",
    "(" * 200,
    "%s{}{0}$HOME",
    "-1",
    "2026-01-01",
    "=1+1",
    "nosuch://x",
    "s3:/x",
    "file:///",
    "C:\\x",
)

NUMBERS = (
    0,
    -1,
    1,
    2,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**31,
    2**63,
    2**64,
    10**30,
    10**400,
)

OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [None], [[]], {"a": 1}, {1: 2}, b"\xff")


def strange(rng: random.Random) -> Any:
    """A value that is seldom what a field is for."""
    if rng.random() < 0.05:
        value: Any = rng.choice(NUMBERS)
        for _ in range(rng.choice((3, 50, 300))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return rng.choice(rng.choice((STRINGS, NUMBERS, OTHERS)))


def places(tree: Any, above: Path = ()) -> Iterator[Path]:
    """The path of every value below a tree of mappings and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*above, key)
        if isinstance(value, dict | list) and len(above) < 9:
            yield from places(value, (*above, key))


def spoil(rng: random.Random, tree: Any) -> str:
    """Change one thing in a tree of mappings and lists; what was done."""
    if not (found := [*places(tree)]):
        return "nothing"
    place = rng.choice(found)
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    last: Any = place[-1]
    shown = ".".join(map(str, place))
    act = rng.choice(("value", "value", "value", "missing", "renamed", "extra", "copied", "many"))
    if act == "missing":
        del parent[last]
    elif act == "renamed" and isinstance(parent, dict):
        parent[rng.choice((f"{last} ", str(last).upper(), "x", 1, None, ""))] = parent.pop(last)
    elif act == "extra" and isinstance(parent[last], dict):
        parent[last][rng.choice(("x", 1, None, "", "\n", "__class__", "kind"))] = strange(rng)
    elif act == "copied":
        other: Any = tree
        for key in rng.choice([*places(tree)]):
            other = other[key]
        parent[last] = copy.deepcopy(other)
    elif act == "many":
        parent[last] = [parent[last]] * rng.choice((2, 1000))
    else:
        act = "value"
        parent[last] = strange(rng)
    return f"{act} {shown}"


def bytes_spoiled(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Bytes of a file with some damage, and what was done."""
    size = max(1, len(data))
    act = rng.choice(
        ("cut", "flipped", "flipped", "noise", "inserted", "doubled", "empty", "zeros")
    )
    start = rng.choice((rng.randrange(size), min(size - 1, rng.randrange(64)), size - 1))
    if act == "cut":
        data = data[:start]
    elif act == "flipped":
        changed = bytearray(data or b"x")
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        data = bytes(changed)
    elif act == "noise":
        length = rng.choice((1, 4, 64, 1000))
        data = data[:start] + rng.randbytes(length) + data[start + length :]
    elif act == "inserted":
        text = rng.choice(STRINGS).encode("utf-8") + rng.choice((b"", b"\xff\xfe", b"\xef\xbb\xbf"))
        data = data[:start] + text + data[start:]
    elif act == "doubled":
        data = data[:start] + data[start // 2 :]
    elif act == "empty":
        data = b""
    else:
        data = data[:start] + bytes(len(data) - start)
    return act, data
