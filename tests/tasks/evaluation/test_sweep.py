"""The loss of a mixture is what transformers computes, whatever else the sweep has to do.

Bit-identical: other mixtures in the chunk, other sets, the order of documents. Batches of another
size change the order of sums inside the model's matrix products, so losses agree to 1e-6.
"""

import json
import math
import re
import shutil
import subprocess
import sys
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

from storage.step import Runtime
from storage.store import Store
from tasks.evaluation.losses import LossRow
from tasks.evaluation.losses_table import EvaluateConfig, LossesTable
from tasks.evaluation.onednn import NO_CODE
from tasks.evaluation.sweep import Job, PreparedSet, Sweeper
from tasks.evaluation.window import load_windows
from tasks.machine.meter import Meter
from tasks.merging.average import MergeError
from tasks.mixtures.mixture import Mixture
from tasks.models.facts import FACTS, facts_of
from tasks.models.folder import load_model, load_weights
from tasks.tokens.tokenizer import Encoder

pytest_plugins = ["tests.tasks.tiny_models", "tests.tasks.tiny_pool"]

Models = Mapping[str, Path]


def sweeper(
    models: Models, *sets: Path, config: EvaluateConfig | None = None, **runtime: Any
) -> Sweeper:
    """A sweeper; sets are called 0, 1, ..."""
    where = Runtime.model_validate({"device": "cpu", "threads": 1, **runtime})
    prepared = [PreparedSet(str(n), str(n) * 64, folder) for n, folder in enumerate(sets)]
    return Sweeper(models, prepared, config or EvaluateConfig(), where)


def run(
    sweeper: Sweeper, *mixtures: Mapping[str, int], sets: Sequence[str] = ("0",)
) -> list[LossRow]:
    """Rows of mixtures."""
    jobs = [Job(mixture := Mixture.of(parts), mixture.label, tuple(sets)) for parts in mixtures]
    seen = []
    with Meter("cpu") as meter:
        rows = sweeper.evaluate(jobs, meter, lambda *told: seen.append(told))
    assert seen == [(n + 1, len(jobs), "mixtures") for n in range(len(jobs))]
    return rows


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


def test_torch_goes_on_where_onednn_has_no_room_for_its_code(
    models: Models, windows: Callable[..., Path], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(inputs: torch.Tensor, *rest: object) -> torch.Tensor:
        asked.append(len(inputs) + len(rest))
        raise RuntimeError(NO_CODE)

    monkeypatch.setattr("tasks.evaluation.onednn.has_onednn", lambda: False)
    expected = run(sweeper(models, windows(texts)), {"a": 1}, {"b": 1})
    monkeypatch.setattr("tasks.evaluation.onednn.has_onednn", lambda: True)
    monkeypatch.setattr("tasks.evaluation.onednn.onednn_linear", refuse)
    assert run(sweeper(models, windows(texts)), {"a": 1}, {"b": 1}) == expected
    assert len(asked) == 1


# Out of memory -------------------------------------------------------------------------------------


SCARCE = """
import json, logging, resource, sys
from pathlib import Path
from storage.cache import Runtime
from tasks.machine.meter import Meter
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.mixtures.mixture import Mixture
from tasks.evaluation.sweep import Job, PreparedSet, Sweeper

logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
model, windows, tokens, megabytes = sys.argv[1:]
runtime = Runtime(device="cpu", threads=1, batch_tokens=int(tokens))
ready = Sweeper({"a": Path(model)}, [PreparedSet("0", "0" * 64, Path(windows))], EvaluateConfig(), runtime)
job = Job(Mixture.uniform(["a"]), "a", ("0",))
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
if int(megabytes):
    resource.setrlimit(resource.RLIMIT_AS, (in_use + int(megabytes) * 10**6,) * 2)
with Meter("cpu") as meter:
    first, again = (ready.evaluate([job], meter, lambda *_: None)[0] for _ in range(2))
assert first.nll == again.nll
print(json.dumps(first.group_nll if isinstance(first.group_nll, list) else first.group_nll.tolist()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux")
def test_a_batch_that_memory_cannot_hold_is_halved(
    models: Models, windows: Callable[..., Path]
) -> None:
    """In a process whose memory really ends: the sweep goes on, says so once, and is right."""
    folder = windows(["word " * 20_000], format="disjoint")

    def run(tokens: int, megabytes: int) -> subprocess.CompletedProcess[str]:
        arguments = [str(models["a"]), str(folder), str(tokens), str(megabytes)]
        return subprocess.run(
            [sys.executable, "-c", SCARCE, *arguments], capture_output=True, text=True, check=True
        )

    plenty, scarce = run(1024, 0), run(1 << 20, 60)
    told = re.findall(
        r"goes on with batches of (\d+) tokens; set runtime\.batch_tokens", scarce.stderr
    )
    # Each halving is told of once; the second evaluation starts where the first one ended.
    assert 1 <= len(told) == len(set(told)) <= 5
    assert "out of memory" not in plenty.stderr
    assert json.loads(scarce.stdout) == pytest.approx(json.loads(plenty.stdout), rel=1e-6)
