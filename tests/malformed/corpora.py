"""Corpora that cannot be read, or not as their names say."""

import gzip
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from flows.chain.recipe_file import RecipeDumper, RecipeLoader
from tests.malformed import GROUND, Case
from tests.malformed.damage import STRINGS, bytes_spoiled, strange

Rows = list[dict[str, Any]]


def _sound_rows(rng: random.Random) -> Rows:
    """Documents of one of the domains, some of them twice."""
    path = rng.choice(sorted((GROUND.corpus).glob("*.jsonl")))
    lines = path.read_text(encoding="utf-8").splitlines()[: rng.choice((1, 5, 20))]
    return [{**json.loads(line), "source": path.stem, "id": n} for n, line in enumerate(lines)]


def _json_lines(rng: random.Random, rows: Rows) -> bytes:
    end = rng.choice(("\n", "\n", "\r\n", "\n\n", ""))
    ascii_only = rng.random() < 0.5
    lines = (json.dumps(row, ensure_ascii=ascii_only, default=repr) for row in rows)
    return end.join([*lines, ""]).encode("utf-8", "surrogatepass")


def _compressed(codec: str) -> Callable[[random.Random, Rows], bytes]:
    def write(rng: random.Random, rows: Rows) -> bytes:
        data, sink = _json_lines(rng, rows), pa.BufferOutputStream()
        if codec == "gzip" and rng.random() < 0.5:
            return gzip.compress(data) + gzip.compress(data)
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return bytes(sink.getvalue())

    return write


def _arrow_table(rows: Rows) -> pa.Table:
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            columns[name] = pa.array(list(map(repr, values)))
    return pa.table(columns)


def _parquet(rng: random.Random, rows: Rows) -> bytes:
    sink = io.BytesIO()
    codec = rng.choice(("none", "snappy", "gzip", "zstd"))
    pq.write_table(_arrow_table(rows), sink, compression=codec, row_group_size=rng.choice((1, 100)))
    return sink.getvalue()


def _arrow(rng: random.Random, rows: Rows) -> bytes:
    table, sink = _arrow_table(rows), io.BytesIO()
    new = rng.choice((pa.ipc.new_file, pa.ipc.new_stream))
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rng.choice((1, 100)))
    return sink.getvalue()


def _wet(rng: random.Random, rows: Rows) -> bytes:
    parts = [b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 0\r\n\r\n\r\n\r\n"]
    for row in rows:
        text = str(row.get("text")).encode("utf-8", "replace")
        length = len(text) if rng.random() < 0.9 else rng.choice((-1, 0, 10**12))
        kind = "conversion" if rng.random() < 0.9 else rng.choice(("response", "", "\xff"))
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        parts.append(head.encode() + text + b"\r\n\r\n")
    return b"".join(parts)


def _text(_rng: random.Random, rows: Rows) -> bytes:
    return "\n".join(str(row.get("text")) for row in rows).encode("utf-8", "replace")


FORMATS: dict[str, Callable[[random.Random, Rows], bytes]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _compressed("gzip"),
    ".jsonl.zst": _compressed("zstd"),
    ".jsonl.bz2": _compressed("bz2"),
    ".json.gz": _compressed("gzip"),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".wet": _wet,
    ".txt": _text,
}

NAMES = (
    "law",
    "law-0",
    "a b",
    "ä",
    "a\nb",
    ".",
    "..x",
    "-x",
    "a%2Fb",
    "\udcff",
    "x" * 240,
    "[a]*?",
    "=",
)


def cases(seed: int, count: int) -> Iterator[Case]:
    """``count`` corpora, one after another from ``seed``."""
    for number in range(count):
        rng = random.Random(f"corpora {seed} {number}")
        yield _case(rng)


def _case(rng: random.Random) -> Case:
    suffix = rng.choice([*FORMATS])
    rows = _sound_rows(rng)
    kind = rng.choice(("bytes", "bytes", "fields", "fields", "suffix", "names", "places", "format"))
    what, rule = suffix, dict[str, Any]()
    stem, has_place = "added", False
    if kind == "fields":
        what += " " + _spoil_rows(rng, rows)
    data = FORMATS[suffix](rng, rows)
    if kind == "bytes":
        done, data = bytes_spoiled(rng, data)
        what += f" {done}"
    elif kind == "suffix":
        suffix = rng.choice([*FORMATS, "", ".gz", ".json", ".PARQUET", ".jsonl.gz.gz", ".tar"])
        what += f" as {suffix}"
    elif kind == "names":
        stem = rng.choice(NAMES)
        what += f" {stem[:20]!r}"
    elif kind == "places":
        has_place = True
    elif kind == "format":
        rule = _rule(rng)
        what += f" {str(rule)[:60]}"
    place = rng.choice(("folder", "nowhere", "itself", "unreadable", "fifo", "empty", "only"))
    if has_place:
        what += f" {place}"
    going_on = rng.random() < 0.3

    def write(folder: Path) -> None:
        corpus = folder / "corpus"
        corpus.mkdir()
        if place != "only" or not has_place:
            for path in sorted(GROUND.corpus.glob("*.jsonl")):
                (corpus / path.name).write_bytes(path.read_bytes())
        added = corpus / f"{stem}{suffix}"
        if has_place and place != "only":
            _place(added, place)
        else:
            added.write_bytes(data)
        _write_recipe(folder, GROUND.recipe if going_on else GROUND.given, rule)
        if going_on:
            shutil.copytree(GROUND.store, folder / "store")

    command = ("run" if rng.random() < 0.05 else "plan", "recipe.yaml", "--store", "store")
    return Case(f"{kind}: {what}", write, (*command, "--runtime", "threads=1"))


def _place(path: Path, place: str) -> None:
    if place == "folder":
        path.mkdir()
        (path / "x.jsonl").write_text('{"text": "in a folder"}\n')
    elif place == "nowhere":
        path.symlink_to("nowhere")
    elif place == "itself":
        path.symlink_to(path.name)
    elif place == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(b"" if place == "empty" else b"x")
        path.chmod(0o000 if place == "unreadable" else 0o644)


def _spoil_rows(rng: random.Random, rows: Rows) -> str:
    """Change values of some rows; what was done."""
    field = rng.choice(("text", "text", "source", "id"))
    act = rng.choice(("strange", "strange", "missing", "all", "key"))
    for row in rows:
        if act == "all" or rng.random() < 0.5:
            if act == "missing":
                row.pop(field)
            elif act == "key":
                row[rng.choice(STRINGS)] = row.pop(field)
            else:
                row[field] = strange(rng)
    return f"{act} {field}"


def _rule(rng: random.Random) -> dict[str, Any]:
    """A corpus.source.format that may not fit."""
    fields = ("text", "source", "id", "text.x", "", ".", "x", "a.b.c.d", "\n")
    return dict[str, Any](
        rng.choice(
            (
                {"domain_fields": [rng.choice(fields)]},
                {"domain_fields": [rng.choice(fields), rng.choice(fields)]},
                {"text_field": rng.choice(fields)},
                {"domain_pattern": rng.choice(("(", "(.)", "(a)?", "()", ".*", "(?P<x>)"))},
                {"domain": rng.choice(STRINGS)},
            )
        )
    )


def _write_recipe(folder: Path, sound: Path, rule: dict[str, Any]) -> None:
    tree: Any = yaml.load(sound.read_bytes(), Loader=RecipeLoader)
    tree["corpus"]["source"] = {"urls": ["corpus/**"]}
    if rule:
        tree["corpus"]["source"]["format"] = rule
    text = yaml.dump(tree, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
