"""A first scan of many small files: as a ratio to an earlier commit, or else to reading the files.

Environment variables: MIXPOOL_SMALL_FILES (default 15000); MIXPOOL_BEFORE, a checkout of the earlier
commit, whose storage and tasks are then timed by this very program.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES = int(os.environ.get("MIXPOOL_SMALL_FILES", "15000"))
HERE = Path(__file__).parents[2]


def write_corpus(folder: Path) -> None:
    """Five domains of text files of some 300 bytes."""
    for number in range(FILES):
        path = folder / f"domain{number % 5}" / f"{number // 500:03d}" / f"{number:06d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"document {number} " + " ".join(f"word{number * k % 97}" for k in range(45))
        )


def scan_here(corpus: Path, store_folder: Path) -> float:
    """Seconds of a first scan, by whatever mixpool is imported."""
    from storage.artifact import Artifact
    from storage.cache import deposit
    from storage.fingerprint import Config
    from storage.store import Store
    from tasks.corpus.source import Source
    from tasks.partitions.config import CorpusConfig, SplitConfig
    from tasks.partitions.scan import scan

    store, folder = Store(str(store_folder)), store_folder.parent / "tokenizer"

    def tokenizer(base: Artifact | None) -> Artifact:
        del base
        made = deposit(store, "tokenizer", "tokenizer", "bytes", folder, {}).artifact
        assert made is not None
        return made

    config = CorpusConfig(
        name="small",
        source=Source(urls=[str(corpus)]),
        split=SplitConfig(tokens_per_partition=200_000),
    )
    start = time.perf_counter()
    found = scan(store, config, [], Config(), tokenizer, threads=1)
    spent = time.perf_counter() - start
    assert sum(found.counts.values()) == FILES
    return spent


def measure(repeats: int) -> "list[object]":
    """One ratio; each scan is a process of its own on a store of its own."""
    from tests.benchmarks.measure import ratio_of, seconds
    from tests.tasks.conftest import write_tokenizer

    before, pairs = os.environ.get("MIXPOOL_BEFORE"), []
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus"
        write_corpus(corpus)
        for number in range(repeats):
            sides = [HERE, Path(before)] if before else [HERE]
            spent = []
            for side, root in enumerate(sides):
                place = Path(name) / f"{number}-{side}"
                write_tokenizer(place / "tokenizer")
                spent.append(_apart(root, corpus, place / "store"))
            if not before:
                spent.append(seconds(lambda: [path.read_bytes() for path in corpus.rglob("*.txt")]))
            pairs.append((spent[0], spent[1]))
    against = "the commit before" if before else "listing and reading the files"
    what = f"first scan of {FILES:,} small files"
    return [ratio_of(what, against, pairs, "<= 0.33" if before else "")]


def _apart(root: Path, corpus: Path, store: Path) -> float:
    command = [sys.executable, __file__, str(corpus), str(store)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, cwd=root
    )
    return float(json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(scan_here(Path(sys.argv[1]), Path(sys.argv[2]))))
