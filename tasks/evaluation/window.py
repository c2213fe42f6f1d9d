"""Step: cut an evaluation set's documents into the windows that a model is run on.

Each document stands alone behind an end-of-text token; each of its tokens is predicted exactly
once. ``paloma``: windows of the full context length, the last one slid back so that its tokens see
as much context as they can (Magnusson et al. 2023, and the rolling perplexity of
lm-evaluation-harness). ``disjoint``: windows do not overlap and the last one is short; cheaper, a
little worse in loss.

Losses are summed per group of documents. In a small set each document is a group; in a large one
the digests of documents decide their groups. Counts per group depend on the set only and are stored
here.
"""

import json
import re
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from storage.fingerprint import Config
from storage.step import Step, Workspace
from tasks.corpus import documents
from tasks.corpus.documents import batches
from tasks.tokens.tokenizer import Encoder

BATCH = 256
"""Documents that are encoded at once."""
WORDS = re.compile(r"\s+")
MOST_UNKNOWN = 0.01
"""Share of unknown tokens above which a set is refused. Mixtures differ by a few per cent of bits per
byte. An unknown token, soon learnt, stands for text of any length that is never predicted."""


class WindowConfig(Config):
    """How documents are cut into windows."""

    format: Literal["paloma", "disjoint"] = "paloma"
    """Paloma slides the last window back to full length, disjoint leaves it short."""
    context_length: int = Field(default=2048, ge=2)
    """Tokens that the model sees at most."""
    max_document_tokens: int | None = Field(default=None, ge=1)
    """Only the first tokens of each document are scored, so many at most and no part of a character;
    None scores all."""
    groups: int = Field(default=256, ge=200)
    """Sums are kept per document up to so many documents, above that in so many groups."""


class Windows(NamedTuple):
    """A prepared evaluation set of W windows and G groups."""

    inputs: np.ndarray
    """Token ids, int32, shape (W, context_length), zero-padded on the right."""
    targets: np.ndarray
    """The next token of each position, int32, shape (W, context_length)."""
    first: np.ndarray
    """First scored position of each window, int32, shape (W,)."""
    length: np.ndarray
    """Positions in use, int32, shape (W,); scored are ``first <= position < length``."""
    group: np.ndarray
    """Group of each window's document, int32, shape (W,)."""
    num_tokens: np.ndarray
    """Scored tokens of each group, int64, shape (G,)."""
    num_bytes: np.ndarray
    """UTF-8 bytes of each group, int64, shape (G,)."""
    num_words: np.ndarray
    """Words of each group (split at white space), int64, shape (G,)."""


def spans(num_tokens: int, context: int, form: str) -> Iterator[tuple[int, int, int]]:
    """Windows over the targets 0..num_tokens-1 as (start, first, end).

    The window predicts targets ``start..end-1`` and scores ``start+first..end-1``; its inputs are
    the tokens one position earlier, the end-of-text token in front of the document included.
    """
    for begin in range(0, num_tokens, context):
        end = min(begin + context, num_tokens)
        start = max(0, end - context) if form == "paloma" else begin
        yield start, begin - start, end


def build(
    config: WindowConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Cut ``inputs["documents"]`` with ``inputs["tokenizer"]``.

    Raises:
        ValueError: the set has no document, or none with text, or too many unknown tokens.
    """
    encoder = Encoder(inputs["tokenizer"])
    rows = sorted(
        documents.read_columns(inputs["documents"], ["digest", "text"]), key=itemgetter("digest")
    )
    groups = list(range(len(rows)))
    if len(rows) > config.groups:
        groups = [int(row["digest"][:12], 16) % config.groups for row in rows]
    windows: list[tuple[np.ndarray, int, int]] = []
    counts = np.zeros((max(groups, default=0) + 1, 3), dtype=np.int64)
    position = num_unknown = 0
    for batch in batches(rows, BATCH):
        texts = [row["text"] for row in batch]
        for text, ids in encoder.encode_starts(texts, config.max_document_tokens):
            group = groups[position]
            windows += _document_windows(ids, encoder.end_of_text, group, config)
            num_unknown += int(np.count_nonzero(ids[:-1] == encoder.unknown))
            num_words = len(WORDS.split(text)) if text else 0
            counts[group] += (len(ids) - 1, len(text.encode()), num_words)
            position += 1
        workspace.progress(position, len(rows), "documents")
    if not windows:
        raise ValueError(
            f"the evaluation set has no text ({len(rows)} documents): give one that has"
        )
    arrays = {**_arrays(windows, config.context_length), "counts": counts}
    if num_unknown > MOST_UNKNOWN * counts[:, 0].sum():
        raise ValueError(
            f"the evaluation set has {num_unknown:,} tokens that the tokenizer does not know among "
            f"{counts[:, 0].sum():,}, and above {MOST_UNKNOWN:.0%} bits per byte mean nothing: leave it "
            "out, or give a tokenizer that knows its characters"
        )
    facts = save_windows(arrays, output, workspace, num_documents=len(rows))
    return {**facts, **({"num_unknown": num_unknown} if num_unknown else {})}


def save_windows(
    arrays: dict[str, np.ndarray], output: Path, workspace: Workspace, **facts: int
) -> Mapping[str, object]:
    """Write what ``load_windows`` reads; the numbers of it for people, behind other ``facts``."""
    from safetensors.numpy import save_file

    save_file(arrays, output / "windows.safetensors")
    tokens, num_bytes, words = arrays["counts"].sum(axis=0).tolist()
    facts |= {
        "num_windows": len(arrays["length"]),
        "num_groups": len(arrays["counts"]),
        "num_tokens": tokens,
        "num_bytes": num_bytes,
        "num_words": words,
        "forward_tokens": int(arrays["length"].sum()),
    }
    (output / "windows.json").write_text(json.dumps(facts, sort_keys=True))
    workspace.meter.add(tokens=tokens)
    return facts


def _document_windows(
    ids: np.ndarray, end_of_text: int, group: int, config: WindowConfig
) -> list[tuple[np.ndarray, int, int]]:
    # The encoder closes a document with end-of-text; here it stands in front, and is not scored.
    tokens = np.concatenate([np.array([end_of_text]), ids[:-1]])
    return [
        (tokens[start : end + 1], first, group)
        for start, first, end in spans(len(tokens) - 1, config.context_length, config.format)
    ]


def _arrays(windows: list[tuple[np.ndarray, int, int]], context: int) -> dict[str, np.ndarray]:
    tokens = np.zeros((len(windows), context + 1), dtype=np.int32)
    for row, (ids, _, _) in enumerate(windows):
        tokens[row, : len(ids)] = ids
    return {
        "tokens": tokens,
        "first": np.array([first for _, first, _ in windows], dtype=np.int32),
        "length": np.array([len(ids) - 1 for ids, _, _ in windows], dtype=np.int32),
        "group": np.array([group for _, _, group in windows], dtype=np.int32),
    }


def load_windows(folder: Path) -> Windows:
    """The windows of an artifact."""
    from safetensors.numpy import load_file

    arrays = load_file(folder / "windows.safetensors")
    tokens = arrays["tokens"]
    of_windows = (arrays[name] for name in ("first", "length", "group"))
    return Windows(tokens[:, :-1], tokens[:, 1:], *of_windows, *arrays["counts"].T)


WINDOW = Step("window", 1, "windows", WindowConfig, build)
