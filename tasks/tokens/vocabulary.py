"""Encode texts into token ids, as bytes; also the program of a child process that encodes.

All whole documents are encoded here: by a word table where the tokenizer allows it, else by the
library. This module and ``tasks.tokens.word_table`` import little, so that child processes start at
once.
"""

import json
import signal
import sys
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.tokens.word_table import Words, is_separable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IDLE_SECONDS = 20.0
"""Seconds without work after which a process ends."""


class Vocabulary(NamedTuple):
    """All that a process needs to make token ids of text."""

    text: str
    """The content of ``tokenizer.json``."""
    end_of_text: int
    """The id behind each document."""
    size: int
    """Number of ids."""

    @property
    def dtype(self) -> str:
        """Smallest unsigned integer type that holds every id."""
        return "uint16" if self.size <= 1 << 16 else "uint32"

    @property
    def itemsize(self) -> int:
        """Bytes of one id."""
        return 2 if self.dtype == "uint16" else 4


class Ids:
    """A loaded tokenizer; nothing is added to a text but end-of-text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = plain(Tokenizer.from_str(vocabulary.text))
        self._code = {"uint16": "H", "uint32": "I"}[vocabulary.dtype]
        self._end = array(self._code, [vocabulary.end_of_text]).tobytes()
        state = json.loads(vocabulary.text)
        self.unknown = unknown_id(state["model"])
        is_fast = is_separable(state)
        self._encode = Words(self._by_library).encode if is_fast else self._by_library

    def encode(self, texts: list[str]) -> list[bytes]:
        """Ids of each text, end-of-text last, as the bytes of an array of the vocabulary's dtype."""
        return [ids + self._end for ids in self._encode(texts)]

    def count(self, texts: list[str]) -> list[int]:
        """Number of ids of each text, end-of-text included."""
        return [len(ids) // len(self._end) + 1 for ids in self._encode(texts)]

    def _by_library(self, texts: list[str]) -> list[bytes]:
        with encoding():
            encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [array(self._code, each.ids).tobytes() for each in encoded]


@contextmanager
def encoding() -> Iterator[None]:
    """A block in which the library encodes; ValueError where a text has no ids."""
    try:
        yield
    # Not all models have an entry for what they do not know.
    except Exception as error:
        raise ValueError(
            f"the tokenizer cannot encode a text of the corpus ({error}): give one that has an "
            "entry for unknown words"
        ) from error


@lru_cache(maxsize=1)
def shared(vocabulary: Vocabulary) -> Ids:
    """The ``Ids`` of a vocabulary that this process uses, with the words that they have met."""
    return Ids(vocabulary)


def plain(tokenizer: "Tokenizer") -> "Tokenizer":
    """The same tokenizer, which now adds nothing to a text and cuts nothing off."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # Post-processors add special tokens and shorten offsets; what a text says is never special.
    tokenizer.post_processor = None
    tokenizer.encode_special_tokens = True
    return tokenizer


def unknown_id(model: Mapping[str, Any]) -> int | None:
    """The id that the model of a ``tokenizer.json`` gives to what it does not know, or None."""
    is_unigram = "unk_id" in model
    number: int | None = (
        model["unk_id"] if is_unigram else model["vocab"].get(model.get("unk_token"))
    )
    return number


def spelled_out(text: str) -> str:
    """A ``tokenizer.json`` whose Unigram model, if it is one, has no special token among its pieces.

    Such a model finds each of its pieces in a text, also in one that only says ``</s>``.
    """
    state = json.loads(text)
    if state["model"]["type"] != "Unigram":
        return text
    pieces, added = state["model"]["vocab"], state["added_tokens"]
    taken = {t["content"] for t in added if t["special"]}.intersection(p for p, _ in pieces)
    if not taken:
        return text
    # Ids and scores stay as they are: the lowest score says what an unknown character costs.
    state["model"]["vocab"] = [["" if piece in taken else piece, score] for piece, score in pieces]
    state["added_tokens"] = [token for token in added if token["content"] not in taken]
    return json.dumps(state, ensure_ascii=False)


def serve() -> None:
    """Answer on the socket whose number is the first argument, until nothing is asked for a while."""
    from multiprocessing.connection import Connection

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    line = Connection(int(sys.argv[1]))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        ids = Ids(line.recv())
        while line.poll(IDLE_SECONDS):
            method, texts = line.recv()
            try:
                line.send(getattr(ids, method)(texts))
            except ValueError:
                sys.exit(1)  # the parent encodes these texts then, and says what is wrong
