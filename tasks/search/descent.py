"""Step: find good mixtures by gradient descent on the weights of the merged model.

A merged model is a differentiable function of its weights. They stay positive and sum to 1 by
exponentiated gradient (Kivinen and Warmuth 1997, "Exponentiated gradient versus gradient descent
for linear predictors"). Each step uses other windows of the evaluation sets, drawn from the seed.
Caps and constraints have no effect here: the end of a descent is a proposal, which is rounded to an
allowed mixture and evaluated like any other.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import Field

from storage.fingerprint import Config
from storage.step import Step, Workspace
from tasks.arrays import Floats
from tasks.evaluation.forward import TokenBatch, default_batch, token_batches
from tasks.evaluation.window import Windows, load_windows
from tasks.machine.device import choose_device
from tasks.models.folder import check_context, turning_lengths
from tasks.search.merged_loss import MergedLoss

if TYPE_CHECKING:
    Slope = Callable[[Floats, int], tuple[float, Floats]]
    """Objective and gradient at some weights, on the windows of a step."""

MOST_TOKENS = 4096
"""Positions in one backward pass, whose activations are kept: fewer than a forward pass has."""

MODELS, SETS = "model", "windows"
"""What names of inputs begin with; a dot and a number follow."""


class DescentConfig(Config):
    """How far a descent goes, and from where."""

    starts: int = Field(default=3, ge=1)
    """Number of starting points: the even mixture first, then random ones."""
    steps: int = Field(default=40, ge=1)
    """Number of steps from each starting point."""
    rate: float = Field(default=0.5, gt=0, le=10)
    """Largest change of the logarithm of a weight in the first step; it falls evenly to zero."""
    tokens: int = Field(default=4096, ge=1)
    """Tokens that are scored in each step, in equal shares of the evaluation sets; a set gives one
    window at least."""


class DescentStepConfig(DescentConfig):
    """One descent over numbered models and sets."""

    seed: int = Field(ge=0)
    """Seed of the random starting points and of the windows of each step."""
    units: list[list[int]] = Field(min_length=1)
    """Numbers of the models of each unit, which share the unit's weight evenly."""
    objective: list[float] = Field(min_length=1)
    """Weight of each set's bits per byte in the mean that is minimised, by number of the set."""


class Descent(NamedTuple):
    """One descent: the weights at its end, and the objective on its way."""

    weights: Floats
    """Weight of each unit, positive, sum 1; shape (units,)."""
    values: list[float]
    """Objective at each step, in bits per byte, on that step's windows."""


def build(
    config: DescentStepConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Descend on ``inputs["model.0000"]``, ... judged by ``inputs["windows.0000"]``, ...

    Raises:
        ValueError: the objective is not finite, or windows are longer than the models' context.
        MergeError: the models cannot be averaged.
    """
    models, sets = (_numbered(inputs, what) for what in (MODELS, SETS))
    device = choose_device(workspace.runtime)
    loss = MergedLoss(models, workspace.runtime.pool_gigabytes, device)
    text = StepWindows(list(map(load_windows, sets.values())), config, device, loss)
    shares = _unit_shares(config.units, len(models))
    landings = []
    for number, start in enumerate(_starts(config)):

        def slope(weights: Floats, step: int, number: int = number) -> tuple[float, Floats]:
            done = number * config.steps + step + 1
            value, gradient = loss(weights @ shares, text.of_step(step))
            workspace.progress(done, config.starts * config.steps, "steps")
            return value, shares @ gradient

        landings.append(descend(slope, start, config.steps, config.rate))
    workspace.meter.add(tokens=loss.tokens, flops=loss.flops)
    ends = {
        "weights": [landing.weights.tolist() for landing in landings],
        "values": [landing.values for landing in landings],
    }
    (output / "descent.json").write_text(json.dumps(ends))
    return {"forward_tokens": loss.tokens, "last": [landing.values[-1] for landing in landings]}


def load_descents(folder: Path) -> list[Descent]:
    """Where the descents of an artifact ended, one for each starting point."""
    ends = json.loads((folder / "descent.json").read_bytes())
    pairs = zip(ends["weights"], ends["values"], strict=True)
    return [Descent(np.array(weights), values) for weights, values in pairs]


def descend(slope: "Slope", start: Floats, steps: int, rate: float) -> Descent:
    """Follow the slope by normalised steps of exponentiated gradient.

    The logarithm of a weight changes by ``rate`` times its gradient over the root mean square of all
    gradients under the weights, and by ``rate`` at most; the rate falls evenly to zero. So neither the
    unit of the objective matters, nor how much worse the worst member is.

    Args:
        slope: objective and gradient (up to a constant) at weights of shape (units,).
        start: positive weights, shape (units,).

    Raises:
        ValueError: the objective or its gradient is not finite.
    """
    logarithms, values = np.log(start), []
    for step in range(steps):
        weights = _scaled(logarithms)
        value, gradient = slope(weights, step)
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            raise ValueError(
                f"descent on the weights: the objective is {value} at step {step + 1}, weights "
                f"{weights.round(3).tolist()}: a model of the pool has weights that are not finite"
            )
        values.append(value)
        gradient = gradient - weights @ gradient
        size = math.sqrt(float(weights @ gradient**2))
        if size > 0:
            left = 1 - step / steps
            logarithms = logarithms - rate * left * np.clip(gradient / size, -1, 1)
    return Descent(_scaled(logarithms), values)


def _scaled(logarithms: Floats) -> Floats:
    weights: Floats = np.exp(logarithms - logarithms.max())
    weights /= weights.sum()
    return weights


def _starts(config: DescentStepConfig) -> Iterator[Floats]:
    size = len(config.units)
    yield np.full(size, 1 / size)
    generator = np.random.default_rng(config.seed)
    for draw in generator.dirichlet(np.ones(size), config.starts - 1):
        # A weight of zero would stay zero for ever.
        yield np.maximum(draw, 1e-6)


def _unit_shares(units: Sequence[Sequence[int]], num_models: int) -> Floats:
    """Weight of each model in each unit, shape (units, models)."""
    shares = np.zeros((len(units), num_models))
    for unit, members in enumerate(units):
        shares[unit, members] = 1 / len(members)
    return shares


def _numbered(inputs: Mapping[str, Path], what: str) -> dict[str, Path]:
    return {name: inputs[name] for name in sorted(inputs) if name.startswith(f"{what}.")}


class StepWindows:
    """The windows of each step, in batches. ValueError where they are longer than the models' context."""

    def __init__(
        self, sets: Sequence[Windows], config: DescentStepConfig, device: str, loss: MergedLoss
    ) -> None:
        whole = sum(config.objective)
        self._sets, self._config, self._device = sets, config, device
        self._weights = [weight / whole for weight in config.objective]
        self._turns = turning_lengths(loss.model)
        for windows in sets:
            length = windows.inputs.shape[1]
            check_context(loss.model, length, "evaluation.windows.context_length")

    def of_step(self, step: int) -> "list[tuple[float, list[TokenBatch]]]":
        """Batches of each set of the objective, and what their nats are multiplied by to give a set's
        share of the mean of bits per byte."""
        generator = np.random.default_rng([self._config.seed, step])
        room = min(default_batch(self._device), MOST_TOKENS)
        prepared_sets = []
        for windows, weight in zip(self._sets, self._weights, strict=True):
            sample = _sample(windows, self._config.tokens / len(self._sets), generator)
            scored = int((sample.length - sample.first).sum())
            # Bytes are known for whole documents only, so the set's own tokens per byte stand in.
            per_byte = windows.num_tokens.sum() / windows.num_bytes.sum() / math.log(2)
            if weight > 0:
                prepared = token_batches(sample, room, self._device, self._turns)
                prepared_sets.append((float(weight * per_byte / scored), prepared))
        return prepared_sets


def _sample(windows: Windows, tokens: float, generator: np.random.Generator) -> Windows:
    """Windows in random order until they have ``tokens`` scored tokens."""
    order = generator.permutation(len(windows.length))
    scored = np.cumsum((windows.length - windows.first)[order])
    rows = np.sort(order[: int(np.searchsorted(scored, tokens)) + 1])
    # The other fields are about groups of documents.
    return windows._replace(**{n: getattr(windows, n)[rows] for n in windows._fields[:5]})


DESCEND = Step("descend", 1, "descent", DescentStepConfig, build, on_device=True)
