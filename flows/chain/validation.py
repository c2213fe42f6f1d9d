"""Validation: really train a sample of mixtures, and compare the ranking with them.

A reference is a training step: the base model trained on the union of a mixture's tokens, in as many
steps as its partitions had together, or as one of them had where the training is a phase of a longer
one. References are cached, resumed and reused. So are the repeats with
other seeds, which show how far references agree with one another. The other figures of a verdict cost
evaluations alone: partition models by themselves, midpoints of pairs, the base model. Mixtures that the
recipe names are really trained beside the sample, and draw from their partitions to their weights.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.chain.ablation import BASE, Outcome, Prepared, partitions_of, train, work_of
from flows.chain.drawing import drawing, named_mixtures
from flows.chain.measured import localised
from flows.chain.predicted import Predictor, merged_by
from flows.chain.recipe import Recipe
from flows.chain.runner import REFERENCE, Runner, median_per_token, swept_rows
from flows.chain.work import SweepWork, losses_of
from storage.step import Call, Handle
from tasks.evaluation.group_sums import GroupSums
from tasks.evaluation.losses import Losses, LossRows
from tasks.evaluation.predicted import MERGE
from tasks.mixtures.mixture import Mixture
from tasks.mixtures.spaces import enumerate_mixtures
from tasks.partitions.manifest import Manifest
from tasks.training.config import training_tokens
from tasks.training.train import TRAIN
from tasks.trust.barrier import barriers
from tasks.trust.named import beside_even, named_words
from tasks.trust.predictors import bits_per_byte, pair_up, per_token
from tasks.trust.references import Budget, affordable, choose_references, parse_budget
from tasks.trust.verdict import Trust, judge

if TYPE_CHECKING:
    import pandas as pd


class References(NamedTuple):
    """Mixtures that were really trained, and the models they are compared with."""

    chosen: list[Mixture]
    named: list[Mixture]
    """Those that the recipe names, also where they are among the chosen."""
    repeated: list[Mixture]
    """Those of the chosen that were trained with other seeds too."""
    seeds: list[int]
    """These seeds."""
    trained: LossRows | None
    """Losses of all of these; None in a plan."""
    proxies: SweepWork
    """The merged models that they are compared with: each of them, partitions alone, midpoints of
    pairs."""
    base: LossRows | None
    """Losses of the base model; None in a plan."""
    predicted: Mapping[str, LossRows | None]
    """What other predictors than merging say of them, by name; None in a plan that lacks it."""

    @property
    def once(self) -> list[Mixture]:
        """The mixtures of the first rows of ``trained``; behind them come the repeats."""
        return list(dict.fromkeys([*self.chosen, *self.named]))


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
    sample, work = recipe.validation, work_of(recipe, outcome)
    losses = None if outcome.rows is None else _ranked_by(run, outcome)
    predictors = {name: Predictor(run, name, work) for name in recipe.evaluation.others}
    others = _other_losses(run, recipe, outcome, predictors)
    named = named_mixtures(recipe, outcome.partitions)
    chosen = _chosen(run, recipe, outcome.mixtures, losses, named, others)
    seeds = [recipe.train.seed + number for number in range(1, sample.repeats + 1)]
    repeated = _repeated(recipe, chosen, losses)
    further = [mixture for mixture in named if mixture not in chosen]
    calls = [reference(recipe, outcome, mixture) for mixture in [*chosen, *further]]
    calls += [reference(recipe, outcome, m, seed) for m in repeated for seed in seeds]
    calls = localised(run, calls, outcome.ordinary)
    begin(calls)
    handles = run.map(calls)
    # A race may have screened out a mixture that is now to be compared: its losses are lacking.
    is_merged = outcome.ranked_by == MERGE
    judged = {mixture.label for mixture in (outcome.judged if is_merged else ())}
    pairs = _pairs(recipe, outcome)
    compared = dict.fromkeys([*map(_alone, outcome.pool), *chosen, *further, *pairs])
    proxies = work._replace(mixtures=[*compared])
    lacking = [mixture for mixture in compared if mixture.label not in judged]
    run.sweep(proxies._replace(mixtures=lacking))
    # Named apart: the losses table also has the merged model of the same mixture.
    trained = {call.label: handle for call, handle in zip(calls, handles, strict=True)}
    rows = run.sweep(as_they_are(trained, outcome, recipe))
    base = run.sweep(as_they_are({BASE: outcome.base}, outcome, recipe))
    predicted = {
        name: outcome.rows if name == outcome.ranked_by else predictor.rows(chosen)
        for name, predictor in predictors.items()
    }
    return References(chosen, named, repeated, seeds, rows, proxies, base, predicted)


def _other_losses(
    run: Runner, recipe: Recipe, outcome: Outcome, predictors: Mapping[str, Predictor]
) -> list[dict[str, float]]:
    """Macro means by label of mixture, by predictors that tell those of all mixtures without a sweep."""
    sizes = recipe.validation.sizes
    mixtures = [m for m in outcome.mixtures if m.is_uniform and m.size in sizes]
    work, found = work_of(recipe, outcome), []
    for name, predictor in predictors.items():
        if name == outcome.ranked_by or merged_by(name, work) is not None:
            continue
        if (rows := predictor.rows(mixtures)) is not None:
            found.append(_macro_means(losses_of(run.store, rows, outcome.windows)))
    return found


def _macro_means(losses: Losses) -> dict[str, float]:
    tokens = [counts.num_tokens for counts in losses.counts]
    means = (losses.nll / tokens).mean(axis=1).tolist()
    return dict(zip(losses.mixtures, means, strict=True))


def _repeated(
    recipe: Recipe, chosen: list[Mixture], losses: Mapping[str, float] | None
) -> list[Mixture]:
    """The references that are trained with other seeds: the first, and the worst of its k if asked."""
    if not recipe.validation.repeats:
        return []
    alike = [mixture for mixture in chosen if mixture.size == chosen[0].size]
    # Where no loss is known yet, all are equal, and a plan names another as the worst.
    worst = sorted(alike[1:], key=lambda m: (losses or {}).get(m.label, 0.0))[-1:]
    return [chosen[0], *(worst if recipe.validation.repeats_of == "both" else [])]


def as_they_are(models: Mapping[str, Handle], prepared: Prepared, recipe: Recipe) -> SweepWork:
    """The work of evaluating models as they are, not merged."""
    evaluate = recipe.evaluation.evaluate
    return SweepWork([_alone(name) for name in models], models, prepared.windows, evaluate)


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
        ValueError: there are too few mixtures, or one is named that cannot be trained, or the budget pays
            for fewer than two references.
    """
    partitions = partitions_of(corpus, recipe)
    named = named_mixtures(recipe, partitions)
    budget = recipe.validation.budget
    if budget is not None and parse_budget(budget).unit == "joules":
        return  # the energy of a training is measured first
    domains = {entry.name: entry.domain for entry in partitions}
    _chosen(run, recipe, enumerate_mixtures(recipe.mixtures, domains), None, named)


def _chosen(
    run: Runner,
    recipe: Recipe,
    mixtures: list[Mixture],
    losses: Mapping[str, float] | None,
    named: list[Mixture],
    others: Sequence[Mapping[str, float]] = (),
) -> list[Mixture]:
    """The sample; a budget pays for the named mixtures first, and for repeats."""
    sample = recipe.validation
    rules = (sample.sizes, sample.seed, losses, others)
    if sample.budget is None:
        return choose_references(mixtures, sample.references, *rules)
    eligible = {m for m in mixtures if m.is_uniform and m.size in sample.sizes}
    in_turn = choose_references(mixtures, len(eligible), *rules)
    budget = parse_budget(sample.budget)
    costs = [_price(run, recipe, mixture, budget) for mixture in in_turn]
    if costs:
        times = 1 + sample.repeats * (1 if sample.repeats_of == "best" else 2)
        costs[0] = costs[0] * times + sum(_price(run, recipe, m, budget) for m in named)
    number = affordable(costs, budget)
    if number < 2:
        fewer = ", or set validation.repeats to 0" if sample.repeats else ""
        beside = f", beside {len(named)} that are named" if named else ""
        raise ValueError(
            f"validation.budget of {budget} pays for {number} references (the first is trained "
            f"{1 + sample.repeats} times{beside}), and two are needed: give more{fewer}"
        )
    return in_turn[:number]


def _ranked_by(run: Runner, outcome: Outcome) -> dict[str, float]:
    """Macro mean by label of mixture; of mixtures that a race dropped, the race's estimate."""
    assert outcome.rows is not None
    evaluated = _macro_means(losses_of(run.store, outcome.rows, outcome.windows))
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


def reference(
    recipe: Recipe, prepared: Prepared, mixture: Mixture, seed: int | None = None
) -> Call[Any]:
    """The training of a mixture, with the recipe's seed or another."""
    members = sorted(mixture.members, key=lambda name: prepared.tokens[name].digest or name)
    # Numbered by digest, so that the same union has one key whatever its partitions are called.
    inputs = {f"tokens.{i:04d}": prepared.tokens[name] for i, name in enumerate(members)}
    inputs |= prepared.further
    label = f"{REFERENCE}{mixture.label}"
    recipe = drawing(recipe, prepared.partitions, members, mixture)
    if seed is not None:
        changed = recipe.train.model_copy(update={"seed": seed})
        recipe, label = recipe.model_copy(update={"train": changed}), f"{label} (seed {seed})"
    return train(recipe, prepared.base, inputs, label, mixture.size)


def validate(run: Runner, recipe: Recipe, outcome: Outcome, references: References) -> Trust:
    """Compare the references of ``train_references`` with their proxies."""
    assert references.trained is not None, "a plan has no losses to compare"
    assert references.base is not None
    merged = swept_rows(run, references.proxies)
    proxies, trained, base = (
        losses_of(run.store, rows, outcome.windows)
        for rows in (merged, references.trained, references.base)
    )
    members = {mixture.label: mixture.members for mixture in references.chosen}
    once = references.once
    labelled = under_labels(trained, once)
    pairs = pair_up(
        proxies,
        labelled,
        references.chosen,
        outcome.domains,
        {entry.name: entry.domain for entry in outcome.sets},
        {entry.name: entry.num_tokens for entry in outcome.partitions},
        {
            name: losses_of(run.store, rows, outcome.windows)
            for name, rows in references.predicted.items()
            if rows is not None
        },
    )
    barred = _barriers(references.proxies, proxies, base)
    repeats = _all_repeats(references, recipe.train.seed, trained, len(once))
    trust = judge(pairs, members, repeats, barred, seed=recipe.validation.seed)
    if not references.named:
        return trust
    table = beside_even(proxies, labelled, references.named, references.chosen)
    return trust._replace(words=[*trust.words, *named_words(table)], named=table)


def relabelled(
    losses: Losses, names: list[str], places: Iterable[int], sums: GroupSums | None = None
) -> Losses:
    """Some mixtures of ``losses`` under other names; ``sums`` only where they are the first ones."""
    return Losses(names, losses.sets, losses.nll[[*places]], losses.counts, sums or GroupSums(0))


def under_labels(trained: Losses, mixtures: Sequence[Mixture]) -> Losses:
    """The losses of the first trained models, of these mixtures, under the mixtures' labels."""
    labels = [mixture.label for mixture in mixtures]
    return relabelled(trained, labels, range(len(labels)), trained.sums)


def _all_repeats(
    references: References, seed: int, trained: Losses, once: int
) -> "pd.DataFrame | None":
    """Losses of the mixtures that were trained with several seeds; None where there are none."""
    import pandas as pd

    names, tables = [str(s) for s in (seed, *references.seeds)], []
    for turn, mixture in enumerate(references.repeated):
        start = once + turn * len(references.seeds)
        places = [references.chosen.index(mixture), *range(start, start + len(references.seeds))]
        tables.append(_repeats(mixture.label, relabelled(trained, names, places)))
    return pd.concat(tables, ignore_index=True) if tables else None


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
