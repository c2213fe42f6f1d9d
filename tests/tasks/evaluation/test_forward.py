"""Losses without logits are the losses of the logits."""

import copy
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3Config,
)

from tasks.evaluation import forward
from tasks.evaluation.forward import Scorer, TokenBatch, head_losses, linear_body, token_batches
from tasks.evaluation.onednn import has_onednn, onednn_linear
from tasks.evaluation.window import Windows

pytest_plugins = ["tests.tasks.tiny_models"]


@cases(
    st.lists(st.integers(1, 12), min_size=1, max_size=40),
    st.integers(1, 60),
    st.lists(st.integers(1, 12), max_size=2).map(sorted),
)
def test_batches_hold_every_scored_token_once(
    lengths: list[int], tokens: int, turns: list[int]
) -> None:
    count = len(lengths)
    ids = np.arange(count * 13, dtype=np.int32).reshape(count, 13)
    first = np.array([n // 3 for n in lengths], dtype=np.int32)
    group = np.arange(count, dtype=np.int32)
    none = np.zeros(count, dtype=np.int64)
    length = np.array(lengths, dtype=np.int32)
    found = token_batches(
        Windows(ids[:, :-1], ids[:, 1:], first, length, group, none, none, none),
        tokens,
        "cpu",
        turns,
    )
    targets = [int(t) for batch in found for t in batch.targets]
    groups = [int(g) for batch in found for g in batch.group]
    expected = [
        (int(ids[row, p + 1]), row) for row in range(count) for p in range(first[row], length[row])
    ]
    assert sorted(zip(targets, groups, strict=True)) == expected
    for batch in found:
        assert batch.inputs.numel() <= tokens or len(batch.inputs) == 1
        assert (batch.inputs.flatten()[batch.scored] + 1).equal(batch.targets)
        batched = [lengths[group] for group in batch.group]
        assert len({sum(length > turn for turn in turns) for length in batched}) == 1
    widths = [batch.inputs.shape[1] for batch in found]
    assert widths == sorted(widths)


# Losses from hidden states -------------------------------------------------------------------------


@settings(max_examples=50)
@cases(
    st.integers(1, 40), st.integers(1, 60), st.booleans(), st.floats(0.1, 60), st.integers(0, 99)
)
def test_tiles_give_the_cross_entropy(
    count: int, vocabulary: int, with_bias: bool, scale: float, seed: int
) -> None:
    """Tiles of seven, whole rows up to twelve; several of them, full and not, and extreme logits."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 8, generator=generator) * scale
    weight = torch.randn(vocabulary, 8, generator=generator)
    bias = torch.randn(vocabulary, generator=generator) if with_bias else None
    targets = torch.randint(0, vocabulary, (count,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "TILE", 7)
        patch.setattr(forward, "SMALL", 12)
        found = head_losses(hidden, weight, bias, targets)
        faster = onednn_linear if has_onednn() else None
        by_onednn = head_losses(hidden, weight, bias, targets, faster)
    logits = F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    expected = F.cross_entropy(logits, targets, reduction="none").float()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5 * scale)
    torch.testing.assert_close(by_onednn, expected, rtol=1e-5, atol=2e-5 * scale)


SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
EXPERTS = {**SMALL, "num_local_experts": 2}
OPT = {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}
LINEAR = {
    "llama": LlamaConfig(**SMALL),
    "qwen": Qwen3Config(**SMALL, head_dim=8),
    "mixtral": MixtralConfig(**EXPERTS),
    "gpt2": GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2),
    "neox": GPTNeoXConfig(**SMALL),
    "opt": OPTConfig(**OPT),
}
OTHER = {
    "soft-capped": Gemma2Config(**SMALL, head_dim=8),
    "scaled": CohereConfig(**SMALL, logit_scale=0.25),
    "divided": GraniteConfig(**SMALL, logits_scaling=8.0),
}


def batch_of(seed: int) -> TokenBatch:
    """Two windows of nine tokens, of which ten are scored."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 300, (2, 9), generator=generator)
    scored = torch.tensor([0, 3, 4, 5, 8, 9, 11, 12, 16, 17])
    targets = torch.randint(0, 300, (10,), generator=generator)
    return TokenBatch(ids, scored, targets, np.zeros(10, dtype=np.int32))


@pytest.mark.parametrize(
    "onednn", sorted({False, has_onednn()}), ids=["plain", "onednn"].__getitem__
)
@pytest.mark.parametrize("name", [*LINEAR, *OTHER])
def test_losses_are_those_of_the_models_logits(name: str, onednn: bool) -> None:
    """Whether the head is linear is found out, and weights may change afterwards."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config({**LINEAR, **OTHER}[name]).eval()
    assert (linear_body(model) is not None) == (name in LINEAR)
    plain, score = copy.deepcopy(model), Scorer(model, onednn=onednn)
    with torch.inference_mode():
        for parameter in (*model.parameters(), *plain.parameters()):
            parameter.mul_(3.0)
        batch = batch_of(1)
        score.expect([batch])
        logits = plain(input_ids=batch.inputs, use_cache=False).logits.flatten(0, 1)
        expected = F.cross_entropy(logits[batch.scored], batch.targets, reduction="none")
        torch.testing.assert_close(score(batch), expected, rtol=1e-5, atol=1e-5)


def test_a_head_that_masks_tokens_gives_its_logits(given: Callable[..., Path]) -> None:
    from tasks.models.folder import load_model

    model = load_model(given(LINEAR["llama"]))
    head = torch.nn.Linear(16, 300)
    model.set_output_embeddings(head)
    assert linear_body(model) is not None
    with torch.no_grad():
        head.bias[0] = -torch.inf
    assert linear_body(model) is None
    batch = batch_of(3)
    with torch.inference_mode():
        assert Scorer(model)(batch).isfinite().all() == (batch.targets != 0).all()


def test_windows_that_are_scored_in_full(given: Callable[..., Path]) -> None:
    from tasks.models.folder import load_model

    model = load_model(given(LINEAR["llama"]))
    ids = torch.arange(18).view(2, 9)
    batch = TokenBatch(ids, torch.arange(18), torch.arange(1, 19), np.zeros(18, dtype=np.int32))
    with torch.inference_mode():
        logits = model(input_ids=ids).logits.flatten(0, 1)
        expected = F.cross_entropy(logits, batch.targets, reduction="none")
        torch.testing.assert_close(Scorer(model)(batch), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_its_logits(given: Callable[..., Path]) -> None:
    """Logits are of bfloat16, their cross-entropy of float32, as the plain path has it."""
    from tasks.models.folder import load_model

    model = load_model(given(LINEAR["llama"]))
    batch = batch_of(2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch.inputs, use_cache=False).logits.flatten(0, 1)
        assert logits.dtype == torch.bfloat16
        expected = F.cross_entropy(logits[batch.scored].float(), batch.targets, reduction="none")
        found = Scorer(model)(batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="not a processor that can gain by oneDNN"
)
def test_torch_still_has_the_linear_map_of_onednn() -> None:
    assert has_onednn() == torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
