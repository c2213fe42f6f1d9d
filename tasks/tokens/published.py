"""A tokenizer that a recipe gives: read from its own file, and what a person should know of it.

Ids are those of ``tokenizer.json``, read by the tokenizers library. transformers' classes build some
tokenizers by rules of their own instead. So they only name the end-of-text token, and read what has
no such file.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.tokens.folder import FolderError, loading
from tasks.tokens.tokenizer import MAX_ENTRIES, Encoder, GivenTokenizer, save
from tasks.tokens.vocabulary import plain

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PROBES = (
    "In 2026 it cost 1234567.89 (12%)",
    "one\n\n\ntwo \n\n  three\t\t4",
    "  two blanks first",
    "def f(x):\n        return x[0] != {'a_b'}",
    "IT'S what they'LL say, isn't it? <mask> a",
    "Où est le café? Ще не вмерла. मानव अधिकार",
    "日本語の文章、中文。한국어 글 مرحبا بكم",
    "e\u0301 Ａ ½ ﬁ \u200b… 🙂👩‍👧 https://a.org/b?c=1#d",
)
"""Texts in which one tokenizer differs from another: numbers, blanks, code, languages, forms."""

ENDS = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "<｜end▁of▁sentence｜>")
"""Tokens that stand between documents where models are trained on text."""

OTHER_FORMATS = {
    "tokenizer.model": "sentencepiece or tiktoken",
    "spiece.model": "sentencepiece",
    "sentencepiece.bpe.model": "sentencepiece",
    "tekken.json": "mistral-common",
}
"""Files of tokenizers that are not read, and the packages that read them."""

UNUSABLE = ("the tokenizer cannot be used", "give a folder that has a sound tokenizer.json")
"""What is wrong with a tokenizer at which libraries raise something, and the remedy."""


def import_given(config: GivenTokenizer, source: Path, output: Path) -> list[str]:
    """Write the tokenizer in the folder ``source`` into ``output``; sentences on what it does.

    Raises:
        FolderError: it cannot be read, is very large, or has no end-of-text token that no text can hold.
    """
    tokenizer, loaded = read_tokenizer(source), None
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= MAX_ENTRIES:
        raise FolderError(
            f"its largest token id is {largest:,}, and a vocabulary has {MAX_ENTRIES:,} entries at "
            "most: give a tokenizer with fewer"
        )
    with suppress(FolderError):  # nothing is lost but a name
        loaded = _by_transformers(source, *UNUSABLE)
    end = config.end_of_text or (None if loaded is None else loaded.eos_token)
    if end is None or tokenizer.token_to_id(end) is None:
        raise FolderError(
            (
                "names no end-of-text token"
                if end is None
                else f"has no end-of-text token {end!r:.200}"
            )
            + ": name one of its tokens in tokenizer.end_of_text, in double quotes where it has brackets"
        )
    notes = [_of_end(config, tokenizer, end)]
    if dropout := getattr(tokenizer.model, "dropout", None):
        notes.append(f"the tokenizer's dropout of {dropout:.3g} is off: equal texts have equal ids")
        tokenizer.model.dropout = None
    # A padding token that it does not have would be added to it.
    if tokenizer.padding and tokenizer.token_to_id(tokenizer.padding["pad_token"]) is None:
        tokenizer.no_padding()
    save(tokenizer, end, output)
    encoder = Encoder(output)
    if encoder.end_of_text in encoder.tokenizer.encode(f"a {end} a{end}").ids:
        raise FolderError(
            f"reads {end!r:.200} in a text as its end: name a special token in tokenizer.end_of_text"
        )
    notes += _of_frame(tokenizer, encoder.tokenizer, end)
    there = getattr(loaded, "backend_tokenizer", None)
    if there is not None and (found := difference(encoder.tokenizer, plain(there))):
        probe, ids, other = found
        notes.append(
            f"tokenizer.json reads {probe!r} as {ids}, which holds here, and transformers' "
            f"{type(loaded).__name__} as {other}"
        )
    return notes


def read_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer of a folder.

    Raises:
        FolderError: there is none that the tokenizers library can be.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if file.exists():
        problem = "has a tokenizer.json that cannot be read"
        with loading(folder, problem, "write it again, or upgrade tokenizers"):
            return Tokenizer.from_file(str(file))
    if not any(folder.glob("vocab*")):  # transformers would make one of a few tokens of nothing
        others = [name for name in OTHER_FORMATS if (folder / name).exists()]
        raise FolderError(
            f"has no tokenizer.json, but {others[0]}, which {OTHER_FORMATS[others[0]]} reads: where "
            "that is installed, convert it by "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...), and give the "
            "folder that this writes"
            if others
            else "cannot be loaded, for it has no tokenizer.json: give a folder that has one, or a hub "
            "name that this machine can reach"
        )
    loaded = _by_transformers(folder, "cannot be loaded", "give a folder that has tokenizer.json")
    if not loaded.is_fast:
        raise FolderError("is no fast tokenizer (no tokenizer.json): give a folder that has one")
    backend: Tokenizer = loaded.backend_tokenizer
    return backend


def _by_transformers(folder: Path, problem: str, remedy: str) -> Any:
    from transformers import AutoTokenizer

    with loading(folder, problem, remedy):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def difference(one: "Tokenizer", other: "Tokenizer") -> tuple[str, list[int], list[int]] | None:
    """The first of ``PROBES`` that two tokenizers encode differently, with the ids of both.

    Dropout of the other, with which it differs from itself, is off from now on.
    """
    if getattr(other.model, "dropout", None):
        other.model.dropout = None
    for probe in PROBES:
        ids = [each.encode(probe, add_special_tokens=False).ids for each in (one, other)]
        if ids[0] != ids[1]:
            return probe, ids[0], ids[1]
    return None


def _of_end(config: GivenTokenizer, tokenizer: "Tokenizer", end: str) -> str:
    ends = f"each document ends with {end!r} (id {tokenizer.token_to_id(end)})"
    there = [other for other in ENDS if tokenizer.token_to_id(other) is not None]
    if config.end_of_text is None and end not in ENDS and there:
        ends += (
            f", the tokenizer's default, which may be the end of a chat's turn: {there[0]!r} is "
            "there too, so set tokenizer.end_of_text to what stood between documents in pre-training"
        )
    return ends


def _of_frame(tokenizer: "Tokenizer", here: "Tokenizer", end: str) -> list[str]:
    """A sentence on a beginning of sequence that the tokenizer would add, if it would."""
    ids = here.encode("a", add_special_tokens=False)
    frame = tokenizer.post_processor
    first = ids.ids[:1] if frame is None else frame.process(ids).ids[:1]
    token = None if first == ids.ids[:1] else tokenizer.id_to_token(first[0])
    if token in (None, end):  # windows begin with the latter anyway
        return []
    return [f"the tokenizer would put {token!r} before a text: here, windows begin with {end!r}"]
