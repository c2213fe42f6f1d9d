"""Each token is scored once, with the context it should have, and counts are of what is scored."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from storage.artifact import describe
from storage.step import Workspace
from tasks.evaluation.window import WindowConfig, Windows, build, load_windows, spans
from tasks.tokens import tokenize
from tasks.tokens.tokenize import TokenizeConfig
from tasks.tokens.tokenizer import Encoder, save

pytest_plugins = ["tests.tasks.tiny_models"]

FORMS = st.sampled_from(["paloma", "disjoint"])


def rolling(tokens: list[int], context: int) -> Iterator[tuple[list[int], list[int]]]:
    """Inputs and targets of the last positions, as lm-evaluation-harness rolls its windows.

    ``tokens`` begin with the one that stands in front of the document.
    """
    done = min(context, len(tokens) - 1)
    yield tokens[:done], tokens[1 : done + 1]
    while done < len(tokens) - 1:
        step = min(len(tokens) - 1 - done, context)
        done += step
        yield tokens[done - context : done], tokens[done - step + 1 : done + 1]


@cases(st.integers(1, 300), st.integers(2, 40), FORMS)
def test_each_token_is_scored_once(num_tokens: int, context: int, form: str) -> None:
    scored: list[int] = []
    for start, first, end in spans(num_tokens, context, form):
        assert 0 <= start <= start + first < end <= num_tokens
        assert end - start <= context
        assert form == "paloma" or first == 0
        scored += range(start + first, end)
    assert scored == list(range(num_tokens))


@cases(st.integers(1, 300), st.integers(2, 40))
def test_paloma_windows_roll(num_tokens: int, context: int) -> None:
    tokens = list(range(num_tokens + 1))
    found = [
        (tokens[start:end], tokens[start + first + 1 : end + 1])
        for start, first, end in spans(num_tokens, context, "paloma")
    ]
    assert found == list(rolling(tokens, context))


@settings(max_examples=40)
@cases(st.integers(0, 10_000), st.integers(1, 8), FORMS, st.integers(2, 40))
def test_stored_windows_give_back_the_documents(
    windows: Callable[..., Path], tokenizer: Path, seed: int, count: int, form: str, context: int
) -> None:
    """From the arrays alone; a document of one token among them."""
    lots = random.Random(seed)
    texts = ["x", *("ab é" * lots.randint(1, 30) + str(n) for n in range(count))]
    found = load_windows(windows(texts, format=form, context_length=context))
    encoder = Encoder(tokenizer)
    documents = {tuple(ids[:-1].tolist()) for ids in encoder.encode(texts)}
    assert set(scored_tokens(found)) == documents
    assert found.inputs.shape == found.targets.shape == (len(found.first), context)
    assert (found.inputs[:, 1:] == found.targets[:, :-1])[
        np.arange(1, context) < found.length[:, None]
    ].all()
    starts = [rows[0] for rows in windows_of(found)]
    assert (found.inputs[starts, 0] == encoder.end_of_text).all()


def windows_of(windows: Windows) -> list[list[int]]:
    """Numbers of the windows of each group; each document is one here."""
    return [np.flatnonzero(windows.group == g).tolist() for g in range(len(windows.num_tokens))]


def scored_tokens(windows: Windows) -> list[tuple[int, ...]]:
    """What each group's windows score, in order."""
    return [
        tuple(
            token
            for row in rows
            for token in windows.targets[row, windows.first[row] : windows.length[row]].tolist()
        )
        for rows in windows_of(windows)
    ]


def test_counts_are_of_the_text(windows: Callable[..., Path], tokenizer: Path) -> None:
    texts = ["one  two\nthree ", "日本 é", "x", " leading"]
    found = load_windows(windows(texts))
    encoder = Encoder(tokenizer)
    by_words = sorted(
        (len(encoder.encode([t])[0]) - 1, len(t.encode()), len(re.split(r"\s+", t))) for t in texts
    )
    rows = zip(found.num_tokens, found.num_bytes, found.num_words, strict=True)
    assert sorted((int(t), int(b), int(w)) for t, b, w in rows) == by_words


@settings(max_examples=40)
@cases(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), st.integers(1, 60))
def test_counts_are_of_the_scored_text_only(
    windows: Callable[..., Path], tokenizer: Path, text: str, limit: int
) -> None:
    texts = [text, "a second document"]
    found = load_windows(windows(texts, max_document_tokens=limit))
    encoder = Encoder(tokenizer)
    decoded = [encoder.tokenizer.decode(list(ids)) for ids in scored_tokens(found)]
    assert [len(d.encode()) for d in decoded] == found.num_bytes.tolist()
    assert [len(re.split(r"\s+", d)) if d else 0 for d in decoded] == found.num_words.tolist()
    assert found.num_tokens.max() <= limit
    assert all(any(t.startswith(d) for t in texts) for d in decoded)


def test_limit_inside_a_character(windows: Callable[..., Path]) -> None:
    """A smiling face is four tokens: six hold one, and half of the next is left out."""
    found = load_windows(windows(["😀😀😀"], max_document_tokens=6))
    assert (found.num_tokens.tolist(), found.num_bytes.tolist()) == ([4], [4])


def test_order_of_documents_does_not_show(
    windows: Callable[..., Path], prose: Callable[..., list[str]]
) -> None:
    texts = prose(5)
    other = random.Random(0).sample(texts, len(texts))
    assert describe("windows", windows(texts)) == describe("windows", windows(other))


def test_many_documents_share_groups(windows: Callable[..., Path]) -> None:
    texts = [f"document {number} " + "x" * (number % 9) for number in range(300)]
    alone, grouped = windows(texts, groups=300), windows(texts, groups=256)
    one, other = load_windows(alone), load_windows(grouped)
    assert len(one.num_tokens) == 300
    assert len(other.num_tokens) <= 256
    for name in ("num_tokens", "num_bytes", "num_words"):
        assert getattr(one, name).sum() == getattr(other, name).sum()
    np.testing.assert_array_equal(one.inputs, other.inputs)
    assert {*other.group} == {*np.flatnonzero(other.num_tokens)}
    # A group is chosen by the document, so other documents do not move it.
    fewer = load_windows(windows(texts[:280], groups=256))
    kept = {tuple(row): group for row, group in zip(other.inputs, other.group, strict=True)}
    assert all(kept[tuple(r)] == g for r, g in zip(fewer.inputs, fewer.group, strict=True))


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_set_without_text_is_refused(windows: Callable[..., Path], texts: list[str]) -> None:
    with pytest.raises(ValueError, match="the evaluation set has no text"):
        windows(texts)


def words_only(folder: Path) -> Path:
    """A tokenizer that knows one word."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "a": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    save(tokenizer, "<end>", folder)
    return folder


def test_unknown_tokens_are_counted_and_too_many_refused(
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
    stored: Callable[[list[str]], Path],
) -> None:
    tokenizer, few = words_only(new()), ["a " * 99 + "b", "a " * 100]
    few_inputs = {"documents": stored(few), "tokenizer": tokenizer}
    config = WindowConfig(context_length=32)
    assert build(config, few_inputs, new(), workspace())["num_unknown"] == 1
    tokens = tokenize.build(TokenizeConfig(), few_inputs, new(), workspace())
    assert (tokens["num_unknown"], tokens["num_tokens"]) == (1, 202)
    none_inputs = {**few_inputs, "documents": stored(["a a"])}
    assert "num_unknown" not in build(config, none_inputs, new(), workspace())
    assert "num_unknown" not in tokenize.build(TokenizeConfig(), none_inputs, new(), workspace())
    many_inputs = {**few_inputs, "documents": stored(["a " * 98 + "b c"])}
    with pytest.raises(ValueError, match=r"has 2 tokens .* among 100, and above 1% bits per byte"):
        build(config, many_inputs, new(), workspace())
