"""The slope is the one that finite differences see, and a descent ends where the answer is known."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.step import Workspace
from tasks.evaluation.window import load_windows
from tasks.search.descent import (
    Descent,
    DescentStepConfig,
    StepWindows,
    build,
    descend,
    load_descents,
)
from tasks.search.merged_loss import MergedLoss

pytest_plugins = ["tests.tasks.tiny_models", "tests.tasks.tiny_pool"]

Models = Mapping[str, Path]


def config(units: list[list[int]], sets: int = 1, **fields: object) -> DescentStepConfig:
    tree = {"seed": 0, "units": units, "objective": [1.0] * sets, "steps": 12, "tokens": 200}
    return DescentStepConfig.model_validate({**tree, **fields})


def descended(
    rules: DescentStepConfig, models: list[Path], sets: list[Path], output: Path, job: Workspace
) -> list[Descent]:
    inputs = {f"model.{n:04d}": folder for n, folder in enumerate(models)}
    inputs |= {f"windows.{n:04d}": folder for n, folder in enumerate(sets)}
    build(rules, inputs, output, job)
    return load_descents(output)


def test_the_slope_is_that_of_finite_differences(
    models: Models, windows: Callable[..., Path], texts: list[str], prose: Callable[..., list[str]]
) -> None:
    sets = [load_windows(windows(found)) for found in (texts, prose(0, 4))]
    rules = config([[0], [1], [2]], 2, objective=[1.0, 3.0])
    loss = MergedLoss(models, None, "cpu")
    text = StepWindows(sets, rules, "cpu", loss).of_step(3)
    weights, step = np.array([0.5, 0.2, 0.3]), 0.02
    value, slope = loss(weights, text)
    assert abs(weights @ slope) < 1e-5 * np.abs(slope).max()
    seen = []
    for number in range(3):
        corner = np.eye(3)[number]
        ahead, behind = (loss((1 - by) * weights + by * corner, text)[0] for by in (step, -step))
        seen.append((ahead - behind) / (2 * step))
    np.testing.assert_allclose(slope, seen, atol=0.01 * np.abs(slope).max())
    assert np.abs(slope).max() > 0.001
    assert value == loss(weights, text)[0]


def test_the_objective_is_the_mean_of_bits_per_byte(
    models: Models, windows: Callable[..., Path], texts: list[str]
) -> None:
    """Where a step takes all windows of a set, its value is the set's own figure."""
    found = load_windows(windows(texts))
    loss = MergedLoss(models, None, "cpu")
    everything = config([[0], [1], [2]], 2, objective=[2.0, 2.0], tokens=10**6)
    value, _ = loss(
        np.array([1.0, 0, 0]), StepWindows([found, found], everything, "cpu", loss).of_step(0)
    )
    inputs, targets = (torch.from_numpy(a.astype(np.int64)) for a in (found.inputs, found.targets))
    with torch.no_grad():
        logits = loss.model(input_ids=inputs).logits
    nats = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    ).view(targets.shape)
    position = np.arange(found.inputs.shape[1])
    scored = (position >= found.first[:, None]) & (position < found.length[:, None])
    total = nats[torch.from_numpy(scored)].sum().item()
    assert value == pytest.approx(total / found.num_bytes.sum() / math.log(2), rel=1e-5)


def test_it_lands_where_a_grid_over_all_weights_has_its_lowest_point(
    partition: Callable[..., Path],
    windows: Callable[..., Path],
    prose: Callable[..., list[str]],
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> None:
    """One model is trained on the set's own words, the other two on words of their own."""
    pool = [partition(seed, steps=4) for seed in (6, 5, 7)]
    text = windows(prose(5, 4))
    rules = config([[0], [1], [2]], starts=2, steps=16, rate=1.0, tokens=10**6)
    found = descended(rules, pool, [text], new(), workspace())
    loss = MergedLoss({str(number): folder for number, folder in enumerate(pool)}, None, "cpu")
    everything = StepWindows([load_windows(text)], rules, "cpu", loss).of_step(0)
    grid = [(a, b, 8 - a - b) for a in range(9) for b in range(9 - a)]
    values = {parts: loss(np.array(parts) / 8, everything)[0] for parts in grid}
    lowest = min(values.values())
    assert len(found) == 2
    for landing in found:
        assert landing.weights.sum() == pytest.approx(1)
        assert landing.values[-1] < landing.values[0]
    reached = [loss(landing.weights, everything)[0] for landing in found]
    assert min(reached) < lowest + 0.001
    assert found[int(np.argmin(reached))].weights.argmax() == 1


def test_copies_share_their_weight_evenly(
    models: Models,
    windows: Callable[..., Path],
    texts: list[str],
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> None:
    copies = [models["a"], models["a"], models["b"]]
    sets = [windows(texts)]
    (found,) = descended(config([[0], [1], [2]], starts=1), copies, sets, new(), workspace())
    assert found.weights[0] == pytest.approx(found.weights[1], rel=1e-6)
    # As one unit they have the weight that both have together.
    (joined,) = descended(config([[0, 1]], starts=1), copies[:2], sets, new(), workspace())
    assert joined.weights.tolist() == [1.0]


def test_the_same_again_and_other_windows_at_each_step(
    models: Models,
    windows: Callable[..., Path],
    texts: list[str],
    prose: Callable[..., list[str]],
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> None:
    folders, sets = [*models.values()], [windows(texts), windows(prose(1, 4))]
    rules = config([[0], [1, 2]], 2, starts=2, steps=3, tokens=64)
    one, other = new(), new()
    told: list[tuple[int, int, str]] = []
    descended(rules, folders, sets, one, workspace(lambda *done: told.append(done)))
    descended(rules, folders, sets, other, workspace())
    first, second = (json.loads((folder / "descent.json").read_text()) for folder in (one, other))
    assert first == second
    assert told == [(n + 1, 6, "steps") for n in range(6)]
    loss = MergedLoss(models, None, "cpu")
    text = StepWindows([load_windows(folder) for folder in sets], rules, "cpu", loss)
    seen = {text.of_step(step)[0][1][0].inputs.numpy().tobytes() for step in range(6)}
    assert len(seen) > 1


def test_a_bowl_is_descended_to_its_lowest_point() -> None:
    """On a quadratic of known minimum inside the simplex, whatever its scale and height."""
    lowest = np.array([0.6, 0.3, 0.1])
    for scale in (1e-3, 1.0, 1e3):

        def slope(weights: np.ndarray, _: int, scale: float = scale) -> tuple[float, np.ndarray]:
            gap = weights - lowest
            return scale * float(gap @ gap), scale * (2 * gap + 7)

        found = descend(slope, np.full(3, 1 / 3), 60, 0.5)
        np.testing.assert_allclose(found.weights, lowest, atol=0.01)


def test_a_loss_that_is_not_finite_is_told() -> None:
    with pytest.raises(ValueError, match="the objective is nan at step 1"):
        descend(lambda weights, step: (math.nan, weights), np.full(2, 0.5), 3, 0.5)
