"""A mixture of probabilities is minus the logarithm of their mean, summed over the tokens of each group."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from storage.step import Runtime, Workspace
from tasks.evaluation import probability
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.evaluation.predicted import MeanOfSingles, predicted_rows
from tasks.evaluation.probability import TokenProbabilities
from tasks.evaluation.sweep import Job, PreparedSet, Sweeper
from tasks.evaluation.token_nats import NatsConfig, build, load_nats
from tasks.evaluation.window import Windows, load_windows
from tasks.machine.meter import Meter
from tasks.mixtures.mixture import Mixture, shares

pytest_plugins = ["tests.tasks.tiny_models", "tests.tasks.tiny_pool"]

Models = Mapping[str, Path]


@pytest.fixture(scope="module")
def folder(windows: Callable[..., Path], texts: list[str]) -> Path:
    """Windows of the texts."""
    return windows(texts, format="paloma")


@pytest.fixture(scope="module")
def nats(
    models: Models, folder: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> list[np.ndarray]:
    """Nats of each token by each model."""

    def of(model: Path) -> np.ndarray:
        output = new()
        config = NatsConfig(precision="float32")
        facts = build(config, {"model": model, "windows": folder}, output, workspace())
        found = load_nats(output)
        assert facts["num_tokens"] == len(found)
        assert facts["nll"] == pytest.approx(found.sum(dtype=np.float64))
        return found

    return [of(model) for model in models.values()]


def swept(models: Models, folder: Path, mixtures: Sequence[Mixture]) -> np.ndarray:
    """Sums per group by the sweep that fills the losses table."""
    sets = [PreparedSet("x", "0" * 64, folder)]
    ready = Sweeper(models, sets, EvaluateConfig(), Runtime(device="cpu", threads=1))
    with Meter("cpu") as meter:
        jobs = [Job(mixture, mixture.label, ("x",)) for mixture in mixtures]
        return np.array([row.group_nll for row in ready.evaluate(jobs, meter, lambda *_: None)])


def token_groups(windows: Windows) -> np.ndarray:
    return np.repeat(windows.group, windows.length - windows.first)


def test_nats_are_those_that_the_sweep_adds_up(
    models: Models, folder: Path, nats: list[np.ndarray]
) -> None:
    """Exactly, but for the order of the sum in float64."""
    found = swept(models, folder, [Mixture.uniform([name]) for name in models])
    groups = token_groups(load_windows(folder))
    for of_model, sums in zip(nats, found, strict=True):
        assert of_model.dtype == np.float32
        assert_allclose(np.bincount(groups, of_model, len(sums)), sums, rtol=1e-14)


def test_nats_stand_in_the_order_of_the_windows(
    models: Models,
    windows: Callable[..., Path],
    texts: list[str],
    folder: Path,
    nats: list[np.ndarray],
) -> None:
    """Each document's tokens, in order: those of a set that has this document alone."""
    whole = load_windows(folder)
    groups = token_groups(whole)
    for text in texts:
        alone = windows([text], format="paloma")
        (count,) = load_windows(alone).num_tokens
        (sums,) = swept({"a": models["a"]}, alone, [Mixture.uniform(["a"])])
        per_group = np.bincount(groups, nats[0])
        assert np.isclose(per_group[whole.num_tokens == count], sums[0], rtol=1e-5).any()
    first = np.flatnonzero(np.diff(groups, prepend=-1))
    assert len(first) == len(whole.num_tokens), "windows of one document stand together"


def test_at_a_vertex_it_is_the_models_own_loss(
    models: Models, folder: Path, nats: list[np.ndarray]
) -> None:
    """The number of the losses table; float32 holds the logarithms, which costs 1e-7 of it."""
    mixed = TokenProbabilities(nats, load_windows(folder)).sums(np.eye(3))
    assert_allclose(mixed, swept(models, folder, [Mixture.uniform([m]) for m in models]), rtol=1e-7)


def reference(nats: np.ndarray, groups: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """In one line, in float64."""
    return np.bincount(groups, -np.log(weights @ np.exp(-nats.astype(float))), size)


def random_windows(generator: np.random.Generator, tokens: int, groups: int) -> Windows:
    """Windows of one token each, in any order of groups; only what is looked at is there."""
    group = generator.integers(0, groups, tokens).astype(np.int32)
    counts = np.bincount(group, minlength=groups)
    ones, none = np.ones(tokens, np.int32), np.zeros((tokens, 1), np.int32)
    return Windows(none, none, 0 * ones, ones, group, counts, counts, counts)


@settings(max_examples=30)
@cases(
    st.integers(0, 9999),
    st.integers(1, 6),
    st.sampled_from([1, 5, 1023, 1024, 1025, 3000]),
    st.sampled_from([1, 2, 7, 1030]),
)
def test_it_is_minus_the_logarithm_of_the_mean(seed: int, n: int, tokens: int, many: int) -> None:
    generator = np.random.default_rng(seed)
    windows = random_windows(generator, tokens, 9)
    nats = generator.exponential(3, (n, tokens)).astype(np.float32)
    weights = generator.dirichlet(np.ones(n), many)
    mixed = TokenProbabilities([*nats], windows).sums(weights)
    assert mixed.shape == (many, 9)
    for found, row in zip(mixed[:5], weights, strict=False):
        assert_allclose(found, reference(nats, windows.group, row, 9), rtol=1e-6, atol=1e-5)
    # Convex, and never above the members' mean (Jensen).
    mean = MeanOfSingles(np.array([np.bincount(windows.group, x, 9) for x in nats])).sums(weights)
    assert (mixed <= mean * (1 + 1e-6) + 1e-5).all()


@settings(max_examples=20)
@cases(st.integers(0, 9999), st.integers(1, 20), st.integers(1, 600))
def test_how_many_are_asked_for_changes_next_to_nothing(seed: int, n: int, many: int) -> None:
    """A product of another shape may be rounded otherwise: 1e-6 of the set's nats at most."""
    generator = np.random.default_rng(seed)
    windows = random_windows(generator, 2000, 5)
    nats = generator.exponential(3, (n, 2000)).astype(np.float32)
    weights = generator.dirichlet(np.ones(n), many)
    mixed = TokenProbabilities([*nats], windows)
    whole, cut = mixed.sums(weights), generator.integers(0, many + 1)
    parts = np.vstack([mixed.sums(weights[:cut]), mixed.sums(weights[cut:])])
    assert_allclose(parts.sum(axis=1), whole.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("behind", [79.0, 85.0, 100.0, 800.0, 5000.0])
def test_a_model_far_behind_is_counted_in_full(behind: float) -> None:
    """Beyond float32, where it alone is in a mixture, and as good as nothing beside another."""
    windows = random_windows(np.random.default_rng(0), 4, 1)
    nats = np.array([[1.0] * 4, [1.0 + behind] * 4, [2.0 + behind] * 4], np.float32)
    mixed = TokenProbabilities([*nats], windows).sums(
        np.array([[0, 1, 0], [0, 0.5, 0.5], [0.5, 0.5, 0]])
    )
    both = -np.log((1 + np.exp(-1)) / 2)
    expected = [4 * (1 + behind), 4 * (1 + behind + both), 4 * (1 + np.log(2))]
    assert_allclose(mixed[:, 0], expected, rtol=1e-6)


def test_tiles_and_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    windows = random_windows(generator, 500, 7)
    nats = [*generator.exponential(3, (4, 500)).astype(np.float32)]
    weights = generator.dirichlet(np.ones(4), 50)
    whole = TokenProbabilities(nats, windows).sums(weights)
    monkeypatch.setattr(probability, "TOKENS", 64)
    monkeypatch.setattr(probability, "MIXTURES", 8)
    assert_allclose(TokenProbabilities(nats, windows).sums(weights), whole, rtol=1e-6)


def test_nats_of_other_windows_are_refused() -> None:
    windows = random_windows(np.random.default_rng(0), 4, 1)
    with pytest.raises(ValueError, match="nats of 3 tokens are given for windows with 4"):
        TokenProbabilities([np.zeros(3, np.float32)], windows)


def test_a_model_that_diverged_is_refused(
    models: Models, folder: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    broken = new()
    shutil.copytree(models["a"], broken, dirs_exist_ok=True)
    weights = load_file(broken / "model.safetensors")
    nan = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    save_file(nan, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has a loss of nan on 'the evaluation set'"):
        build(
            NatsConfig(precision="float32"),
            {"model": broken, "windows": folder},
            new(),
            workspace(),
        )


def test_rows_are_those_of_each_set_and_mixture() -> None:
    generator = np.random.default_rng(1)
    sums = [generator.random((3, groups)) for groups in (2, 5)]
    names = ["a", "b", "c"]
    mixtures = [Mixture.uniform(["a"]), Mixture.of({"a": 3, "c": 1}), Mixture.uniform(names)] * 300
    table = shares(mixtures, names)
    assert table[:3].tolist() == [[1, 0, 0], [0.75, 0, 0.25], [1 / 3] * 3]
    found = predicted_rows(
        [str(number) for number in range(900)],
        [mixture.label for mixture in mixtures],
        {"x": "0", "y": "1"},
        [MeanOfSingles(of_set) for of_set in sums],
        lambda start, stop: table[start:stop],
    )
    for number, of_set in enumerate(sums):
        assert_allclose(found.sums.read(number, 0, 900), table @ of_set)
        assert_allclose(found.nll[:, number], (table @ of_set).sum(axis=1))
    rows = list(found)
    assert [(row.mixture, row.evaluation_set) for row in rows[:3]] == [
        ("0", "x"),
        ("0", "y"),
        ("1", "x"),
    ]
