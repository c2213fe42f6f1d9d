"""The tokenizer: given as a folder or hub name, or trained on the base documents.

Either way it is an artifact with ``tokenizer.json``, and its digest is part of everything made with
it. Trained ones are byte-level BPE: any text has an encoding, so bits per byte are always defined.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from storage.fingerprint import Config
from storage.step import Step, Workspace
from tasks.corpus import documents
from tasks.tokens.vocabulary import Vocabulary, encoding, shared, spelled_out

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"

MAX_ENTRIES = 1_000_000
"""Entries of a vocabulary at most; the largest published ones have a fourth of it."""


class TrainTokenizer(Config):
    """Train a byte-level BPE tokenizer on the base documents."""

    kind: Literal["train"] = "train"
    """This choice's name."""
    vocab_size: int = Field(default=32000, ge=257, le=MAX_ENTRIES)
    """Number of entries in the vocabulary, the 256 bytes and end-of-text included."""
    min_frequency: int = Field(default=2, ge=1)
    """Pairs seen less often than this are not merged."""


class GivenTokenizer(Config):
    """Take a Hugging Face fast tokenizer as it is."""

    kind: Literal["given"] = "given"
    """This choice's name."""
    path: str = Field(min_length=1)
    """Local folder or hub name of the tokenizer."""
    end_of_text: str | None = None
    """The token that ends a document; by default the tokenizer's own end-of-sequence token."""


TokenizerConfig = Annotated[TrainTokenizer | GivenTokenizer, Field(discriminator="kind")]


class Encoder:
    """A loaded tokenizer: text to token ids with the end-of-text token behind each document."""

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "mixpool.json").read_text())
        self.end_of_text: int = facts["end_of_text"]
        self.vocab_size: int = facts["vocab_size"]
        text = (folder / "tokenizer.json").read_text()
        if facts.get("spelled_out"):  # an artifact from before this must stay what it was
            text = spelled_out(text)
        self.vocabulary = Vocabulary(text, self.end_of_text, self.vocab_size)
        self._ids = shared(self.vocabulary)
        self.unknown = self._ids.unknown
        """The id of text that has none of its own; None where there is no such id."""

    @property
    def tokenizer(self) -> "Tokenizer":
        """The library's, without padding, truncation and post-processor."""
        return self._ids.tokenizer

    @property
    def reach(self) -> int:
        """One more than the largest id in a document: no text has the ids of special tokens."""
        added = self.tokenizer.get_added_tokens_decoder().items()
        special = {number for number, token in added if token.special}
        ids = {*self.tokenizer.get_vocab().values()} - special
        return max(self.end_of_text, *ids) + 1

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, end-of-text last; nothing else is added."""
        return [np.frombuffer(ids, dtype=self.vocabulary.dtype) for ids in self._ids.encode(texts)]

    def encode_starts(self, texts: list[str], limit: int | None) -> list[tuple[str, np.ndarray]]:
        """Like ``encode``, cut after ``limit`` tokens, each with the text that these stand for.

        Where the cut would fall inside a character, the tokens of that character are left out.
        """
        if limit is None:
            return list(zip(texts, self.encode(texts), strict=True))
        starts = []
        with encoding():
            encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        for text, e in zip(texts, encoded, strict=True):
            count = whole_characters(e.offsets, limit)
            covered = (
                text if count == len(e.ids) else text[: e.offsets[count - 1][1] if count else 0]
            )
            starts.append(
                (covered, np.array([*e.ids[:count], self.end_of_text], dtype=self.vocabulary.dtype))
            )
        return starts


def whole_characters(offsets: list[tuple[int, int]], limit: int) -> int:
    """How many of the first ``limit`` tokens can be kept so that no character is cut.

    Args:
        offsets: begin and end of each token in characters; tokens of one character share it.
    """
    count = min(limit, len(offsets))
    while 0 < count < len(offsets) and offsets[count][0] < offsets[count - 1][1]:
        count -= 1
    return count


def build_trained(
    config: TrainTokenizer, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Train on ``inputs["documents"]``; deterministic for the same documents in the same order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = documents.read_columns(inputs["documents"], ["text"])
    tokenizer.train_from_iterator((row["text"] for row in rows), trainer)
    workspace.progress(1, 1, "tokenizer")
    return save(tokenizer, END_OF_TEXT, output)


def save(tokenizer: "Tokenizer", end_of_text: str, output: Path) -> Mapping[str, object]:
    """Write a tokenizer as an artifact; the facts in its ``mixpool.json``."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end_of_text)
    wrapped.save_pretrained(output)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    facts = {"end_of_text": tokenizer.token_to_id(end_of_text), "vocab_size": largest + 1}
    text = (output / "tokenizer.json").read_text()
    facts |= {"spelled_out": True} if spelled_out(text) != text else {}
    (output / "mixpool.json").write_text(json.dumps(facts, sort_keys=True))
    return facts


def copy_files(folder: Path, target: Path) -> None:
    """Put the tokenizer's files beside a model that is exported."""
    for path in folder.iterdir():
        if path.name != "mixpool.json":
            shutil.copyfile(path, target / path.name)


TRAIN_TOKENIZER = Step("tokenizer", 1, "tokenizer", TrainTokenizer, build_trained)
