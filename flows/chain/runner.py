"""The runner: the protocol that carries out the chain, and the ledger of what it built.

The chain (``flows.chain.ablation``) says what is needed, and a runner looks it up, builds it or counts it:
``flows.runners.inline`` in this process, ``flows.runners.planner`` without building anything,
``flows.prefect.runner`` with a task run for each call of a step.
"""

import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flows.chain.work import SweepPlan, SweepWork
from storage.artifact import Record
from storage.step import Call, Handle, Progress, Runtime, Step
from storage.store import Store
from tasks.evaluation.losses import LossRows

LOG = logging.getLogger("mixpool.run")

REFERENCE = "reference "
"""Prefix of a mixture's label where the really trained model is meant, as in entries of a ledger."""

POLL_SECONDS = 1.0


class Reporter(Protocol):
    """Shows a person the progress of a run."""

    def task(self, name: str) -> Progress:
        """A function to call with the progress of the named piece of work."""

    def say(self, message: str) -> None:
        """One line that stays."""


def ignore(done: int, total: int, unit: str) -> None:
    """Progress that nobody wants to see."""


class Quiet:
    """Shows nothing."""

    def task(self, name: str) -> Progress:
        """A function that ignores progress."""
        del name
        return ignore

    def say(self, message: str) -> None:
        """Log the line."""
        LOG.info(message)


@dataclass(frozen=True)
class Entry:
    """One call of a step, built now or taken from the store."""

    step: Step[Any]
    label: str
    built: bool
    cost: Mapping[str, Any]
    """Its recorded cost: spent now if it was built, saved by the store if not."""
    record: Record | None = None
    """Its record; None in a plan."""


@dataclass
class Ledger:
    """All calls and losses of a run: what was built now, and what the store had."""

    entries: list[Entry] = field(default_factory=list)
    num_evaluated: int = 0
    """(mixture, evaluation set) pairs evaluated now."""
    num_known: int = 0
    """Pairs that the losses table had."""
    sweep_costs: list[Mapping[str, Any]] = field(default_factory=list)

    def add_sweep(self, part: "Ledger") -> None:
        """Add the losses of a part of a sweep."""
        self.num_evaluated += part.num_evaluated
        self.num_known += part.num_known
        self.sweep_costs += part.sweep_costs

    def built(self, step: Step[Any]) -> list[Entry]:
        """The calls of one step that were built now."""
        return [entry for entry in self.entries if entry.step == step and entry.built]

    def cached(self, step: Step[Any]) -> list[Entry]:
        """The calls of one step whose results the store had."""
        return [entry for entry in self.entries if entry.step == step and not entry.built]


class Runner(Protocol):
    """Carries out what the chain asks for."""

    store: Store
    runtime: Runtime
    reporter: Reporter
    ledger: Ledger

    def map(self, calls: Sequence[Call[Any]]) -> list[Handle]:
        """The results of calls that do not need one another, in order."""

    def sweep(self, work: SweepWork) -> LossRows | None:
        """The losses of every mixture of the work on every set; None in a plan."""

    def rest(self) -> None:
        """Give back the memory that the stages of a race share."""


def swept_rows(run: Runner, work: SweepWork) -> LossRows:
    """Losses of work that was swept. Swept once more, those evaluated just now would count as stored."""
    return SweepPlan.of(run.store, work, run.runtime.scratch).rows()


def median_per_token(records: Iterable[Record], what: str) -> float | None:
    """What a token of a training cost, ``seconds`` or ``joules``; None where no record says it."""
    costs = [record.cost for record in records]
    rates = [cost[what] / cost["tokens"] for cost in costs if cost.get(what) and cost.get("tokens")]
    return float(statistics.median(rates)) if rates else None


def note(ledger: Ledger, call: Call[Any], handle: Handle) -> Handle:
    """Enter a result into the ledger."""
    record = handle.record
    cost = record.cost if record is not None else {}
    ledger.entries.append(Entry(call.step, call.label, not handle.hit, cost, record))
    return handle
