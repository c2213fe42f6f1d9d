"""The data of a run's report: rankings, tables and notes, and the summary in ``run.json``."""

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.chain.ablation import CONTROL, Outcome
from flows.chain.notes import lines_of, notes_of
from flows.chain.recipe import Recipe
from flows.chain.runner import Entry, Runner
from flows.chain.work import losses_of
from flows.run.costs import cost_frame, stated
from flows.run.stored import newest_validation
from storage.fingerprint import short
from storage.lineage import tree
from storage.provenance import now, provenance
from storage.store import Store
from tasks.evaluation.losses import Losses
from tasks.evaluation.predicted import MERGE, scale_of
from tasks.ranking.forgetting import learned_and_forgotten
from tasks.ranking.rank import MACRO_MEAN, rank_all
from tasks.readable import listed
from tasks.report.data import ReportData
from tasks.report.tables import to_json
from tasks.search.result import SearchResult
from tasks.shown import line
from tasks.training.train import TRAIN
from tasks.trust.flatness import flat_merges, mean_barriers
from tasks.trust.predictors import in_words

if TYPE_CHECKING:
    import pandas as pd

    from tasks.trust.ladder import Ladder
    from tasks.trust.verdict import Trust


class Ranked(NamedTuple):
    """The mixtures that were judged, and their order."""

    losses: Losses
    members: "pd.DataFrame"
    """What each is made of: mixture, partition, weight."""
    rankings: "dict[str, pd.DataFrame]"
    """By objective, see ``tasks.ranking.rank.rank_all``."""


def rank_judged(store: Store, outcome: Outcome) -> Ranked:
    """Rank the mixtures that were judged.

    Raises:
        ValueError: the losses cannot be ranked (see ``tasks.ranking.rank.rank``).
    """
    assert outcome.rows is not None, "a plan has no losses to rank"
    losses, members = losses_of(store, outcome.rows, outcome.windows), _members(outcome)
    is_screened = outcome.race is not None and bool(outcome.race.result.exits)
    return Ranked(losses, members, rank_all(losses, members, is_screened=is_screened))


def report_of(
    run: Runner,
    recipe: Recipe,
    outcome: Outcome,
    ranked: Ranked,
    trust: "Trust | None",
    search_result: SearchResult | None,
    ladder: "Ladder | None" = None,
) -> ReportData:
    """The data of the run's report.

    Args:
        trust: of a validation, else None.
        search_result: of a search, else None.
        ladder: of a validation whose recipe has one, else None.
    """
    trainings = {
        entry.label: entry
        for entry in run.ledger.entries
        if entry.step == TRAIN and entry.label in outcome.pool
    }
    partitions, trust = _with_sharpness(outcome, _partitions(outcome, trainings), trust)
    return ReportData(
        title=recipe.name,
        created=now(),
        **ranked._asdict(),
        partitions=partitions,
        sets=_sets(outcome),
        cost=cost_frame(run.ledger, outcome.mixtures, trainings, run.runtime),
        validation=trust,
        ladder=ladder,
        notes=[*_notes(outcome, ranked), *_of_predictor(run.store, outcome, trust)],
        lineage=_lineage(run, outcome),
        provenance=provenance(run.runtime.device),
        race=None if outcome.race is None else outcome.race.screening(outcome.mixtures),
        search=search_result,
        forgetting=_forgetting(run.store, outcome, ranked),
        cost_words=stated(run.runtime),
        corpus_words=lines_of(outcome),
        ranked_by=outcome.ranked_by,
    )


def _forgetting(store: Store, outcome: Outcome, ranked: Ranked) -> "pd.DataFrame | None":
    if outcome.base_rows is None or scale_of(outcome.ranked_by) is not None:
        return None
    base = losses_of(store, outcome.base_rows, outcome.windows)
    return learned_and_forgotten(
        ranked.losses, base, ranked.members, outcome.domains, _sets(outcome)
    )


def _members(outcome: Outcome) -> "pd.DataFrame":
    import pandas as pd

    mixtures: list[str] = []
    partitions: list[str] = []
    weights = array("d")
    for mixture in outcome.judged:
        total = mixture.total
        mixtures += [mixture.label] * mixture.size
        partitions += mixture.members
        weights.extend(part / total for _, part in mixture.parts)
    # Text as Python's own: one object for all rows that name it.
    named = {"mixture": mixtures, "partition": partitions}
    texts = {name: pd.Series(column, dtype=object) for name, column in named.items()}
    return pd.DataFrame({**texts, "weight": weights})


def _partitions(outcome: Outcome, trainings: dict[str, Entry]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "partition": entry.name,
                "domain": entry.domain,
                "num_documents": entry.num_documents,
                "num_tokens": entry.num_tokens,
                "repeats": _repeats(trainings[entry.name]),
                "seconds": trainings[entry.name].cost.get("seconds"),
                "fingerprint": short(outcome.pool[entry.name].digest),
                "status": "trained now" if trainings[entry.name].built else "from the store",
            }
            for entry in outcome.partitions
        ]
    )


def _with_sharpness(
    outcome: Outcome, partitions: "pd.DataFrame", trust: "Trust | None"
) -> "tuple[pd.DataFrame, Trust | None]":
    """Both with the sharpness of partition models, beside their barriers, where it was measured."""
    if not outcome.sharpness:
        return partitions, trust
    records = {name: handle.record for name, handle in outcome.sharpness.items()}
    sharpness = {n: float(r.details["sharpness"]) for n, r in records.items() if r is not None}
    partitions = partitions.assign(sharpness=partitions["partition"].map(sharpness))
    if trust is None:
        return partitions, None
    barriers = mean_barriers(trust.barriers)
    words = [*trust.words, *flat_merges(sharpness, trust.barriers)]
    return partitions.assign(
        barrier=partitions["partition"].map(barriers).astype(float)
    ), trust._replace(words=words)


def _repeats(entry: Entry) -> float:
    assert entry.record is not None
    return float(entry.record.details["repeats"])


def _sets(outcome: Outcome) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for entry in outcome.sets:
        record = outcome.windows[entry.name].record
        details = record.details if record is not None else {}
        rows.append(
            {
                "evaluation_set": entry.name,
                "domain": entry.domain,
                "num_documents": entry.num_documents,
                "num_tokens": details["num_tokens"],
                "num_bytes": details["num_bytes"],
                "removed": entry.removed,
            }
        )
    return pd.DataFrame(rows)


def _notes(outcome: Outcome, ranked: Ranked) -> list[str]:
    race = outcome.race
    words = race.words if race is not None and not race.result.exits else []
    judged = [*against_control(ranked)]
    if outcome.ranked_by == MERGE:
        judged = [*worse_than_parts(outcome, ranked), *judged]
    return [*notes_of(outcome), *words, *judged]


def _of_predictor(store: Store, outcome: Outcome, trust: "Trust | None") -> Iterator[str]:
    """What mixtures are ranked by, and whether a validation of the pool favours something else."""
    name = outcome.ranked_by
    if name != MERGE:
        yield (
            f"all losses of mixtures are of evaluation.rank_by: {name} (the {in_words(name)}), not of merged "
            "models: believe their order, not their level"
        )
    models = {n: handle.digest for n, handle in outcome.pool.items()}
    found = newest_validation(store, models) if trust is None else ("here", dict(trust.favoured))
    best = None if found is None else found[1].get(MACRO_MEAN)
    if found is not None and best not in (None, name):
        where = "this validation" if trust else f"the validation in run {found[0]}"
        yield (
            f"{where} favours {best} on the {MACRO_MEAN}, and this ranking goes by {name}: --set "
            f"'evaluation.rank_by={best}' ranks by it, and trains nothing"
        )


def worse_than_parts(outcome: Outcome, ranked: Ranked) -> Iterator[str]:
    """Mixtures whose merged model is worse than the model of each of its parts."""
    macro = ranked.rankings[MACRO_MEAN]
    losses = dict(zip(macro["mixture"], macro["loss"], strict=True))
    alone = {m.members[0]: losses[m.label] for m in outcome.judged if m.size == 1}
    several = [m for m in outcome.judged if m.size > 1 and alone.keys() >= {*m.members}]
    worse = [m.label for m in several if losses[m.label] > max(alone[p] for p in m.members)]
    if worse:
        yield (
            f"{len(worse):,} of {len(several):,} merged models are worse than each of their parts by "
            f"{MACRO_MEAN}: {listed(worse, 3)}; their averages say nothing of their data: lower "
            "train.learning_rate or train.steps, and look for barriers by `mixpool validate`"
        )


def against_control(ranked: Ranked) -> Iterator[str]:
    """What training on the partitions is worth beside as much more of the base model's documents."""
    losses = ranked.rankings[MACRO_MEAN].set_index("mixture")["loss"]
    if CONTROL not in losses.index or len(losses) < 2:
        return
    gains = (losses[CONTROL] - losses.drop(CONTROL)).sort_values(ascending=False, kind="stable")
    best = f"{gains.index[0]} by {gains.iloc[0]:.4f} nats per token at most"
    if gains.iloc[0] <= 0:
        best = f"{gains.index[0]} is behind it by {-gains.iloc[0]:.4f} nats per token"
    yield (
        f"{int((gains > 0).sum()):,} of {len(gains):,} mixtures are better than the control (as many steps "
        f"on the base model's documents alone) by {MACRO_MEAN}: {best}"
    )


def _lineage(run: Runner, outcome: Outcome) -> str:
    records = {e.record.output.digest: e.record for e in run.ledger.entries if e.record is not None}
    names = {entry.documents.digest: f"documents of {entry.name}" for entry in outcome.partitions}
    names |= {entry.documents.digest: f"evaluation set {entry.name}" for entry in outcome.sets}
    names[outcome.manifest.tokenizer.digest] = "tokenizer"
    if outcome.manifest.base_documents is not None:
        names[outcome.manifest.base_documents.digest] = "documents of the base model"
    lines: list[str] = []
    for handle in outcome.pool.values():
        assert handle.digest is not None
        lines += tree(handle.digest, records, names)
    return "\n".join(map(line, lines))


def summary_of(run: Runner, outcome: Outcome, report: ReportData) -> dict[str, Any]:
    """What ``run.json`` has under ``summary``: plain JSON."""
    trust, search = report.validation, report.search
    ledger = run.ledger
    top = ["rank", "mixture", "k", "loss", "perplexity", "bits_per_byte", "low", "high", "tied"]
    return {
        "partitions": len(outcome.partitions),
        "mixtures": len(outcome.mixtures),
        "evaluation_sets": len(outcome.sets),
        "trained": [entry.label for entry in ledger.built(TRAIN)],
        "trainings_from_store": [entry.label for entry in ledger.cached(TRAIN)],
        "ranked_by": outcome.ranked_by,
        "losses_evaluated": ledger.num_evaluated,
        "losses_from_store": ledger.num_known,
        "corpus": list(report.corpus_words),
        "best": {n: to_json(table[top].head(1))[0] for n, table in report.rankings.items()},
        "cost": to_json(report.cost),
        "race": None if outcome.race is None else outcome.race.to_json(),
        "validation": None if trust is None else to_json(trust.table),
        "verdict": None if trust is None else trust.words,
        "named": None if trust is None or trust.named is None else to_json(trust.named),
        "ladder": None if report.ladder is None else to_json(report.ladder.orders),
        **({} if trust is None else {"favoured": dict(trust.favoured)}),
        "search": None if search is None else search.words,
        "found": None if search is None else _answer(search),
        "problems": [*report.notes, *report.remarks],
    }


def _answer(search: SearchResult) -> dict[str, Any] | None:
    """The answer of a search; None where no mixture keeps the caps."""
    if search.best.empty:
        return None
    best = search.best.iloc[0]
    return {
        "mixture": best["mixture"],
        "objective": float(best["objective"]),
        "evaluations": len(search.trace),
    }
