"""Step: the nats of each scored token of an evaluation set by one model.

Mixtures of probabilities (``tasks.evaluation.probability``) are made of them. They are what a sweep adds
up where it evaluates the model alone, by the same code. In the file they stand in the order of the
windows, and of positions in a window.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from storage.fingerprint import Config
from storage.step import Step, Workspace
from tasks.arrays import Ints
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.evaluation.sweep import Job, PreparedSet, Sweeper
from tasks.evaluation.window import Windows, load_windows
from tasks.mixtures.mixture import Mixture

FILE = "nats.npy"


class NatsConfig(Config):
    """How the model is run."""

    precision: Literal["float32", "bfloat16"]
    """Precision of the forward pass; the cross-entropy is always float32."""


def build(
    config: NatsConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Run ``inputs["model"]`` on ``inputs["windows"]``.

    Raises:
        ValueError: a loss is not finite, or the windows are longer than the model's context.
    """
    sets = [PreparedSet("the evaluation set", "", inputs["windows"])]
    evaluate = EvaluateConfig(precision=config.precision)
    sweeper = Sweeper({"the model": inputs["model"]}, sets, evaluate, workspace.runtime)
    mixture = Mixture.uniform(["the model"])
    by_length = sweeper.nats(Job(mixture, mixture.label, (sets[0].name,)), workspace.meter)
    nats = np.empty_like(by_length)
    nats[_places(load_windows(inputs["windows"]))] = by_length
    np.save(output / FILE, nats)
    return {"num_tokens": len(nats), "nll": float(nats.sum(dtype=np.float64))}


def _places(windows: Windows) -> Ints:
    """Of the scored tokens of windows sorted by length: where each is in the order of the windows."""
    scored = (windows.length - windows.first).astype(np.int64)
    order = np.argsort(windows.length, kind="stable")
    starts, counts = (np.cumsum(scored) - scored)[order], scored[order]
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    places: Ints = np.repeat(starts, counts) + inside
    return places


def load_nats(folder: Path) -> np.ndarray:
    """Nats of each scored token, float32, shape (S,); they are read from the file as they are used."""
    nats: np.ndarray = np.load(folder / FILE, mmap_mode="r")
    return nats


NATS = Step("nats", 1, "nats", NatsConfig, build, on_device=True)
