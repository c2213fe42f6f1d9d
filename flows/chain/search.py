"""Carry out a search: evaluate the mixtures that ``tasks.search.rounds`` proposes, and learn from them.

Proposals are evaluated by sweeps, so their losses are rows of the losses table. A killed search goes on
for nothing, the same search costs nothing, one with a larger budget costs the difference, and a full
sweep uses the rows. A plan replays a search from stored losses as far as they go.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from flows.chain.ablation import (
    Outcome,
    Prepared,
    base_losses,
    check_labels,
    partitions_of,
    prepare,
    wanted_sets,
    work_of,
)
from flows.chain.predicted import Predictor
from flows.chain.recipe import Recipe
from flows.chain.runner import Runner
from flows.chain.work import Stage
from storage.step import Call, Handle
from tasks.arrays import Floats
from tasks.evaluation.losses import LossRows
from tasks.evaluation.window import Windows, load_windows
from tasks.mixtures.constraints import Feasible
from tasks.mixtures.mixture import Mixture, Units
from tasks.mixtures.units import by_domain
from tasks.partitions.manifest import Manifest
from tasks.search.account import account
from tasks.search.descent import (
    DESCEND,
    MODELS,
    SETS,
    DescentConfig,
    DescentStepConfig,
    load_descents,
)
from tasks.search.objective import Objective
from tasks.search.result import SearchResult
from tasks.search.rounds import Search, Tried


class SearchOutcome(NamedTuple):
    """The result of a search, or how much of it a plan can foresee."""

    outcome: Outcome
    """Its mixtures are those that were evaluated."""
    result: SearchResult | None
    """Its answer, tables and words; None in a plan that does not know all losses."""
    pending: int = 0
    """Mixtures that may be evaluated and whose losses a plan does not know; 0 outside plans."""
    left: int = 0
    """How many of these are yet unknown mixtures, which the plan's runner has not counted."""


def search(run: Runner, recipe: Recipe, corpus: Manifest) -> SearchOutcome:
    """Train what is missing, and look for the best mixture by ``recipe.search``.

    Raises:
        ValueError: the data or the recipe cannot be used; what was committed stays.
    """
    # Before anything is trained: constraints may contradict, an objective may name an unknown set.
    state = scope(recipe, corpus)
    # What a search proposes is of partitions: it has no place for a control.
    prepared = prepare(run, recipe.model_copy(update={"control": False}), corpus)
    sweeps = SearchSweeps(run, recipe, prepared, state)
    try:
        is_done = sweeps.go()
    finally:
        run.rest()
    mixtures = [trial.judged for trial in state.tried]
    check_labels(mixtures)
    if not is_done:
        left = max(0, state.left - sweeps.asked)
        planned = Outcome(**vars(prepared), mixtures=mixtures, rows=None)
        return SearchOutcome(planned, None, state.left, left)
    name = recipe.evaluation.rank_by
    outcome = Outcome(**vars(prepared), mixtures=mixtures, rows=sweeps.rows(), ranked_by=name)
    return SearchOutcome(outcome, account(state, sweeps.landings, sweeps.price))


def scope(recipe: Recipe, corpus: Manifest) -> Search:
    """A search that has evaluated nothing yet.

    Raises:
        ValueError: constraints or objective contradict, or name an unknown unit or set.
    """
    rules, partitions = recipe.search, partitions_of(corpus, recipe)
    domains = {entry.name: entry.domain for entry in partitions}
    alone: Units = {name: (name,) for name in domains}
    units = by_domain(domains) if rules.unit == "domain" else alone
    sizes = {entry.name: entry.num_tokens for entry in partitions}
    feasible = Feasible(
        rules.constraints,
        {unit: domains[members[0]] for unit, members in units.items()},
        {unit: sum(sizes[name] for name in members) for unit, members in units.items()},
    )
    sets = [entry.name for entry in wanted_sets(corpus, recipe)]
    return Search(rules, feasible, Objective(rules.objective, sets, feasible.names), units)


class SearchSweeps:
    """Evaluates what a search proposes, by sweeps.

    Attributes:
        landings: mixtures of units to which descents led.
        price: what descents cost, in evaluations of a mixture.
        asked: how many mixtures a plan was asked for whose losses it does not know.
    """

    def __init__(self, run: Runner, recipe: Recipe, prepared: Prepared, state: Search) -> None:
        self._run, self._state, self._prepared = run, state, prepared
        self._work = work_of(recipe, prepared)
        self._predictor = Predictor(run, recipe.evaluation.rank_by, self._work)
        self.landings: list[Mixture] = []
        self.price = 0.0
        self.asked = 0

    def go(self) -> bool:
        """Evaluate until the budget is spent; False where a plan does not know the losses."""
        state = self._state
        # All three, even where the first does not succeed: a plan is to count them all.
        opening = [self._base(), self._evaluate(state.first(), "first design"), self._descend()]
        if not all(opening):
            return False
        while proposals := state.next():
            if not self._evaluate(proposals, f"{len(state.tried)} evaluated before"):
                return False
        return True

    def rows(self) -> LossRows:
        """The losses of every mixture that was evaluated."""
        mixtures = [trial.judged for trial in self._state.tried]
        rows = self._predictor.rows(mixtures, again=True)
        assert rows is not None, "all of them were evaluated"
        return rows

    def _base(self) -> bool:
        rows = base_losses(self._run, self._prepared, self._work)
        if rows is not None:
            self._state.base = self._bits(rows)[0]
        return rows is not None

    def _evaluate(self, tried: Sequence[Tried], name: str) -> bool:
        if not tried:
            return True
        rows = self._predictor.rows([trial.judged for trial in tried], Stage(name))
        if rows is None:
            self.asked += len(tried)
            return False
        self._state.learn(tried, self._bits(rows))
        return True

    def _descend(self) -> bool:
        state = self._state
        if state.rules.descent is None:
            return True
        (handle,) = self._run.map([descent_call(self._prepared, state, state.rules.descent)])
        if handle.artifact is None:
            return False
        landings = load_descents(self._run.store.fetch(handle.artifact))
        self.landings = state.landed([landing.weights for landing in landings])
        self.price = self._price(handle)
        return self._evaluate(state.untried(self.landings), "landings of descents")

    def _price(self, handle: Handle) -> float:
        assert handle.record is not None
        tokens = sum(int(windows.length.sum()) for windows in self._windows)
        # The way back through a model costs twice the way forward.
        return float(3 * handle.record.details["forward_tokens"] / tokens)

    def _bits(self, rows: LossRows) -> Floats:
        """Bits per byte, shape (mixtures, sets)."""
        sizes = np.array([windows.num_bytes.sum() for windows in self._windows])
        bits: Floats = rows.nll / sizes / math.log(2)
        return bits

    @cached_property
    def _windows(self) -> list[Windows]:
        handles = self._prepared.windows.values()
        return [load_windows(self._run.store.fetch(handle.built)) for handle in handles]


def descent_call(
    prepared: Prepared, state: Search, config: DescentConfig
) -> Call[DescentStepConfig]:
    """The descent of a search: its pool and the sets of its objective, numbered by digest, so that it
    has one key whatever partitions and sets are called."""
    models, numbers = _numbered(MODELS, prepared.pool)
    shares = dict(zip(state.objective.sets, state.objective.shares.tolist(), strict=True))
    counted = {name: handle for name, handle in prepared.windows.items() if shares[name] > 0}
    sets, places = _numbered(SETS, counted)
    whole = DescentStepConfig(
        **config.model_dump(),
        seed=state.rules.seed,
        units=[[numbers[name] for name in state.units[unit]] for unit in state.feasible.names],
        objective=[shares[name] for name in sorted(places, key=places.__getitem__)],
    )
    # The way back through a model costs twice the way forward.
    estimate = {"tokens": 3.0 * config.starts * config.steps * config.tokens}
    return Call(DESCEND, whole, {**models, **sets}, "search", estimate)


def _numbered(
    prefix: str, handles: Mapping[str, Handle]
) -> tuple[dict[str, Handle], dict[str, int]]:
    """Handles under the names of inputs, and the number of each."""
    order = sorted(handles, key=lambda name: handles[name].digest or name)
    inputs = {f"{prefix}.{number:04d}": handles[name] for number, name in enumerate(order)}
    return inputs, {name: number for number, name in enumerate(order)}
