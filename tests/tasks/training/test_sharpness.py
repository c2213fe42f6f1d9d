"""Each gradient is taken uphill, by an independent loop, and the weights are back before it is used."""

import functools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from storage.artifact import describe
from storage.fingerprint import canonical
from storage.step import Workspace
from tasks.evaluation.uphill import FlatnessConfig
from tasks.evaluation.uphill import build as measure
from tasks.models.folder import load_model, load_weights
from tasks.tokens.tokenize import load_tokens
from tasks.training.accumulate import Accumulation
from tasks.training.blocks import Batches, Blocks
from tasks.training.config import Sharpness, TrainConfig
from tasks.training.gradients import loss_function
from tasks.training.sharpness import ascent_blocks, flat, raised
from tasks.training.train import build as train

pytest_plugins = ["tests.tasks.tiny_models"]

SHORT: dict[str, Any] = {"steps": 3, "batch_size": 4, "context_length": 16, "learning_rate": 1e-2}
FAR: dict[str, Any] = {"rho": 0.3, "ascent_fraction": 0.5}


@pytest.fixture(scope="module")
def corpus(tokens: Callable[[list[str]], Path], prose: Callable[..., list[str]]) -> Path:
    return tokens(prose(1))


@pytest.fixture
def trained(
    corpus: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> Callable[..., Path]:
    """Train on the corpus; further arguments change the short config."""

    def make(model: Path, **config: Any) -> Path:
        output = new()
        settings = TrainConfig.model_validate(SHORT).model_copy(update=config)
        train(settings, {"model": model, "tokens": corpus}, output, workspace())
        return output

    return make


def test_gradient_of_a_quadratic_is_that_uphill() -> None:
    """Of w'Aw/2 the gradient at w + e is A(w + e); what has no gradient stays out of the norm."""
    matrix = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    w, idle = torch.nn.Parameter(torch.tensor([0.1, -0.7])), torch.nn.Parameter(torch.ones(1))
    seen = []

    def gradients_of(tokens: torch.Tensor, step: int) -> torch.Tensor:
        seen.append((len(tokens), step))
        loss = w @ matrix @ w / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    start = w.detach().clone()
    loss = flat(gradients_of, [w, idle], Sharpness(rho=0.2))(torch.zeros(10, 3), 7)
    gradient = matrix @ start
    uphill = start + 0.2 * gradient / gradient.norm()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, matrix @ uphill)
    torch.testing.assert_close(loss, uphill @ matrix @ uphill / 2)
    assert w.equal(start)
    assert (idle.item(), idle.grad) == (1, None)
    assert seen == [(3, 7), (10, 7)]


@pytest.mark.parametrize(
    ("fraction", "blocks", "expected"), [(0.25, 8, 2), (0.25, 9, 3), (0.1, 30, 3), (1e-9, 4, 1)]
)
def test_a_share_of_the_batch_is_rounded_up(fraction: float, blocks: int, expected: int) -> None:
    assert ascent_blocks(Sharpness(ascent_fraction=fraction), blocks) == expected


def test_weights_are_those_of_an_independent_loop(
    llama: Path, corpus: Path, trained: Callable[..., Path]
) -> None:
    """Autograd alone, weights by functional_call, and AdamW written out."""
    model: Any = load_model(llama).train()
    names = dict(model.named_parameters())
    weights = {name: p.detach().double() for name, p in names.items()}
    config = TrainConfig.model_validate(SHORT)
    batches = Batches(config, [load_tokens(corpus)], [])
    means = {name: torch.zeros_like(w) for name, w in weights.items()}
    squares = {name: torch.zeros_like(w) for name, w in weights.items()}

    def gradient(at: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        leaves = {n: w.float().requires_grad_() for n, w in at.items()}
        logits = torch.func.functional_call(
            model, leaves, kwargs={"input_ids": rows[:, :-1]}
        ).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        found = torch.autograd.grad(loss, [*leaves.values()])
        return {name: g.double() for name, g in zip(leaves, found, strict=True)}

    def norm(gradients: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))

    for step in range(config.steps):
        rows = torch.from_numpy(batches[step])
        up = gradient(weights, rows[:2])
        there = {n: w + 0.3 * up[n] / (norm(up) + 1e-12) for n, w in weights.items()}
        found = gradient(there, rows)
        clip = min(1.0, config.max_grad_norm / (norm(found) + 1e-6))
        for name, w in weights.items():
            g = found[name] * clip
            means[name] = 0.9 * means[name] + 0.1 * g
            squares[name] = 0.95 * squares[name] + 0.05 * g**2
            decay = config.weight_decay if w.dim() >= 2 else 0.0
            rise = (means[name] / (1 - 0.9 ** (step + 1))) / (
                (squares[name] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
            )
            weights[name] = w * (1 - config.learning_rate * decay) - config.learning_rate * rise
    ours = load_weights(trained(llama, sharpness=Sharpness(**FAR)))
    plain = load_weights(trained(llama))
    moved = sum(float((ours[name] - plain[name]).abs().sum()) for name in ours)
    off = sum(float((ours[name].double() - weights[name]).abs().sum()) for name in ours)
    assert off < 1e-3 * moved


def test_at_no_distance_it_is_todays_training_to_the_bit(
    gpt: Path, trained: Callable[..., Path]
) -> None:
    """With dropout: the passes before it leave the random state as they found it."""
    nowhere = Sharpness.model_construct(rho=0.0, ascent_fraction=0.25)
    ours, plain = trained(gpt, sharpness=nowhere), trained(gpt)
    assert describe("model", ours) == describe("model", plain)
    assert describe("model", trained(gpt, sharpness=Sharpness())) != describe("model", plain)


class BrokenError(Exception):
    """A pass that fails."""


def test_weights_are_back_when_the_second_pass_fails(llama: Path) -> None:
    model = load_model(llama)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain, calls = Accumulation(loss_function(model, "float32", compiled=False), model), []

    def gradients_of(tokens: torch.Tensor, step: int) -> torch.Tensor:
        calls.append({name: p.detach().clone() for name, p in model.named_parameters()})
        loss = plain(tokens, step)
        if len(calls) == 2:
            raise BrokenError
        return loss

    with pytest.raises(BrokenError):
        flat(gradients_of, [*model.parameters()], Sharpness())(torch.ones(4, 9).long(), 0)
    off = sum(float(((calls[1][n] - w).double() ** 2).sum()) for n, w in before.items())
    assert math.sqrt(off) == pytest.approx(0.05, rel=1e-4)
    assert all(p.equal(before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_masks_of_both_passes_are_those_of_a_plain_step(gpt: Path, fraction: float) -> None:
    """With the whole batch in both; a part of it draws others, and leaves the second's as they are."""
    model, masks = load_model(gpt).train(), list[list[torch.Tensor]]()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(
                lambda _, given, made: masks[-1].append((made == 0) & (given[0] != 0))
            )
    plain = Accumulation(loss_function(model, "float32", compiled=False), model)

    def gradients_of(tokens: torch.Tensor, step: int) -> torch.Tensor:
        masks.append([])
        return plain(tokens, step)

    rows = torch.randint(0, 300, (4, 17), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    gradients_of(rows, 0)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    flat(gradients_of, [*model.parameters()], Sharpness(ascent_fraction=fraction))(rows, 0)
    assert state.equal(torch.get_rng_state())
    usual, up, behind = masks
    assert sum(int(mask.sum()) for mask in usual) > 100
    assert [mask.shape[0] for mask in up] == [int(4 * fraction)] * len(up)
    assert all(torch.equal(one, other) for one, other in zip(usual, behind, strict=True))
    if fraction == 1:
        assert all(torch.equal(one, other) for one, other in zip(up, behind, strict=True))


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own ways
def test_compiled_passes_give_the_same_gradients(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that change in place between two passes, and two sizes of batch, through the front end."""
    torch._dynamo.reset()
    compilations = []

    def backend(graph: Any, example: object) -> Any:
        del example
        compilations.append(graph)
        return graph.forward

    # Only the compiler behind the front end is another: the usual one takes half a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    rows = torch.randint(0, 300, (4, 17), generator=torch.Generator().manual_seed(0))
    found = []
    for compiled in (False, True):
        model = load_model(llama).train()
        plain = Accumulation(loss_function(model, "float32", compiled=compiled), model)
        uphill = flat(plain, [*model.parameters()], Sharpness(**FAR))
        for step in range(2):
            model.zero_grad()
            loss = uphill(rows, step)
        found.append([loss, *(p.grad for p in model.parameters())])
    assert compilations
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-6)


def test_costs_count_the_pass_on_the_way_up(
    llama: Path, corpus: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    costs = []
    for sharpness in (None, {"ascent_fraction": 0.3}):
        job = workspace()
        with job.meter:
            config = TrainConfig.model_validate({**SHORT, "sharpness": sharpness})
            train(config, {"model": llama, "tokens": corpus}, new(), job)
        costs.append(job.meter.cost)
    assert costs[1].flops == pytest.approx(1.5 * costs[0].flops)
    assert costs[1].tokens == costs[0].tokens


def test_neutral_values_leave_the_key_as_it_was() -> None:
    today = canonical(TrainConfig(steps=6))
    assert canonical(TrainConfig(steps=6, sharpness=None, layers=None)) == today
    assert isinstance(today, dict)
    assert {"sharpness", "layers"}.isdisjoint(today)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rho": 0}, "greater than 0"),
        ({"ascent_fraction": 0}, "greater than 0"),
        ({"ascent_fraction": 1.1}, "less than or equal to 1"),
    ],
)
def test_what_is_no_way_up_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig.model_validate({**SHORT, "sharpness": fields})


# Sharpness of a model ------------------------------------------------------------------------------


def test_sharpness_is_the_rise_uphill(
    gpt: Path, corpus: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    """All blocks at once, by transformers' own loss, and the way up in float64."""
    config = FlatnessConfig(rho=0.1, context_length=16, blocks=5, seed=2)
    found = measure(config, {"model": gpt, "tokens": corpus}, new(), workspace())
    blocks = Blocks([load_tokens(corpus)], 16, 2)
    rows = torch.stack([torch.from_numpy(blocks[n].astype("int64")) for n in range(5)])
    model: Any = load_model(gpt).double()

    def loss() -> torch.Tensor:
        logits = model(input_ids=rows[:, :-1]).logits
        value: torch.Tensor = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), rows[:, 1:].flatten()
        )
        return value

    start = loss()
    gradients = torch.autograd.grad(start, [*model.parameters()])
    length = torch.stack([(g**2).sum() for g in gradients]).sum().sqrt()
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter += 0.1 * gradient / length
        expected = (loss() - start).item()
    assert found["sharpness"] == pytest.approx(expected, rel=1e-3)
    assert found["loss"] == pytest.approx(start.item(), rel=1e-5)
    assert found["blocks"] == 5
    assert expected > 0


def test_a_loss_that_is_not_finite_is_refused(
    llama: Path, corpus: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    broken, weights = new(), load_weights(llama)
    shutil.copytree(llama, broken, dirs_exist_ok=True)
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    config = FlatnessConfig(rho=0.05, context_length=16, blocks=1, seed=0)
    with pytest.raises(
        ValueError, match=r"the loss is nan .* give a smaller evaluation\.sharpness"
    ):
        measure(config, {"model": broken, "tokens": corpus}, new(), workspace())


def test_a_way_up_without_gradients_moves_nothing() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    with raised([parameter], 1.0):
        assert parameter.equal(torch.ones(2))
    assert parameter.equal(torch.ones(2))
