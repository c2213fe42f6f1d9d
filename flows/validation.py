"""Really train a sample of mixtures, and see how far the ranking can be trusted.

References are steps like any other: the base model trained on the union of a mixture's tokens, in as
many steps as its partitions had together. They are cached, resumed, and reused by later validations.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.ablation import Outcome, train
from flows.frames import losses_frame
from flows.recipe import Recipe
from flows.runners import Runner, SweepWork
from storage.cache import Call, Handle
from tasks.agreement import agreement, choose_references, pair_up
from tasks.losses import Row
from tasks.mixture import Mixture

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


def train_references(
    run: Runner, recipe: Recipe, outcome: Outcome
) -> tuple[list[Mixture], dict[str, Handle], list[Row] | None]:
    """Train and evaluate the references; rows are None in a plan."""
    sample, evaluate = recipe.validation, recipe.evaluation.evaluate
    chosen = choose_references(outcome.mixtures, sample.references, sample.sizes, sample.seed)
    models = run.map([_reference(recipe, outcome, mixture) for mixture in chosen])
    references = {mixture.label: h for mixture, h in zip(chosen, models, strict=True)}
    known = {mixture.label for mixture in outcome.mixtures}
    singles = [Mixture.uniform([name]) for name in outcome.pool if name not in known]
    extra = run.sweep(SweepWork(singles, outcome.pool, outcome.windows, evaluate))
    # Named apart: the losses table also has the merged model of the same mixture.
    trained = {f"{REFERENCE}{label}": handle for label, handle in references.items()}
    alone = [Mixture.uniform([label]) for label in trained]
    rows = run.sweep(SweepWork(alone, trained, outcome.windows, evaluate))
    if rows is None or extra is None:
        return chosen, references, None
    assert outcome.rows is not None
    outcome.rows.extend(extra)
    return chosen, references, [_renamed(row) for row in rows]


def _renamed(row: Row) -> Row:
    return row._replace(label=row.label.removeprefix(REFERENCE))


def validate(run: Runner, recipe: Recipe, outcome: Outcome) -> Validation:
    """Train references and compare. Raises ValueError where there are too few mixtures."""
    chosen, references, rows = train_references(run, recipe, outcome)
    assert rows is not None, "a plan has no losses to compare"
    pairs = pair_up(
        losses_frame(run.store, outcome.rows or [], outcome.windows),
        losses_frame(run.store, rows, outcome.windows),
        chosen,
    )
    return Validation(chosen, references, pairs, agreement(pairs))


def _reference(recipe: Recipe, outcome: Outcome, mixture: Mixture) -> Call[Any]:
    members = sorted(mixture.members, key=lambda name: outcome.tokens[name].digest or name)
    # Numbered by digest, so that the same union has one key whatever its partitions are called.
    inputs = {f"tokens.{i:04d}": outcome.tokens[name] for i, name in enumerate(members)}
    return train(recipe, outcome.base, inputs, f"{REFERENCE}{mixture.label}", mixture.size)
