"""The planner: walks the chain and counts what a run would do, building nothing in the store.

New files must be read to know their documents, so the scan runs for real, into a scratch folder laid
over the store. Where an input is not built yet, every step that needs it counts as not built. Its output
may turn out equal to a stored one, so the counts are upper bounds.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NamedTuple

from flows.chain.ablation import Prepared, ablate, scan_corpus
from flows.chain.ladder import climb
from flows.chain.notes import lines_of, notes_of
from flows.chain.recipe import Recipe
from flows.chain.runner import REFERENCE, Ledger, Quiet, Reporter, median_per_token, note
from flows.chain.search import SearchOutcome, search
from flows.chain.validation import train_references
from flows.chain.work import SweepPlan, SweepWork
from flows.runners.inline import InlineRunner
from storage.artifact import Record
from storage.cache import Explanation, Nearest, look_ahead, lookup
from storage.step import Call, Handle, Runtime, Step
from storage.store import Store, scratch_store
from tasks.evaluation.losses import LossRows
from tasks.evaluation.losses_table import LossesTable, identity
from tasks.machine.device import devices_of
from tasks.partitions.manifest import Manifest
from tasks.search.descent import DESCEND
from tasks.tokens.tokenizer import TRAIN_TOKENIZER
from tasks.training.train import TRAIN


class Planned(NamedTuple):
    """One use of a step."""

    call: Call[Any]
    is_cached: bool


@dataclass
class PlannerRunner:
    """Looks everything up and builds nothing (but the tokenizer that a first scan needs)."""

    store: Store
    runtime: Runtime = field(default_factory=Runtime)
    reporter: Reporter = field(default_factory=Quiet)
    ledger: Ledger = field(default_factory=Ledger)
    planned: list[Planned] = field(default_factory=list)
    pairs_known: int = 0
    pairs_missing: int = 0
    effort: float = 0.0
    """The missing pairs; one on a part of a set counts as the part's share of the set."""
    gives_rows: bool = False
    """Whether sweeps whose losses are all stored return them, also outside races."""

    def map(self, calls: Sequence[Call[Any]]) -> list[Handle]:
        """Stored results, or handles without an artifact."""
        look_ahead(self.store, calls)
        return [self._look(call) for call in calls]

    def _look(self, call: Call[Any]) -> Handle:
        handle = lookup(self.store, call)
        self.planned.append(Planned(call, handle is not None))
        if handle is not None:
            return note(self.ledger, call, handle)
        if call.step is TRAIN_TOKENIZER:
            return InlineRunner(self.store, self.runtime).map([call])[0]
        return Handle(call.label, call.step.kind, None)

    def rest(self) -> None:
        """Nothing is held."""

    def sweep(self, work: SweepWork) -> LossRows | None:
        """Count the missing losses; the rows where all are stored and a later choice needs them."""
        pairs = len(work.mixtures) * len(work.sets)
        handles = [*work.pool.values(), *work.sets.values()]
        if all(handle.artifact is not None for handle in handles):
            sweep_plan = SweepPlan.of(self.store, work, self.runtime.scratch)
            num_known = sweep_plan.num_known
            is_wanted = num_known == pairs and (work.stage is not None or self.gives_rows)
            rows = sweep_plan.rows() if is_wanted else None
        else:
            num_known, rows = _known_pairs(self.store, work), None
        self.pairs_known += num_known
        self.pairs_missing += pairs - num_known
        self.effort += (pairs - num_known) * (work.stage.share if work.stage else 1.0)
        return rows


def _known_pairs(store: Store, work: SweepWork) -> int:
    """Pairs in the table of mixtures and sets that are built already."""
    table = LossesTable(store, work.config)
    models = {name: handle.digest for name, handle in work.pool.items() if handle.digest}
    sets = [handle.digest for handle in work.sets.values() if handle.digest]
    return sum(
        (identity(mixture.renamed(models)), digest) in table
        for mixture in work.mixtures
        if all(member in models for member in mixture.members)
        for digest in sets
    )


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    planned: list[Planned]
    pairs_known: int
    pairs_missing: int
    effort: float
    """The missing pairs; one on a part of a set counts as the part's share of the set."""
    is_open: bool
    """Whether a race decides what else is to be evaluated."""
    mixtures: int
    partitions: int
    train_records: list[Record]
    seconds_per_pair: float | None
    seconds_per_token: float | None
    """Of evaluating, forward through a model."""
    explanations: list[Explanation]
    """Why each step that would be built is not in the store."""
    notes: list[str]
    """What a person should know before it runs."""
    lines: list[str]
    """How the corpus goes on, and what its limit leaves out."""
    is_search: bool = False
    """Whether a search chooses, as it goes, which of the missing losses are evaluated."""

    @property
    def steps(self) -> list[Step[Any]]:
        """The steps that are used, in order."""
        return list(dict.fromkeys(p.call.step for p in self.planned))

    def to_build(self, step: Step[Any] | None = None) -> list[Call[Any]]:
        """Calls that would run, of one step or of all."""
        return [p.call for p in self.planned if not p.is_cached and step in {None, p.call.step}]

    def cached(self, step: Step[Any]) -> list[Call[Any]]:
        """Calls of a step that the store has."""
        return [p.call for p in self.planned if p.is_cached and p.call.step == step]

    @property
    def then(self) -> str:
        """Words behind the number of missing losses: what a race or search may add."""
        tokens = self.descent_tokens
        descent = f", and a descent worth {tokens:,} evaluated tokens" if tokens else ""
        if self.is_search:
            return f", which the search chooses as it goes{descent}"
        return ", then those that a race decides on" if self.is_open else descent

    @property
    def descent_tokens(self) -> int:
        """Tokens whose evaluation would cost as much as the descents of a search."""
        return _tokens(self.to_build(DESCEND))

    @property
    def training_tokens(self) -> int:
        """Tokens that would be trained on."""
        return _tokens(self.to_build(TRAIN))

    @property
    def references(self) -> list[Planned]:
        """The trainings of a validation, those of partitions left out."""
        trainings = (p for p in self.planned if p.call.step == TRAIN)
        return [p for p in trainings if p.call.label.startswith(REFERENCE)]

    @property
    def joules(self) -> float | None:
        """Estimate for what would be trained, from earlier records; None where none has measured any."""
        per_token = median_per_token(self.train_records, "joules")
        return None if per_token is None else self.training_tokens * per_token

    @property
    def seconds(self) -> float | None:
        """Estimate from the costs of earlier records; None where there is none to go by."""
        per_token = median_per_token(self.train_records, "seconds")
        trained = (self.training_tokens, per_token)
        evaluated = (self.pairs_missing, self.seconds_per_pair)
        descended = (self.descent_tokens, self.seconds_per_token)
        if any(count and rate is None for count, rate in (trained, evaluated, descended)):
            return None
        descent = self.descent_tokens * (self.seconds_per_token or 0.0)
        pairs = self.effort * (self.seconds_per_pair or 0.0)
        return self.training_tokens * (per_token or 0.0) + pairs + descent

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON."""
        return {
            "steps": {
                step.name: {
                    "cached": [call.label for call in self.cached(step)],
                    "build": [call.label for call in self.to_build(step)],
                }
                for step in self.steps
            },
            "partitions": self.partitions,
            "mixtures": self.mixtures,
            "losses_from_store": self.pairs_known,
            "losses_to_evaluate": self.pairs_missing,
            "race_decides_more": self.is_open,
            "training_tokens": self.training_tokens,
            "descent_tokens": self.descent_tokens,
            "seconds": self.seconds,
            "joules": self.joules,
            "references": {
                "cached": [p.call.label for p in self.references if p.is_cached],
                "build": [p.call.label for p in self.references if not p.is_cached],
                "tokens": _tokens(p.call for p in self.references if not p.is_cached),
            },
            "search_chooses": self.is_search,
            "corpus": self.lines,
            "notes": self.notes,
            "upper_bound": self.is_search or any(call.key is None for call in self.to_build()),
        }


def _tokens(calls: Iterable[Call[Any]]) -> int:
    return int(sum(call.estimate.get("tokens", 0) for call in calls))


def plan(
    url: str,
    recipe: Recipe,
    runtime: Runtime,
    reporter: Reporter,
    *,
    with_references: bool = False,
    with_search: bool = False,
    corpus: Manifest | None = None,
) -> Plan:
    """Count what a run of ``recipe`` on the store at ``url`` would do.

    Args:
        corpus: the manifest that ``scan_corpus`` has just published; None scans, and publishes nothing.
        with_search: a search instead of every mixture: what it may still evaluate is counted in full.

    Raises:
        PermissionError: the store is on a disk and cannot be written by this user.
    """
    with scratch_store(url) as store:
        store.backend.refuse_unwritable()
        # The choice of references goes by the ranking, where there is one.
        runner = PlannerRunner(store, runtime, reporter, gives_rows=with_references)
        searched = _searched(runner, recipe, corpus) if with_search else None
        outcome = searched.outcome if searched else ablate(runner, recipe, corpus)
        if with_references:
            list(climb(runner, recipe, outcome, train_references(runner, recipe, outcome)))
        steps = {planned.call.step for planned in runner.planned}
        records = {step: list(store.records(step.name)) for step in steps}
        nearest = {step: Nearest(known) for step, known in records.items()}
        return Plan(
            planned=runner.planned,
            pairs_known=runner.pairs_known,
            pairs_missing=runner.pairs_missing,
            effort=runner.effort,
            is_open=outcome.race is not None and not outcome.race.result.is_complete,
            mixtures=len(outcome.mixtures) + (searched.pending if searched else 0),
            partitions=len(outcome.partitions),
            train_records=records.get(TRAIN, []),
            seconds_per_pair=_seconds_per_pair(store, recipe, outcome),
            seconds_per_token=_seconds_per_token(LossesTable(store, recipe.evaluation.evaluate)),
            explanations=[
                nearest[p.call.step].explain(p.call) for p in runner.planned if not p.is_cached
            ],
            notes=[*notes_of(outcome), *_of_machine(runtime), *_not_known(outcome)],
            lines=lines_of(outcome),
            is_search=searched is not None and searched.pending > 0,
        )


def _of_machine(runtime: Runtime) -> Iterator[str]:
    """What a run on this machine would end with, wherever it needs a device or a meter."""
    ends = "a run on this machine would end with:"
    try:
        if runtime.device != "auto":
            devices_of(runtime)
    except ValueError as error:
        yield f"{ends} {error}"
    if runtime.energy == "codecarbon" and find_spec("codecarbon") is None:
        yield f"{ends} energy is 'codecarbon', and that package is not installed"


def _not_known(outcome: Prepared) -> Iterator[str]:
    """What only a run finds out, before it trains anything."""
    if outcome.probe is not None and outcome.probe.artifact is None:
        yield (
            "whether the base model can be used is not known before a run tries it (step probe), which "
            "it does before anything is trained"
        )


def _searched(runner: PlannerRunner, recipe: Recipe, corpus: Manifest | None) -> SearchOutcome:
    """Replay a search as far as its losses are stored, and count what may follow."""
    searched = search(runner, recipe, corpus or scan_corpus(runner, recipe))
    uncounted = searched.left * len(searched.outcome.sets)
    runner.pairs_missing += uncounted
    runner.effort += uncounted
    return searched


def _seconds_per_pair(store: Store, recipe: Recipe, outcome: Prepared) -> float | None:
    table = LossesTable(store, recipe.evaluation.evaluate)
    per_token = _seconds_per_token(table)
    sizes = [h.record.details["forward_tokens"] for h in outcome.windows.values() if h.record]
    if per_token is not None and sizes:  # rows of a race are on parts of sets: go by tokens
        return float(per_token * statistics.mean(sizes))
    seconds = sum(cost["seconds"] for cost in table.costs())
    return seconds / len(table) if len(table) else None


def _seconds_per_token(table: LossesTable) -> float | None:
    tokens = sum(cost["tokens"] for cost in table.costs())
    return float(sum(cost["seconds"] for cost in table.costs()) / tokens) if tokens else None
