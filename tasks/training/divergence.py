"""The losses of a training, and the check whether it diverges.

A loss is read when the next step is under way. Reading a number from a GPU waits for all work that
was queued before it, and then the GPU is idle until more is queued. Nothing is saved before the
losses up to there are read, so a training that has diverged leaves no trace.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

REMEDY = "lower train.learning_rate, or add train.warmup_steps"

DIVERGED = 2.0
"""A mean loss of ten steps so many times that of the first ten ends a training."""


class TrainingError(ValueError):
    """A training that cannot go on: non-finite or diverging loss, or too few tokens."""


class LossHistory:
    """Mean nats per token of each step; the latest is read a step late.

    Args:
        earlier: those of the steps before a training was resumed.
        uniform: nats of a guess among all tokens.
    """

    def __init__(self, earlier: list[float], uniform: float) -> None:
        self._read, self._uniform = earlier, uniform
        self._latest: torch.Tensor | None = None
        self._is_there: torch.cuda.Event | None = None

    def add(self, loss: "torch.Tensor") -> None:
        """Note the loss of one more step, a tensor of no dimension.

        Raises:
            TrainingError: the one before is not finite, or the training diverges.
        """
        import torch

        self.read()
        # The copy is in pinned memory and is complete once the event has come.
        self._latest = loss.detach().to("cpu", non_blocking=loss.is_cuda)
        if loss.is_cuda:
            self._is_there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._is_there.record(torch.cuda.current_stream(loss.device))

    def read(self) -> list[float]:
        """All of them, for reading only; on a GPU, this waits for the latest.

        Raises:
            TrainingError: the latest is not finite, or the training diverges.
        """
        if self._latest is not None:
            if self._is_there is not None:
                self._is_there.synchronize()
            latest, self._latest = self._latest.item(), None
            self._read.append(_check_loss(latest, self._read, self._uniform))
        return self._read


def _check_loss(loss: float, earlier: list[float], uniform: float) -> float:
    step = len(earlier)
    if not math.isfinite(loss) and not earlier:
        raise TrainingError(
            f"the loss is {loss} at step 0, before anything was trained: the model that training "
            "starts from is not sound, give another one"
        )
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {step}, after {earlier[-1]:.2f}: {REMEDY}")
    if len(earlier) >= 10:
        recent = sum([*earlier[-9:], loss]) / 10
        # The first ten are no measure where the very first steps led astray; guessing is one.
        first = min(sum(earlier[:10]) / 10, max(earlier[0], uniform))
        if recent > DIVERGED * first:
            raise TrainingError(f"the loss diverged to {recent:.2f} nats at step {step}: {REMEDY}")
    return loss
