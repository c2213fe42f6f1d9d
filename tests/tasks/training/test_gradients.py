"""What the loop calls at each step is what the usual lines of torch compute, bit by bit."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as cases
from hypothesis import strategies as st

from tasks.models.folder import load_model
from tasks.training.gradients import clip, loss_function, moved

pytest_plugins = ["tests.tasks.tiny_models"]


def parameters(seed: int, scale: float) -> list[torch.nn.Parameter]:
    """Some with gradients, and one without."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((7, 5), (11,), (3,))]
    for parameter in found[:2]:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
    return found


@cases(
    st.integers(0, 1000),
    st.sampled_from([1e-30, 1e-3, 0.1, 0.15, 0.2, 1.0, 1e20, math.inf, math.nan]),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_clipping_is_torchs_own(seed: int, scale: float, max_norm: float) -> None:
    ours, theirs = parameters(seed, scale), parameters(seed, scale)
    clip(ours, max_norm)
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)
    assert ours[2].grad is None


def batch(seed: int = 0) -> torch.Tensor:
    """Four sequences of 16 tokens and the next."""
    return torch.randint(0, 300, (4, 17), generator=torch.Generator().manual_seed(seed))


def test_a_batch_on_the_cpu_is_not_copied() -> None:
    tokens = batch().numpy()
    assert moved(tokens, torch.device("cpu")).data_ptr() == tokens.ctypes.data


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_loss_is_what_transformers_computes(llama: Path, precision: str) -> None:
    model: Any = load_model(llama)
    tokens = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(input_ids=tokens[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), tokens[:, 1:].flatten()
    )
    assert loss_function(model, precision, compiled=False)(tokens).equal(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own ways
def test_compiled_loss_and_gradients_agree_and_the_layers_are_one_compilation(
    llama: Path,
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = load_model(llama).train(), load_model(llama).train()
    names = [*compiled.state_dict()]
    one = loss_function(plain, "float32", compiled=False)
    other = loss_function(compiled, "float32", compiled=True)
    for seed in range(3):
        expected, found = one(batch(seed)), other(batch(seed))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        expected.backward()  # type: ignore[no-untyped-call]
        found.backward()  # type: ignore[no-untyped-call]
    for before, after in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(after.grad, before.grad, rtol=1e-3, atol=1e-6)
    assert [*compiled.state_dict()] == names
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # a layer, the loss


@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_attend_without_a_mask(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a mask of context x context, attention leaves its fast path."""
    torch._dynamo.reset()
    seen = []

    def backend(graph: Any, example: object) -> Any:
        del example
        for node in graph.graph.nodes:
            if "scaled_dot_product_attention" in str(node.target):
                seen.append((node.kwargs["attn_mask"], node.kwargs["is_causal"]))
        return graph.forward

    # Only the compiler behind the front end is another: the usual one takes half a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    model = load_model(llama).train()
    found = loss_function(model, "bfloat16", compiled=True)(batch())
    assert seen == [(None, True)]
    assert found.equal(loss_function(load_model(llama), "bfloat16", compiled=False)(batch()))
