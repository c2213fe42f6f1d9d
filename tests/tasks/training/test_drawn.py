"""Own blocks drawn to weights and cut to a longer run's repetition: exact counts, and only the seed."""

import math
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.artifact import describe
from storage.checkpoint import Checkpoints
from storage.fingerprint import canonical
from storage.step import Workspace
from storage.store import Store
from tasks.tokens.tokenize import load_tokens
from tasks.training.blocks import Batches, Blocks, Drawn, own_blocks
from tasks.training.config import TrainConfig
from tasks.training.divergence import TrainingError
from tasks.training.train import build as train

pytest_plugins = ["tests.tasks.tiny_models"]

ROOT = Path(__file__).parents[3]

CONTEXT = 4
SHORT: dict[str, Any] = {"steps": 6, "batch_size": 4, "context_length": 16, "learning_rate": 1e-2}


def config_of(steps: int, batch: int, **fields: Any) -> TrainConfig:
    sizes = {"steps": steps, "batch_size": batch, "context_length": CONTEXT}
    return TrainConfig.model_validate({**sizes, **fields})


def files_of(blocks: list[int]) -> list[np.ndarray]:
    """Token files of so many blocks; the first token of a block tells file and block."""
    return [
        1000 * number + np.arange(count * CONTEXT + 1, dtype=np.int64)
        for number, count in enumerate(blocks)
    ]


def drawn(batches: Batches, steps: int) -> list[tuple[int, int]]:
    """File and block of every own block, in their order."""
    first = [int(row[0]) for step in range(steps) for row in batches[step]]
    return [(token // 1000, token % 1000 // CONTEXT) for token in first if token < 9000]


@st.composite
def trainings(draw: Callable[..., Any]) -> tuple[TrainConfig, list[int]]:
    """A training on several files, each of which gives a block or more, and the files' blocks."""
    blocks = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    weights = [draw(st.integers(1, 9)) for _ in blocks]
    fields: dict[str, Any] = {"seed": draw(st.integers(0, 2**63 - 1)), "weights": weights}
    fields["replay"] = draw(st.sampled_from([0.0, 0.25, 0.4]))
    if draw(st.booleans()):
        times = [str(Fraction(draw(st.integers(1, 60)), draw(st.integers(1, 9)))) for _ in blocks]
        fields["repeat_as"] = {"epochs": times}
    config = config_of(draw(st.integers(12, 30)), draw(st.integers(4, 7)), **fields)
    return config, blocks


@cases(trainings())
def test_each_file_gives_its_share_to_the_block_in_whole_epochs(
    training: tuple[TrainConfig, list[int]],
) -> None:
    config, blocks = training
    batches = Batches(config, files_of(blocks), [9000 + np.arange(9 * CONTEXT + 1)])
    order = drawn(batches, config.steps)
    total = config.steps * config.batch_size
    total -= total * Fraction(str(config.replay)) // 1
    assert len(order) == total == sum(own_blocks(config))
    counts = Counter(file for file, _ in order)
    weights = config.weights or []
    for number, weight in enumerate(weights):
        assert abs(counts[number] - Fraction(total * weight, sum(weights))) < 1
        kept = blocks[number]
        if config.repeat_as:
            times = Fraction(config.repeat_as.epochs[number])
            kept = min(kept, math.ceil(counts[number] / times))
            # No oftener than the longer run, where there is enough text; and with one block less, oftener.
            assert Fraction(counts[number], kept) <= times or kept == blocks[number]
            assert kept == 1 or Fraction(counts[number], kept - 1) > times
        of_file = [block for file, block in order if file == number]
        epochs = [of_file[start : start + kept] for start in range(0, len(of_file), kept)]
        assert all(len({*epoch}) == len(epoch) for epoch in epochs)
        assert all({*epoch} <= {*epochs[0]} for epoch in epochs)
        assert isinstance(batches.own, Drawn)
        assert batches.own.sources[number] == {
            "blocks": counts[number],
            "different": len({*of_file}),
            "available": blocks[number],
            "epochs": counts[number] / kept,
        }


@cases(trainings(), st.lists(st.integers(0, 11), min_size=1, max_size=6))
def test_a_batch_depends_on_config_and_step_only(
    training: tuple[TrainConfig, list[int]], steps: list[int]
) -> None:
    config, blocks = training
    files, general = files_of(blocks), [9000 + np.arange(9 * CONTEXT + 1)]
    one = Batches(config, files, general)
    for step in steps:
        np.testing.assert_array_equal(one[step], Batches(config, files, general)[step])


def test_ties_of_shares_go_by_file_and_files_are_mixed_over_the_whole_training() -> None:
    config = config_of(5, 4, weights=[1, 1, 1])
    assert own_blocks(config) == [7, 7, 6]
    order = [file for file, _ in drawn(Batches(config, files_of([9, 9, 9]), []), 5)]
    assert {*order[:10]} == {*order[10:]} == {0, 1, 2}
    other = config.model_copy(update={"seed": 1})
    assert order != [file for file, _ in drawn(Batches(other, files_of([9, 9, 9]), []), 5)]


def test_a_smaller_cut_is_part_of_a_larger_one() -> None:
    tokens = [np.arange(40 * CONTEXT + 1)]
    kept = [
        {int(blocks[number][0]) for number in range(len(blocks))}
        for blocks in (Blocks(tokens, CONTEXT, 3, most=most) for most in (5, 17, 40))
    ]
    assert list(map(len, kept)) == [5, 17, 40]
    assert kept[0] < kept[1] < kept[2]


@pytest.mark.parametrize(
    ("fields", "files", "message"),
    [
        ({"weights": [1, 99]}, [9, 9], "token file 0 gives less than one of 12 blocks"),
        ({"weights": [1, 1]}, [9], "1 token files, 2 weights and 1 numbers"),
        ({"repeat_as": {"tokens": 9}}, [9], "1 token files, 1 weights and 0 numbers of epochs"),
        ({"weights": [1, 1]}, [9, 0], "1 tokens do not fill one block of 5"),
    ],
)
def test_draws_that_cannot_be_made(fields: Any, files: list[int], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Batches(config_of(3, 4, **fields), files_of(files), [])


def test_weights_have_one_form_and_neutral_values_leave_the_key_as_it_was() -> None:
    today = canonical(config_of(6, 4))
    assert isinstance(today, dict)
    assert {"weights", "repeat_as"}.isdisjoint(today)
    assert canonical(config_of(6, 4, weights=None, repeat_as=None)) == today
    assert config_of(6, 4, weights=[4, 6]).weights == [2, 3]
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        config_of(6, 4, weights=[1, 0])
    for fields in ({"weights": [1]}, {"repeat_as": {"epochs": ["2"]}}):
        with pytest.raises(ValidationError, match="layers are chosen by all of a text"):
            config_of(6, 4, layers={"mode": "freeze"}, **fields)


def test_killed_by_a_signal_it_goes_on_to_the_same_bits(
    llama: Path,
    tokens: Callable[[list[str]], Path],
    prose: Callable[..., list[str]],
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> None:
    """``kill -9`` in another process, after its fourth step; this one goes on from its resume point."""
    script = """
import os, signal, sys
from pathlib import Path
from storage.checkpoint import Checkpoints
from storage.step import Runtime, Workspace
from storage.store import Store
from tasks.machine.meter import Meter
from tasks.training.config import TrainConfig
from tasks.training.train import build
config, model, one, other, output, store = sys.argv[1:]
def die(done, total, unit):
    if done == 4 * 4 * 16:
        os.kill(os.getpid(), signal.SIGKILL)
where = Runtime(device="cpu", threads=1, checkpoint_seconds=0)
work = Workspace(where, Checkpoints(Store(store).backend, "work/x"), Meter("cpu"), die)
inputs = {"model": Path(model), "tokens.0": Path(one), "tokens.1": Path(other)}
build(TrainConfig.model_validate_json(config), inputs, Path(output), work)
"""
    fields = {"weights": [5, 2], "repeat_as": {"epochs": ["7/2", "3"]}}
    config = TrainConfig.model_validate({**SHORT, **fields})
    files, store = [tokens(prose(2, 4)), tokens(prose(3, 4))], str(new())
    inputs = {"model": llama, "tokens.0": files[0], "tokens.1": files[1]}
    words = [config.model_dump_json(), *map(str, [llama, *files, new()]), store]
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    resumed, straight = new(), new()
    alone = workspace()
    seen: list[int] = []
    going = Workspace(
        alone.runtime,
        Checkpoints(Store(store).backend, "work/x"),
        alone.meter,
        lambda done, *_: seen.append(done),
    )
    train(config, inputs, resumed, going)
    assert seen[0] in {2 * 64, 3 * 64}, "it does not begin anew"
    train(config, inputs, straight, alone)
    assert describe("model", resumed) == describe("model", straight)


def test_names_of_inputs_change_nothing_and_weights_do(
    llama: Path,
    tokens: Callable[[list[str]], Path],
    prose: Callable[..., list[str]],
    new: Callable[[], Path],
    workspace: Callable[..., Workspace],
) -> None:
    one, other = tokens(prose(2, 4)), tokens(prose(3, 4))

    def trained(weights: list[int], *names: str) -> tuple[str, Any]:
        output = new()
        inputs = {"model": llama, **dict(zip(names, (one, other), strict=True))}
        config = TrainConfig.model_validate({**SHORT, "weights": weights})
        details = train(config, inputs, output, workspace())
        return describe("model", output).digest, details

    digest, details = trained([3, 1], "tokens.0000", "tokens.0001")
    blocks = [(len(load_tokens(folder)) - 1) // 16 for folder in (one, other)]
    assert [source["blocks"] for source in details["sources"]] == [18, 6]
    assert [source["available"] for source in details["sources"]] == blocks
    assert details["num_blocks"] == sum(blocks)
    assert trained([3, 1], "tokens.a", "tokens.b")[0] == digest
    assert trained([1, 3], "tokens.0000", "tokens.0001")[0] != digest
