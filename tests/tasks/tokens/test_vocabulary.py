"""Whoever looks words up and whoever asks the library for all of a text say the same."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from tasks.tokens.tokenizer import Encoder, save
from tasks.tokens.vocabulary import Ids, Vocabulary, shared
from tasks.tokens.word_table import is_separable

pytest_plugins = ["tests.tasks.tiny_models"]

ODD = ["", " ", "e\u0301 naïve  日本\u3000x", "<|endoftext|>", "one\n\n  two's  12.5%\t" * 300]


def by_library(text: str, texts: list[str]) -> list[list[int]]:
    """Ids as the library gives them, in the plainest way."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    return [tokenizer.encode(each, add_special_tokens=False).ids for each in texts]


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
@pytest.mark.parametrize(
    ("size", "dtype"), [(300, "uint16"), (1 << 16, "uint16"), (65537, "uint32")]
)
def test_ids_are_those_of_the_library(
    tokenizer: Path,
    prose: Callable[..., list[str]],
    normalizer: dict[str, str] | None,
    size: int,
    dtype: str,
) -> None:
    state = {**json.loads((tokenizer / "tokenizer.json").read_text()), "normalizer": normalizer}
    assert is_separable(state) == (normalizer is None)
    text, texts = json.dumps(state), [*prose(1), *ODD]
    vocabulary = Vocabulary(text, end_of_text=7, size=size)
    assert vocabulary.dtype == dtype
    found = Ids(vocabulary)
    encoded, counts = found.encode(texts), found.count(texts)
    for ids, count, expected in zip(encoded, counts, by_library(text, texts), strict=True):
        np.testing.assert_array_equal(np.frombuffer(ids, dtype), [*expected, 7])
        assert count == len(expected) + 1 == len(ids) // vocabulary.itemsize


def test_a_text_that_has_no_ids(tmp_path: Path) -> None:
    """Not all tokenizers have an entry for words that they do not know, and none is made up."""
    tokenizer = Tokenizer(models.WordPiece({"a": 0, "b": 1}, unk_token="<unk>"))
    ids = Ids(Vocabulary(tokenizer.to_str(), end_of_text=1, size=2))
    assert ids.count(["a"]) == [2]
    save(tokenizer, "b", tmp_path)
    encoder = Encoder(tmp_path)
    assert [covered for covered, _ in encoder.encode_starts(["a"], 1)] == ["a"]
    for encode in (ids.count, partial(encoder.encode_starts, limit=1)):
        with pytest.raises(
            ValueError, match=r"cannot encode a text of the .* \(.*\): give one that"
        ):
            encode(["a", "zebra"])


def test_words_are_remembered_from_step_to_step(tokenizer: Path) -> None:
    text = (tokenizer / "tokenizer.json").read_text()
    assert shared(Vocabulary(text, 0, 300)) is shared(Vocabulary(f"{text} ".strip(), 0, 300))
    assert shared(Vocabulary(text, 0, 300)) is not shared(Vocabulary(text, 1, 300))
