"""A merge has one bit pattern, wherever its members lie."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given as cases
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import GPT2Config, MixtralConfig

from tasks.merging.average import CPU_PIECE, MergeError, average_weights, fused_sum, weighted_sum
from tasks.merging.pool import FileReader, MergedModel, Pool
from tasks.mixtures.mixture import Mixture
from tasks.models.folder import load_model, load_weights

pytest_plugins = ["tests.tasks.tiny_models", "tests.tasks.tiny_pool"]

PARTS = st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1)

Models = Mapping[str, Path]


def merged_by(pool: Pool, mixture: Mixture, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    target = torch.full((pool.size,), torch.nan)
    pool.merge_into(target, mixture, dtype)
    return target


@pytest.fixture(scope="session")
def pool(models: Models) -> Pool:
    return Pool(models, "cpu")


@cases(PARTS, st.sampled_from([torch.float64, torch.float32]))
def test_flat_merge_is_the_merge_by_tensor(
    models: Models, pool: Pool, parts: dict[str, int], dtype: torch.dtype
) -> None:
    mixture = Mixture.of(parts)
    by_tensor = average_weights(
        {name: load_weights(models[name]) for name in mixture.members}, dict(mixture.parts), dtype
    )
    expected = torch.cat([by_tensor[key].flatten() for key in pool.layout])
    assert merged_by(pool, mixture, dtype).equal(expected)


def test_one_member_is_itself(models: Models, pool: Pool) -> None:
    merged = merged_by(pool, Mixture.uniform(["b"]))
    weights = load_weights(models["b"])
    assert merged.equal(torch.cat([weights[key].flatten() for key in pool.layout]))


@pytest.mark.parametrize("base", ["llama", "gpt", "untied", "experts"])
def test_merged_model_is_the_model_of_the_merged_weights(
    base: str,
    partition: Callable[..., Path],
    given: Callable[..., Path],
    imported: Callable[[Path], Path],
    new: Callable[[], Path],
    request: pytest.FixtureRequest,
) -> None:
    """For tied and untied embeddings, and for experts that are fused in memory."""
    shapes = {
        "untied": GPT2Config(
            vocab_size=300,
            n_positions=32,
            n_embd=16,
            n_layer=1,
            n_head=2,
            tie_word_embeddings=False,
        ),
        "experts": MixtralConfig(
            vocab_size=300,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=8,
            num_local_experts=2,
            max_position_embeddings=32,
        ),
    }
    start = imported(given(shapes[base])) if base in shapes else request.getfixturevalue(base)
    trained = {name: partition(seed, start) for seed, name in enumerate("ab")}
    pool = Pool(trained, "cpu")
    merged = MergedModel(pool)
    pool.merge_into(merged.flat, Mixture.of({"a": 1, "b": 3}), torch.float64)
    folder = new()
    shutil.copy(start / "config.json", folder)
    weights = average_weights({n: load_weights(p) for n, p in trained.items()}, {"a": 1, "b": 3})
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = torch.arange(64).view(2, 32)
    with torch.inference_mode():
        expected = load_model(folder)(input_ids=ids).logits
        assert merged.model(input_ids=ids).logits.equal(expected)


def test_pool_of_two_architectures_is_refused(models: Models, gpt: Path) -> None:
    with pytest.raises(MergeError, match="models 'a' and 'gpt': only one of them has the tensor"):
        Pool({"a": models["a"], "gpt": gpt}, "cpu")


def test_tensor_that_the_model_lacks(models: Models, new: Callable[[], Path]) -> None:
    folder = new()
    shutil.copytree(models["a"], folder, dirs_exist_ok=True)
    weights = {**load_weights(folder), "model.extra": torch.zeros(3)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"no tensor 'model\.extra'"):
        MergedModel(Pool({"a": folder}, "cpu"))


# Where members lie ---------------------------------------------------------------------------------


@pytest.fixture
def on_disk(models: Models, caplog: pytest.LogCaptureFixture) -> Pool:
    """A pool for which there is no memory."""
    with caplog.at_level(logging.WARNING):
        found = Pool(models, "cpu", gigabytes=0)
    assert found.place == "files"
    assert "3 models of 0 MB each do not fit into memory" in caplog.text
    return found


def test_a_pool_in_files_merges_to_the_same_bits(pool: Pool, on_disk: Pool) -> None:
    assert pool.place == "device"
    for parts in ({"a": 1}, {"a": 1, "c": 2}, {"a": 3, "b": 5, "c": 7}):
        mixture = Mixture.of(parts)
        assert merged_by(on_disk, mixture).equal(merged_by(pool, mixture))


def test_pieces_end_where_they_like(
    pool: Pool, on_disk: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces end within tensors, and hold several."""
    mixture = Mixture.of({"a": 1, "b": 2})
    expected = merged_by(pool, mixture)
    for size in (CPU_PIECE, 1000, 61):
        monkeypatch.setattr("tasks.merging.average.piece_size", lambda device, size=size: size)
        assert merged_by(on_disk, mixture).equal(expected)
        assert merged_by(pool, mixture).equal(expected)


@cases(st.data())
def test_any_stretch_of_a_file(models: Models, pool: Pool, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, pool.size - 1))
    end = data.draw(st.integers(start, min(pool.size, start + 5000)))
    weights = load_weights(models["a"])
    whole = torch.cat([weights[key].flatten() for key in pool.layout])
    found = FileReader(models["a"], list(pool.layout), "cpu")(start, end)
    assert found.equal(whole[start:end])


@pytest.mark.parametrize(
    ("change", "message"),
    [("half", r"stored as F16, and a pool .* runtime\.pool_gigabytes"), ("cut", "ends too early")],
)
def test_files_that_cannot_be_read_in_pieces(
    change: str, message: str, models: Models, new: Callable[[], Path]
) -> None:
    folder = new()
    shutil.copytree(models["a"], folder, dirs_exist_ok=True)
    path = folder / "model.safetensors"
    weights = load_weights(folder)
    if change == "half":
        save_file({key: value.half() for key, value in weights.items()}, path)
    else:
        path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(MergeError, match=message):
        FileReader(folder, list(weights), "cpu")(0, sum(t.numel() for t in weights.values()))


def test_a_pool_takes_what_it_is_given(models: Models) -> None:
    size = Pool(models, "cpu").size * 4
    assert Pool(models, "cpu", gigabytes=3 * size / 1e9).place == "device"
    assert Pool(models, "cpu", gigabytes=(3 * size - 1) / 1e9).place == "files"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_a_compiled_merge_has_the_same_bits(models: Models, pool: Pool) -> None:
    compiled = Pool(models, "cpu", compiled=True)
    for parts in ({"a": 1}, {"a": 3, "b": 5, "c": 7}, {"a": 2, "b": 2, "c": 2}):
        mixture = Mixture.of(parts)
        assert merged_by(compiled, mixture).equal(merged_by(pool, mixture))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_compiled_merges_are_compiled_once_for_each_power_of_two() -> None:
    from torch._dynamo.utils import counters

    members, target = [torch.randn(50) for _ in range(8)], torch.empty(50)
    torch.compiler.reset()
    counters.clear()
    for k in range(2, 9):
        fused_sum(target, members[:k], [1] * k)
        assert target.equal(weighted_sum(members[:k], [1] * k, torch.float64))
    assert counters["stats"]["unique_graphs"] == 3
