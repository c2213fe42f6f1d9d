"""What a student learns from its teachers, what they cost, and that they stop where they should."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import GPT2Config

from storage.artifact import describe
from storage.checkpoint import Checkpoints
from storage.step import Progress, Runtime, Workspace
from storage.store import Store
from tasks.machine.flops import Attention, forward_flops
from tasks.machine.meter import Meter
from tasks.merging.average import MergeError
from tasks.models.folder import load_model, load_weights
from tasks.training.config import TeacherConfig, TrainConfig
from tasks.training.gradients import logits_function
from tasks.training.teacher import drawn, in_words, losses_of, mean_probabilities
from tasks.training.train import build as train

pytest_plugins = ["tests.tasks.tiny_models"]

SHORT: dict[str, Any] = {"steps": 7, "batch_size": 4, "context_length": 16, "learning_rate": 1e-2}
TAUGHT = 3
"""Of seven steps 0.3, rounded up."""

Make = Callable[..., Path]


class KilledError(Exception):
    """What a process's end is here."""


class Pass(NamedTuple):
    """A forward pass of a whole model: which model, and whether it is in evaluation mode."""

    model: Any
    is_teacher: bool


@pytest.fixture
def passes() -> Iterator[list[Pass]]:
    """All forward passes of whole models, as torch's own hook sees them."""
    seen: list[Pass] = []

    def note(module: Any, *_: object) -> None:
        if type(module).__name__.endswith(("ForCausalLM", "LMHeadModel")):
            seen.append(Pass(module, not module.training))

    handle = register_module_forward_hook(note)
    yield seen
    handle.remove()


@pytest.fixture(scope="session")
def corpus(tokens: Callable[[list[str]], Path], prose: Callable[..., list[str]]) -> Path:
    """A token file of some thousand tokens."""
    return tokens(prose(1))


@pytest.fixture
def taught(new: Callable[[], Path], workspace: Callable[..., Workspace], corpus: Path) -> Make:
    """``taught(model, [teachers], job, share=...)`` trains directly; names of teachers are numbered."""

    def make(model: Path, teachers: Any = (), job: Workspace | None = None, **rules: Any) -> Path:
        named = teachers
        if not isinstance(teachers, dict):
            named = {f"teacher-{number}": folder for number, folder in enumerate(teachers)}
        changes = {"teacher": rules} if named else {}
        config = TrainConfig.model_validate({**SHORT, **changes})
        output, job = new(), job or workspace()
        with job.meter:
            train(config, {"model": model, "tokens": corpus, **named}, output, job)
        return output

    return make


@pytest.fixture(scope="session")
def three(
    llama: Path, corpus: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> list[Path]:
    """Three models that were trained from one."""
    outputs = []
    for seed in range(3):
        config = TrainConfig.model_validate({**SHORT, "seed": seed})
        outputs.append(new())
        train(config, {"model": llama, "tokens": corpus}, outputs[-1], workspace())
    return outputs


def told(folder: Path) -> dict[str, Any]:
    """What a training left beside its model."""
    found: dict[str, Any] = json.loads((folder / "training.json").read_text())
    return found


@pytest.mark.parametrize(("share", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 0.7)])
def test_loss_and_gradient_are_the_formula_in_float64(share: float, temperature: float) -> None:
    chance = np.random.default_rng(0)
    batch, context, size = 2, 3, 11
    student, teacher = chance.normal(0, 3, (2, batch * context, size))
    tokens = chance.integers(0, size, (batch, context + 1))
    targets = np.eye(size)[tokens[:, 1:].ravel()]

    def softmax(logits: Any) -> Any:
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    p, q = softmax(teacher / temperature), softmax(student / temperature)
    cross_entropy = -(targets * np.log(softmax(student))).sum(axis=1).mean()
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    expected = (1 - share) * cross_entropy + share * temperature**2 * divergence
    slope = (1 - share) * (softmax(student) - targets) + share * temperature * (q - p)

    logits = torch.tensor(student.reshape(batch, context, size), dtype=torch.float32)
    rules = TeacherConfig(share=share, temperature=temperature)
    loss, alone = losses_of(
        logits.requires_grad_(), torch.from_numpy(tokens), torch.from_numpy(p).float(), rules
    )
    loss.backward()  # type: ignore[no-untyped-call]
    entropy = -(p * np.log(p)).sum(axis=1).mean()  # of the teacher, left out of the loss
    without = expected + share * temperature**2 * entropy
    assert loss.item() == pytest.approx(without, rel=1e-5)
    assert alone.item() == pytest.approx(cross_entropy, rel=1e-5)
    assert logits.grad is not None
    np.testing.assert_allclose(
        logits.grad.reshape(-1, size), slope / (batch * context), rtol=1e-4, atol=1e-7
    )


def test_probabilities_of_several_are_their_mean(three: list[Path]) -> None:
    models: list[Any] = [load_model(folder) for folder in three]
    tokens = torch.randint(0, 300, (4, 17), generator=torch.Generator().manual_seed(0))
    found = mean_probabilities([logits_function(m, "float32") for m in models], tokens, 2.0)
    each = [torch.softmax(m(input_ids=tokens[:, :-1]).logits.double() / 2, -1) for m in models]
    torch.testing.assert_close(found.double(), torch.stack(each).mean(0).flatten(0, 1))
    assert not found.requires_grad


def test_who_teaches_is_drawn_by_seed_and_step_alone() -> None:
    lots = [[drawn(seed, step, 3) for step in range(600)] for seed in (0, 1)]
    assert lots[0] != lots[1]
    assert lots[0][:4] == [drawn(0, step, 3) for step in range(4)] == [2, 2, 0, 0]
    assert all(150 < row.count(number) < 250 for row in lots for number in range(3))
    assert {drawn(0, step, 1) for step in range(9)} == {0}


def test_teachers_pass_while_they_teach_and_one_costs_a_third_of_three(
    llama: Path,
    three: list[Path],
    taught: Make,
    passes: list[Pass],
    workspace: Callable[..., Workspace],
) -> None:
    model, tokens = load_model(llama), 4 * 16
    one_pass = forward_flops(model.num_parameters(), tokens, Attention.of(model, 16))
    counts, flops = {}, {}
    for name, rules in {"none": None, "random": {}, "mean": {"choice": "mean"}}.items():
        passes.clear()
        job = workspace()
        output = taught(llama, [] if rules is None else three, job, **(rules or {}))
        each = {"none": 0, "random": 1, "mean": 3}[name]
        expected = [*([True] * each + [False]) * TAUGHT, *[False] * (SHORT["steps"] - TAUGHT)]
        assert [found.is_teacher for found in passes] == expected
        counts[name] = told(output).get("teacher_passes", 0)
        assert counts[name] == sum(expected)
        flops[name] = job.meter.cost.flops
        teachers = {id(p.model): p.model for p in passes if p.is_teacher}.values()
        if name == "mean":
            # As they were, to the bit, and in the order of their names.
            for folder, teacher in zip(three, teachers, strict=True):
                assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
                assert all(
                    teacher.state_dict()[key].equal(tensor)
                    for key, tensor in load_weights(folder).items()
                )
        else:
            assert len(teachers) == len({drawn(0, step, 3) for step in range(3)}) * (each > 0)
    assert counts == {"none": 0, "random": TAUGHT, "mean": 3 * TAUGHT}
    assert flops["random"] - flops["none"] == pytest.approx(TAUGHT * one_pass)
    assert flops["mean"] - flops["none"] == pytest.approx(3 * TAUGHT * one_pass)


def test_what_is_recorded_is_the_cross_entropy(
    llama: Path, three: list[Path], taught: Make
) -> None:
    """At the first step it is that of a training without a teacher."""
    alone, other = taught(llama), taught(llama, three[:1], share=1.0, stop=1.0)
    assert told(alone)["losses"][0] == told(other)["losses"][0]
    assert told(alone)["losses"][1] != told(other)["losses"][1]


def test_an_average_teaches_like_the_averaged_model(
    llama: Path, three: list[Path], taught: Make, new: Callable[[], Path]
) -> None:
    merged = shutil.copytree(three[0], new(), dirs_exist_ok=True)
    one, other = load_weights(three[0]), load_weights(three[1])
    half = {key: ((one[key].double() + other[key].double()) / 2).float() for key in one}
    save_file(half, merged / "model.safetensors", {"format": "pt"})
    parts = {f"teacher-0.{number:04d}": folder for number, folder in enumerate(three[:2])}
    found, expected = taught(llama, parts), taught(llama, [merged])
    assert describe("model", found) == describe("model", expected)
    assert told(found)["teacher_passes"] == TAUGHT
    assert describe("model", found) != describe("model", taught(llama, three[:2], choice="mean"))


def test_a_training_that_goes_on_behind_its_teachers_loads_none(
    llama: Path,
    three: list[Path],
    taught: Make,
    new: Callable[[], Path],
    passes: list[Pass],
) -> None:
    """Their weights are not even there; killed before, they are needed."""
    expected = taught(llama, three)
    gone = shutil.copytree(three[0], new(), dirs_exist_ok=True)
    (gone / "model.safetensors").unlink()
    for at, needs in ((TAUGHT - 1, True), (TAUGHT, False)):
        backend = Store(str(new())).backend

        def job(progress: Progress, backend: Any = backend) -> Workspace:
            runtime = Runtime(device="cpu", threads=1, checkpoint_seconds=0)
            return Workspace(runtime, Checkpoints(backend, "work/x"), Meter("cpu"), progress)

        def stop(done: int, total: int, unit: str, at: int = at) -> None:
            del total, unit
            if done == at * 4 * 16:
                raise KilledError

        with pytest.raises(KilledError):
            taught(llama, three, job(stop))
        passes.clear()
        going_on = job(lambda *_: None)
        if needs:
            with pytest.raises(ValueError, match=r"has no model\*\.safetensors"):
                taught(llama, [gone] * 3, going_on)
        else:
            output = taught(llama, [gone] * 3, going_on)
            assert describe("model", output) == describe("model", expected)
            assert [found.is_teacher for found in passes] == [False] * (SHORT["steps"] - TAUGHT)
            assert told(output)["teacher_passes"] == TAUGHT


def test_a_process_that_dies_among_taught_steps_changes_nothing(
    gpt: Path, three: list[Path], taught: Make, new: Callable[[], Path]
) -> None:
    """By SIGKILL; the student has dropout."""
    backend, starts = Store(str(new())).backend, list[int]()

    def job(progress: Progress) -> Workspace:
        runtime = Runtime(device="cpu", threads=1, checkpoint_seconds=0)
        return Workspace(runtime, Checkpoints(backend, "work/x"), Meter("cpu"), progress)

    def die(done: int, total: int, unit: str) -> None:
        del total, unit
        if done == 3 * 4 * 16:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            taught(gpt, three, job(die), temperature=2.0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    going_on = job(lambda done, total, unit: starts.append(done))
    output = taught(gpt, three, going_on, temperature=2.0)
    assert starts[0] in {1 * 4 * 16, 2 * 4 * 16}  # the last state may not have been written yet
    assert describe("model", output) == describe("model", taught(gpt, three, temperature=2.0))


def test_teachers_that_do_not_fit(
    llama: Path,
    three: list[Path],
    taught: Make,
    given: Make,
    imported: Callable[[Path], Path],
    new: Callable[[], Path],
    corpus: Path,
    workspace: Callable[..., Workspace],
) -> None:
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    larger = imported(given(GPT2Config(vocab_size=301, n_positions=32, **shape)))
    with pytest.raises(ValueError, match=r"teacher-1 has 301 embeddings and the student 300"):
        taught(llama, [three[0], larger])
    shorter = imported(given(GPT2Config(vocab_size=300, n_positions=15, **shape)))
    with pytest.raises(
        ValueError, match=r"teacher-0: train\.context_length 16 is more than the model's 15"
    ):
        taught(llama, [shorter])
    other = shutil.copytree(three[0], new(), dirs_exist_ok=True)
    facts = json.loads((other / "mixpool.json").read_text())
    (other / "mixpool.json").write_text(json.dumps({**facts, "tokenizer": "f" * 64}))
    with pytest.raises(ValueError, match=r"teacher-0 knows the ids of the tokenizer ffffffffff"):
        taught(llama, [other])
    with pytest.raises(MergeError, match=r"'teacher-0\.0' and 'teacher-0\.1' cannot be averaged"):
        taught(llama, {"teacher-0.0": three[0], "teacher-0.1": llama})
    with pytest.raises(ValueError, match=r"compile is true and train\.teacher is given"):
        taught(llama, three, workspace(compile=True))
    config = TrainConfig.model_validate({**SHORT, "teacher": {}})
    with pytest.raises(ValueError, match=r"given without a teacher"):
        train(config, {"model": llama, "tokens": corpus}, new(), workspace())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 0}, "share is 0, so nothing would be learnt from it: leave teacher out"),
        ({"stop": 0}, "stop is 0, so nothing would be learnt from it: leave teacher out"),
        ({"temperature": 0}, "greater than 0"),
        ({"from": "path"}, "from is 'path' and names is empty: give models"),
        ({"from": "mixture"}, "from is 'mixture' and names is empty: give partitions or domains"),
        ({"from": "pool", "names": ["a"]}, "from is 'pool', which is all partitions, and names is"),
        ({"from": "mixture", "names": ["a"], "choice": "mean"}, "one teacher: leave choice out"),
        ({"from": "pool", "share": math.nan}, "share"),
    ],
)
def test_what_a_config_may_not_say(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate({**SHORT, "teacher": fields})


def test_a_phase_has_no_teacher() -> None:
    with pytest.raises(ValueError, match=r"'of' is 9 and there is a teacher"):
        TrainConfig.model_validate({**SHORT, "of": 9, "teacher": {}})


def test_words() -> None:
    rules = {"choice": "random", "stop": 0.3, "share": 0.5, "temperature": 1.0}
    rest = "for the first 30% of the steps, with a share of 0.5 of the loss, at temperature 1"
    names = {
        "one teacher": ["teacher-0"],
        "3 teachers, one at random at each step": ["teacher-0", "teacher-1", "teacher-2"],
        "the average of 2 models": ["teacher-0.0000", "teacher-0.0001"],
    }
    for words, inputs in names.items():
        assert in_words({"teacher": rules}, ["model", "tokens", *inputs]) == f"{words}; {rest}"
    both = in_words({"teacher": {**rules, "choice": "mean"}}, ["teacher-0", "teacher-1"])
    assert both.startswith("2 teachers, their mean; ")
    assert in_words({}, ["model", "tokens"]) == ""
