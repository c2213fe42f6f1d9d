"""Validation: really train a sample of mixtures, and compare the ranking with them.

A reference is a training step: the base model trained on the union of a mixture's tokens, in as many
steps as its partitions had together, or as one of them had where the training is a phase of a longer
one. References are cached, resumed and reused. So are the repeats with
other seeds, which show how far references agree with one another. The other figures of a verdict cost
evaluations alone: partition models by themselves, midpoints of pairs, the base model.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.chain.ablation import BASE, Outcome, partitions_of, train
from flows.chain.measured import localised
from flows.chain.recipe import Recipe
from flows.chain.runner import REFERENCE, Runner, median_per_token, swept_rows
from flows.chain.work import SweepWork, losses_of
from storage.step import Call, Handle
from tasks.evaluation.group_sums import GroupSums
from tasks.evaluation.losses import Losses, LossRows
from tasks.mixtures.mixture import Mixture
from tasks.mixtures.spaces import enumerate_mixtures
from tasks.partitions.manifest import Manifest
from tasks.training.config import training_tokens
from tasks.training.train import TRAIN
from tasks.trust.barrier import barriers
from tasks.trust.predictors import bits_per_byte, pair_up, per_token
from tasks.trust.references import Budget, affordable, choose_references, parse_budget
from tasks.trust.verdict import Trust, judge

if TYPE_CHECKING:
    import pandas as pd


class References(NamedTuple):
    """Mixtures that were really trained, and the models they are compared with."""

    chosen: list[Mixture]
    seeds: list[int]
    """Other seeds with which the first of them was trained too."""
    trained: LossRows | None
    """Losses of all of these; None in a plan."""
    proxies: SweepWork
    """The merged models that they are compared with: each of them, partitions alone, midpoints of
    pairs."""
    base: LossRows | None
    """Losses of the base model; None in a plan."""


def train_references(
    run: Runner,
    recipe: Recipe,
    outcome: Outcome,
    begin: Callable[[Sequence[Call[Any]]], None] = lambda calls: None,
) -> References:
    """Train and evaluate the references, and evaluate the models they are compared with.

    Args:
        begin: called with the trainings, before the first.

    Raises:
        ValueError: the recipe has fewer such mixtures, or the budget pays for fewer than two.
    """
    sample, evaluate = recipe.validation, recipe.evaluation.evaluate
    losses = None if outcome.rows is None else _ranked_by(run, outcome)
    chosen = _chosen(run, recipe, outcome.mixtures, losses)
    seeds = [recipe.train.seed + number for number in range(1, sample.repeats + 1)]
    calls = [_reference(recipe, outcome, mixture) for mixture in chosen]
    calls += [_reference(recipe, outcome, chosen[0], seed) for seed in seeds]
    calls = localised(run, calls, outcome.ordinary)
    begin(calls)
    handles = run.map(calls)
    # A race may have screened out a mixture that is now to be compared: its losses are lacking.
    judged = {mixture.label for mixture in outcome.judged}
    compared = dict.fromkeys([*map(_alone, outcome.pool), *chosen, *_pairs(recipe, outcome)])
    proxies = SweepWork([*compared], outcome.pool, outcome.windows, evaluate)
    lacking = [mixture for mixture in compared if mixture.label not in judged]
    run.sweep(proxies._replace(mixtures=lacking))
    # Named apart: the losses table also has the merged model of the same mixture.
    trained = {call.label: handle for call, handle in zip(calls, handles, strict=True)}
    rows = run.sweep(_as_they_are(trained, outcome, recipe))
    base = run.sweep(_as_they_are({BASE: outcome.base}, outcome, recipe))
    return References(chosen, seeds, rows, proxies, base)


def _as_they_are(models: Mapping[str, Handle], outcome: Outcome, recipe: Recipe) -> SweepWork:
    """The work of evaluating models as they are, not merged."""
    evaluate = recipe.evaluation.evaluate
    return SweepWork([_alone(name) for name in models], models, outcome.windows, evaluate)


def _alone(name: str) -> Mixture:
    return Mixture.uniform([name])


def _pairs(recipe: Recipe, outcome: Outcome) -> list[Mixture]:
    """The pairs whose midpoint is evaluated: all, or as many as the recipe allows."""
    pairs = [Mixture.uniform(pair) for pair in combinations(sorted(outcome.pool), 2)]
    most = recipe.validation.pairs
    if len(pairs) <= most:
        return pairs
    return random.Random(recipe.validation.seed).sample(pairs, most)


def refuse_early(run: Runner, recipe: Recipe, corpus: Manifest) -> None:
    """Check, before anything is trained, that a validation is possible.

    Raises:
        ValueError: there are too few mixtures, or the budget pays for fewer than two references.
    """
    budget = recipe.validation.budget
    if budget is not None and parse_budget(budget).unit == "joules":
        return  # the energy of a training is measured first
    domains = {entry.name: entry.domain for entry in partitions_of(corpus, recipe)}
    _chosen(run, recipe, enumerate_mixtures(recipe.mixtures, domains), None)


def _chosen(
    run: Runner, recipe: Recipe, mixtures: list[Mixture], losses: Mapping[str, float] | None
) -> list[Mixture]:
    sample = recipe.validation
    rules = (sample.sizes, sample.seed, losses)
    if sample.budget is None:
        return choose_references(mixtures, sample.references, *rules)
    eligible = {m for m in mixtures if m.is_uniform and m.size in sample.sizes}
    in_turn = choose_references(mixtures, len(eligible), *rules)
    budget = parse_budget(sample.budget)
    costs = [_price(run, recipe, mixture, budget) for mixture in in_turn]
    if costs:
        costs[0] *= 1 + sample.repeats
    number = affordable(costs, budget)
    if number < 2:
        fewer = ", or set validation.repeats to 0" if sample.repeats else ""
        raise ValueError(
            f"validation.budget of {budget} pays for {number} references (the first is trained "
            f"{1 + sample.repeats} times), and two are needed: give more{fewer}"
        )
    return in_turn[:number]


def _ranked_by(run: Runner, outcome: Outcome) -> dict[str, float]:
    """Macro mean by label of mixture; of mixtures that a race dropped, the race's estimate."""
    assert outcome.rows is not None
    losses = losses_of(run.store, outcome.rows, outcome.windows)
    tokens = [counts.num_tokens for counts in losses.counts]
    evaluated = dict(zip(losses.mixtures, (losses.nll / tokens).mean(axis=1).tolist(), strict=True))
    exits = [] if outcome.race is None else outcome.race.result.exits
    return {outcome.mixtures[out.mixture].label: out.estimate for out in exits} | evaluated


def _price(run: Runner, recipe: Recipe, mixture: Mixture, budget: Budget) -> float:
    if budget.unit == "trainings":
        return 1.0
    size = 1 if recipe.train.of else mixture.size
    tokens = size * float(training_tokens(recipe.train))
    return tokens if budget.unit == "tokens" else tokens * _joules_per_token(run)


def _joules_per_token(run: Runner) -> float:
    joules = median_per_token(run.store.records(TRAIN.name), "joules")
    if joules is None:
        raise ValueError(
            "validation.budget is in joules, and no training in the store has measured any: give "
            "it in trainings or tokens, or run the recipe first"
        )
    return joules


def _reference(
    recipe: Recipe, outcome: Outcome, mixture: Mixture, seed: int | None = None
) -> Call[Any]:
    members = sorted(mixture.members, key=lambda name: outcome.tokens[name].digest or name)
    # Numbered by digest, so that the same union has one key whatever its partitions are called.
    inputs = {f"tokens.{i:04d}": outcome.tokens[name] for i, name in enumerate(members)}
    inputs |= outcome.further
    label = f"{REFERENCE}{mixture.label}"
    if seed is not None:
        changed = recipe.train.model_copy(update={"seed": seed})
        recipe, label = recipe.model_copy(update={"train": changed}), f"{label} (seed {seed})"
    return train(recipe, outcome.base, inputs, label, mixture.size)


def validate(
    run: Runner, recipe: Recipe, outcome: Outcome, begin: Callable[[Sequence[Call[Any]]], None]
) -> Trust:
    """Train references and compare. Arguments and errors as of ``train_references``."""
    references = train_references(run, recipe, outcome, begin)
    assert references.trained is not None, "a plan has no losses to compare"
    assert references.base is not None
    merged = swept_rows(run, references.proxies)
    proxies, trained, base = (
        losses_of(run.store, rows, outcome.windows)
        for rows in (merged, references.trained, references.base)
    )
    members = {mixture.label: mixture.members for mixture in references.chosen}
    number = len(members)
    pairs = pair_up(
        proxies,
        _named(trained, [*members], range(number)),
        references.chosen,
        outcome.domains,
        {entry.name: entry.domain for entry in outcome.sets},
        {entry.name: entry.num_tokens for entry in outcome.partitions},
    )
    seeds = [recipe.train.seed, *references.seeds]
    again = _named(
        trained, [str(seed) for seed in seeds], [0, *range(number, len(trained.mixtures))]
    )
    repeats = _repeats(references.chosen[0].label, again) if references.seeds else None
    barred = _barriers(references.proxies, proxies, base)
    return judge(pairs, members, repeats, barred, seed=recipe.validation.seed)


def _named(losses: Losses, names: list[str], places: Iterable[int]) -> Losses:
    """Some mixtures of ``losses`` under other names, without their sums per group of documents."""
    return Losses(names, losses.sets, losses.nll[[*places]], losses.counts, GroupSums(0))


def _repeats(mixture: str, seeds: Losses) -> "pd.DataFrame":
    """Losses of one mixture that was trained with several seeds, which stand for its labels."""
    import pandas as pd

    tables = {"reference": per_token(seeds), "reference_bits": bits_per_byte(seeds)}
    columns = {name: table.stack() for name, table in tables.items()}
    frame = pd.DataFrame(columns).reset_index(names=["seed", "evaluation_set"])
    return frame.assign(mixture=mixture, seed=frame["seed"].astype(int))


def _barriers(merged: SweepWork, proxies: Losses, base: Losses) -> "pd.DataFrame":
    losses, even = _by_label(proxies), [m for m in merged.mixtures if m.is_uniform]
    singles = {m.members[0]: losses[m.label] for m in even if m.size == 1}
    midpoints = {(m.members[0], m.members[1]): losses[m.label] for m in even if m.size == 2}
    return barriers(singles, midpoints, _by_label(base)[BASE])


def _by_label(losses: Losses) -> dict[str, dict[str, float]]:
    rows = per_token(losses).to_numpy().tolist()
    return {
        m: dict(zip(losses.sets, row, strict=True))
        for m, row in zip(losses.mixtures, rows, strict=True)
    }
