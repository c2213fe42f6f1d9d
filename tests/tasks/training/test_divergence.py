"""Each loss is judged once, a step late, and before anybody can use it."""

import math

import pytest
import torch

from tasks.training.divergence import LossHistory, TrainingError

UNIFORM = math.log(300)


def noted(values: list[float]) -> LossHistory:
    losses = LossHistory([], UNIFORM)
    for value in values:
        losses.add(torch.tensor(value))
    return losses


def test_all_are_read_in_order() -> None:
    losses = LossHistory([5.0, 4.0], UNIFORM)
    losses.add(torch.tensor(3.5))
    losses.add(torch.tensor(3.0))
    assert losses.read() == [5.0, 4.0, 3.5, 3.0]
    assert losses.read() == [5.0, 4.0, 3.5, 3.0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_one_that_is_not_finite_is_told_with_its_own_step(wrong: float) -> None:
    message = r"the loss is (nan|inf) at step 2, after 4\.50: lower train\.learning_rate"
    losses = noted([5.0, 4.5, wrong])
    with pytest.raises(TrainingError, match=message):
        losses.add(torch.tensor(1.0))
    with pytest.raises(TrainingError, match=message):
        noted([5.0, 4.5, wrong]).read()


def test_not_finite_from_the_start() -> None:
    with pytest.raises(TrainingError, match="at step 0, before anything was trained"):
        noted([math.nan]).read()


def test_the_mean_of_ten_is_compared_with_the_first_ten_and_a_guess() -> None:
    assert len(noted([5.0] * 10 + [9.9] * 10).read()) == 20
    with pytest.raises(TrainingError, match=r"diverged to 10\.10 nats at step 19: lower"):
        noted([5.0] * 10 + [10.1] * 10).read()
    # The first ten were led astray themselves.
    with pytest.raises(TrainingError, match=r"diverged to 20\.00 nats at step 10"):
        noted([UNIFORM] + [20.0] * 10).read()


def test_losses_before_a_resume_count() -> None:
    losses = LossHistory([5.0] * 10 + [11.0] * 8, UNIFORM)
    losses.add(torch.tensor(11.0))
    with pytest.raises(TrainingError, match="at step 18"):
        losses.read()
