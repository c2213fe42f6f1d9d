"""A given tokenizer's ids are those of its own file, whatever class its folder names."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from storage.artifact import describe
from tasks.tokens.published import OTHER_FORMATS, PROBES, difference, import_given, read_tokenizer
from tasks.tokens.tokenizer import Encoder, GivenTokenizer, save
from tasks.tokens.vocabulary import plain

pytest_plugins = ["tests.tasks.tiny_models"]

HARD = [
    *PROBES,
    *(
        "",
        " ",
        "\n\n\n",
        "x" * 3000,
        "\x00\x07 \x1b[0m\x7f",
        " \t leading",
        "trailing  ",
        "\r\nа\u2028б",
    ),
    *(
        "<|endoftext|> and </s> and <s>",
        "ﬁ ﬀ ² ①",
        "a</s>b [SEP] [UNK]",
        "123 4567 89012345",
        "  \n  \n x",
    ),
    "class A:\n\tdef b(self):\n\t\treturn 'c' if 1e-9 < 2 else None\n\n\n\n#!/bin/sh\n",
]
"""A small corpus of what tokenizers split, change or treat as special in ways of their own."""

TEXTS = [*HARD, "the words of this text are the words of that text, again and again: the text"] * 3

END = "<|endoftext|>"
GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}]+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Made = tuple[Tokenizer, dict[str, Any]]


def byte_level(
    *splits: Any, normalizer: Any = None, changes: Mapping[str, Any] | None = None
) -> Tokenizer:
    """A BPE over bytes; ``splits`` stand before the bytes, ``changes`` in its model."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes]) if splits else to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return edited(tokenizer, **(changes or {}))


def edited(tokenizer: Tokenizer, **model: Any) -> Tokenizer:
    """The tokenizer with other fields in its model."""
    state = json.loads(tokenizer.to_str())
    state["model"] |= model
    return Tokenizer.from_str(json.dumps(state))


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def pieces(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """A BPE over characters, and bytes of those that it does not know, as SentencePiece's."""
    plain = Tokenizer(models.BPE())
    plain.normalizer, plain.pre_tokenizer = normalizer, pre_tokenizer or pre_tokenizers.Metaspace()
    plain.train_from_iterator(TEXTS[-1:], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learnt = json.loads(plain.to_str())["model"]
    own = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: n for n, token in enumerate([*own, *learnt["vocab"]])},
            merges=[tuple(pair) for pair in learnt["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram(*, byte_fallback: bool = False) -> Tokenizer:
    """As SentencePiece's Unigram models: its special tokens are pieces, with the best score."""
    learnt = Tokenizer(models.Unigram())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    learnt.train_from_iterator(TEXTS[-1:] * 9 + ["< / s > a b"], trainer)
    if not byte_fallback:
        return learnt
    state = json.loads(learnt.to_str())
    in_bytes = [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    return edited(learnt, vocab=[*state["model"]["vocab"], *in_bytes], byte_fallback=True)


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS[-1:], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=16, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(16)
    return tokenizer


def with_added(tokenizer: Tokenizer, *tokens: AddedToken) -> Tokenizer:
    tokenizer.add_tokens([*tokens])
    return tokenizer


def framed(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(["<|begin_of_text|>"])
    number = tokenizer.token_to_id("<|begin_of_text|>")
    frame = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", number)]
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), frame]
    )
    return tokenizer


def padded(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.enable_padding(length=64, pad_id=9, pad_token="[PAD]")
    tokenizer.enable_truncation(5)
    return tokenizer


def prefixed(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def named(name: str, end: str = END, **more: Any) -> dict[str, Any]:
    return {"tokenizer_class": name, "eos_token": end, **more}


BACKEND = "PreTrainedTokenizerFast"
PREPENDED = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
SHAPES: dict[str, Callable[[], Made]] = {
    "gpt-2": lambda: (byte_level(), named("GPT2Tokenizer")),
    "digits": lambda: (
        byte_level(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)),
        named("GPT2Tokenizer"),
    ),
    "olmo-2": lambda: (byte_level(split(GPT4)), named("GPT2Tokenizer")),
    "gpt-4o": lambda: (byte_level(split(GPT4O)), named("GPT2Tokenizer")),
    "granite": lambda: (byte_level(split(GPT4)), named("GPTNeoXTokenizer")),
    "gpt-neox": lambda: (
        byte_level(normalizer=normalizers.NFC()),
        named("GPTNeoXTokenizer"),
    ),
    "codegen": lambda: (
        with_added(byte_level(), *(AddedToken(" " * n, normalized=False) for n in range(2, 9))),
        named("CodeGenTokenizer"),
    ),
    "llama-3": lambda: (
        framed(byte_level(split(GPT4), changes={"ignore_merges": True})),
        named(BACKEND, bos_token="<|begin_of_text|>"),
    ),
    "qwen": lambda: (
        byte_level(split(GPT4), normalizer=normalizers.NFC()),
        named("Qwen2Tokenizer"),
    ),
    "claude": lambda: (byte_level(normalizer=normalizers.NFKC()), named(BACKEND)),
    "deepseek": lambda: (
        with_added(
            byte_level(split(r"\p{N}{1,3}"), split("[一-龥ぁ-ヿ]+"), split(GPT4)),
            AddedToken("<｜User｜>", special=False),
            AddedToken("<mask>", special=False),
        ),
        named("LlamaTokenizerFast"),
    ),
    "llama-2": lambda: (pieces(PREPENDED, None), named("LlamaTokenizer", "</s>")),
    "mistral": lambda: (
        pieces(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
        named("LlamaTokenizer", "</s>", legacy=False),
    ),
    "gemma": lambda: (
        pieces(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")),
        named("GemmaTokenizer", "</s>"),
    ),
    "minilm": lambda: (word_piece(), named("BertTokenizer", "[SEP]")),
    "unigram": lambda: (unigram(), named(BACKEND, "</s>")),
    "unigram with bytes": lambda: (unigram(byte_fallback=True), named("T5Tokenizer", "</s>")),
    "prefix space": lambda: (prefixed(byte_level()), named("GPT2Tokenizer")),
    "padding": lambda: (padded(byte_level()), named("GPT2Tokenizer")),
    "dropout": lambda: (byte_level(changes={"dropout": 0.5}), named("GPT2Tokenizer")),
}
"""Tokenizers made like published ones, and the class that their folder names."""


def published(folder: Path, name: str) -> Path:
    """The folder with a tokenizer of ``SHAPES``."""
    tokenizer, settings = SHAPES[name]()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def take(source: Path, output: Path, **config: Any) -> tuple[Encoder, list[str]]:
    """A given tokenizer's encoder, and what is said of it."""
    notes = import_given(GivenTokenizer(path=str(source), **config), source, output)
    return Encoder(output), notes


def by_file(source: Path, *, framed: bool = False) -> list[list[int]]:
    """Ids that a tokenizer's file gives to each hard text."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = not framed
    if hasattr(tokenizer.model, "dropout"):
        tokenizer.model.dropout = None
    return [tokenizer.encode(text, add_special_tokens=framed).ids for text in HARD]


@pytest.mark.parametrize("name", SHAPES)
def test_ids_are_those_of_the_file(name: str, new: Callable[[], Path]) -> None:
    source, output = published(new(), name), new()
    encoder, notes = take(source, output)
    found, expected = [ids.tolist() for ids in encoder.encode(HARD)], by_file(source)
    assert len({tuple(ids) for ids in expected}) > len(HARD) // 2
    for text, ids, those in zip(HARD, found, expected, strict=True):
        if "unigram" not in name or "</s>" not in text:
            assert ids == [*those, encoder.end_of_text], text
        assert encoder.end_of_text not in ids[:-1]
    assert [e[1].tolist() for e in encoder.encode_starts(HARD, 10**6)] == found
    assert by_file(output, framed=True) == by_file(source, framed=True)
    assert notes[0].startswith(f"each document ends with {SHAPES[name]()[1]['eos_token']!r}")


@pytest.mark.parametrize(
    ("name", "cls"),
    [("olmo-2", "GPT2Tokenizer"), ("granite", "GPTNeoXTokenizer"), ("llama-2", "LlamaTokenizer")],
)
def test_another_reading_of_transformers_is_said_with_both_ids(
    name: str, cls: str, new: Callable[[], Path]
) -> None:
    source = published(new(), name)
    _, notes = take(source, new())
    (said,) = [note for note in notes if "transformers'" in note]
    probe = next(probe for probe in PROBES if repr(probe) in said)
    ids = by_file(source)[HARD.index(probe)]
    assert f"as {ids}, which holds here, and transformers' {cls} as [" in said


def test_where_transformers_reads_the_same_nothing_is_said(new: Callable[[], Path]) -> None:
    for name in ("gpt-2", "llama-3", "unigram"):
        assert not [n for n in take(published(new(), name), new())[1] if "transformers'" in n]


def test_a_models_type_counts_for_transformers(new: Callable[[], Path]) -> None:
    """Beside a config.json of OLMo 2, transformers reads the file itself."""
    source = published(new(), "olmo-2")
    (source / "config.json").write_text(json.dumps({"model_type": "olmo2"}))
    assert not [note for note in take(source, new())[1] if "transformers'" in note]


@pytest.mark.parametrize("name", ["unigram", "unigram with bytes"])
def test_a_unigram_model_spells_special_tokens_out(name: str, new: Callable[[], Path]) -> None:
    source = published(new(), name)
    encoder, _ = take(source, new())
    own = Tokenizer.from_file(str(source / "tokenizer.json"))
    special = {own.token_to_id(token) for token in ("<s>", "</s>")}
    (ids,) = encoder.encode(["a</s>b <s>"])
    assert not special.intersection(ids[:-1].tolist())
    assert ids[-1] == own.token_to_id("</s>")
    assert "".join(own.decode([n], skip_special_tokens=False) for n in ids[:-1]) == "▁a</s>b▁<s>"


def test_dropout_is_off_and_said(new: Callable[[], Path]) -> None:
    source = published(new(), "dropout")
    encoder, notes = take(source, new())
    assert "the tokenizer's dropout of 0.5 is off: equal texts have equal ids" in notes
    assert [note for note in notes if "transformers'" in note] == []
    assert difference(encoder.tokenizer, plain(read_tokenizer(source))) is None
    text = TEXTS[-1]
    assert len({tuple(encoder.encode([text])[0].tolist()) for _ in range(9)}) == 1


def test_unknown_ids(new: Callable[[], Path]) -> None:
    found = {name: take(published(new(), name), new())[0].unknown for name in ("gpt-2", "minilm")}
    assert found == {"gpt-2": None, "minilm": 1}
    assert take(published(new(), "unigram"), new())[0].unknown == 0


def test_a_padding_token_that_is_not_there_is_not_added(new: Callable[[], Path]) -> None:
    source, output = published(new(), "padding"), new()
    encoder, _ = take(source, output)
    assert (
        encoder.vocab_size == Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab_size()
    )
    saved = Tokenizer.from_file(str(output / "tokenizer.json"))
    assert saved.get_vocab_size() == encoder.vocab_size


def test_a_chats_end_of_turn_is_told_from_the_end_of_text(new: Callable[[], Path]) -> None:
    source = published(new(), "qwen")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(source / "tokenizer.json"))
    settings = named("Qwen2Tokenizer", "<|im_end|>")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder, notes = take(source, new())
    assert encoder.end_of_text == tokenizer.token_to_id("<|im_end|>")
    assert notes[0].startswith("each document ends with '<|im_end|>' (id ")
    assert "'<|endoftext|>' is there too, so set tokenizer.end_of_text" in notes[0]
    _, notes = take(source, new(), end_of_text=END)
    assert notes[0] == "each document ends with '<|endoftext|>' (id 0)"


def test_a_beginning_of_sequence_is_said(new: Callable[[], Path]) -> None:
    _, notes = take(published(new(), "llama-3"), new())
    said = "the tokenizer would put '<|begin_of_text|>' before a text: here, windows begin with"
    assert [note for note in notes if note.startswith(said)]
    assert len(take(published(new(), "gpt-2"), new())[1]) == 1
    assert len(take(published(new(), "llama-3"), new(), end_of_text="<|begin_of_text|>")[1]) == 1


def test_an_end_that_a_text_can_hold_is_refused(new: Callable[[], Path]) -> None:
    source = published(new(), "deepseek")
    with pytest.raises(ValueError, match=r"reads '<mask>' in a text as its end: .*end_of_text"):
        take(source, new(), end_of_text="<mask>")


def test_what_a_fast_tokenizer_is_made_of_will_do(new: Callable[[], Path]) -> None:
    """A vocabulary and merges without tokenizer.json are read by transformers."""
    source, parts = published(new(), "gpt-2"), new()
    Tokenizer.from_file(str(source / "tokenizer.json")).model.save(str(parts))
    (parts / "tokenizer_config.json").write_text(json.dumps(named("GPT2Tokenizer")))
    encoder, _ = take(parts, new())
    assert [ids.tolist()[:-1] for ids in encoder.encode(HARD)] == by_file(source)


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_another_format_is_refused_with_its_name(name: str, new: Callable[[], Path]) -> None:
    source = new()
    (source / name).write_bytes(b"\n\x0e\n\x05")
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=f"no tokenizer.json, but {name}, which .* convert it by"):
        take(source, new())


def test_a_damaged_file_is_refused(new: Callable[[], Path]) -> None:
    source = published(new(), "gpt-2")
    text = (source / "tokenizer.json").read_text()
    (source / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(
        ValueError, match=r"tokenizer.json that cannot be read \(.*\): write it again"
    ):
        read_tokenizer(source)


@pytest.mark.parametrize("name", ["gpt-2", "llama-2", "qwen", "minilm"])
def test_what_transformers_itself_has_saved_keeps_its_digest(
    name: str, new: Callable[[], Path]
) -> None:
    """Artifacts of such tokenizers were made by way of transformers, and stay the same bytes."""
    source, before, now = new(), new(), new()
    loaded = AutoTokenizer.from_pretrained(published(new(), name))
    loaded.save_pretrained(source)
    save(loaded.backend_tokenizer, loaded.eos_token, before)
    take(source, now)
    assert describe("tokenizer", now) == describe("tokenizer", before)
