"""Tables of losses, constraints and token counts that cannot be used."""

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tests.malformed import Case
from tests.malformed.damage import NUMBERS, STRINGS, bytes_spoiled, spoil, strange

CONSTRAINTS: dict[str, Any] = {
    "most_partitions": 2,
    "min_weights": {"a": 0.1},
    "max_weights": {"b": 0.9},
}


def cases(seed: int, count: int) -> Iterator[Case]:
    """``count`` tables, one after another from ``seed``."""
    for number in range(count):
        yield _case(random.Random(f"tables {seed} {number}"))


def _frame(rng: random.Random, rows: int, columns: int) -> pd.DataFrame:
    names = ["a", "b", "c", "d"][: min(columns, 4)] + [f"x{n}" for n in range(columns - 4)]
    frame = pd.DataFrame([[rng.random() for _ in names] for _ in range(rows)], columns=names)
    frame = frame.div(frame.sum(axis=1), axis=0) if rows and columns else frame
    frame["loss"] = [rng.random() + 3 for _ in range(rows)]
    return frame


def _case(rng: random.Random) -> Case:
    kind = rng.choice(("bytes", "cells", "columns", "shape", "words", "rules"))
    rows, columns = rng.choice((0, 1, 3, 11, 12, 30)), rng.choice((1, 2, 3, 4))
    if kind == "shape":
        rows, columns = rng.choice(((0, 0), (30, 0), (30, 1), (1, 500), (12, 40), (300, 2)))
    frame, what = _frame(rng, rows, columns), f"{rows} x {columns}"
    words, rules = ["--targets", "loss"], dict[str, Any]()
    if kind == "cells" and rows:
        what += " " + _spoil_cells(rng, frame)
    elif kind == "columns":
        name = rng.choice((*STRINGS, "a", "loss", "mixture"))
        frame = frame.rename(columns={rng.choice([*frame.columns]): name})
        what += f" {name[:20]!r}"
    elif kind == "words":
        value = rng.choice(STRINGS).replace("\0", "")
        option = rng.choice(
            ("--targets", "--weights", "--count", "--held-out", "--set", "--tokens")
        )
        words += [option, value]
        what += f" {option} {value[:20]!r}"
    suffix = rng.choice((".csv", ".csv", ".parquet"))
    data = _written(frame, suffix)
    if kind == "bytes":
        done, data = bytes_spoiled(rng, data)
        suffix = rng.choice((suffix, suffix, suffix, ".csv", ".pq", ".txt", ""))
        what += f" {suffix} {done}"
    elif kind == "rules":
        rules = {"constraints": {**CONSTRAINTS}}
        what = spoil(rng, rules)
    text = yaml.safe_dump(rules.get("constraints"), allow_unicode=True) if rules else ""
    if rules and rng.random() < 0.3:
        text = yaml.safe_dump(strange(rng), allow_unicode=True)

    def write(folder: Path) -> None:
        (folder / f"table{suffix}").write_bytes(data)
        if rules:
            (folder / "rules.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")

    words += ["--constraints", "rules.yaml"] if rules else []
    return Case(f"{kind}: {what}", write, ("search", "--losses", f"table{suffix}", *words))


def _written(frame: pd.DataFrame, suffix: str) -> bytes:
    if suffix == ".csv":
        return frame.to_csv(index=False).encode("utf-8", "surrogatepass")
    sink = io.BytesIO()
    frame = frame.loc[:, ~frame.columns.duplicated()]
    mixed = [name for name in frame if frame[name].dtype == object]
    frame.astype(dict.fromkeys(mixed, str)).to_parquet(sink, index=False)
    return sink.getvalue()


def _spoil_cells(rng: random.Random, frame: pd.DataFrame) -> str:
    column = rng.choice([*frame.columns])
    value = rng.choice((*NUMBERS[:-1], *STRINGS, None, True, "1,5", "1e999", "0x1"))
    cells = frame[column].astype(object)
    whole = rng.random() < 0.3
    for row in range(len(cells)):
        if whole or rng.random() < 0.2:
            cells.iloc[row] = value
    frame[column] = cells
    return f"{column} {'all ' if whole else ''}{str(value)[:20]!r}"
