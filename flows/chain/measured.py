"""What is measured beside losses: gradient norms before a training, sharpness after it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flows.chain.recipe import Recipe
from flows.chain.runner import Runner
from storage.step import Call, Handle
from tasks.evaluation.uphill import BLOCKS, FLATNESS, FlatnessConfig
from tasks.training.localise import LOCALISE, LocaliseConfig


def localised(
    run: Runner, trainings: Sequence[Call[Any]], ordinary: Handle | None
) -> list[Call[Any]]:
    """Trainings with the gradient norms that choose their layers; as they are where none are chosen.

    Args:
        trainings: calls of one recipe's ``train``.
        ordinary: tokens of the base model's documents.

    Raises:
        ValueError: layers are to be chosen, and there are no such documents.
    """
    layers = trainings[0].config.layers if trainings else None
    if layers is None:
        return [*trainings]
    if ordinary is None:
        raise ValueError(
            "train.layers compares a partition's text with the base model's documents, and there are none: "
            "raise corpus.split.base_fraction, or give base.source"
        )
    calls = []
    for training in trainings:
        own = {name: handle for name, handle in training.inputs.items() if name != "replay"}
        config = LocaliseConfig(
            context_length=training.config.context_length,
            blocks=layers.blocks,
            seed=training.config.seed,
        )
        calls.append(Call(LOCALISE, config, {**own, "ordinary": ordinary}, training.label))
    return [
        replace(training, inputs={**training.inputs, "norms": norms})
        for training, norms in zip(trainings, run.map(calls), strict=True)
    ]


def sharpness_of(
    run: Runner, recipe: Recipe, tokens: dict[str, Handle], pool: dict[str, Handle]
) -> dict[str, Handle]:
    """How sharp each partition model's minimum is, on its own text; empty where nobody asks."""
    if recipe.evaluation.sharpness is None:
        return {}
    config = FlatnessConfig(
        rho=recipe.evaluation.sharpness,
        context_length=recipe.train.context_length,
        blocks=BLOCKS,
        seed=recipe.train.seed,
    )
    inputs = [{"model": pool[name], "tokens": text} for name, text in tokens.items()]
    calls = [Call(FLATNESS, config, i, name) for i, name in zip(inputs, tokens, strict=True)]
    return dict(zip(tokens, run.map(calls), strict=True))
