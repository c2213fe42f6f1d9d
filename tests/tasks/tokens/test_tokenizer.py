"""Any text goes through a trained tokenizer and back, and nothing is added but end-of-text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from storage.artifact import describe
from storage.step import Workspace
from tasks.tokens.published import import_given
from tasks.tokens.tokenize import load_tokens
from tasks.tokens.tokenizer import (
    Encoder,
    GivenTokenizer,
    TrainTokenizer,
    build_trained,
    copy_files,
)

pytest_plugins = ["tests.tasks.tiny_models"]

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
"""Any text that UTF-8 can carry, control characters and end-of-text's own letters among it."""


@pytest.fixture(scope="session")
def encoder(tokenizer: Path) -> Encoder:
    return Encoder(tokenizer)


@cases(TEXTS | st.lists(st.sampled_from(["<|endoftext|>", " ", "é", "日本", "\n"])).map("".join))
def test_any_text_comes_back(encoder: Encoder, text: str) -> None:
    (ids,) = encoder.encode([text])
    assert ids[-1] == encoder.end_of_text
    assert encoder.end_of_text not in ids[:-1]
    assert encoder.tokenizer.decode(ids.tolist()) == text


@cases(st.lists(TEXTS, max_size=5))
def test_texts_do_not_see_one_another(encoder: Encoder, texts: list[str]) -> None:
    together = encoder.encode(texts)
    for text, ids in zip(texts, together, strict=True):
        np.testing.assert_array_equal(encoder.encode([text])[0], ids)


@cases(TEXTS, st.integers(1, 12))
def test_the_start_of_a_text_never_cuts_a_character(
    encoder: Encoder, text: str, limit: int
) -> None:
    ((covered, ids),) = encoder.encode_starts([text], limit)
    (whole,) = encoder.encode([text])
    assert text.startswith(covered)
    assert encoder.tokenizer.decode(ids.tolist()) == covered
    np.testing.assert_array_equal(ids[:-1], whole[: len(ids) - 1])
    assert len(ids) - 1 <= limit
    if len(whole) - 1 > limit:
        # What is left out is less than one character: four bytes at most.
        assert len(ids) - 1 > limit - 4
    else:
        assert covered == text


def test_no_limit_takes_everything(encoder: Encoder) -> None:
    ((covered, ids),) = encoder.encode_starts(["naïve 日本"], None)
    assert covered == "naïve 日本"
    np.testing.assert_array_equal(ids, encoder.encode(["naïve 日本"])[0])


def test_training_is_deterministic(
    tokenizer: Path,
    stored: Callable[[list[str]], Path],
    prose: Callable[..., list[str]],
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> None:
    again, other = new(), new()
    config = TrainTokenizer(vocab_size=300)
    build_trained(config, {"documents": stored(prose(0))}, again, workspace())
    build_trained(config, {"documents": stored(prose(1))}, other, workspace())
    assert describe("tokenizer", again) == describe("tokenizer", tokenizer)
    assert describe("tokenizer", other) != describe("tokenizer", tokenizer)
    assert Encoder(again).vocab_size == 300


def published(folder: Path, *, split: bool = True, **names: str) -> Tokenizer:
    """A tokenizer like those of published models: it adds tokens and trims offsets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["one text  of words"] * 9, trainer)
    frame = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), frame])
    tokenizer.enable_padding(length=64, pad_id=1, pad_token="</s>")
    tokenizer.enable_truncation(5)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return tokenizer


def take_over(source: Path, output: Path, **config: Any) -> Encoder:
    """The encoder of a given tokenizer."""
    import_given(GivenTokenizer(path=str(source), **config), source, output)
    return Encoder(output)


def test_given_tokenizer_adds_nothing_but_end_of_text(new: Callable[[], Path]) -> None:
    source = new()
    theirs = published(source, eos_token="</s>", bos_token="<s>")
    encoder = take_over(source, new())
    text = "some  words of one text, longer than five tokens\n\n </s>"
    (ids,) = encoder.encode([text])
    theirs.no_padding()
    theirs.no_truncation()
    theirs.encode_special_tokens = True
    assert ids.tolist() == [*theirs.encode(text, add_special_tokens=False).ids, 1]
    assert encoder.vocab_size == theirs.get_vocab_size()


def test_offsets_of_a_given_tokenizer_are_not_trimmed(new: Callable[[], Path]) -> None:
    """Trimmed, a space at the end of what is covered would not count as a byte."""
    source = new()
    published(source, split=False, eos_token="</s>")
    encoder = take_over(source, new())
    assert any(token.endswith("Ġ") for token in encoder.tokenizer.get_vocab() if len(token) > 1)
    for limit in range(1, 9):
        ((covered, ids),) = encoder.encode_starts(["one text  of words é of one"], limit)
        assert encoder.tokenizer.decode(ids[:-1].tolist()) == covered


def test_end_of_text_may_be_named(new: Callable[[], Path]) -> None:
    source = new()
    published(source, eos_token="</s>")
    assert take_over(source, new()).end_of_text == 1
    assert take_over(source, new(), end_of_text="<s>").end_of_text == 0
    with pytest.raises(ValueError, match=r"no end-of-text token '<end>'.*tokenizer\.end_of_text"):
        take_over(source, new(), end_of_text="<end>")


def test_no_end_of_text(new: Callable[[], Path]) -> None:
    source = new()
    published(source)
    with pytest.raises(ValueError, match=r"names no end-of-text token: .*tokenizer\.end_of_text"):
        take_over(source, new())


def test_slow_tokenizer_is_refused(new: Callable[[], Path]) -> None:
    source = new()
    settings = {"tokenizer_class": "CTRLTokenizer", "eos_token": "a"}
    (source / "vocab.json").write_text(json.dumps({"a": 0, "<unk>": 1}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no fast tokenizer"):
        take_over(source, new())


def test_folder_without_a_tokenizer(new: Callable[[], Path]) -> None:
    with pytest.raises(ValueError, match=r"cannot be loaded, .*no tokenizer\.json"):
        take_over(new(), new())


def test_large_vocabularies_need_four_bytes(tokenizer: Path, new: Callable[[], Path]) -> None:
    folder = new()
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    facts = json.loads((folder / "mixpool.json").read_text())
    for size, dtype in ((1 << 16, "uint16"), ((1 << 16) + 1, "uint32")):
        (folder / "mixpool.json").write_text(json.dumps({**facts, "vocab_size": size}))
        assert Encoder(folder).encode(["x"])[0].dtype == dtype


def test_tokens_are_the_documents_in_order(
    tokens: Callable[[list[str]], Path], encoder: Encoder, tokenizer: Path
) -> None:
    texts = [f"text {number} é" for number in range(300)]
    folder = tokens(texts)
    found = load_tokens(folder)
    np.testing.assert_array_equal(found, np.concatenate(encoder.encode(texts)))
    facts = json.loads((folder / "tokens.json").read_text())
    assert facts == {
        "dtype": "uint16",
        "num_tokens": len(found),
        "num_documents": 300,
        "num_bytes": len("".join(texts).encode()),
        "vocab_size": 300,
        "tokenizer": describe("tokenizer", tokenizer).digest,
    }


def test_tokens_are_mapped_and_read_only(tokens: Callable[[list[str]], Path]) -> None:
    found = load_tokens(tokens(["some text"]))
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert len(load_tokens(tokens([]))) == 0


def test_exported_tokenizer_loads_by_itself(tokenizer: Path, new: Callable[[], Path]) -> None:
    target = new()
    copy_files(tokenizer, target)
    loaded = PreTrainedTokenizerFast.from_pretrained(target)
    assert loaded.eos_token == "<|endoftext|>"
    assert loaded.decode(loaded("naïve text").input_ids) == "naïve text"
    assert not (target / "mixpool.json").exists()
