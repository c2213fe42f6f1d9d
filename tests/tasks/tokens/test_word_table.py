"""Pieces of a text that are encoded alone give what the library makes of the whole text."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as cases
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from tasks.tokens import word_table
from tasks.tokens.vocabulary import Ids, Vocabulary
from tasks.tokens.word_table import WORD, Words, is_separable, parts

pytest_plugins = ["tests.tasks.tiny_models"]

ODD = (
    "aZ", "s", "'", "'s", "'ll", "9", "0", ".", "_", "$", " ", "  ", "\n", "\t", "\r", "\v", "\f",
    "\x00", "\x1c", "\x1f", "\x7f", "\x85", "\xa0", "é", "e\u0301", "\u2003", "\u3000", "日", "²",
    "½", "१", "一", "Ⅷ", "\u200b", "’", "😀", "\u0300", "ſ", "\ufeff", "\u2028", "ª",
)  # fmt: skip
"""What two Unicode tables, or two regular expressions, may think differently of."""

WHOLE = ByteLevel(add_prefix_space=False)
"""The library's way to split."""


def split(text: str) -> list[str]:
    """The library's words of a text."""
    return [word for word, _ in WHOLE.pre_tokenize_str(text)]


def pieces_split(pieces: list[str]) -> list[str]:
    """The library's words of pieces that it sees one by one."""
    return [word for piece in pieces for word in split(piece)]


def test_every_three_kinds_of_ascii_are_split_as_by_the_library() -> None:
    """Each piece is one word then, so that the table is asked for as few as can be."""
    letters = [chr(number) for number in (*range(9, 14), *range(32, 127))]
    kinds = "as1'.\n\t  "
    pairs = map("".join, itertools.product(letters, letters))
    longer = map("".join, itertools.product(kinds, repeat=5))
    for text in [*pairs, *longer]:
        pieces = WORD.findall(text)
        assert "".join(pieces) == text
        assert [split(piece) for piece in pieces] == [[word] for word in split(text)], repr(text)


@cases(st.lists(st.sampled_from(ODD) | st.characters(codec="utf-8"), max_size=12).map("".join))
def test_pieces_of_any_text_are_split_as_the_text(text: str) -> None:
    pieces = WORD.findall(text)
    assert "".join(pieces) == text
    assert pieces_split(pieces) == split(text)


def test_pieces_of_many_odd_texts_are_split_as_the_text() -> None:
    lots = random.Random(0)
    for _ in range(20_000):
        text = "".join(lots.choices(ODD, k=lots.randint(2, 14)))
        assert pieces_split(WORD.findall(text)) == split(text), repr(text)


def test_a_long_text_is_cut_where_no_word_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_table, "PART_CHARACTERS", 5)
    lots = random.Random(1)
    for _ in range(5_000):
        text = "".join(lots.choices(ODD, k=30))
        found = list(parts(text))
        assert "".join(found) == text
        assert pieces_split([piece for part in found for piece in WORD.findall(part)]) == split(
            text
        )
    assert len(list(parts("some words, and more of them"))) == 3
    assert list(parts("日本語" * 50)) == ["日本語" * 50], "nothing tells where a word ends"


def test_a_table_stays_small_and_forgets_nothing_that_matters(
    tokenizer: Path, prose: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_table, "MAX_WORDS", 10)
    monkeypatch.setattr(word_table, "MAX_LENGTH", 4)
    text = (tokenizer / "tokenizer.json").read_text()
    library = Ids(Vocabulary(text, 0, 300))
    asked: list[str] = []

    def encode(texts: list[str]) -> list[bytes]:
        asked.extend(texts)
        return [ids[:-2] for ids in library.encode(texts)]

    table = Words(encode)
    texts = prose(2, num_documents=5)
    assert table.encode(texts) == encode(texts)
    assert len(table) <= 10
    assert max(map(len, table)) <= 4
    asked.clear()
    table.encode([" ab", " ab", " ab"])
    assert asked in ([" ab"], []), "a word is encoded once"


@pytest.fixture(scope="module")
def state(tokenizer: Path) -> dict[str, Any]:
    """The content of a trained tokenizer's file."""
    found: dict[str, Any] = json.loads((tokenizer / "tokenizer.json").read_text())
    return found


def test_trained_tokenizers_encode_word_by_word(state: dict[str, Any]) -> None:
    assert is_separable(state)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"model": {"type": "Unigram"}},
        {"model": {"type": "BPE", "dropout": 0.1}},
        {
            "added_tokens": [
                {"content": "<|end|>", "special": True},
                {"content": "  ", "special": False},
            ]
        },
    ],
)
def test_other_tokenizers_are_left_to_the_library(
    state: dict[str, Any], change: dict[str, Any]
) -> None:
    assert not is_separable({**state, **change})
