"""What tests of whole chains share: a corpus and a recipe that run through in seconds."""

import gc
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import settings

from flows.chain.recipe import Recipe
from flows.chain.recipe_file import apply_override, parse_recipe
from tests import servers
from tests.ceph import Ceph

# As the command line does; must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Models are tiny, and two tests at a time have two cores: threads would only wait for one another. The
# processes that tests start have it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests that run beside one another get one, and tables would be drawn for it.
os.environ.pop("COLUMNS", None)

# How long a case takes says something about the machine only. Here, as a module's own settings are made
# when it is imported.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

TINY_DOMAINS = ("birds", "cooking", "law", "letters", "rivers", "sums")

TINY: dict[str, Any] = {
    "name": "tiny",
    "corpus": {
        "name": "tiny",
        "split": {
            "tokens_per_partition": 1200,
            "partitions_per_domain": 1,
            "heldout_fraction": 0.2,
            "heldout_documents": 4,
            "base_fraction": 0.3,
        },
    },
    "evaluation": {"windows": {"format": "disjoint", "context_length": 32}},
    "tokenizer": {"kind": "train", "vocab_size": 300},
    "base": {
        "kind": "train",
        "architecture": {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 64,
            "context_length": 32,
        },
        "train": {"steps": 8, "batch_size": 4, "context_length": 32, "learning_rate": 3e-3},
    },
    "train": {"steps": 5, "batch_size": 4, "context_length": 32, "learning_rate": 1e-3},
    "mixtures": {"spaces": [{"kind": "subsets", "sizes": [1, 2]}]},
    "validation": {"references": 2, "sizes": [2], "repeats": 0},
}
"""Six partitions, 21 mixtures, six held-out sets; a Llama of width 32."""


LONGEST = (
    "test_serve.py",
    "test_kill.py",
    "test_prefect.py",
    "test_s3_damage.py",
    "test_s3_secrets.py",
)
"""Files of minutes: who runs some at a time is not to wait for one of them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then all others with slow tests."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def turn(item: pytest.Item) -> tuple[int, bool]:
        place = LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)
        return place, item.path not in slow

    items.sort(key=turn)


def pytest_collection_finish() -> None:
    """What libraries made as they were imported stays: looking through it for garbage takes a second.

    A sweep looks for garbage at its beginning, so that this is the half of a tiny run.
    """
    gc.collect()
    gc.freeze()


class TinyCorpus(Protocol):
    """Writes the corpus below a folder and returns where it lies."""

    def __call__(self, folder: Path, documents: int = 40, seed: int = 0) -> Path: ...


class TinyRecipe(Protocol):
    """A recipe for the corpus below a folder, which is written if it is not there."""

    def __call__(self, folder: Path, *overrides: str) -> Recipe: ...


def write_corpus(folder: Path, documents: int = 40, seed: int = 0) -> Path:
    """Write ``corpus/<domain>.jsonl``, some 10 kB each: every domain has words of its own."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for domain in TINY_DOMAINS:
        chance = random.Random(f"{domain} {seed}")
        words = ["".join(chance.choices(domain, k=chance.randint(2, 6))) for _ in range(40)]
        texts = (" ".join(chance.choices(words, k=50)) for _ in range(documents))
        lines = (json.dumps({"text": text}) for text in texts)
        (corpus / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    return corpus


@pytest.fixture(scope="session")
def tiny_corpus() -> TinyCorpus:
    """``tiny_corpus(folder)`` writes six domains of some 10 kB each."""
    return write_corpus


@pytest.fixture(scope="session")
def tiny_recipe() -> TinyRecipe:
    """``tiny_recipe(folder, "train.steps=3", ...)``; a chain of it takes seconds."""

    def make(folder: Path, *overrides: str) -> Recipe:
        corpus = folder / "corpus"
        if not corpus.exists():
            write_corpus(folder)
        tree: dict[str, Any] = json.loads(json.dumps(TINY))
        tree["corpus"]["source"] = {"urls": [f"{corpus}/*.jsonl"]}
        for override in overrides:
            apply_override(tree, override)
        return parse_recipe(tree, "the tiny recipe")

    return make


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    """An S3 server with a bucket."""
    ministack = servers.Ministack(tmp_path_factory.mktemp("ministack"))
    try:
        ministack.start()
        ministack.server.make_bucket(servers.BUCKET)
        yield ministack.server
    finally:
        ministack.stop()


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    """The S3 gateway of a real Ceph; for tests marked ``ceph``."""
    with Ceph(tmp_path_factory.mktemp("ceph")) as server:
        server.make_bucket(servers.BUCKET)
        yield server
