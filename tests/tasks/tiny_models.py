"""What the tests of models share: tiny real ones, each made once for all tests.

A test module takes them with ``pytest_plugins = ["tests.tasks.tiny_models"]``.
"""

import hashlib
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.checkpoint import Checkpoints
from storage.step import Progress, Runtime, Workspace
from storage.store import Store
from tasks.corpus import documents
from tasks.evaluation import window
from tasks.evaluation.window import WindowConfig
from tasks.machine.meter import Meter
from tasks.models.given import ImportConfig, build_import
from tasks.models.initialise import InitialiseConfig, LlamaArchitecture, build_initial
from tasks.tokens import tokenize
from tasks.tokens.tokenize import TokenizeConfig
from tasks.tokens.tokenizer import TrainTokenizer, build_trained

ARCHITECTURE = LlamaArchitecture(
    hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, context_length=32
)


def silent(done: int, total: int, unit: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="session")
def new(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A new, empty folder."""
    return lambda: tmp_path_factory.mktemp("new")


@pytest.fixture(scope="session")
def workspace(new: Callable[[], Path]) -> Callable[..., Workspace]:
    """A workspace with resume points of its own."""
    import torch

    torch.set_num_threads(1)

    def make(progress: Progress = silent, **runtime: object) -> Workspace:
        where = Runtime.model_validate({"device": "cpu", "threads": 1, **runtime})
        return Workspace(
            where, Checkpoints(Store(str(new())).backend, "work/x"), Meter("cpu"), progress
        )

    return make


@pytest.fixture(scope="session")
def prose() -> Callable[..., list[str]]:
    """Texts of seeded nonsense words, with some that are not ASCII."""

    def make(seed: int, num_documents: int = 20, num_words: int = 60) -> list[str]:
        lots = random.Random(seed)
        letters = "etaoinshrdlucmfwypvbgkqjxzé日"
        words = ["".join(lots.choices(letters, k=lots.randint(1, 6))) for _ in range(80)]
        return [" ".join(lots.choices(words, k=num_words)) for _ in range(num_documents)]

    return make


@pytest.fixture(scope="session")
def stored(new: Callable[[], Path]) -> Callable[[list[str]], Path]:
    """Texts as an artifact of documents."""

    def make(texts: list[str]) -> Path:
        folder = new()
        with documents.DocumentWriter(folder) as writer:
            for number, text in enumerate(texts):
                digest = hashlib.sha256(text.encode()).hexdigest()
                writer.add(documents.StoredDocument(digest, "domain", str(number), 0, text))
        return folder

    return make


@pytest.fixture(scope="session")
def tokenizer(
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
    stored: Callable[[list[str]], Path],
    prose: Callable[..., list[str]],
) -> Path:
    """A trained tokenizer of 300 entries."""
    output = new()
    inputs = {"documents": stored(prose(0))}
    build_trained(TrainTokenizer(vocab_size=300), inputs, output, workspace())
    return output


@pytest.fixture(scope="session")
def llama(new: Callable[[], Path], workspace: Callable[..., Workspace], tokenizer: Path) -> Path:
    """A Llama of width 32 with tied embeddings and random weights."""
    output = new()
    config = InitialiseConfig(architecture=ARCHITECTURE)
    build_initial(config, {"tokenizer": tokenizer}, output, workspace())
    return output


@pytest.fixture(scope="session")
def given(new: Callable[[], Path]) -> Callable[..., Path]:
    """A model's folder from outside, of a transformers config."""

    def make(shape: object, **save: object) -> Path:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = new()
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder, **save)
        return folder

    return make


@pytest.fixture(scope="session")
def imported(
    new: Callable[[], Path], workspace: Callable[..., Workspace], tokenizer: Path
) -> Callable[[Path], Path]:
    """A model from outside, taken over."""

    def make(source: Path) -> Path:
        output = new()
        inputs = {"source": source, "tokenizer": tokenizer}
        build_import(ImportConfig(), inputs, output, workspace())
        return output

    return make


@pytest.fixture(scope="session")
def gpt(given: Callable[..., Path], imported: Callable[[Path], Path]) -> Path:
    """A GPT-2 with dropout, biases and tied embeddings."""
    from transformers import GPT2Config

    return imported(
        given(GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=2, n_head=2))
    )


@pytest.fixture(scope="session")
def tokens(
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
    stored: Callable[[list[str]], Path],
    tokenizer: Path,
) -> Callable[[list[str]], Path]:
    """Texts as a token file."""

    def make(texts: list[str]) -> Path:
        output = new()
        inputs = {"documents": stored(texts), "tokenizer": tokenizer}
        tokenize.build(TokenizeConfig(), inputs, output, workspace())
        return output

    return make


@pytest.fixture(scope="session")
def windows(
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
    stored: Callable[[list[str]], Path],
    tokenizer: Path,
) -> Callable[..., Path]:
    """Texts as the windows of an evaluation set; further arguments go to its config."""

    def make(texts: list[str], **config: object) -> Path:
        output = new()
        cut = WindowConfig.model_validate({"context_length": 32, **config})
        inputs = {"documents": stored(texts), "tokenizer": tokenizer}
        window.build(cut, inputs, output, workspace())
        return output

    return make


@pytest.fixture
def memory_store() -> Iterator[Store]:
    """A store of its own in the process-wide memory file system."""
    name = uuid.uuid4().hex
    yield Store(f"memory://{name}")
    for path in [path for path in MemoryFileSystem.store if path.startswith(f"/{name}/")]:
        del MemoryFileSystem.store[path]
