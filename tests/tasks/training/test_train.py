"""A training is a function of its config and inputs: killed, resumed or repeated, it is the same."""

import itertools
import json
import logging
import math
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as cases
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GPTNeoConfig

from storage.artifact import describe
from storage.backends.local import LocalBackend
from storage.cache import build, deposit
from storage.checkpoint import Checkpoints
from storage.fingerprint import canonical
from storage.step import Call, Handle, Progress, Runtime, Workspace
from storage.store import Store
from tasks.machine.meter import Meter
from tasks.models.facts import facts_of
from tasks.models.folder import load_model, load_weights
from tasks.tokens.tokenize import load_tokens
from tasks.training.blocks import Batches, Blocks
from tasks.training.config import TrainConfig
from tasks.training.divergence import TrainingError
from tasks.training.train import TRAIN, check_runtime, learning_rate
from tasks.training.train import build as train

pytest_plugins = ["tests.tasks.tiny_models"]

ROOT = Path(__file__).parents[3]

SHORT: dict[str, Any] = {"steps": 6, "batch_size": 4, "context_length": 16, "learning_rate": 1e-2}


TEACHERS = ("llama", "gpt")


class KilledError(Exception):
    """What a process's end is here."""


@pytest.fixture(scope="session")
def corpus(tokens: Callable[[list[str]], Path], prose: Callable[..., list[str]]) -> Path:
    """A token file of some thousand tokens."""
    return tokens(prose(1))


@pytest.fixture(scope="session")
def another(tokens: Callable[[list[str]], Path], prose: Callable[..., list[str]]) -> Path:
    """A second one."""
    return tokens(prose(4))


@pytest.fixture(scope="session")
def gpt_neo(given: Callable[..., Path], imported: Callable[[Path], Path]) -> Path:
    """A model with dropout and with boolean buffers that are in no file."""
    shape = GPTNeoConfig(
        vocab_size=300,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=32,
        window_size=8,
        embed_dropout=0.1,
        resid_dropout=0.1,
        attention_dropout=0.1,
    )
    return imported(given(shape))


@pytest.fixture
def trained(new: Callable[[], Path], workspace: Callable[..., Workspace]) -> Callable[..., Path]:
    """Train directly; further arguments change the short config."""

    def make(model: Path, tokens: Path, **config: Any) -> Path:
        output = new()
        settings = TrainConfig.model_validate({**SHORT, **config})
        train(settings, {"model": model, "tokens": tokens}, output, workspace())
        return output

    return make


def stored(store: Store, **folders: Path) -> dict[str, Handle]:
    """Folders as inputs in the store."""
    return {
        name: deposit(store, "given", name.partition(".")[0], name, folder, {})
        for name, folder in folders.items()
    }


def through_store(
    store: Store,
    config: TrainConfig,
    inputs: Mapping[str, Handle],
    stop: int | None = None,
    before: Callable[[str], object] | None = None,
    **runtime: Any,
) -> Handle:
    """Build under a store; ``stop`` kills it when so many steps are done.

    ``before`` is called first, with the folder for scratch.
    """

    def progress(done: int, total: int, unit: str) -> None:
        assert 0 <= done <= total
        assert unit == "tokens"
        if stop is not None and done == stop * config.batch_size * config.context_length:
            if before is not None:
                before(runtime["scratch"])
            raise KilledError

    settings = Runtime.model_validate({"device": "cpu", "threads": 1, **runtime})
    return build(store, Call(TRAIN, config, inputs, "partition"), settings, Meter("cpu"), progress)


@pytest.mark.parametrize(
    ("model", "config", "runtime"),
    [
        ("llama", {}, {}),
        ("llama", {"schedule": "cosine", "warmup_steps": 2, "precision": "bfloat16"}, {}),
        ("gpt", {"weight_decay": 0.3, "keep_optimizer": True}, {}),
        ("gpt_neo", {"seed": 5}, {}),
        ("gpt_neo", {"precision": "bfloat16"}, {"micro_batch": 3}),
        ("llama", {"replay": 0.4, "begins_at": 3, "of": 9, "schedule": "linear"}, {}),
        ("gpt", {"sharpness": {"rho": 0.2}}, {"micro_batch": 3}),
        ("gpt", {"layers": {"mode": "freeze"}, "begins_at": 2, "of": 8}, {}),
        (
            "llama",
            {
                "sharpness": {"ascent_fraction": 1},
                "layers": {"mode": "scale"},
                "precision": "bfloat16",
                "replay": 0.4,
            },
            {},
        ),
        ("llama", {"teacher": {"stop": 0.5}}, {}),
        ("gpt", {"teacher": {"choice": "mean"}, "precision": "bfloat16", "replay": 0.4}, {}),
        ("gpt", {"adapter": {"rank": 2, "dropout": 0.2}}, {"micro_batch": 3}),
        ("llama", {"weights": [2, 1], "repeat_as": {"epochs": ["7/2", "3"]}, "replay": 0.4}, {}),
    ],
)
def test_killed_and_resumed_is_bit_identical(
    model: str,
    config: dict[str, Any],
    runtime: dict[str, Any],
    corpus: Path,
    another: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    settings = TrainConfig.model_validate({**SHORT, **config})
    folders = {"model": request.getfixturevalue(model), "tokens": corpus, "replay": corpus}
    if not settings.replay:
        del folders["replay"]
    if settings.weights:
        folders |= {"tokens.0": folders.pop("tokens"), "tokens.1": another}
    if settings.layers:
        folders["norms"] = tmp_path / "norms"
        folders["norms"].mkdir()
        stem = {"llama": "model.layers", "gpt": "transformer.h"}[model]
        text = json.dumps({"relative": {f"{stem}.0": 1.5, f"{stem}.1": 1.0}})
        (folders["norms"] / "norms.json").write_text(text)
    if settings.teacher is not None:
        folders |= {f"teacher-{i}": request.getfixturevalue(m) for i, m in enumerate(TEACHERS)}
    quiet, hard = Store(str(tmp_path / "quiet")), Store(str(tmp_path / "hard"))
    expected = through_store(quiet, settings, stored(quiet, **folders), **runtime)
    inputs = stored(hard, **folders)
    for stop in (0, 1, 2, 5):
        with pytest.raises(KilledError):
            through_store(hard, settings, inputs, stop, checkpoint_seconds=0, **runtime)
        torch.rand(7)  # a new process has another random state
    assert not list(hard.records("train"))
    kept = [path for path in hard.backend.list("work") if "/checkpoint." in path]
    assert any("checkpoint.000000005/" in path for path in kept)
    assert not any("checkpoint.000000004/" in path for path in kept)
    found = through_store(hard, settings, inputs, checkpoint_seconds=0, **runtime)
    assert found.digest == expected.digest
    assert not [path for path in hard.backend.list("work") if "checkpoint" in path]


def test_stopped_between_two_resume_points_loses_no_step(
    llama: Path,
    corpus: Path,
    tmp_path: Path,
    trained: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is saved first, unless saving is slow; where that fails, the stop is raised all the same."""
    caplog.set_level(logging.INFO, "mixpool")
    store = Store(str(tmp_path / "store"))
    inputs = stored(store, model=llama, tokens=corpus)
    config = TrainConfig.model_validate(SHORT)
    scratch = tmp_path / "scratch"
    with pytest.raises(KilledError):
        through_store(store, config, inputs, 2)
    with pytest.raises(KilledError):
        through_store(store, config, inputs, 3)
    scratch.mkdir()
    with pytest.raises(KilledError):
        through_store(store, config, inputs, 4, shutil.rmtree, scratch=str(scratch))
    with monkeypatch.context() as patch:
        patch.setattr("tasks.training.resume.PATIENT_SECONDS", 0.0)
        with pytest.raises(KilledError):
            through_store(store, config, inputs, 6, checkpoint_seconds=0)
    found = through_store(store, config, inputs)
    assert found.digest == describe("model", trained(llama, corpus)).digest
    told = [record.getMessage() for record in caplog.records if record.name == "mixpool.train"]
    assert "could not be saved" in told[4]
    *others, last = [line for line in told if "could not" not in line]
    assert others == [
        "stopped after step 2, which is saved",
        "resuming at step 2",
        "stopped after step 3, which is saved",
        "resuming at step 3",
        "resuming at step 3",
    ]
    assert last in {f"resuming at step {step}" for step in (4, 5)}


class Gated(LocalBackend):
    """A store to which no resume point gets through until its gate is opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(None, str(root))
        self.gate = threading.Event()
        self.positions: list[str] = []

    def put_from(self, path: str, source: Path) -> None:
        self.positions.append(path.split("/")[-2])
        assert self.gate.wait(60)
        super().put_from(path, source)


@pytest.fixture
def saved(
    llama: Path, corpus: Path, new: Callable[[], Path]
) -> Callable[[LocalBackend, Progress], Path]:
    """Train six steps with a resume point after each, unless one is being saved."""

    def make(backend: LocalBackend, progress: Progress) -> Path:
        runtime = Runtime(device="cpu", threads=1, checkpoint_seconds=1e-9)
        workspace = Workspace(runtime, Checkpoints(backend, "work/x"), Meter("cpu"), progress)
        output = new()
        inputs = {"model": llama, "tokens": corpus}
        train(TrainConfig.model_validate(SHORT), inputs, output, workspace)
        return output

    return make


def test_steps_go_on_while_a_resume_point_is_uploaded(
    llama: Path,
    corpus: Path,
    tmp_path: Path,
    trained: Callable[..., Path],
    saved: Callable[[LocalBackend, Progress], Path],
) -> None:
    """All other steps are done during the upload of the first, which holds that step's state."""
    backend = Gated(tmp_path / "store")

    def progress(done: int, total: int, _: str) -> None:
        if done == total:
            assert not backend.gate.is_set()
            backend.gate.set()

    assert describe("model", saved(backend, progress)) == describe("model", trained(llama, corpus))
    assert {*backend.positions} == {"checkpoint.000000001"}
    assert Checkpoints(backend, "work/x").load(tmp_path) == 1
    assert len(json.loads((tmp_path / "losses.json").read_text())) == 1
    again = saved(backend, lambda done, total, unit: None)
    assert describe("model", again) == describe("model", trained(llama, corpus))


def test_a_stop_waits_for_the_upload_and_saves_its_own_step(
    tmp_path: Path, saved: Callable[[LocalBackend, Progress], Path]
) -> None:
    backend = Gated(tmp_path / "store")

    def progress(done: int, total: int, _: str) -> None:
        if done == total // 2:
            threading.Timer(0.2, backend.gate.set).start()
            raise KilledError

    with pytest.raises(KilledError):
        saved(backend, progress)
    assert Checkpoints(backend, "work/x").load(tmp_path) == 3


class Dying(LocalBackend):
    """A store that is gone after so many changes."""

    changes_left = 0

    def _change(self) -> None:
        if self.changes_left == 0:
            raise KilledError
        self.changes_left -= 1

    def put(self, path: str, data: bytes) -> None:
        self._change()
        super().put(path, data)

    def put_from(self, path: str, source: Path) -> None:
        self._change()
        super().put_from(path, source)


def settled(*_: object) -> None:
    """Progress that lets every resume point be saved, or fail, before the next step."""
    for thread in threading.enumerate():
        if thread.name == "mixpool-checkpoint":
            thread.join()


@pytest.mark.parametrize("changes", range(11))
def test_killed_at_any_moment_of_a_save_is_bit_identical(
    changes: int,
    llama: Path,
    corpus: Path,
    tmp_path: Path,
    trained: Callable[..., Path],
    saved: Callable[[LocalBackend, Progress], Path],
) -> None:
    """Four files and an index make a resume point; the next save tells that one has failed."""
    dying = Dying(None, str(tmp_path / "store"))
    dying.changes_left = changes
    with pytest.raises(KilledError):
        saved(dying, settled)
    backend = LocalBackend(None, str(tmp_path / "store"))
    expected = changes // 5
    assert Checkpoints(backend, "work/x").load(tmp_path) == (expected or None)
    starts: list[int] = []
    output = saved(backend, lambda done, total, unit: starts.append(done))
    assert starts[0] == expected * 4 * 16
    assert describe("model", output) == describe("model", trained(llama, corpus))


def test_optimizer_state_is_carried(
    llama: Path, corpus: Path, tmp_path: Path, trained: Callable[..., Path]
) -> None:
    """Carried on with the same blocks, two trainings are one; resumed, too."""
    base = trained(llama, corpus, keep_optimizer=True)
    carried = trained(base, corpus, optimizer_state="carried")
    fresh = trained(base, corpus)
    assert (
        load_weights(carried)["model.norm.weight"]
        .ne(load_weights(fresh)["model.norm.weight"])
        .any()
    )
    store = Store(str(tmp_path))
    inputs = stored(store, model=base, tokens=corpus)
    config = TrainConfig.model_validate({**SHORT, "optimizer_state": "carried"})
    with pytest.raises(KilledError):
        through_store(store, config, inputs, 3, checkpoint_seconds=0)
    assert through_store(store, config, inputs).digest == describe("model", carried).digest


def test_carried_state_is_where_the_base_ended(
    llama: Path, corpus: Path, trained: Callable[..., Path]
) -> None:
    from safetensors.torch import load_file

    base = trained(llama, corpus, keep_optimizer=True)
    twice = trained(base, corpus, optimizer_state="carried", keep_optimizer=True)
    steps = load_file(twice / "optimizer.safetensors")
    assert {float(value) for name, value in steps.items() if name.endswith(".step")} == {12.0}


def test_no_state_to_carry(llama: Path, corpus: Path, trained: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"no optimizer state: set base\.train\.keep_optimizer"):
        trained(llama, corpus, optimizer_state="carried")


def test_another_process_trains_the_same(
    llama: Path, corpus: Path, trained: Callable[..., Path], new: Callable[[], Path]
) -> None:
    script = """
import json, sys
from pathlib import Path
from storage.cache import Runtime, Workspace
from storage.checkpoint import Checkpoints
from storage.store import Store
from tasks.machine.meter import Meter
from tasks.training.train import TrainConfig, build
config, model, tokens, output, store = sys.argv[1:]
checkpoints = Checkpoints(Store(store).backend, "work/x")
runtime = Runtime(device="cpu", threads=1)
workspace = Workspace(runtime, checkpoints, Meter("cpu"), lambda *_: None)
inputs = {"model": Path(model), "tokens": Path(tokens)}
build(TrainConfig.model_validate_json(config), inputs, Path(output), workspace)
"""
    output, elsewhere = new(), new()
    shutil.copytree(llama, elsewhere, dirs_exist_ok=True)
    arguments = [json.dumps(SHORT), elsewhere, corpus, output, new()]
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True, cwd=ROOT)
    assert describe("model", output) == describe("model", trained(llama, corpus))


def test_seed_and_config_matter(llama: Path, corpus: Path, trained: Callable[..., Path]) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"learning_rate": 2e-2},
        {"schedule": "linear"},
        {"warmup_steps": 3},
        {"beta2": 0.9},
        {"weight_decay": 0.0},
        {"max_grad_norm": 0.1},
        {"batch_size": 5},
        {"precision": "bfloat16"},
    ]
    digests = [describe("model", trained(llama, corpus, **change)).digest for change in changes]
    assert len({*digests}) == len(changes)


def test_artifact_is_a_model_folder(
    llama: Path, corpus: Path, trained: Callable[..., Path]
) -> None:
    output = trained(llama, corpus, keep_optimizer=True)
    model: Any = AutoModelForCausalLM.from_pretrained(output)
    for key, tensor in load_weights(output).items():
        assert model.state_dict()[key].equal(tensor)
    facts, before = facts_of(output), facts_of(llama)
    assert (facts.base, facts.steps) == (describe("model", llama).digest, 6)
    assert (facts.architecture, facts.tokenizer) == (before.architecture, before.tokenizer)
    told = json.loads((output / "training.json").read_text())
    assert len(told["losses"]) == 6
    assert told["losses"][-1] < told["losses"][0]
    assert told["num_tokens"] == 6 * 4 * 16
    assert told["repeats"] == pytest.approx(24 / told["num_blocks"])


def test_losses_are_what_transformers_computes(
    llama: Path, corpus: Path, trained: Callable[..., Path]
) -> None:
    output = trained(llama, corpus, steps=1)
    (loss,) = json.loads((output / "training.json").read_text())["losses"]
    model: Any = load_model(llama)
    batch = torch.from_numpy(batches_of([load_tokens(corpus)], 16, 4)[0])
    assert loss == pytest.approx(model(input_ids=batch, labels=batch).loss.item(), rel=1e-6)


# Blocks --------------------------------------------------------------------------------------------

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(lambda c: max(c) > 8)


def files_of(counts: list[int]) -> list[np.ndarray]:
    """Token files in which every token is another."""
    ends = list(itertools.accumulate(counts, initial=0))
    return [np.arange(*pair, dtype=np.uint16) for pair in itertools.pairwise(ends)]


def batches_of(
    own: list[np.ndarray],
    context: int,
    batch: int,
    seed: int = 0,
    general: Sequence[np.ndarray] = (),
    **fields: Any,
) -> Batches:
    """The batches of a training with such a config."""
    sizes = {"steps": 1, "batch_size": batch, "context_length": context, "seed": seed}
    return Batches(TrainConfig.model_validate({**sizes, **fields}), own, [*general])


@cases(COUNTS, st.integers(2, 8), st.integers(1, 7), st.integers(0, 2**63 - 1))
def test_an_epoch_is_every_block_once(
    counts: list[int], context: int, batch: int, seed: int
) -> None:
    files = files_of(counts)
    blocks, batches = Blocks(files, context, seed), batches_of(files, context, batch, seed)
    expected = {
        tuple(tokens[start : start + context + 1].tolist())
        for tokens in files
        for start in range(0, len(tokens) - context, context)
    }
    assert len(blocks) == len(expected)
    steps = math.lcm(len(blocks), batch) // batch
    rows = [tuple(row) for step in range(steps) for row in batches[step].tolist()]
    epochs = [rows[start : start + len(blocks)] for start in range(0, len(rows), len(blocks))]
    assert all({*epoch} == expected for epoch in epochs)


@cases(COUNTS, st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 7))
def test_a_batch_depends_on_seed_and_step_only(
    counts: list[int], steps: list[int], batch: int
) -> None:
    files = files_of(counts)
    one = batches_of(files, 4, batch, 3)
    for step in steps:
        np.testing.assert_array_equal(one[step], batches_of(files, 4, batch, 3)[step])


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    files = [np.arange(4 * 50 + 1)]
    orders = [
        batches_of(files, 4, 50, seed)[step][:, 0].tolist() for seed in (0, 1) for step in (0, 1)
    ]
    assert len({*map(tuple, orders)}) == 4
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_too_few_tokens() -> None:
    assert len(Blocks([np.arange(17)], 16, 0)) == 1
    with pytest.raises(TrainingError, match=r"32 tokens do not fill one block of 17: lower"):
        Blocks([np.arange(16), np.arange(16)], 16, 0)


def test_no_tokens(
    llama: Path, tokens: Callable[[list[str]], Path], trained: Callable[..., Path]
) -> None:
    with pytest.raises(TrainingError, match=r"0 tokens do not fill one block"):
        trained(llama, tokens([]))


def test_union_of_token_files_covers_all(
    llama: Path,
    tokens: Callable[[list[str]], Path],
    prose: Callable[..., list[str]],
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> None:
    """The paper's SEQ; other names in the same order, and the same union is trained."""
    one, other = tokens(prose(2, 4)), tokens(prose(3, 4))
    outputs = []
    for names in (("tokens.0000", "tokens.0001"), ("tokens.a", "tokens.b")):
        output = new()
        inputs = {"model": llama, **dict(zip(names, (one, other), strict=True))}
        details = train(TrainConfig.model_validate(SHORT), inputs, output, workspace())
        outputs.append(output)
        assert details["num_blocks"] == sum((len(load_tokens(t)) - 1) // 16 for t in (one, other))
    assert describe("model", outputs[0]) == describe("model", outputs[1])


def test_tokens_on_disk_are_not_read_whole(tmp_path: Path) -> None:
    num_tokens = 100_000_000
    (tmp_path / "tokens.json").write_text(json.dumps({"dtype": "uint16", "num_tokens": num_tokens}))
    with (tmp_path / "tokens.bin").open("wb") as file:
        file.truncate(2 * num_tokens)
    tracemalloc.start()
    batches_of([load_tokens(tmp_path)], 2048, 8)[1000]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


# Replay and phases ---------------------------------------------------------------------------------


@cases(st.integers(0, 1000), st.integers(1, 7), st.integers(0, 40))
def test_replayed_blocks_are_an_exact_share_and_go_on_where_the_trunk_stopped(
    thousandths: int, batch: int, begins_at: int
) -> None:
    own, general = np.arange(0, 41), np.arange(100, 161)
    fields = {"replay": thousandths / 1000, "begins_at": begins_at, "of": begins_at + 1}
    batches = batches_of([own], 4, batch, 7, [general], **fields)
    first = [int(row[0]) for step in range(30) for row in batches[step]]
    replayed = [start for start in first if start >= 100]
    for length in range(len(first) + 1):
        number = sum(start >= 100 for start in first[:length])
        assert number == length * thousandths // 1000
    assert batches.replayed(30) == len(replayed)
    order, trunk = Blocks([general], 4, 7), begins_at * batch
    assert replayed == [int(order[trunk + n][0]) for n in range(len(replayed))]
    kept, alone = [start for start in first if start < 100], Blocks([own], 4, 7)
    assert kept == [int(alone[n][0]) for n in range(len(kept))]


def test_a_tail_of_replay_alone_ends_where_an_unbroken_training_ends(
    llama: Path, corpus: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    """Trunk and control tail: to the bit, with the optimizer's state and only with it."""
    fields = {"schedule": "cosine", "warmup_steps": 2, "of": 10, "keep_optimizer": True}

    def run(model: Path, steps: int, inputs: dict[str, Path], **more: Any) -> Path:
        settings = TrainConfig.model_validate({**SHORT, **fields, "steps": steps, **more})
        output = new()
        train(settings, {"model": model, **inputs}, output, workspace())
        return output

    whole = run(llama, 10, {"tokens": corpus})
    trunk = run(llama, 7, {"tokens": corpus})
    tail: dict[str, Any] = {"replay": 1.0, "begins_at": 7}
    control = run(trunk, 3, {"replay": corpus}, **tail, optimizer_state="carried")
    fresh = run(trunk, 3, {"replay": corpus}, **tail)
    expected = load_weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in load_weights(control).items())
    assert not all(torch.equal(v, expected[name]) for name, v in load_weights(fresh).items())
    details = json.loads((control / "training.json").read_text())
    blocks = (len(load_tokens(corpus)) - 1) // 16
    assert (details["num_blocks"], details["repeats"]) == (blocks, 3 * 4 / blocks)


def test_what_is_replayed_does_not_count_as_repeated(
    llama: Path, corpus: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    settings = TrainConfig.model_validate({**SHORT, "replay": 0.25})
    inputs = {"model": llama, "tokens": corpus, "replay": corpus}
    details = train(settings, inputs, new(), workspace())
    blocks = (len(load_tokens(corpus)) - 1) // 16
    assert (details["num_blocks"], details["repeats"]) == (blocks, 18 / blocks)


def test_neutral_values_leave_the_key_as_it_was() -> None:
    today = canonical(TrainConfig(steps=6))
    assert canonical(TrainConfig(steps=6, replay=0, begins_at=0, of=None)) == today
    assert isinstance(today, dict)
    assert {"replay", "begins_at", "of"}.isdisjoint(today)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"begins_at": 3}, "begins_at is 3: give in 'of' the steps of the whole training"),
        ({"begins_at": 3, "of": 8}, "end at step 9, and 'of' says that the whole training has 8"),
        ({"of": 5}, "end at step 6, and 'of' says that the whole training has 5"),
        ({"replay": 1.1}, "less than or equal to 1"),
    ],
)
def test_phases_that_do_not_add_up(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate({**SHORT, **fields})


def test_tokens_that_are_replayed_are_the_tokenizers_own(
    llama: Path, corpus: Path, new: Callable[[], Path], workspace: Callable[..., Workspace]
) -> None:
    folder = new()
    shutil.copytree(corpus, folder, dirs_exist_ok=True)
    facts = json.loads((corpus / "tokens.json").read_text())
    (folder / "tokens.json").write_text(json.dumps({**facts, "tokenizer": "f" * 64}))
    settings = TrainConfig.model_validate({**SHORT, "replay": 0.5})
    inputs = {"model": llama, "tokens": corpus, "replay": folder}
    with pytest.raises(ValueError, match="replay was made by the tokenizer ffffffffff"):
        train(settings, inputs, new(), workspace())


# Learning rate -------------------------------------------------------------------------------------


def rates(**config: Any) -> list[float]:
    """Learning rate of each of ten steps, as a share of the highest."""
    settings = TrainConfig.model_validate({"steps": 10, "learning_rate": 0.5, **config})
    return [2 * learning_rate(settings, step) for step in range(10)]


def test_schedules_begin_and_end_where_they_should() -> None:
    assert rates() == [1.0] * 10
    assert rates(schedule="linear") == pytest.approx([1 - step / 10 for step in range(10)])
    cosine = rates(schedule="cosine")
    assert cosine == pytest.approx([(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)])
    for schedule in ("linear", "cosine"):
        found = rates(schedule=schedule, final_fraction=0.1, warmup_steps=4)
        assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
        assert found[4:] == sorted(found[4:], reverse=True)
        assert 0.1 < found[-1] < 0.5
        assert rates(schedule=schedule, final_fraction=1.0) == [1.0] * 10
    whole = rates(schedule="cosine", warmup_steps=3)
    phase = {"steps": 4, "begins_at": 6, "of": 10, "schedule": "cosine", "warmup_steps": 3}
    tail = TrainConfig.model_validate({**phase, "learning_rate": 0.5})
    assert [2 * learning_rate(tail, step) for step in range(4)] == pytest.approx(whole[6:])
    assert rates(warmup_steps=20) == pytest.approx([(step + 1) / 20 for step in range(10)])


# What goes wrong -----------------------------------------------------------------------------------


def test_loss_that_is_not_finite(llama: Path, corpus: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    inputs = stored(store, model=llama, tokens=corpus)
    before = {path for path in store.backend.list("") if not path.startswith("work/")}
    config = TrainConfig.model_validate({**SHORT, "learning_rate": 1e30})
    message = r"the loss is (nan|inf) at step \d, after \d+\.\d+: lower train\.learning_rate"
    with pytest.raises(TrainingError, match=message):
        through_store(store, config, inputs)
    assert {path for path in store.backend.list("") if not path.startswith("work/")} == before


def test_weights_that_are_not_finite_at_the_end(
    llama: Path, corpus: Path, trained: Callable[..., Path]
) -> None:
    with pytest.raises(TrainingError, match=r"weights are not finite .*train\.learning_rate"):
        trained(llama, corpus, steps=1, learning_rate=1e39)


def test_unsound_base_model(
    llama: Path, corpus: Path, new: Callable[[], Path], trained: Callable[..., Path]
) -> None:
    from safetensors.torch import save_file

    folder = new()
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    weights = load_weights(llama)
    weights["model.norm.weight"][3] = math.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="at step 0, before anything was trained"):
        trained(folder, corpus)


@pytest.mark.parametrize("rate", [3.0, 1e3, 1e9])
def test_divergence(rate: float, llama: Path, corpus: Path, trained: Callable[..., Path]) -> None:
    with pytest.raises(TrainingError, match=r"(diverged to|is nan|is inf).*train\.learning_rate"):
        trained(llama, corpus, steps=80, learning_rate=rate, schedule="constant")


def test_context_longer_than_the_model(
    llama: Path, corpus: Path, trained: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=r"train\.context_length 33 is more than the model's 32"):
        trained(llama, corpus, context_length=33)


def test_pickled_base_model(
    llama: Path, corpus: Path, new: Callable[[], Path], trained: Callable[..., Path]
) -> None:
    folder = new()
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    torch.save(load_weights(llama), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*save_pretrained"):
        trained(folder, corpus)


def test_tokens_of_another_tokenizer(
    llama: Path, corpus: Path, new: Callable[[], Path], trained: Callable[..., Path]
) -> None:
    folder = new()
    shutil.copytree(corpus, folder, dirs_exist_ok=True)
    facts = json.loads((corpus / "tokens.json").read_text())
    (folder / "tokens.json").write_text(json.dumps({**facts, "tokenizer": "f" * 64}))
    with pytest.raises(ValueError, match="tokens was made by the tokenizer ffffffffff"):
        trained(llama, folder)


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        TrainConfig(steps=1, seed=seed)


@pytest.mark.parametrize(
    ("option", "runtime"),
    [
        ({"adapter": {"rank": 1}}, {"compile": True}),
        ({"teacher": {}}, {"micro_batch": 1}),
        ({"layers": {"mode": "scale"}}, {"compile": True}),
        ({"sharpness": {}}, {"shards": 2}),
    ],
)
def test_runtimes_that_nobody_has_tried_with_an_option(
    option: dict[str, Any], runtime: dict[str, Any]
) -> None:
    ((name, value),) = runtime.items()
    words = rf"runtime\.{name} is {str(value).lower()} and train\.{next(iter(option))} is given"
    with pytest.raises(ValueError, match=words):
        check_runtime(TrainConfig.model_validate({**SHORT, **option}), Runtime(**runtime))
    cpus = Runtime(device="cpu,cpu", **runtime)
    check_runtime(TrainConfig(**SHORT), cpus)


def test_a_training_that_cannot_be_spread_is_refused_by_plans_too() -> None:
    with pytest.raises(ValueError, match=r"runtime\.shards is 2, and runtime\.device has 1"):
        check_runtime(TrainConfig(**SHORT), Runtime(device="cpu", shards=2))


@pytest.mark.parametrize(
    "options",
    [("adapter", "teacher"), ("adapter", "sharpness"), ("teacher", "layers")],
)
def test_options_that_nobody_has_tried_together(options: tuple[str, str]) -> None:
    fields = {"adapter": {"rank": 1}, "teacher": {}, "sharpness": {}, "layers": {"mode": "freeze"}}
    with pytest.raises(ValidationError, match=f"{options[0]} and {options[1]} are given"):
        TrainConfig.model_validate({**SHORT, **{name: fields[name] for name in options}})
