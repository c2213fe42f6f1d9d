"""A plan of much at once: as a ratio to an earlier commit, or else to reading the files.

1,000 evaluation sets, 624 partitions of one domain, 20,000 files: each a corpus of its own, and a store that
is not there yet. Then the partitions once more, where all are known, and were tokenized with other inputs.

Environment variables: MIXPOOL_PLAN (default "1000,624,20000"); MIXPOOL_BEFORE, a checkout of the earlier
commit, whose packages are then timed by this very program.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETS, PARTITIONS, FILES = map(int, os.environ.get("MIXPOOL_PLAN", "1000,624,20000").split(","))
HERE = Path(__file__).parents[2]
TOKENS = 2_000
"""Tokens, which are bytes, in a partition."""


def write_corpora(folder: Path) -> dict[str, dict[str, Any]]:
    """What each row plans: files in ``folder``, and the recipe's part that reads them."""
    urls = [str(_jsonl(folder / "sets" / f"{number}.jsonl", 3)) for number in range(SETS)]
    sets = [{"name": Path(url).stem, "source": {"urls": [url]}} for url in urls]
    _jsonl(folder / "base" / "base.jsonl", 8)
    for number in range(5):
        _jsonl(folder / "plain" / f"domain{number}" / "0.jsonl", 10)
    _jsonl(folder / "long" / "domain" / "0.jsonl", PARTITIONS * 7)
    for number in range(FILES):
        path = folder / "many" / f"domain{number % 5}" / f"{number // 500}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_text("many", number))
    return {
        f"{SETS:,} evaluation sets": {"corpus": str(folder / "plain"), "sets": sets},
        f"{PARTITIONS:,} partitions of a domain": {
            "corpus": str(folder / "long"),
            "sets": sets[:1],
        },
        f"{FILES:,} files": {"corpus": str(folder / "many"), "sets": sets[:1]},
    }


def _jsonl(path: Path, documents: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = ({"text": _text(str(path), number)} for number in range(documents))
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    return path


def _text(place: str, number: int) -> str:
    return f"document {number} {place} " + " ".join(f"word{number * k % 97}" for k in range(45))


def recipe_of(folder: Path, corpus: str, sets: list[dict[str, Any]]) -> dict[str, Any]:
    """A recipe whose tokenizer has bytes, so that torch is not imported, which would hide the rest."""
    # 20,000 files fill some partitions, like the others: this row is about files.
    tokens = TOKENS * 100 if corpus.endswith("many") else TOKENS
    return {
        "name": "plan",
        "corpus": {
            "name": "plan",
            "source": {"urls": [corpus]},
            "short_partitions": True,
            "split": {"tokens_per_partition": tokens, "heldout_fraction": 0},
        },
        "evaluation": {"sets": sets, "windows": {"context_length": 64}},
        "tokenizer": {"kind": "train", "vocab_size": 257},
        "base": {
            "kind": "train",
            "source": {"urls": [str(folder / "base")]},
            "architecture": {
                "hidden_size": 16,
                "num_layers": 1,
                "num_heads": 2,
                "intermediate_size": 16,
                "context_length": 64,
            },
            "train": {"steps": 1, "context_length": 64},
        },
        "train": {"steps": 1, "context_length": 64},
        "mixtures": {"spaces": [{"kind": "subsets", "sizes": [1]}]},
    }


def plan_here(recipe_file: Path, store: str) -> tuple[float, float]:
    """Seconds, and those of a processor, of a first plan by whatever mixpool is imported.

    Imports of libraries that every plan has are not in them.
    """
    import pyarrow.parquet  # noqa: F401
    import transformers  # noqa: F401

    from flows.chain.recipe_file import load_recipe
    from flows.chain.runner import Quiet
    from flows.runners.planner import plan
    from storage.step import Runtime

    recipe = load_recipe(recipe_file)
    start, cpu = time.perf_counter(), time.process_time()
    plan(store, recipe, Runtime(threads=1), Quiet())
    return time.perf_counter() - start, time.process_time() - cpu


def fill(recipe_file: Path, url: str) -> None:
    """A store that knows the corpus, and has as many records of tokens as partitions, of other inputs."""
    from flows.chain.ablation import partitions_of, scan_corpus, tokenize
    from flows.chain.recipe_file import load_recipe
    from flows.runners.inline import InlineRunner
    from storage.artifact import Record, describe, step_key
    from storage.fingerprint import canonical, fingerprint
    from storage.provenance import provenance
    from storage.step import Handle, Runtime
    from storage.store import Store
    from tasks.partitions.manifest import handle

    run, recipe = InlineRunner(Store(url), Runtime(threads=1)), load_recipe(recipe_file)
    corpus = scan_corpus(run, recipe)
    tokenizer = Handle("tokenizer", "tokenizer", corpus.tokenizer)
    for entry in partitions_of(corpus, recipe):
        call = tokenize(handle(entry), tokenizer)
        inputs = {**(call.digests or {}), "documents": fingerprint("benchmark", entry.name)}
        step, config = call.step, canonical(call.config)
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "tokens").write_text(entry.name)
            record = Record(
                step=step.name, version=step.version, label=call.label, config=config, inputs=inputs,
                key=step_key(step.name, step.version, config, inputs),
                output=describe(step.kind, Path(name)), provenance=provenance("cpu"),
            )  # fmt: skip
            run.store.commit(record, Path(name))


def measure(repeats: int) -> "list[object]":
    """Two ratios for each of four plans, each a process of its own: of time, and of a processor's."""
    from tests.benchmarks.measure import ratio_of

    before, ratios = os.environ.get("MIXPOOL_BEFORE"), list[object]()
    against = "the commit before" if before else "listing and reading the files"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*write_corpora(folder).items()]
        rows.append((f"{rows[1][0]} that are known", rows[1][1]))
        for number, (what, parts) in enumerate(rows):
            file, store = folder / f"{number}.yaml", folder / f"store-{number}"
            file.write_text(json.dumps(recipe_of(folder, **parts)))
            if number == 3:
                fill(file, str(store))
                if before and not _is_readable(Path(before), file, store):
                    ratios.append(
                        "What is known was not compared: the commit before cannot read it."
                    )
                    break
            pairs = []
            for _ in range(repeats):
                sides = [HERE, *([Path(before)] if before else [])]
                spent = [_apart(root, file, store) for root in sides]
                if not before:
                    spent.append(_read(Path(parts["corpus"]), parts["sets"]))
                pairs.append((spent[0], spent[1]))
            for place, unit in enumerate(("", ", CPU")):
                own = [(ours[place], theirs[place]) for ours, theirs in pairs]
                goal = "<= 0.3" if before else ""
                ratios.append(ratio_of(f"plan of {what}{unit}", against, own, goal))
    return ratios


def _read(corpus: Path, sets: list[dict[str, Any]]) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    for path in [*corpus.rglob("*"), *(Path(config["source"]["urls"][0]) for config in sets)]:
        if path.is_file():
            path.read_bytes()
    return time.perf_counter() - start, time.process_time() - cpu


def _is_readable(root: Path, recipe: Path, store: Path) -> bool:
    """Whether the code at ``root`` reads what today's has stored: manifests are read by newer code alone."""
    try:
        _apart(root, recipe, store)
    except subprocess.CalledProcessError:
        return False
    return True


def _apart(root: Path, recipe: Path, store: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, str(recipe), str(store)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, cwd=root
    )
    seconds, cpu = json.loads(done.stdout.splitlines()[-1])
    return seconds, cpu


if __name__ == "__main__":
    print(json.dumps(plan_here(Path(sys.argv[1]), sys.argv[2])))
