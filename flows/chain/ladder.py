"""The ladder of a validation: the recipe again with other fields, rung by rung, on the same mixtures.

A rung has a pool of its own, and references where it asks for them. All but what its fields change comes
from the store. Each rung judges what the recipe itself has judged in full, so that orders compare.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from flows.chain.ablation import Outcome, prepare
from flows.chain.measured import localised
from flows.chain.recipe import Recipe
from flows.chain.recipe_file import RecipeError, apply_override, parse_recipe
from flows.chain.runner import Runner
from flows.chain.validation import References, as_they_are, reference, under_labels
from flows.chain.work import SweepWork, losses_of
from tasks.evaluation.losses import LossRows
from tasks.mixtures.mixture import Mixture
from tasks.trust.ladder import Column, Ladder, judge_ladder

FIRST = "the recipe"
"""Name of the first rung."""
REFERENCES = "validation.references"
MAY_DIFFER = ("train.", "base.", REFERENCES)


class Rung(NamedTuple):
    """A recipe that differs from the first in some fields."""

    name: str
    recipe: Recipe
    references: int
    """How many of the first one's references are trained here too."""


def rungs_of(recipe: Recipe) -> list[Rung]:
    """The rungs above the recipe itself.

    Raises:
        RecipeError: a field may not differ or cannot be used, or two rungs are the same.
    """
    rungs, names = [], {_trained(recipe): FIRST}
    for number, fields in enumerate(recipe.validation.ladder):
        where = f"validation.ladder[{number}]"
        tree = recipe.model_dump(mode="json")
        del tree["validation"]["ladder"]
        for path, value in fields.items():
            if not path.startswith(MAY_DIFFER) or path.startswith("base.source"):
                raise RecipeError(
                    f"{where} changes {path}: the rungs of a ladder have one corpus, one tokenizer, the same "
                    f"mixtures and sets; they differ in train, in base but for its source, and {REFERENCES}"
                )
            apply_override(tree, f"{path}={json.dumps(value)}", where)
        changed = parse_recipe(tree, where)
        named = [f"{path}={value}" for path, value in fields.items() if path != REFERENCES]
        count = changed.validation.references if REFERENCES in fields else 0
        if same := names.get(_trained(changed)):
            raise RecipeError(
                f"{where} trains the same as {same}, and would agree with it: leave it out, or change "
                "another field"
            )
        rungs.append(Rung(", ".join(named), changed, count))
        names[_trained(changed)] = rungs[-1].name
    return rungs


def _trained(recipe: Recipe) -> str:
    """What two rungs that are the same have in common."""
    return recipe.model_dump_json(exclude={"validation"})


def climb(
    run: Runner, recipe: Recipe, outcome: Outcome, references: References
) -> Iterator[tuple[Rung, LossRows | None, LossRows | None]]:
    """Bring every rung up to date: its pool, and losses of its merged models and of its references.

    Raises:
        ValueError: as of ``prepare``.
    """
    for rung in rungs_of(recipe):
        start = len(run.ledger.entries)
        prepared = prepare(run, rung.recipe, outcome.manifest)
        evaluate = rung.recipe.evaluation.evaluate
        work = SweepWork(outcome.judged, prepared.pool, prepared.windows, evaluate)
        rows, trained = run.sweep(work), None
        if chosen := references.chosen[: rung.references]:
            calls = [reference(rung.recipe, prepared, mixture) for mixture in chosen]
            calls = localised(run, calls, prepared.ordinary)
            models = dict(zip([call.label for call in calls], run.map(calls), strict=True))
            trained = run.sweep(as_they_are(models, prepared, rung.recipe))
        # What the report says of partitions is of the recipe itself: here labels are others.
        run.ledger.entries[start:] = [
            replace(entry, label=f"{entry.label} ({rung.name})")
            for entry in run.ledger.entries[start:]
        ]
        yield rung, rows, trained


def climbed(run: Runner, recipe: Recipe, outcome: Outcome, references: References) -> Ladder | None:
    """Climb the ladder and compare its rungs; None where the recipe has none."""
    if not recipe.validation.ladder:
        return None
    assert outcome.rows is not None
    columns = []

    def add(
        name: str, rows: LossRows, trained: LossRows | None, mixtures: Sequence[Mixture]
    ) -> None:
        columns.append(Column(name, "proxy", losses_of(run.store, rows, outcome.windows)))
        if trained is not None:
            losses = losses_of(run.store, trained, outcome.windows)
            columns.append(Column(name, "reference", under_labels(losses, mixtures)))

    add(FIRST, outcome.rows, references.trained, references.once)
    for rung, rows, trained in climb(run, recipe, outcome, references):
        assert rows is not None, "a plan has no losses to compare"
        add(rung.name, rows, trained, references.chosen[: rung.references])
    sizes = {m.label: m.size for m in [*outcome.judged, *references.once]}
    return judge_ladder(columns, sizes)
