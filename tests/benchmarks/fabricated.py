"""A store in which everything is made already, without training hundreds of models.

The corpus, its scan, tokens, windows and the base model are real; what would take hours is put there
by the store's own means: a record with a small artifact for each training, and parts of the losses
table with random sums. A run on such a store finds everything, as after weeks of work.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows.chain.recipe import Recipe
from flows.chain.recipe_file import parse_recipe
from flows.chain.work import SweepPlan, SweepWork
from flows.runners.inline import InlineRunner
from storage.artifact import Record, describe
from storage.fingerprint import canonical
from storage.provenance import provenance
from storage.step import Call, Handle, Runtime
from storage.store import Store
from tasks.evaluation.losses import LossRow
from tasks.evaluation.losses_table import identity
from tasks.machine.meter import Cost
from tasks.training.train import TRAIN
from tests.benchmarks.tiny import text

WORDS = 12
"""Words of a document."""
CHUNK = 64
"""Mixtures in a part of the losses table: what a run writes at once."""
BASE = "base"
COST = Cost(seconds=60, tokens=1_000_000, flops=1e12, joules=None, estimator="none", device="cpu")
"""What each training and each part of the losses table is said to have cost."""


def write_corpus(folder: Path, domains: int, documents: int) -> None:
    """One file of JSON lines for each domain, with so many short documents."""
    folder.mkdir(parents=True)
    for domain in range(domains):
        lines = (
            json.dumps({"domain": f"domain-{domain:03d}", "text": text(number, WORDS)})
            for number in range(domain * documents, (domain + 1) * documents)
        )
        (folder / f"{domain:03d}.jsonl").write_text("\n".join(lines) + "\n")


def domain_names(domains: int, partitions: int) -> list[str]:
    """Names of all partitions of a corpus of ``write_corpus``, so many for each domain."""
    return [f"domain-{domain:03d}-{n}" for domain in range(domains) for n in range(partitions)]


def recipe_of(
    corpus: Path, spaces: list[dict[str, Any]], *, partitions: int, tokens: int, heldout: int
) -> Recipe:
    """A recipe whose models have a few thousand parameters.

    Args:
        partitions: partitions of each domain.
        tokens: tokens of a partition.
        heldout: documents of each domain's evaluation set.
    """
    shape = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 16}
    train = {"steps": 1, "batch_size": 1, "context_length": 16, "learning_rate": 1e-3}
    tree = {
        "name": "fabricated",
        "corpus": {
            "name": "fabricated",
            "source": {"urls": [f"{corpus}/*.jsonl"], "format": {"domain_fields": ["domain"]}},
            "split": {
                "tokens_per_partition": tokens,
                "partitions_per_domain": partitions,
                "heldout_fraction": 0.3,
                "heldout_documents": heldout,
                "base_fraction": 0.1,
            },
        },
        "evaluation": {
            "windows": {"format": "disjoint", "context_length": 16, "max_document_tokens": 16}
        },
        "tokenizer": {"kind": "train", "vocab_size": 300},
        "base": {
            "kind": "train",
            "architecture": {**shape, "context_length": 16},
            "train": train,
        },
        "train": train,
        "mixtures": {"spaces": spaces, "limit": 1_000_000},
    }
    return parse_recipe(tree, "the benchmark")


class Fabricator(InlineRunner):
    """Puts trainings and losses there instead of computing them."""

    def __init__(self, store: Store, runtime: Runtime | None = None) -> None:
        super().__init__(store, runtime)
        self._random = np.random.default_rng(0)

    def obtain(self, call: Call[Any]) -> Handle:
        """A made-up model for each partition; the rest is real."""
        if call.step is not TRAIN or call.label == BASE:
            return super().obtain(call)
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "model.safetensors").write_text(call.label)
            record = self.store.commit(_record(call, Path(name)), Path(name))
        return Handle(call.label, call.step.kind, record.output, record, hit=False)

    def sweep(self, work: SweepWork) -> Any:
        """Made-up sums for every mixture and set, in parts as a run would have written them."""
        plan = SweepPlan.of(self.store, work)
        for chunk in plan.chunks(CHUNK):
            plan.table.append(list(self._rows(chunk, work)), COST.model_dump())
        return plan.rows()

    def _rows(self, chunk: Sequence[Any], work: SweepWork) -> Iterator[LossRow]:
        for job in chunk:
            name, level = identity(job.mixture), 5 + 0.05 * self._random.standard_normal()
            for evaluated in job.sets:
                handle = work.sets[evaluated]
                assert handle.artifact is not None
                assert handle.record is not None
                groups = handle.record.details["num_groups"]
                tokens = handle.record.details["num_tokens"] / groups
                # As many digits as sums of float32 losses have.
                sums = level * tokens * self._random.normal(1, 0.05, groups).astype(np.float32)
                nll = float(sums.sum(dtype=float))
                yield LossRow(
                    name, handle.artifact.digest, job.label, evaluated, nll, sums.tolist()
                )


def _record(call: Call[Any], folder: Path) -> Record:
    assert call.digests is not None
    assert call.key is not None
    return Record(
        step=call.step.name,
        version=call.step.version,
        key=call.key,
        label=call.label,
        config=canonical(call.config),
        inputs=call.digests,
        output=describe(call.step.kind, folder),
        details={"steps": 1, "num_blocks": 1, "repeats": 1.0, "final_loss": 5.0},
        cost=COST.model_dump(),
        provenance=provenance("cpu"),
    )
