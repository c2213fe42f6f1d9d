"""Small models and random tokens: what the training and sweep benchmarks share."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from storage.artifact import describe
from storage.checkpoint import Checkpoints
from storage.step import Runtime, Workspace
from storage.store import Store
from tasks.corpus.documents import DocumentWriter, StoredDocument
from tasks.machine.meter import Meter
from tasks.models.facts import Facts
from tasks.models.folder import architecture_of, save_model
from tasks.models.initialise import InitialiseConfig, LlamaArchitecture, build_initial, llama_config
from tasks.tokens.tokenizer import TrainTokenizer, build_trained

CONTEXT = 128
VOCABULARY = 1024
NO_TOKENIZER = "0" * 64


def workspace(folder: Path, runtime: Runtime | None = None) -> Workspace:
    """A workspace without progress whose checkpoints lie below ``folder``."""
    store = Store(str(folder / "store"))
    checkpoints = Checkpoints(store.backend, "work/benchmark")
    return Workspace(
        runtime or Runtime(), checkpoints, Meter("cpu"), lambda done, total, unit: None
    )


def text(seed: int, num_words: int) -> str:
    """Random words: enough for a tokenizer to have something to merge."""
    generator = np.random.default_rng(seed)
    words = generator.integers(0, 5000, num_words)
    return " ".join(f"w{word:x}" for word in words)


def prepare(folder: Path) -> tuple[Path, Path]:
    """Folders of a tokenizer and of a model with random weights."""
    documents, tokenizer, model = (folder / n for n in ("documents", "tokenizer", "model"))
    with DocumentWriter(documents) as writer:
        for number in range(200):
            content = text(number, 400)
            writer.add(StoredDocument(f"{number:064x}", "any", str(number), 0, content))
    tokenizer.mkdir()
    model.mkdir()
    job = workspace(folder)
    config = TrainTokenizer(vocab_size=VOCABULARY)
    build_trained(config, {"documents": documents}, tokenizer, job)
    architecture = LlamaArchitecture(
        hidden_size=128, num_layers=3, num_heads=4, intermediate_size=344, context_length=CONTEXT
    )
    initial = InitialiseConfig(architecture=architecture)
    build_initial(initial, {"tokenizer": tokenizer}, model, job)
    return tokenizer, model


def tokens(folder: Path, count: int, tokenizer: Path) -> Path:
    """A token file of random ids, as if made by ``tokenizer``."""
    return random_tokens(folder, count, VOCABULARY, digest(tokenizer))


def random_tokens(folder: Path, count: int, vocabulary: int, tokenizer: str) -> Path:
    """A token file of random ids below ``vocabulary``; ``tokenizer`` is a digest."""
    folder.mkdir()
    ids = np.random.default_rng(0).integers(0, vocabulary, count).astype(np.uint16)
    ids.tofile(folder / "tokens.bin")
    facts = {"dtype": "uint16", "num_tokens": count, "tokenizer": tokenizer}
    (folder / "tokens.json").write_text(json.dumps(facts))
    return folder


def random_model(folder: Path, architecture: LlamaArchitecture, vocabulary: int) -> Path:
    """A model with random weights whose tokenizer is called ``NO_TOKENIZER``."""
    torch.manual_seed(architecture.seed)
    settings = llama_config(architecture, vocabulary, 0)
    model = AutoModelForCausalLM.from_config(settings)
    shape = architecture_of(settings.to_dict())
    save_model(model, folder, Facts(architecture=shape, tokenizer=NO_TOKENIZER, base=None, steps=0))
    return folder


def digest(folder: Path) -> str:
    """Digest of a folder's content."""
    return describe("any", folder).digest
