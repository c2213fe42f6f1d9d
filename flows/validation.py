"""Really train a sample of mixtures, and see how far the ranking can be trusted.

References are steps like any other: the base model trained on the union of a mixture's tokens, in as
many steps as its partitions had together. They are cached, resumed, and reused by later validations.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.ablation import Outcome, train
from flows.frames import losses_of
from flows.recipe import Recipe
from flows.runners import Runner
from flows.sweeping import SweepWork
from storage.cache import Call, Handle
from tasks.agreement import agreement, choose_references, pair_up
from tasks.mixture import Mixture
from tasks.rows import Rows

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "reference "
"""Stands before a mixture's label where its really trained model is meant."""


@dataclass(frozen=True)
class Validation:
    """References and how well the proxies agree with them."""

    chosen: list[Mixture]
    """The mixtures that were really trained."""
    references: dict[str, Handle]
    """Model of each, by the mixture's label."""
    pairs: "pd.DataFrame"
    """Loss of proxy, reference and baseline (see ``tasks.agreement.pair_up``)."""
    table: "pd.DataFrame"
    """Correlations (see ``tasks.agreement.agreement``)."""


class References(NamedTuple):
    """Mixtures that were really trained, and what their models are compared with."""

    chosen: list[Mixture]
    models: dict[str, Handle]
    """Model of each, by the mixture's label."""
    rows: Rows | None
    """Losses of the trained models; None in a plan."""
    singles: Rows | None
    """Losses of mixtures that the ranking lacks: single partitions, and what a race screened out;
    None in a plan."""


def train_references(run: Runner, recipe: Recipe, outcome: Outcome) -> References:
    """Train and evaluate the references."""
    sample, evaluate = recipe.validation, recipe.evaluation.evaluate
    chosen = choose_references(outcome.mixtures, sample.references, sample.sizes, sample.seed)
    models = run.map([_reference(recipe, outcome, mixture) for mixture in chosen])
    references = {mixture.label: h for mixture, h in zip(chosen, models, strict=True)}
    known = {mixture.label for mixture in outcome.judged}
    # A race may have screened out a mixture that is now to be compared.
    wanted = dict.fromkeys([*map(_single, outcome.pool), *chosen])
    lacking = [mixture for mixture in wanted if mixture.label not in known]
    extra = run.sweep(SweepWork(lacking, outcome.pool, outcome.windows, evaluate))
    # Named apart: the losses table also has the merged model of the same mixture.
    trained = {f"{REFERENCE}{label}": handle for label, handle in references.items()}
    alone = [Mixture.uniform([label]) for label in trained]
    rows = run.sweep(SweepWork(alone, trained, outcome.windows, evaluate))
    return References(chosen, references, rows, extra)


def _single(name: str) -> Mixture:
    return Mixture.uniform([name])


def validate(run: Runner, recipe: Recipe, outcome: Outcome) -> Validation:
    """Train references and compare. Raises ValueError where there are too few mixtures."""
    import pandas as pd

    found = train_references(run, recipe, outcome)
    assert found.rows is not None, "a plan has no losses to compare"
    assert found.singles is not None
    assert outcome.rows is not None
    labels = {m.label for m in found.chosen} | {name for m in found.chosen for name in m.members}
    merged = [_frame(run, outcome, rows, labels) for rows in (outcome.rows, found.singles)]
    trained = _frame(run, outcome, found.rows, found.rows.labels)
    trained["mixture"] = [label.removeprefix(REFERENCE) for label in trained["mixture"]]
    pairs = pair_up(pd.concat(merged, ignore_index=True), trained, found.chosen)
    return Validation(found.chosen, found.models, pairs, agreement(pairs))


def _frame(run: Runner, outcome: Outcome, rows: Rows, labels: Iterable[str]) -> "pd.DataFrame":
    return losses_of(run.store, rows, outcome.windows).frame(labels)


def _reference(recipe: Recipe, outcome: Outcome, mixture: Mixture) -> Call[Any]:
    members = sorted(mixture.members, key=lambda name: outcome.tokens[name].digest or name)
    # Numbered by digest, so that the same union has one key whatever its partitions are called.
    inputs = {f"tokens.{i:04d}": outcome.tokens[name] for i, name in enumerate(members)}
    return train(recipe, outcome.base, inputs, f"{REFERENCE}{mixture.label}", mixture.size)
