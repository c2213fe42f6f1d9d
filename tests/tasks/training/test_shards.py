"""A training in several processes is the training of one, to rounding, and none outlives the others."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from storage.cache import build, deposit
from storage.step import Call, Handle, Runtime
from storage.store import Store
from tasks.machine.meter import Meter
from tasks.models.folder import load_model, load_weights
from tasks.training import resume
from tasks.training.accumulate import Accumulation
from tasks.training.config import TrainConfig
from tasks.training.divergence import TrainingError
from tasks.training.gradients import clip, loss_function
from tasks.training.lead import Lead
from tasks.training.shards import PartGradients, Place, _layers, joined, shard, shard_devices
from tasks.training.train import TRAIN
from tests.tasks.training import followers

pytest_plugins = ["tests.tasks.tiny_models"]

CONFIG = TrainConfig(
    steps=6,
    batch_size=4,
    context_length=16,
    learning_rate=1e-2,
    max_grad_norm=0.5,
    keep_optimizer=True,
)
PER_STEP = 4 * 16


def through_store(
    store: Store,
    folders: dict[str, Path],
    kill_at: int | None = None,
    **runtime: Any,
) -> tuple[Handle, list[int]]:
    """Train; also where it began. At ``kill_at`` steps, a process beside this one dies."""
    inputs = {n: deposit(store, "given", n, n, folder, {}) for n, folder in folders.items()}
    reports: list[int] = []

    def progress(done: int, total: int, unit: str) -> None:
        del total, unit
        reports.append(done // PER_STEP)
        if reports[-1] == kill_at:
            (child,) = followers_here()
            os.kill(child.pid, signal.SIGKILL)

    settings = Runtime.model_validate({"threads": 1, "checkpoint_seconds": 0, **runtime})
    call = Call(TRAIN, CONFIG, inputs, "partition")
    return build(store, call, settings, Meter("cpu"), progress), reports


def followers_here() -> list[psutil.Process]:
    """Children of this process that follow a leader; servers of other tests are its children, too."""
    lines = ((c, c.as_dict(["cmdline"])["cmdline"]) for c in psutil.Process().children())
    return [child for child, line in lines if "lead" in "".join(line or ())]


def losses(store: Store, handle: Handle) -> list[float]:
    """The losses of a training."""
    found: list[float] = json.loads((store.fetch(handle.built) / "training.json").read_text())[
        "losses"
    ]
    return found


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_each_goes_on_from_the_others_point(
    llama: Path,
    tokens: Callable[[list[str]], Path],
    prose: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    """The second process dies at step 3; two go on from there, and in a copy of the store, one."""
    folders = {"model": llama, "tokens": tokens(prose(1))}
    one, two = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    both: dict[str, Any] = {"device": "cpu,cpu", "shards": 2}
    expected, _ = through_store(one, folders, device="cpu")
    with pytest.raises(
        TrainingError,
        match=r"^process 1 of runtime\.shards, on cpu, was killed \(SIGKILL\): .* goes on",
    ):
        through_store(two, folders, 3, micro_batch=1, **both)
    assert not followers_here()
    assert not torch.distributed.is_initialized()
    shutil.copytree(tmp_path / "two", tmp_path / "copy")
    copy = Store(str(tmp_path / "copy"))
    sharded, (began, *_) = through_store(two, folders, **both)
    alone, (began_alone, *_) = through_store(copy, folders, device="cpu")
    assert {began, began_alone} <= {2, 3}
    assert sharded.record is not None
    assert sharded.record.details["shards"] == 2
    assert not followers_here()
    reference, wanted = losses(one, expected), load_weights(one.fetch(expected.built))
    for store, found in ((two, sharded), (copy, alone)):
        assert losses(store, found) == pytest.approx(reference, rel=1e-5)
        weights = load_weights(store.fetch(found.built))
        assert [*weights] == [*wanted]
        for name, value in weights.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)
    moments = [
        store.fetch(h.built) / "optimizer.safetensors"
        for store, h in ((one, expected), (two, sharded))
    ]
    assert moments[0].stat().st_size == moments[1].stat().st_size


def test_parts_are_put_together_and_apart_to_the_bit(llama: Path, tmp_path: Path) -> None:
    """Weights and moments in parts, in a group of one process: a resume point is exact."""
    place = Place(0, 1, "cpu", str(tmp_path / "meeting"))
    batches = torch.randint(0, 300, (5, 4, 17), generator=torch.Generator().manual_seed(0))

    def start() -> tuple[Any, Any, Any]:
        model: Any = load_model(llama).train()
        shard(model, "cpu")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        of_all = Accumulation(loss_function(model, "float32", compiled=False), model)
        return model, optimizer, PartGradients(of_all, place, 0)

    def train(made: tuple[Any, Any, Any], steps: range) -> list[float]:
        model, optimizer, gradients_of = made
        found = []
        for step in steps:
            found.append(gradients_of(batches[step], step).item())
            clip([*model.parameters()], 0.5)
            optimizer.step()
            optimizer.zero_grad()
        return found

    with joined(place):
        first = start()
        train(first, range(3))
        state = resume.snapshot(*first[:2])
        expected, again = train(first, range(3, 5)), start()
        resume.put(*again[:2], state)
        assert train(again, range(3, 5)) == expected
        one, other = resume.snapshot(*first[:2]), resume.snapshot(*again[:2])
        assert all(t.equal(other[f][n]) for f, of in one.items() for n, t in of.items())
        with pytest.raises(ValueError, match=r"torch\.distributed is in use"), joined(place):
            pass


def test_dropout_goes_by_seed_step_and_process(tmp_path: Path) -> None:
    def drawn(rank: int, step: int, seed: int) -> float:
        place = Place(rank, 1, "cpu", "")
        part = PartGradients(lambda tokens, step: torch.rand(()), place, seed)
        return part(torch.zeros(2, 3), step).item()

    with joined(Place(0, 1, "cpu", str(tmp_path / "meeting"))):
        assert drawn(0, 1, 2) == drawn(0, 1, 2)
        assert len({drawn(0, *which) for which in ((1, 2), (2, 2), (1, 3))}) == 3


# What cannot be shared -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"device": "cpu"}, r"runtime\.shards is 2, and runtime\.device has 1 \(cpu\): lower"),
        (
            {"device": "cpu,cpu,cpu", "shards": 3},
            r"batch_size 4 cannot be shared evenly among .* 3",
        ),
        ({"device": "cpu,mps"}, "cpu, mps cannot share a training: list different GPUs"),
        ({"device": "cpu,cpu", "compile": True}, r"runtime\.compile and runtime\.shards"),
    ],
)
def test_what_cannot_be_shared_is_refused(runtime: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shard_devices(Runtime.model_validate({"shards": 2, **runtime}), 4)


class Layer(nn.Module):
    """A layer, maybe with experts."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.main = nn.Linear(2, 2)
        if num_experts:
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(num_experts))


class Model(nn.Module):
    """Layers, and a weight at both ends."""

    def __init__(self, num_experts: int = 0) -> None:
        super().__init__()
        self.begin, self.end = nn.Linear(2, 2), nn.Linear(2, 2)
        self.end.weight = self.begin.weight
        self.layers = nn.ModuleList(Layer(num_experts) for _ in range(2))


def test_layers_that_cannot_be_brought_together_one_by_one() -> None:
    model: Any = Model()
    assert _layers(model) == [*model.layers]
    assert _layers(nn.Linear(2, 2)) == []
    with pytest.raises(ValueError, match=r"layer of Model has a list of modules inside"):
        _layers(Model(3))
    for weight in (model.layers[0].main.weight, model.begin.weight):
        tied: Any = Model()
        tied.layers[0].main.weight = weight
        tied.layers[1].main.weight = tied.begin.weight if weight is model.begin.weight else weight
        with pytest.raises(ValueError, match=r"share weights .*tied"):
            _layers(tied)


# Processes -----------------------------------------------------------------------------------------


def test_a_process_whose_leader_is_gone_ends_whatever_it_is_at(tmp_path: Path) -> None:
    with Lead(followers.sleep, None, ["cpu", "cpu"], str(tmp_path)) as lead:
        lead.wait()
        ((process, line),) = lead._children
        line.close()  # as the system does when the leader dies
        assert process.wait(20) == 0
    assert not [*tmp_path.iterdir()]


def test_a_process_that_fails_tells_why(tmp_path: Path) -> None:
    message = r"^process 1 of runtime\.shards, on cpu, failed \(ValueError: a job on cpu\): the training ends"
    with (
        pytest.raises(TrainingError, match=message),
        Lead(followers.fail, "a job", ["cpu", "cpu"], str(tmp_path)) as lead,
    ):
        lead.meet()
