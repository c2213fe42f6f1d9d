"""A batch in parts has the loss and the gradients of the whole; where memory ends, the training goes on."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.artifact import describe
from storage.step import Workspace
from tasks.models.folder import load_model
from tasks.training.accumulate import Accumulation
from tasks.training.config import TrainConfig
from tasks.training.divergence import TrainingError
from tasks.training.gradients import LossOf, loss_function
from tasks.training.train import build as train

pytest_plugins = ["tests.tasks.tiny_models"]


def batch() -> torch.Tensor:
    """Five blocks of 16 tokens and the next."""
    return torch.randint(0, 300, (5, 17), generator=torch.Generator().manual_seed(0))


def scarce(loss_of: LossOf, blocks: int) -> LossOf:
    """Memory that holds so many blocks, and does not for the very last one until it is alone."""

    def limited(tokens: torch.Tensor) -> torch.Tensor:
        loss = loss_of(tokens)
        is_last = bool((tokens[-1] == batch()[-1]).all())
        if len(tokens) > (1 if is_last else blocks):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return loss

    return limited


def gradients(model: Any) -> list[torch.Tensor]:
    """A copy of each parameter's gradient; none is left."""
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 8])
def test_parts_have_the_loss_and_the_gradients_of_the_batch(llama: Path, blocks: int) -> None:
    model: Any = load_model(llama).train()
    loss_of = loss_function(model, "float32", compiled=False)
    expected = loss_of(batch())
    expected.backward()  # type: ignore[no-untyped-call]
    wanted = gradients(model)
    loss = Accumulation(loss_of, model, blocks)(batch(), 0)
    tolerance = 0.0 if blocks >= 5 else 1e-6
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    for one, other in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=tolerance / 10)


def test_where_memory_ends_nothing_of_the_attempt_stays(
    gpt: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The third part of the second attempt fails, after two have left gradients; dropout is the same."""
    model: Any = load_model(gpt).train()
    loss_of = loss_function(model, "float32", compiled=False)
    torch.manual_seed(3)
    found = Accumulation(scarce(loss_of, 3), model)
    losses, ours = [found(batch(), 0)], gradients(model)
    losses.append(found(batch(), 1))
    assert found.micro_batch == 2
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    given = Accumulation(loss_of, model, 2)
    assert given(batch(), 0).equal(losses[0])
    for one, other in zip(gradients(model), ours, strict=True):
        assert one.equal(other)
    assert given(batch(), 1).equal(losses[1])
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory: the training goes on with {blocks} of a batch's 5 blocks at a time; set "
        "runtime.micro_batch to that from the start"
        for blocks in (3, 2)
    ]


def test_a_block_that_does_not_fit_is_refused(llama: Path) -> None:
    model: Any = load_model(llama).train()
    loss_of = scarce(loss_function(model, "float32", compiled=False), 0)
    with pytest.raises(TrainingError, match=r"memory of cpu .* one block of 16 tokens: lower"):
        Accumulation(loss_of, model)(batch(), 0)


def test_other_errors_are_not_taken_for_scarcity(llama: Path) -> None:
    def broken(tokens: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"no such kernel for {len(tokens)} blocks")

    with pytest.raises(RuntimeError, match="no such kernel for 5 blocks"):
        Accumulation(broken, load_model(llama))(batch(), 0)


def test_the_record_says_how_a_batch_was_cut(
    llama: Path,
    tokens: Callable[[list[str]], Path],
    prose: Callable[..., list[str]],
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> None:
    inputs = {"model": llama, "tokens": tokens(prose(1))}
    config = TrainConfig(steps=6, batch_size=4, context_length=16, learning_rate=1e-2)

    def run(**runtime: object) -> tuple[Path, Any]:
        output = new()
        return output, train(config, inputs, output, workspace(**runtime))

    (whole, plain), (large, same) = run(), run(micro_batch=4)
    (parts, cut), (again, _) = run(micro_batch=3), run(micro_batch=3)
    assert plain == same
    assert "micro_batch" not in plain
    assert cut == {**plain, "final_loss": cut["final_loss"], "micro_batch": 3}
    assert describe("model", whole) == describe("model", large)
    assert describe("model", parts) == describe("model", again)
    one, other = (json.loads((f / "training.json").read_text())["losses"] for f in (whole, parts))
    assert one == pytest.approx(other, rel=1e-6)


SCARCE = """
import json, logging, resource, sys
from pathlib import Path
import torch
from storage.checkpoint import Checkpoints
from storage.step import Runtime, Workspace
from storage.store import Store
from tasks.machine.meter import Meter
from tasks.training.config import TrainConfig
from tasks.training.train import build

logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
model, tokens, scratch, megabytes = sys.argv[1:]
config = TrainConfig(steps=2, batch_size=512, context_length=16, learning_rate=1e-2)

def losses(name, **runtime):
    output = Path(scratch) / name
    output.mkdir()
    runtime = Runtime(device="cpu", threads=1, **runtime)
    points = Checkpoints(Store(scratch).backend, f"work/{name}")
    work = Workspace(runtime, points, Meter("cpu"), lambda *_: None)
    details = build(config, {"model": Path(model), "tokens": Path(tokens)}, output, work)
    found = json.loads((output / "training.json").read_text())["losses"]
    return found, details.get("micro_batch")

free = resource.getrlimit(resource.RLIMIT_AS)
# What is loaded when it is first used: a training of the smallest parts.
losses("loaded", micro_batch=16)
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + int(megabytes) * 10**6, free[1]))
found, blocks = losses("scarce")
resource.setrlimit(resource.RLIMIT_AS, free)
print(json.dumps([found, losses("given", micro_batch=blocks)[0], losses("whole")[0], blocks]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux")
def test_a_training_goes_on_where_memory_really_ends(
    llama: Path,
    tokens: Callable[[list[str]], Path],
    prose: Callable[..., list[str]],
    new: Callable[[], Path],
) -> None:
    arguments = [str(llama), str(tokens(prose(1))), str(new()), "12"]
    done = subprocess.run(
        [sys.executable, "-c", SCARCE, *arguments], capture_output=True, text=True, check=True
    )
    found, given, whole, blocks = json.loads(done.stdout)
    told = re.findall(r"with (\d+) of a batch's 512 blocks .* runtime\.micro_batch", done.stderr)
    assert [*map(int, told)] == [256 >> number for number in range(len(told))]
    assert int(told[-1]) == blocks
    assert found == given
    assert found == pytest.approx(whole, rel=1e-6)
