"""The loss of a mixture is what transformers computes, whatever else the sweep has to do.

Bit-identical: other mixtures in the chunk, other sets, the order of documents. Batches of another
size change the order of sums inside the model's matrix products, so losses agree to 1e-6.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import GPT2Config, MixtralConfig

from storage.cache import Runtime, Workspace
from storage.store import Store
from tasks.energy import Meter
from tasks.losses import EvaluateConfig, LossesTable, Row, identity
from tasks.merging import FACTS, MergeError, average_weights, facts_of, load_weights
from tasks.mixture import Mixture
from tasks.model import load_model
from tasks.sweep import Job, MergedModel, Pool, PreparedSet, Sweeper, batches, missing_jobs
from tasks.tokenizer import Encoder
from tasks.train import TrainConfig
from tasks.train import build as train
from tasks.window import load_windows

pytest_plugins = ["tests.tasks.tiny_models"]

NAMES = ("a", "b", "c")
PARTS = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 9), min_size=1)

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


def sweeper(
    models: Models, *sets: Path, config: EvaluateConfig | None = None, **runtime: Any
) -> Sweeper:
    """A sweeper; sets are called 0, 1, ..."""
    where = Runtime.model_validate({"device": "cpu", "threads": 1, **runtime})
    prepared = [PreparedSet(str(n), str(n) * 64, folder) for n, folder in enumerate(sets)]
    return Sweeper(models, prepared, config or EvaluateConfig(), where)


def run(sweeper: Sweeper, *mixtures: Mapping[str, int], sets: Sequence[str] = ("0",)) -> list[Row]:
    """Rows of mixtures."""
    jobs = [Job(mixture := Mixture.of(parts), mixture.label, tuple(sets)) for parts in mixtures]
    seen = []
    with Meter("cpu") as meter:
        rows = sweeper.evaluate(jobs, meter, lambda *told: seen.append(told))
    assert seen == [(n + 1, len(jobs), "mixtures") for n in range(len(jobs))]
    return rows


# Merging -------------------------------------------------------------------------------------------


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
    assert pool.merge(mixture, dtype).equal(expected)


def test_one_member_is_itself(models: Models, pool: Pool) -> None:
    merged = pool.merge(Mixture.uniform(["b"]), torch.float64)
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
    merged = MergedModel(pool, "cpu")
    merged.flat.copy_(pool.merge(Mixture.of({"a": 1, "b": 3}), torch.float64))
    folder = new()
    shutil.copy(start / "config.json", folder)
    weights = average_weights({n: load_weights(p) for n, p in trained.items()}, {"a": 1, "b": 3})
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = torch.arange(64).view(2, 32)
    with torch.inference_mode():
        expected = load_model(folder)(input_ids=ids).logits
        assert merged.forward(input_ids=ids).logits.equal(expected)


def test_members_that_do_not_agree_are_refused(
    models: Models, partition: Callable[..., Path], windows: Callable[..., Path], texts: list[str]
) -> None:
    """In a mixture; alone each is evaluated, as references of other lengths are."""
    longer = {**models, "longer": partition(7, steps=3)}
    ready = sweeper(longer, windows(texts))
    rows = run(ready, {"longer": 1}, {"a": 1})
    assert len(rows) == 2
    with pytest.raises(MergeError, match=r"mixture 'a \+ longer': .*number of steps: 2 and 3"):
        run(ready, {"a": 1, "longer": 1})


def test_pool_of_two_architectures_is_refused(models: Models, gpt: Path) -> None:
    with pytest.raises(MergeError, match="models 'a' and 'gpt': only one of them has the tensor"):
        Pool({"a": models["a"], "gpt": gpt}, "cpu")


def test_tensor_that_the_model_lacks(models: Models, new: Callable[[], Path]) -> None:
    folder = new()
    shutil.copytree(models["a"], folder, dirs_exist_ok=True)
    weights = {**load_weights(folder), "model.extra": torch.zeros(3)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"no tensor 'model\.extra'"):
        MergedModel(Pool({"a": folder}, "cpu"), "cpu")


# Losses --------------------------------------------------------------------------------------------


def rolling(tokens: list[int], context: int, form: str) -> Iterator[tuple[list[int], int]]:
    """Tokens of each window and how many of the last of them are scored, written anew."""
    done = 0
    while done < len(tokens) - 1:
        step = min(context, len(tokens) - 1 - done)
        done += step
        begin = max(0, done - context) if form == "paloma" else done - step
        yield tokens[begin : done + 1], step


def loss_by_transformers(model: Any, tokens: list[int], context: int, form: str) -> float:
    """Nats of a document, by the loss that the model itself computes for labels."""
    total = 0.0
    for window, scored in rolling(tokens, context, form):
        ids = torch.tensor([window])
        labels = ids.clone()
        labels[0, : len(window) - scored] = -100
        with torch.inference_mode():
            total += model(input_ids=ids, labels=labels).loss.item() * scored
    return total


@pytest.mark.parametrize("form", ["paloma", "disjoint"])
@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_losses_are_what_transformers_computes(
    form: str,
    batch_tokens: int,
    models: Models,
    windows: Callable[..., Path],
    tokenizer: Path,
    texts: list[str],
) -> None:
    folder = windows(texts, format=form)
    (row,) = run(sweeper(models, folder, batch_tokens=batch_tokens), {"b": 1})
    encoder, model = Encoder(tokenizer), load_model(models["b"])
    expected = [
        loss_by_transformers(model, [encoder.end_of_text, *ids[:-1].tolist()], 32, form)
        for ids in encoder.encode(texts)
    ]
    assert sorted(row.group_nll) == pytest.approx(sorted(expected), rel=1e-6)
    assert row.nll == pytest.approx(sum(expected), rel=1e-6)
    assert row.nll == pytest.approx(math.fsum(row.group_nll), rel=1e-12)
    counts = load_windows(folder)
    assert counts.num_tokens.sum() == sum(len(ids) - 1 for ids in encoder.encode(texts))


def zeroed(model: Path, folder: Path, value: float = 0.0) -> Path:
    """The model with every weight the same."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    weights = {key: torch.full_like(tensor, value) for key, tensor in load_weights(model).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_that_knows_nothing_has_the_logarithm_of_the_vocabulary(
    models: Models, windows: Callable[..., Path], texts: list[str], new: Callable[[], Path]
) -> None:
    folder = windows(texts)
    (row,) = run(sweeper({"zero": zeroed(models["a"], new())}, folder), {"zero": 1})
    each = float(np.log(np.float32(300)))
    tokens = load_windows(folder).num_tokens
    assert row.group_nll == pytest.approx([each * n for n in tokens.tolist()], rel=1e-15)


def test_losses_that_are_not_finite_are_not_stored(
    models: Models, windows: Callable[..., Path], texts: list[str], new: Callable[[], Path]
) -> None:
    bad = zeroed(models["a"], new(), math.nan)
    with pytest.raises(ValueError, match=r"mixture 'bad' has a loss of nan on '0'"):
        run(sweeper({"bad": bad}, windows(texts)), {"bad": 1})


def test_other_work_does_not_show(
    models: Models, windows: Callable[..., Path], texts: list[str], prose: Callable[..., list[str]]
) -> None:
    """Bit-identical, alone or behind other mixtures and sets."""
    one, other = windows(texts), windows(prose(20, 3, 40), format="disjoint")
    wanted = {"a": 2, "c": 1}
    (alone,) = run(sweeper(models, one), wanted)
    ready = sweeper(models, one, other)
    for mixtures in ([wanted], [{"b": 1}, wanted], [{"a": 1, "b": 1, "c": 5}, {"c": 1}, wanted]):
        found = run(ready, *mixtures, sets=("1", "0"))
        assert found[-1] == alone
        assert [row.evaluation_set for row in found] == ["1", "0"] * len(mixtures)
    only = {name: models[name] for name in reversed(wanted)}
    assert run(sweeper(only, one), wanted) == [alone]


def test_order_of_documents_does_not_show(
    models: Models, windows: Callable[..., Path], texts: list[str]
) -> None:
    rows = [run(sweeper(models, windows(t)), {"a": 1, "b": 1}) for t in (texts, texts[::-1])]
    assert rows[0] == rows[1]


@settings(max_examples=15)
@cases(st.integers(1, 2000), st.sampled_from(["paloma", "disjoint"]))
def test_batch_size_moves_losses_by_rounding_only(
    models: Models, windows: Callable[..., Path], texts: list[str], tokens: int, form: str
) -> None:
    folder = windows(texts, format=form)
    (row,) = run(sweeper(models, folder, batch_tokens=tokens), {"a": 1, "b": 1})
    (usual,) = run(sweeper(models, folder), {"a": 1, "b": 1})
    assert row.group_nll == pytest.approx(usual.group_nll, rel=1e-6)


def test_groups_add_up_to_the_same(models: Models, windows: Callable[..., Path]) -> None:
    texts = [f"number {n} " + "ab" * (n % 7) for n in range(270)]
    alone, grouped = windows(texts, groups=300), windows(texts, groups=256)
    ready = sweeper(models, alone, grouped)
    one, other = run(ready, {"a": 1}, sets=("0", "1"))
    assert len(one.group_nll) == 270
    assert len(other.group_nll) <= 256
    assert other.nll == pytest.approx(one.nll, rel=1e-13)
    group_of = dict(zip(*(load_windows(f).group for f in (alone, grouped)), strict=True))
    sums = np.zeros(len(other.group_nll))
    for number, nll in enumerate(one.group_nll):
        sums[group_of[number]] += nll
    assert other.group_nll == pytest.approx(sums.tolist(), rel=1e-13)


@cases(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(1, 60))
def test_batches_hold_every_scored_token_once(lengths: list[int], tokens: int) -> None:
    from tasks.window import Windows

    count = len(lengths)
    ids = np.arange(count * 13, dtype=np.int32).reshape(count, 13)
    first = np.array([n // 3 for n in lengths], dtype=np.int32)
    group = np.arange(count, dtype=np.int32)
    none = np.zeros(count, dtype=np.int64)
    length = np.array(lengths, dtype=np.int32)
    found = batches(
        Windows(ids[:, :-1], ids[:, 1:], first, length, group, none, none, none), tokens, "cpu"
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
    widths = [batch.inputs.shape[1] for batch in found]
    assert widths == sorted(widths)


def test_precision_and_average_are_close(
    models: Models, windows: Callable[..., Path], texts: list[str]
) -> None:
    folder = windows(texts)
    mixture = {"a": 1, "b": 3}
    (usual,) = run(sweeper(models, folder), mixture)
    (single,) = run(sweeper(models, folder, config=EvaluateConfig(average="float32")), mixture)
    (half,) = run(sweeper(models, folder, config=EvaluateConfig(precision="bfloat16")), mixture)
    assert single.nll == pytest.approx(usual.nll, rel=1e-6)
    assert half.nll == pytest.approx(usual.nll, rel=1e-2)
    assert half.nll != usual.nll


def test_windows_longer_than_the_models_context(
    models: Models, windows: Callable[..., Path], texts: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.windows\.context_length 33 .* model's 32"):
        sweeper(models, windows(texts, context_length=33))


def test_work_is_counted(models: Models, windows: Callable[..., Path], texts: list[str]) -> None:
    folder = windows(texts)
    job = Job(Mixture.uniform(["a"]), "a", ("0",))
    with Meter("cpu") as meter:
        sweeper(models, folder).evaluate([job], meter, lambda *_: None)
    told = json.loads((folder / "windows.json").read_text())
    assert meter.cost.tokens == told["forward_tokens"]
    assert meter.cost.flops > 2 * meter.cost.tokens * 9600  # the embedding alone


def test_only_what_the_table_lacks_is_a_job(memory_store: Store) -> None:
    table = LossesTable(memory_store, EvaluateConfig())
    one, other = Mixture.uniform(["a"]), Mixture.of({"a": 1, "b": 2})
    wanted, sets = [(one, "one"), (other, "other")], {"x": "xx", "y": "yy"}
    assert missing_jobs(table, wanted, sets) == [
        Job(one, "one", ("x", "y")),
        Job(other, "other", ("x", "y")),
    ]
    table.append([Row(identity(one), "yy", "one", "y", 1.0, [1.0])], {})
    assert missing_jobs(table, wanted, sets)[0] == Job(one, "one", ("x",))
    table.append([Row(identity(one), "xx", "one", "x", 1.0, [1.0])], {})
    assert missing_jobs(table, wanted, sets) == [Job(other, "other", ("x", "y"))]


def test_a_job_that_somebody_did_is_not_lacking(
    memory_store: Store, models: Models, windows: Callable[..., Path], texts: list[str]
) -> None:
    ready = sweeper(models, windows(texts))
    table = LossesTable(memory_store, EvaluateConfig())
    job = Job(Mixture.uniform(["a"]), "a", ("0",))
    assert ready.lacks(table, job)
    table.append(run(ready, {"a": 1}), {})
    assert not ready.lacks(table, job)


def test_facts_lie_beside_every_model(models: Models) -> None:
    assert all((folder / FACTS).exists() for folder in models.values())
    assert len({facts_of(folder).base for folder in models.values()}) == 1
