"""Fixtures: partition models of one tiny base model, and documents to judge them by."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from storage.step import Workspace
from tasks.training.config import TrainConfig
from tasks.training.train import build as train

NAMES = ("a", "b", "c")

Models = Mapping[str, Path]


@pytest.fixture(scope="session")
def partition(
    llama: Path,
    tokens: Callable[[list[str]], Path],
    prose: Callable[..., list[str]],
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> Callable[..., Path]:
    """The Llama, or another model, trained for two steps on texts of its own."""

    def make(seed: int, model: Path = llama, steps: int = 2) -> Path:
        output = new()
        config = TrainConfig(steps=steps, batch_size=4, context_length=32, learning_rate=1e-2)
        inputs = {"model": model, "tokens": tokens(prose(seed))}
        train(config, inputs, output, workspace())
        return output

    return make


@pytest.fixture(scope="session")
def models(partition: Callable[..., Path]) -> Models:
    """Three partition models of one base model."""
    return {name: partition(seed) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="session")
def texts(prose: Callable[..., list[str]]) -> list[str]:
    """Documents of one token, of part of a window, of some windows."""
    return ["x", *prose(11, 4, 12), *prose(12, 3, 90)]
