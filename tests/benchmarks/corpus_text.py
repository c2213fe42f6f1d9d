"""English-like text that every machine with mixpool has: the docstrings of its Python environment.

Documentation of some thousand modules, cut at line ends into documents of up to 4,000 characters, in
an order by seed. When all was taken it is taken again, each document with its lines in another
order, so that no document stands twice and any size can be had.
"""

import json
import random
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

DOCSTRING = re.compile(r'"""(.{200,}?)"""', re.DOTALL)
MAX_CHARACTERS = 4_000
MIN_CHARACTERS = 200
FILES = 8


def write(folder: Path, megabytes: float) -> list[Path]:
    """``FILES`` files ``<domain>/part.jsonl.zst`` with ``megabytes`` of UTF-8 text in all."""
    import pyarrow as pa

    source, paths = documents(), []
    for number in range(FILES):
        path = folder / f"domain{number}" / "part.jsonl.zst"
        path.parent.mkdir(parents=True)
        paths.append(path)
        num_bytes = 0.0
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            while num_bytes < megabytes * 1e6 / FILES:
                text = next(source)
                num_bytes += len(text.encode())
                file.write(json.dumps({"id": num_bytes, "text": text}).encode() + b"\n")
    return paths


def documents() -> Iterator[str]:
    """Documents without end, the same on every call."""
    chosen, seen = random.Random(0), set[str]()
    pieces = list(_pieces())
    while True:
        chosen.shuffle(pieces)
        for text in pieces:
            if text not in seen:
                yield text
            elif len(lines := text.splitlines(keepends=True)) > 4:
                chosen.shuffle(lines)
                yield "".join(lines)
        seen.update(pieces)


@cache
def _pieces() -> tuple[str, ...]:
    roots = {sysconfig.get_path(name) for name in ("stdlib", "purelib")}
    files = {path for root in roots for path in Path(root).rglob("*.py")}
    found: dict[str, None] = {}
    for path in sorted(files):
        text = "\n\n".join(DOCSTRING.findall(path.read_text(errors="replace")))
        found |= dict.fromkeys(_cut(text))
    return tuple(found)


def _cut(text: str) -> Iterator[str]:
    piece = ""
    for line in text.splitlines(keepends=True):
        if len(piece) + len(line) > MAX_CHARACTERS and len(piece) >= MIN_CHARACTERS:
            yield piece
            piece = ""
        piece += line
    if len(piece) >= MIN_CHARACTERS:
        yield piece
