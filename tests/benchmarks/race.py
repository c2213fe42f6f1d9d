"""A race against evaluating everything: the same ten best of 1,023 mixtures for how many tokens?

Ten partitions of real text of this Python environment (code in four languages, prose, licences), a base
model of 0.4M parameters trained here, ten partition models, nine evaluation sets of 110 documents of 32
tokens: everything is really trained and evaluated, by the steps and the store of any run. The first run
takes some ten minutes on one core; later ones find it all stored below ``MIXPOOL_BENCHMARKS`` (default
``~/.cache/mixpool-benchmarks``; who changes the constants here gives another folder).

Then races: one for real, in a store that has the models and no losses; and many on the stored sums, with
the documents in another order each time (which decides what the looks see), drawn with replacement, or
only half of them, to see how often one of the true best is lost and what it costs.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows.chain.ablation import Outcome, ablate
from flows.chain.race import run_race
from flows.chain.recipe import Recipe
from flows.chain.recipe_file import parse_recipe
from flows.chain.work import SweepWork
from flows.command.demo_corpus import gather
from flows.runners.inline import InlineRunner
from storage.step import Runtime
from storage.store import Store
from tasks.evaluation.losses_table import LossesTable
from tasks.evaluation.window import load_windows
from tasks.ranking.race import RaceConfig
from tests.benchmarks.measure import Ratio, ratio_of
from tests.benchmarks.race_trials import Losses, repeated

HOME = Path(os.environ.get("MIXPOOL_BENCHMARKS", "~/.cache/mixpool-benchmarks")).expanduser()
DOCUMENTS = 110
PARTITIONS = (
    *("python", "cpp", "prose", "javascript", "models"),
    *("tests", "services", "stubs", "cython", "licences"),
)
SETS = ("python", "cpp", "prose", "models", "tests", "services", "stubs", "cython", "manual")
"""Two partitions have no set of their own, and one set (``manual``) no partition."""


def measure(repeats: int) -> list[Ratio | str]:
    """One race for real, and ten times ``repeats`` races of each kind on stored sums."""
    return compared(HOME / "race-store", prepare(HOME, PARTITIONS, SETS, DOCUMENTS), 10 * repeats)


def compared(store: Path, recipe: Recipe, times: int) -> list[Ratio | str]:
    """Evaluate everything, unless the store has it, and race."""
    full = ablate(InlineRunner(Store(str(store)), Runtime(threads=1)), recipe)
    return [*real(store, recipe, full), repeated(stored_losses(store, full), times)]


# Everything, evaluated ----------------------------------------------------------------------------


def prepare(home: Path, partitions: Sequence[str], sets: Sequence[str], documents: int) -> Recipe:
    """Write the corpus below ``home``; the recipe that trains on it and evaluates every mixture."""
    corpus = home / "race-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, found in gather(home / "race-text").items():
        rows = [json.loads(line) for line in found.path.read_text().splitlines()]
        rows.sort(key=lambda row: hashlib.sha256(f"b{row['text']}".encode()).hexdigest())
        held_out = documents if name in sets else 0
        write(corpus / f"eval-{name}.jsonl", rows[:held_out])
        write(corpus / f"train-{name}.jsonl", rows[held_out:] if name in partitions else [])
    architecture = {"hidden_size": 96, "num_layers": 2, "num_heads": 4, "intermediate_size": 256}
    block = {"context_length": 128, "schedule": "cosine"}
    tree: dict[str, Any] = {
        "name": "race",
        "corpus": {
            "name": "race",
            "source": {
                "urls": [f"{corpus}/train-*.jsonl"],
                "format": {"domain_fields": ["domain"]},
            },
            "split": {
                "tokens_per_partition": 24_000,
                "partitions_per_domain": 1,
                "heldout_fraction": 0,
                "base_fraction": 0.5,
            },
        },
        "evaluation": {
            "heldout": False,
            "sets": [
                {"name": name, "source": {"urls": [f"{corpus}/eval-{name}.jsonl"]}} for name in sets
            ],
            "windows": {"format": "disjoint", "context_length": 32, "max_document_tokens": 32},
        },
        "tokenizer": {"kind": "train", "vocab_size": 1024},
        "base": {
            "kind": "train",
            "architecture": {**architecture, "context_length": 128},
            "train": {**block, "steps": 800, "batch_size": 4, "learning_rate": 4e-3}
            | {"warmup_steps": 20},
        },
        "train": {**block, "steps": 30, "batch_size": 8, "learning_rate": 5e-4},
        "mixtures": {"limit": 2000},
    }
    return parse_recipe(tree)


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """A file of documents, unless there are none or the file is there."""
    lines = [f"{json.dumps(row)}\n" for row in rows]
    if lines and not path.exists():
        path.write_text("".join(lines))


def stored_losses(store: Path, full: Outcome) -> Losses:
    """The losses of all mixtures as arrays."""
    assert full.rows is not None
    names = sorted(full.pool)
    shares = np.array([[float(m.weights.get(n, 0)) for n in names] for m in full.mixtures])
    opened = Store(str(store))
    windows = [load_windows(opened.fetch(h.built)) for h in full.windows.values()]
    size = len(full.mixtures)
    nats = [full.rows.sums.read(place, 0, size) for place in range(len(windows))]
    return Losses(shares, nats, [one.num_tokens.astype(float) for one in windows])


# One race for real --------------------------------------------------------------------------------


def real(store: Path, recipe: Recipe, full: Outcome) -> list[Ratio | str]:
    """Race where nothing was evaluated yet, and compare with the full sweep."""
    rules = RaceConfig()
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name) / "store"
        shutil.copytree(store, empty, ignore=shutil.ignore_patterns("losses", "runs", "work"))
        run = InlineRunner(Store(str(empty)), Runtime(threads=1))
        work = SweepWork(full.mixtures, full.pool, full.windows, recipe.evaluation.evaluate)
        raced = run_race(run, rules, work)
        costs = LossesTable(run.store, work.config).costs()
    assert raced.rows is not None
    assert full.rows is not None
    exact = {(row.mixture, row.windows): row for row in full.rows}
    same = all(exact[row.mixture, row.windows] == row for row in raced.rows)
    everything = LossesTable(Store(str(store)), work.config).costs()
    ours, theirs = (sum(cost["tokens"] for cost in found) for found in (costs, everything))
    top = best_labels(full.rows, rules.top)
    found = best_labels(raced.rows, rules.top)
    yes = {True: "yes", False: "NO"}
    return [
        ratio_of(
            f"tokens of a race, best {rules.top} of {len(full.mixtures):,}",
            "evaluating every mixture in full",
            [(float(ours), float(theirs))],
            "<= 0.15",
            "tokens",
        ),
        f"One race for real: the same best {rules.top}, in order: {yes[top == found]}; rows of finalists "
        f"identical to a full sweep's: {yes[same]}; evaluation took {_seconds(costs):.0f} s against "
        f"{_seconds(everything):.0f} s (not in alternation). It says: {' '.join(raced.words)}",
    ]


def _seconds(costs: list[dict[str, Any]]) -> float:
    return sum(float(cost["seconds"]) for cost in costs)


def best_labels(rows: Any, top: int) -> list[str]:
    """Labels of the mixtures with the least macro mean; all sets have as many tokens here."""
    order = np.argsort(rows.nll.sum(axis=1), kind="stable")[:top]
    return [rows.labels[place] for place in order]
