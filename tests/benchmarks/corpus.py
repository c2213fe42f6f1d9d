"""From JSONL.zst files to token files: split and tokenize, against ``datasets`` and against floors.

Ours lists, reads, hashes, deduplicates, decontaminates, assigns to partitions, stores these and then
their tokens. Theirs loads the same files, maps the same tokenizer over them in two processes and
writes the ids to one file; that both wrote the same ids is checked. ``BENCHMARK_MEGABYTES``
(default 24) is the size of the text. Memory is measured at that size and at four times that, each in
a process of its own: ``python -m tests.benchmarks.corpus FOLDER``.
"""

import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil

from storage.artifact import Artifact
from storage.cache import build, deposit
from storage.fingerprint import Config
from storage.step import Call, Handle, Runtime
from storage.store import Store
from tasks.corpus.documents import DocumentWriter, StoredDocument
from tasks.corpus.source import Source
from tasks.machine.meter import Meter
from tasks.partitions.config import CorpusConfig, EvaluationSetConfig, SplitConfig
from tasks.partitions.manifest import Manifest, handle
from tasks.partitions.scan import scan
from tasks.tokens.processes import encoder_pool
from tasks.tokens.tokenize import TOKENIZE, TokenizeConfig
from tasks.tokens.tokenizer import TrainTokenizer, build_trained
from tasks.tokens.vocabulary import shared
from tests.benchmarks import corpus_text
from tests.benchmarks.corpus_text import FILES
from tests.benchmarks.measure import Ratio, peak_growth, ratio_of
from tests.benchmarks.tiny import workspace

T = TypeVar("T")

MEGABYTES = float(os.environ.get("BENCHMARK_MEGABYTES", "24"))
PROCESSES = 2
"""Processes that encode, on both sides."""
DATASETS = "datasets: load, map with two processes, ids to a file"
LIBRARY = "the library alone: encode_batch_fast, texts in memory, all cores"
VOCABULARY = 16_384
TRAINED_ON = 1_000
"""Documents that the tokenizer is trained on."""
BATCH = 256


class Ground(NamedTuple):
    """What both sides are given, and a folder to work in."""

    folder: Path
    files: list[Path]
    tokenizer: Path


class Named(Config):
    """Identifies the benchmark's tokenizer."""

    documents: int = TRAINED_ON


def measure(repeats: int) -> list[Ratio | str]:
    """Time against what people use and against floors; memory at one and at four times the size."""
    with tempfile.TemporaryDirectory() as name:
        ground = prepare(Path(name), MEGABYTES)
        texts = [text for path in ground.files for text in plain(path)]
        num_tokens = check_equal(ground)
        rounds = [one_round(ground, texts) for _ in range(repeats + 1)][1:]

    def row(what: str, against: str, ours: str, other: str, goal: str = "") -> Ratio:
        pairs = [(found[ours], found[other]) for found in rounds]
        return ratio_of(f"{what}, {MEGABYTES:g} MB of text", against, pairs, goal)

    return [
        row("scan and tokenize", DATASETS, "both", "datasets", "<= 0.67"),
        row("scan and tokenize, CPU time", DATASETS, "both, CPU", "datasets, CPU"),
        row("scan and tokenize", LIBRARY, "both", "library"),
        row("tokenize alone", LIBRARY, "tokenize", "library"),
        row("scan alone", "plain reading: decompress, parse, sha256", "scan", "plain"),
        memory(),
        shown(rounds, num_tokens),
    ]


def one_round(ground: Ground, texts: list[str]) -> dict[str, float]:
    """Seconds that each thing takes, and seconds of CPU."""
    taken: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        start, cpu = time.perf_counter(), cpu_seconds()
        result = work()
        taken[name], taken[f"{name}, CPU"] = time.perf_counter() - start, cpu_seconds() - cpu
        return result

    # Words that an earlier round has met, and processes that it has started, are not for this one.
    shared.cache_clear()
    encoder_pool.cache_clear()
    timed("datasets", lambda: theirs(ground))
    store, found = timed("scan", lambda: scanned(ground))
    timed("tokenize", lambda: tokenized(store, found))
    timed("library", lambda: encode_all(ground, texts))
    timed("plain", lambda: [hashed(path) for path in ground.files])
    for unit in ("", ", CPU"):
        taken[f"both{unit}"] = taken[f"scan{unit}"] + taken[f"tokenize{unit}"]
    return taken


def cpu_seconds() -> float:
    """CPU time of this process and all that it has started."""
    living = (sum(child.cpu_times()[:2]) for child in psutil.Process().children())
    return sum(os.times()[:4]) + sum(living)


def memory() -> Ratio:
    """Peak memory at four times the size over that at the size, each in a process of its own."""
    peaks = []
    for times in (4, 1):
        with tempfile.TemporaryDirectory() as name:
            prepare(Path(name), MEGABYTES * times)
            command = [sys.executable, "-m", "tests.benchmarks.corpus", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(float(done.stdout.split()[-1]))
    what = f"scan and tokenize, peak memory of all processes, {4 * MEGABYTES:g} MB of text"
    against = f"the same, {MEGABYTES:g} MB"
    return ratio_of(what, against, [(peaks[0], peaks[1])], "<= 1.2", "bytes")


def peak(ground: Ground) -> int:
    """Bytes by which memory grows here, and all that the processes take that are started."""
    grown = peak_growth(lambda: tokenized(*scanned(ground)))
    children = psutil.Process().children()
    return grown + sum(high_water(child.pid) for child in children)


def shown(rounds: list[dict[str, float]], num_tokens: int) -> str:
    """Megabytes of text per second."""
    rates = {
        name: MEGABYTES / statistics.median(found[name] for found in rounds) for name in rounds[0]
    }
    listed = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
    return (
        f"{num_tokens:,} tokens in {FILES} files; MB/s of text (of CPU time: one core): {listed}."
    )


def prepare(folder: Path, megabytes: float) -> Ground:
    """Files of text, and a tokenizer that our own step trains."""
    corpus_text.write(folder / "corpus", megabytes)
    documents, tokenizer = folder / "documents", folder / "tokenizer"
    source = corpus_text.documents()
    with DocumentWriter(documents) as writer:
        for number in range(TRAINED_ON):
            writer.add(StoredDocument(f"{number:064x}", "any", str(number), 0, next(source)))
    tokenizer.mkdir()
    config = TrainTokenizer(vocab_size=VOCABULARY)
    build_trained(config, {"documents": documents}, tokenizer, workspace(folder))
    (folder / "set").mkdir()
    (folder / "set" / "other.jsonl").write_text(json.dumps({"text": "of its own"}))
    return prepared(folder)


def prepared(folder: Path) -> Ground:
    """What ``prepare`` has left in a folder."""
    files = sorted((folder / "corpus").rglob("*.zst"))
    return Ground(folder, files, folder / "tokenizer")


def scanned(ground: Ground, **split: Any) -> tuple[Store, Manifest]:
    """A first scan into a new store; short partitions count, so that all text goes on."""
    store = Store(tempfile.mkdtemp(prefix="store-", dir=ground.folder))
    corpus = CorpusConfig(
        name="any",
        source=Source(urls=[str(ground.folder / "corpus")]),
        split=SplitConfig(**split),
        short_partitions=True,
    )
    own = EvaluationSetConfig(name="own", source=Source(urls=[str(ground.folder / "set")]))

    def tokenizer(base: Artifact | None) -> Artifact:
        del base
        found = deposit(store, "tokenizer", "tokenizer", "any", ground.tokenizer, {}).artifact
        assert found is not None
        return found

    return store, scan(store, corpus, [own], Named(), tokenizer, threads=PROCESSES)


def tokenized(store: Store, found: Manifest) -> list[Handle]:
    """Token files of all partitions in the store, as a run asks for them."""
    tokenizer = Handle("tokenizer", "tokenizer", found.tokenizer)
    runtime = Runtime(threads=PROCESSES)
    made = []
    for entry in found.partitions(with_open=True):
        inputs = {"documents": handle(entry), "tokenizer": tokenizer}
        call = Call(TOKENIZE, TokenizeConfig(), inputs, entry.name)
        made.append(build(store, call, runtime, Meter("cpu"), lambda done, total, unit: None))
    return made


def _fetched(store: Store, given: Handle) -> Path:
    assert given.artifact is not None
    return store.fetch(given.artifact)


def theirs(ground: Ground) -> Path:
    """What people do: a mapped data set, then its column of ids in one binary file."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    _teach_zstd()
    cache = Path(tempfile.mkdtemp(prefix="cache-", dir=ground.folder))
    path = cache / "ids.bin"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ground.tokenizer, split_special_tokens=True)
    end = tokenizer.eos_token_id

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = tokenizer(batch["text"], return_attention_mask=False, return_token_type_ids=False)
        return {"ids": [[*ids, end] for ids in found["input_ids"]]}

    files = [str(path) for path in ground.files]
    text = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(cache))
    mapped = text.map(encode, batched=True, num_proc=PROCESSES, remove_columns=text.column_names)
    with path.open("wb") as file:
        for table in mapped.with_format("arrow").iter(BATCH):
            ids = table["ids"].combine_chunks().flatten()
            file.write(ids.to_numpy().astype("uint16").tobytes())
    return path


def _teach_zstd() -> None:
    """Give fsspec a zstd by Arrow, which is here; its own needs a package more."""
    import pyarrow as pa
    from fsspec.compression import compr, register_compression

    if "zstd" not in compr:
        register_compression(
            "zstd", lambda file, **_: pa.CompressedInputStream(file, "zstd"), "zst"
        )


def check_equal(ground: Ground) -> int:
    """Both sides write the same ids where ours holds no document back; their number."""
    store, found = scanned(ground, heldout_fraction=0)
    ours = hashlib.sha256()
    for made in tokenized(store, found):
        ours.update((_fetched(store, made) / "tokens.bin").read_bytes())
    if ours.digest() != hashlib.sha256(theirs(ground).read_bytes()).digest():
        raise AssertionError("our token files hold other ids than those that datasets made")
    return sum(entry.num_tokens for entry in found.partitions(with_open=True))


def plain(path: Path) -> Iterator[str]:
    """Texts of a file."""
    import pyarrow as pa

    with pa.CompressedInputStream(str(path), "zstd") as stream:
        for line in io.BufferedReader(stream, 1 << 20):
            yield json.loads(line)["text"]


def hashed(path: Path) -> list[str]:
    """What reading cannot do without."""
    return [hashlib.sha256(text.encode()).hexdigest() for text in plain(path)]


def encode_all(ground: Ground, texts: list[str]) -> int:
    """Tokens of all texts, by the library alone."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ground.tokenizer / "tokenizer.json"))
    batches = (texts[at : at + BATCH] for at in range(0, len(texts), BATCH))
    return sum(
        len(found.ids)
        for batch in batches
        for found in tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    )


def high_water(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    print(peak(prepared(Path(sys.argv[1]))))
