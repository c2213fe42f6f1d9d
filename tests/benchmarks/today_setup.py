"""What both sides of the comparison with today's tools are given: text, tokenizer, models, mixtures.

The documents are the shorter topics of the documentation inside Python itself, 200 kB of English of
very differing lengths. The tokenizer is trained on the standard library's sources, so the text is
new to it. Partition models are one random Llama with random moves added: speed does not depend on
the weights, and they are drawn large enough that losses differ visibly between windows and mixtures.
"""

import hashlib
import json
import random
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel

from storage.artifact import describe
from tasks.corpus.documents import DocumentWriter, StoredDocument
from tasks.models.facts import Facts
from tasks.models.folder import load_model, save_model
from tasks.models.initialise import InitialiseConfig, LlamaArchitecture, build_initial
from tasks.tokens.tokenizer import TrainTokenizer, build_trained, copy_files
from tests.benchmarks.tiny import workspace

TEXT_BYTES = 200_000
PARTITIONS = 12
SMALLEST, LARGEST = 4, 8
TASK = "documents"
"""Name of the evaluation as lm-evaluation-harness knows it."""


class Size(NamedTuple):
    """A model size and how much of a sweep is run at it."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    context: int
    mixtures: int
    """Mixtures in our sweep."""
    end_to_end: int
    """How many times faster than two processes per mixture we want to be."""
    in_process: int | None
    """The same against both packages in one process; None where nothing is promised."""


class Request(BaseModel):
    """What a side is asked to do; written as JSON for its process."""

    tokenizer: Path
    """Folder of the tokenizer's artifact."""
    documents: Path
    """Folder of the documents' artifact."""
    task: Path
    """Folder with the task of lm-evaluation-harness."""
    models: dict[str, Path]
    """Folder of each partition's model, tokenizer files included."""
    mixtures: list[list[str]]
    """Names of the partitions of each mixture."""
    context: int
    """Tokens that the model sees at most."""
    batch_sizes: list[int] = []
    """Windows per forward pass to try; only for the other side, ours is asked for tokens."""
    folder: Path
    """Where processes work and find all of this."""

    @property
    def result(self) -> Path:
        """Where to write the answer."""
        return self.folder / "result.json"

    def write(self, path: Path) -> Path:
        """Write it for another process."""
        path.write_text(self.model_dump_json())
        return path


def english(num_bytes: int) -> list[str]:
    """Topics of Python's documentation, shortest first, the last one cut so the sum is reached."""
    texts: list[str] = []
    for text in sorted(topics.values(), key=len):
        left = num_bytes - sum(len(t.encode()) for t in texts)
        texts.append(text.encode()[:left].decode(errors="ignore"))
        if left <= len(text.encode()):
            return texts
    raise ValueError(f"Python's topics are less than {num_bytes} bytes: ask for fewer")


def write_documents(texts: list[str], folder: Path) -> None:
    """An artifact of documents."""
    with DocumentWriter(folder) as writer:
        for number, text in enumerate(texts):
            digest = hashlib.sha256(text.encode()).hexdigest()
            writer.add(StoredDocument(digest, "english", str(number), 0, text))


def write_task(texts: list[str], folder: Path) -> None:
    """The same documents as a rolling perplexity task of lm-evaluation-harness."""
    folder.mkdir()
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task: dict[str, Any] = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    # Every JSON document is a YAML document.
    (folder / f"{TASK}.yaml").write_text(json.dumps(task))


def mixtures(names: list[str], count: int, seed: int) -> list[list[str]]:
    """Different random mixtures of ``SMALLEST`` to ``LARGEST`` of ``names``."""
    generator = random.Random(seed)
    found: set[tuple[str, ...]] = set()
    while len(found) < count:
        found.add(tuple(sorted(generator.sample(names, generator.randint(SMALLEST, LARGEST)))))
    chosen = sorted(found)
    generator.shuffle(chosen)
    return [list(mixture) for mixture in chosen]


def prepare(folder: Path, size: Size, text_bytes: int = TEXT_BYTES) -> Request:
    """Write everything for one model size below ``folder``."""
    texts = english(text_bytes)
    tokenizer, documents, task = (folder / n for n in ("tokenizer", "documents", "task"))
    write_documents(texts, documents)
    write_task(texts, task)
    _train_tokenizer(size.vocabulary, tokenizer, folder)
    models = _models(size, tokenizer, folder)
    return Request(
        tokenizer=tokenizer,
        documents=documents,
        task=task,
        models=models,
        mixtures=mixtures(list(models), size.mixtures, seed=0),
        context=size.context,
        folder=folder,
    )


def _train_tokenizer(vocabulary: int, tokenizer: Path, folder: Path) -> None:
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    write_documents([path.read_text(errors="replace") for path in sources], folder / "sources")
    tokenizer.mkdir()
    config = TrainTokenizer(vocab_size=vocabulary)
    build_trained(config, {"documents": folder / "sources"}, tokenizer, workspace(folder))


def _models(size: Size, tokenizer: Path, folder: Path) -> dict[str, Path]:
    base = folder / "base"
    base.mkdir()
    config = InitialiseConfig(
        architecture=LlamaArchitecture(
            hidden_size=size.hidden,
            num_layers=size.layers,
            num_heads=max(1, size.hidden // 64),
            intermediate_size=size.intermediate,
            context_length=size.context,
            initializer_range=0.08,
        )
    )
    build_initial(config, {"tokenizer": tokenizer}, base, workspace(folder))
    facts = Facts.model_validate_json((base / "mixpool.json").read_bytes())
    trained = facts.model_copy(update={"base": describe("model", base).digest, "steps": 1})
    names = [f"partition-{number:02}" for number in range(PARTITIONS)]
    for seed, name in enumerate(names):
        _write_moved(base, folder / name, seed, trained, tokenizer)
    return {name: folder / name for name in names}


def _write_moved(base: Path, target: Path, seed: int, facts: Facts, tokenizer: Path) -> None:
    model = load_model(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    save_model(model, target, facts)
    copy_files(tokenizer, target)
