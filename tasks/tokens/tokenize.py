"""Step: encode documents into one file of token ids, which training maps into memory.

``tokens.bin`` holds the documents one behind the other, each closed by end-of-text, as uint16 or
uint32. ``tokens.json`` says which type, how many tokens, and by which tokenizer. Training cuts the
file into blocks of context + 1 tokens that overlap by one, so that every token but the first is
predicted once.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from storage.artifact import describe
from storage.fingerprint import Config
from storage.step import Step, Workspace
from tasks.corpus import documents
from tasks.tokens.processes import Encoders, text_batches
from tasks.tokens.vocabulary import shared


class TokenizeConfig(Config):
    """How documents become a token file; there is nothing to choose yet."""


def build(
    config: TokenizeConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Encode ``inputs["documents"]`` with ``inputs["tokenizer"]``; streaming."""
    del config
    encoders = Encoders(inputs["tokenizer"], workspace.runtime.threads)
    vocabulary, unknown, num_unknown = encoders.vocabulary, shared(encoders.vocabulary).unknown, 0
    sizes = Counter(num_documents=0, num_bytes=0)
    with (output / "tokens.bin").open("wb") as file:
        for ids in encoders.encode(_batches(inputs["documents"], sizes)):
            file.writelines(ids)
            if unknown is not None:
                found = np.frombuffer(b"".join(ids), vocabulary.dtype) == unknown
                num_unknown += int(np.count_nonzero(found))
            workspace.progress(file.tell() // vocabulary.itemsize, 0, "tokens")
        num_tokens = file.tell() // vocabulary.itemsize
    facts = {
        "dtype": vocabulary.dtype,
        "num_tokens": num_tokens,
        **sizes,
        "vocab_size": vocabulary.size,
        "tokenizer": describe("tokenizer", inputs["tokenizer"]).digest,
    }
    (output / "tokens.json").write_text(json.dumps(facts, sort_keys=True))
    workspace.meter.add(tokens=num_tokens)
    num_unknown -= sizes["num_documents"] * (unknown == vocabulary.end_of_text)
    return facts | ({"num_unknown": num_unknown} if num_unknown else {})


def _batches(folder: Path, sizes: Counter[str]) -> Iterator[list[str]]:
    texts = (row["text"] for row in documents.read_columns(folder, ["text"]))
    for batch in text_batches(texts, str):
        sizes.update(num_documents=len(batch), num_bytes=sum(len(t.encode()) for t in batch))
        yield batch


def load_tokens(folder: Path) -> np.ndarray:
    """The token ids of an artifact, shape (num_tokens,), mapped into memory, read-only."""
    facts = json.loads((folder / "tokens.json").read_text())
    if not facts["num_tokens"]:  # no system maps an empty file
        return np.empty(0, facts["dtype"])
    return np.memmap(folder / "tokens.bin", dtype=facts["dtype"], mode="r")


TOKENIZE = Step("tokenize", 1, "tokens", TokenizeConfig, build)
