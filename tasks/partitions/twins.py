"""Twins: documents that equal another one but for white space, Unicode form or case.

A twin of an evaluation document is not trained on, as the document itself is not. Most documents are
told apart by their first words, so looking for twins costs little.
"""

import unicodedata
from collections.abc import Iterable

WORDS = 8
"""Words that are compared before whole texts are."""


class Twins:
    """Texts whose twins are looked for; of each, two hashes are kept."""

    def __init__(self) -> None:
        self._starts: set[int] = set()
        self._texts: set[int] = set()

    def add(self, texts: Iterable[str]) -> None:
        """Know more texts."""
        for text in texts:
            words = text.split()
            self._starts.add(_form(words[:WORDS]))
            self._texts.add(_form(words))

    def __contains__(self, text: str) -> bool:
        is_alike = bool(self._starts) and _form(text.split(None, WORDS)[:WORDS]) in self._starts
        return is_alike and _form(text.split()) in self._texts


def _form(words: list[str]) -> int:
    composed = unicodedata.normalize("NFC", " ".join(words)).casefold()
    return hash(unicodedata.normalize("NFC", composed))
