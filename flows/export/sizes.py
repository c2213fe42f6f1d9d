"""How much text stands behind each source of a mixture, and a mixture's shares in other measures.

A weight is a share of tokens of the recipe's tokenizer. The same text is another share of documents, of bytes
and of another tokenizer's tokens: weight x size / tokens, scaled to sum to 1. A loader that draws whole
documents needs the share of documents, whatever tokenizer is trained with.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from flows.run.stored import RunContent
from storage.artifact import Record
from storage.fingerprint import short
from storage.lineage import producers
from storage.store import Store

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLE_BYTES = 32_000_000
"""Bytes of a partition's text that another tokenizer encodes, evenly over its documents: some seconds."""

Measure: TypeAlias = Literal["tokens", "documents", "num_bytes", "trained"]


class Size(NamedTuple):
    """What a source holds."""

    tokens: int
    """By the recipe's tokenizer, end-of-text of each document included."""
    documents: int
    num_bytes: int
    """Of text, UTF-8."""
    trained: int
    """Tokens by the tokenizer that the trainer uses."""


def together(sizes: Iterable[Size]) -> Size:
    """What several partitions hold."""
    held = [*sizes]
    return Size(
        sum(size.tokens for size in held),
        sum(size.documents for size in held),
        sum(size.num_bytes for size in held),
        sum(size.trained for size in held),
    )


def in_measure(
    weights: Mapping[str, Fraction], sizes: Mapping[str, Size], measure: Measure
) -> dict[str, Fraction]:
    """Shares in a measure that hold the same text as these weights of tokens; they sum to 1."""
    # Ratios as floats: the product of thousands of counts would be a very long denominator.
    held = {
        name: weight * Fraction(getattr(sizes[name], measure) / sizes[name].tokens)
        for name, weight in weights.items()
    }
    whole = sum(held.values())
    return {name: part / whole for name, part in held.items()}


def sizes_of(
    store: Store, run: RunContent, names: Iterable[str], tokenizer: Path | None = None
) -> dict[str, Size]:
    """What each of these partitions of a run holds.

    Args:
        tokenizer: folder of the one that the trainer uses; None is the recipe's.

    Raises:
        ValueError: the store no longer has how a partition was made, or the tokenizer cannot be used.
    """
    other = None if tokenizer is None else _tokenizer(tokenizer)
    made = producers(store)
    sizes = {}
    for name in names:
        inputs = _made(made, name, run.models[name]).inputs
        # The control has no partition: its text is the base model's.
        tokens = _made(made, name, inputs.get("tokens") or inputs["replay"])
        facts = tokens.details
        size = Size(
            facts["num_tokens"], facts["num_documents"], facts["num_bytes"], facts["num_tokens"]
        )
        if other is not None:
            documents = store.fetch(_made(made, name, tokens.inputs["documents"]).output)
            density = _density(other, documents, math.ceil(size.num_bytes / SAMPLE_BYTES))
            size = size._replace(trained=round(size.num_bytes * density))
        sizes[name] = size
    return sizes


def _made(made: Mapping[str, Record], name: str, digest: str) -> Record:
    if digest not in made:
        raise ValueError(f"the store no longer has {name} ({short(digest)}): run the recipe again")
    return made[digest]


def _tokenizer(path: Path) -> "Tokenizer":
    from tasks.models.given import OF_TYPE, TOKENIZER_FILES, laid
    from tasks.tokens.folder import files_of, named
    from tasks.tokens.published import read_tokenizer
    from tasks.tokens.vocabulary import plain

    folder = path.parent if path.name == "tokenizer.json" else path
    if not folder.is_dir():
        raise ValueError(
            f"--tokenizer {path} is no folder here: give one that has a tokenizer.json"
        )
    files = files_of(folder, TOKENIZER_FILES)
    with named(f"--tokenizer {path}"), laid(files, OF_TYPE) as (source, _):
        return plain(read_tokenizer(source))


def _density(tokenizer: "Tokenizer", folder: Path, every: int) -> Fraction:
    """Tokens for a byte, end-of-text included, counted on one of ``every`` documents."""
    from tasks.corpus.documents import read_columns
    from tasks.tokens.processes import text_batches
    from tasks.tokens.vocabulary import encoding

    rows = itertools.islice(read_columns(folder, ["text"]), 0, None, every)
    num_tokens = num_bytes = 0
    for texts in text_batches((row["text"] for row in rows), str):
        with encoding():
            encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        num_tokens += sum(len(text.ids) for text in encoded) + len(texts)
        num_bytes += sum(len(text.encode()) for text in texts)
    return Fraction(num_tokens, num_bytes)
