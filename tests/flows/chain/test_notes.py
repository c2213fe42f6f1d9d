"""What a run says of its corpus and its models, beside the numbers."""

import dataclasses

import pytest

from flows.chain.ablation import Outcome, Prepared, ablate
from flows.chain.notes import lines_of, notes_of
from flows.run.report_data import rank_judged, worse_than_parts
from flows.runners.planner import PlannerRunner
from storage.artifact import Artifact, Record, digest_of
from storage.step import Handle
from storage.store import Store
from tasks.partitions.manifest import Manifest
from tests.flows.conftest import Place

NOTHING = Artifact(kind="none", digest=digest_of({}), files={})
CORPUS = Manifest.model_validate(
    {
        **{name: {} for name in ("rules", "files", "domains", "withdrawn", "counts")},
        "chain": "x",
        "number": 0,
        "limit": None,
        "tokenizer": NOTHING,
        "base_documents": None,
        "sets": [],
        "index": [],
        "problems": ["a file is damaged", "a file is damaged"],
    }
)


def handle(**details: object) -> Handle:
    """What a step has made, with such details in its record."""
    facts = {"key": digest_of({}), "label": "x", "config": {}, "inputs": {}, "output": NOTHING}
    record = Record.model_validate({"step": "x", "version": 1, "details": details, **facts})
    return Handle("x", "x", NOTHING, record)


def prepared(base: Handle, tokens: dict[str, Handle], windows: dict[str, Handle]) -> Prepared:
    tokenizer = Handle("tokenizer", "tokenizer", NOTHING)
    return Prepared(CORPUS, tokenizer, base, base, [], tokens, {}, {}, [], windows)


def test_unknown_tokens_are_said_by_name() -> None:
    planned = Handle("x", "x", None)
    tokens = {"law-0": handle(num_unknown=1200), "law-1": handle(num_tokens=5), "law-2": planned}
    found = notes_of(
        prepared(handle(notes=["of the base"]), tokens, {"law": handle(num_unknown=3)})
    )
    assert found == [
        "a file is damaged",
        "of the base",
        "tokens that the tokenizer does not know stand for any text, which bits per byte then leave "
        "out: in law-0 (1,200), law (3)",
    ]
    assert notes_of(prepared(planned, {}, {})) == ["a file is damaged"]


@pytest.fixture(scope="module")
def outcome(finished: Place) -> Outcome:
    """Of the finished run, all from its store."""
    return ablate(PlannerRunner(Store(finished.store), gives_rows=True), finished.load())


def test_models_of_several_versions_are_named(outcome: Outcome) -> None:
    assert notes_of(outcome) == []
    name, handle = next(iter(outcome.pool.items()))
    assert handle.record is not None
    of_before = {**handle.record.provenance, "packages": {"torch": "1.0"}}
    record = handle.record.model_copy(update={"provenance": of_before})
    pool = {**outcome.pool, name: dataclasses.replace(handle, record=record)}
    torch, transformers = notes_of(dataclasses.replace(outcome, pool=pool))
    assert torch.startswith("models that several versions of torch trained are averaged (1.0: ")
    assert f"1.0: {name}; " in torch
    assert f"None: {name}; " in transformers


def test_what_a_limit_leaves_out_is_a_line(outcome: Outcome) -> None:
    (*_, line) = lines_of(outcome)
    left_out = outcome.manifest.counts["left out"]
    assert line == f"{left_out:,} documents left out by corpus.split.partitions_per_domain"


def test_merged_models_that_are_worse_than_each_of_their_parts_are_noted(
    finished: Place, outcome: Outcome
) -> None:
    ranked = rank_judged(Store(finished.store), outcome)
    (macro,) = [table for name, table in ranked.rankings.items() if name == "macro mean"]
    pair = next(m for m in outcome.judged if m.size == 2)
    low, high = macro["loss"].min() - 1, macro["loss"].max() + 1

    def with_loss(loss: float) -> list[str]:
        flat = macro.assign(loss=low).copy()
        flat.loc[flat["mixture"] == pair.label, "loss"] = loss
        return list(worse_than_parts(outcome, ranked._replace(rankings={"macro mean": flat})))

    assert with_loss(low) == []
    (note,) = with_loss(high)
    pairs = sum(m.size > 1 for m in outcome.judged)
    assert note.startswith(
        f"1 of {pairs} merged models are worse than each of their parts by macro"
    )
    assert pair.label in note
