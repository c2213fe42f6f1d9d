"""Notes: what a person should know beside the numbers, in the same words in plan, run and report."""

from collections.abc import Iterator
from fractions import Fraction

from flows.chain.ablation import Prepared
from storage.provenance import packages
from storage.step import Handle
from tasks.readable import listed
from tasks.training.teacher import in_words

AVERAGING = ("torch", "transformers")
"""Libraries of whose versions the models of one pool should have one."""
NOTES = "notes"
"""Where a step's details, in its record, have its own sentences."""


def notes_of(prepared: Prepared) -> list[str]:
    """Sentences on the corpus, the evaluation sets and the base model, each once."""
    notes = [
        *prepared.manifest.problems,
        *_lost(prepared),
        *_of_step(prepared.probe),
        *_unknown(prepared),
        *_versions(prepared),
        *_taught(prepared),
        *_repeated(prepared),
    ]
    return list(dict.fromkeys(notes))


def lines_of(prepared: Prepared) -> list[str]:
    """What is as it should be, and worth a line: how the corpus goes on, what its limit leaves out."""
    used = {entry.name for entry in prepared.partitions}
    beyond = [entry for entry in prepared.manifest.partitions() if entry.name not in used]
    left_out = prepared.manifest.counts.get("left out", 0)
    left_out += sum(entry.num_documents for entry in beyond)
    words = f"{left_out:,} documents left out by corpus.split.partitions_per_domain"
    return [*prepared.manifest.story, *([words] if left_out else [])]


def _lost(prepared: Prepared) -> Iterator[str]:
    for entry in prepared.sets:
        if entry.removed:
            yield (
                f"evaluation set {entry.name!r} lost {entry.removed} documents that training data "
                "already held"
            )


def _unknown(prepared: Prepared) -> Iterator[str]:
    records = {n: h.record for n, h in (prepared.tokens | prepared.windows).items() if h.record}
    counts = {name: record.details.get("num_unknown", 0) for name, record in records.items()}
    if found := [f"{name} ({count:,})" for name, count in counts.items() if count]:
        yield (
            "tokens that the tokenizer does not know stand for any text, which bits per byte then "
            f"leave out: in {listed(found, 8)}"
        )


def _of_step(handle: Handle | None) -> list[str]:
    """What a step had to say; nothing where it is not done yet."""
    record = handle and handle.record
    return list(record.details.get(NOTES, [])) if record else []


def _taught(prepared: Prepared) -> Iterator[str]:
    """That the models do not stem from text alone; nothing in a plan that has not built one."""
    records = [handle.record for handle in prepared.pool.values() if handle.record]
    words = [in_words(record.config, record.inputs) for record in records]
    for how in dict.fromkeys(filter(None, words)):
        yield f"partition models and references learnt from teachers beside their text: {how}"


def _repeated(prepared: Prepared) -> Iterator[str]:
    """Which partitions have too little text to be read no oftener than in the longer run."""
    found = []
    records = {name: handle.record for name, handle in prepared.pool.items()}
    for name, record in records.items():
        if record is None or (rule := record.config.get("repeat_as")) is None:
            continue
        for times, source in zip(rule["epochs"], record.details["sources"], strict=True):
            if source["blocks"] > source["different"] and source["epochs"] > Fraction(times):
                found.append(
                    f"{name} ({source['epochs']:.3g} times, there {float(Fraction(times)):.3g})"
                )
    if found:
        yield (
            "partitions that have too little text for as few repetitions as the longer run of "
            f"train.repeat_as has: {listed(found, 8)}"
        )


def _versions(prepared: Prepared) -> Iterator[str]:
    """Which models would be averaged though other versions of the libraries trained them."""
    here = packages()
    for package in AVERAGING:
        trained: dict[str, list[str]] = {}
        for name, handle in prepared.pool.items():
            # What a plan has not built, this process would train.
            known = here if handle.record is None else handle.record.provenance.get("packages", {})
            trained.setdefault(str(known.get(package)), []).append(name)
        if len(trained) > 1:
            words = "; ".join(
                f"{version}: {listed(names, 8)}" for version, names in trained.items()
            )
            yield f"models that several versions of {package} trained are averaged ({words})"
