"""A table from word to token ids: each distinct word is encoded once.

A tokenizer that splits as GPT-2's does (those that mixpool trains do) encodes every word alone, and
most words of a text have occurred before. So texts are split here, and the ids come from a table.
In plain ASCII, ``WORD`` splits as the library does. Around any other character two Unicode tables
might disagree. There ``WORD`` takes everything up to a place that is surely between two words, and
the library splits it. Tests compare both with the library.

The table forgets words that were not met for a while, so its size is bounded whatever the corpus.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

_OTHER = r"\x00-\x08\x0e-\x1f\x7f-\U0010ffff"
WORD = re.compile(
    rf" ?[A-Za-z]++(?![{_OTHER}])"
    r"|'(?:[stmd]|re|ve|ll)"
    rf"| ?[^\sA-Za-z0-9{_OTHER}]++(?![{_OTHER}])"
    # White space, but for a last blank that belongs to the word behind it.
    rf"|(?!\s++[{_OTHER}])(?:\s+(?!\S)|[\t-\r])"
    rf"| ?[0-9]++(?![{_OTHER}])"
    # Anything, to the next white space behind a visible ASCII character: no word goes across that.
    r"|\s*\S+(?:(?<![!-~])\s+\S*)*",
    re.ASCII,
)
"""Words, white space, or longer pieces that can be encoded alone; joined they are the text."""

CUT = re.compile(r"(?<=[!-~])(?=\s)", re.ASCII)
"""Where ``WORD`` never goes across."""
PART_CHARACTERS = 1 << 16
"""Characters after which a text is cut at the next opportunity, to hold few words at a time."""
MAX_WORDS = 1 << 16
"""Words after which the table is begun anew, with the last one kept behind it: 30 MB in all."""
MAX_LENGTH = 64
"""Characters of a word that is worth keeping."""


class Words(dict[str, bytes]):
    """The ids of each word, as the bytes of an array; ``encode`` makes those of a new word."""

    def __init__(self, encode: Callable[[list[str]], list[bytes]]) -> None:
        self._encode = encode
        self._last: dict[str, bytes] = {}

    def __missing__(self, word: str) -> bytes:
        ids = self._last.get(word) or self._encode([word])[0]
        if len(self) >= MAX_WORDS:
            self._last = dict(self)
            self.clear()
        if len(word) <= MAX_LENGTH:
            self[word] = ids
        return ids

    def encode(self, texts: Iterable[str]) -> list[bytes]:
        """Token ids of each text as bytes."""
        ids = self.__getitem__
        return [
            b"".join(b"".join(map(ids, WORD.findall(part))) for part in parts(text))
            for text in texts
        ]


def parts(text: str) -> Iterator[str]:
    """A text in parts that can be encoded alone; one that offers no place to cut stays whole."""
    start = 0
    while cut := CUT.search(text, start + PART_CHARACTERS):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def is_separable(state: Mapping[str, Any]) -> bool:
    """Whether a tokenizer, given as the content of its ``tokenizer.json``, encodes word by word.

    That is: GPT-2's way to split, nothing changed before it, no token that is looked for in the text
    (tokens that are special are not), and nothing random.
    """
    split, model = state["pre_tokenizer"] or {}, state["model"]
    return (
        state["normalizer"] is None
        and split.get("type") == "ByteLevel"
        and split["use_regex"]
        and not split["add_prefix_space"]
        and model["type"] == "BPE"
        and not model["dropout"]
        and all(token["special"] for token in state["added_tokens"])
    )
