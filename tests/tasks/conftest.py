"""What tests of scans share: a corpus on disk, a store, and a look into both by plain Parquet."""

import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.artifact import Artifact
from storage.cache import deposit
from storage.fingerprint import Config
from storage.step import Progress
from storage.store import Store
from tasks.corpus.source import Source
from tasks.partitions.config import CorpusConfig, EvaluationSetConfig, SplitConfig
from tasks.partitions.manifest import Manifest
from tasks.partitions.scan import scan

BUDGET = 100
"""Tokens, which are bytes and one for end-of-text, in a partition of these tests."""


class Named(Config):
    """Identifies the tokenizer of these tests."""

    name: str = "bytes"


def write_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer without merges: one token is one byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<|endoftext|>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "mixpool.json").write_text(json.dumps({"end_of_text": 0, "vocab_size": 257}))
    return folder


class Ground:
    """A corpus folder and a store, with whatever a scan of them needs."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.corpus = folder / "corpus"
        self.corpus.mkdir(parents=True, exist_ok=True)
        self.split: dict[str, Any] = {"tokens_per_partition": BUDGET, "heldout_fraction": 0.0}
        self.sets: list[EvaluationSetConfig] = []
        self.base_source: Source | None = None
        self.fields: dict[str, Any] = {}
        self.made: list[Artifact | None] = []
        """What tokenizers were made from."""
        self.store = self.opened()
        self._time = itertools.count(1_000_000_000)

    def opened(self) -> Store:
        """Another client of the store."""
        return Store(self.url, self.folder / "cache")

    def put(self, name: str, texts: Sequence[str]) -> Path:
        """Write ``name`` (``<domain>/<file>.jsonl``) with a time of its own."""
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        return self.put_bytes(name, "".join(lines).encode())

    def put_bytes(self, name: str, data: bytes) -> Path:
        """Write a file of the corpus with a time of its own."""
        path = self.corpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        now = next(self._time)
        os.utime(path, (now, now))
        return path

    def own_source(self, name: str, texts: Sequence[str]) -> Source:
        """A source with one file that is no part of the corpus."""
        path = self.folder / "own" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return Source(urls=[str(path)])

    def own_set(self, name: str, texts: Sequence[str], **fields: Any) -> EvaluationSetConfig:
        """An evaluation set with a file of its own."""
        return EvaluationSetConfig(name=name, source=self.own_source(name, texts), **fields)

    def make_tokenizer(self, base: Artifact | None) -> Artifact:
        """The same one each time."""
        self.made.append(base)
        folder = write_tokenizer(self.folder / f"tokenizer-{uuid.uuid4().hex}")
        made = deposit(self.store, "tokenizer", "tokenizer", "bytes", folder, {}).artifact
        assert made is not None
        return made

    def config(self) -> CorpusConfig:
        """The corpus as the recipe has it now."""
        fields = {"name": "corpus", "source": Source(urls=[str(self.corpus)]), **self.fields}
        return CorpusConfig(split=SplitConfig(**self.split), **fields)

    def scan(
        self,
        store: Store | None = None,
        progress: Progress = lambda done, total, unit: None,
        tell: Callable[[list[str]], None] = lambda lines: None,
    ) -> Manifest:
        """Scan the corpus."""
        return scan(
            store or self.store,
            self.config(),
            self.sets,
            Named(),
            self.make_tokenizer,
            base_source=self.base_source,
            progress=progress,
            scratch=str(self.folder),
            tell=tell,
        )

    def rows(self, artifact: Artifact) -> list[dict[str, Any]]:
        """Rows of a stored artifact, past the code under test."""
        (name,) = artifact.files
        path = self.folder / "look.parquet"
        path.write_bytes(self.store.backend.read(f"{artifact.prefix}/{name}"))
        return list(pq.read_table(path).to_pylist())

    def texts(self, artifact: Artifact | None) -> list[str]:
        """Texts of a stored artifact in order."""
        return [] if artifact is None else [row["text"] for row in self.rows(artifact)]

    def partitions(self, found: Manifest) -> dict[str, list[str]]:
        """Texts of every sealed partition."""
        return {entry.name: self.texts(entry.documents) for entry in found.partitions()}

    def sealed_texts(self, found: Manifest) -> list[str]:
        """Texts of all sealed partitions in order."""
        return list(itertools.chain.from_iterable(self.partitions(found).values()))

    def index(self, found: Manifest) -> dict[str, tuple[str, str]]:
        """Role and place of every digest, as the next scan will know them."""
        return {
            row["digest"]: (row["role"], row["place"])
            for artifact in found.index
            for row in self.rows(artifact)
        }

    def artifacts(self) -> set[str]:
        """Every file of an artifact in the store."""
        return {*self.store.backend.list("artifacts")}

    def manifests(self) -> list[str]:
        """Every published manifest."""
        return [path for path in self.store.backend.list("manifests") if path.endswith(".json")]

    @staticmethod
    def digest(text: str) -> str:
        """The name of a document."""
        return hashlib.sha256(text.encode()).hexdigest()

    def forget(self) -> None:
        """Empty a store in memory."""
        files, start = MemoryFileSystem.store, f"/{self.url.removeprefix('memory://')}/"
        for path in [path for path in files if path.startswith(start)]:
            del files[path]


@pytest.fixture
def new_ground(tmp_path: Path) -> Iterator[Callable[[], Ground]]:
    """Makes grounds with a store in memory, which is quick: for properties with many examples."""
    made: list[Ground] = []

    def make() -> Ground:
        name = uuid.uuid4().hex
        made.append(Ground(tmp_path / name, f"memory://{name}"))
        return made[-1]

    yield make
    for ground in made:
        ground.forget()


@pytest.fixture(params=["disk", "memory"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """A corpus on disk with a store on disk, or in memory."""
    url = str(tmp_path / "store") if request.param == "disk" else f"memory://{uuid.uuid4().hex}"
    made = Ground(tmp_path, url)
    yield made
    made.forget()


@pytest.fixture
def disk(tmp_path: Path) -> Ground:
    """A corpus and a store on disk."""
    return Ground(tmp_path, str(tmp_path / "store"))
