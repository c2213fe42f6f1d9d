"""The gradients of a batch that memory cannot hold at once: some of its blocks after the others, summed.

A part's loss weighs as its share of the batch, so that gradients and loss are those of the whole batch, to
rounding. Where memory runs out, the parts are halved, the random state is put back, and the batch begins
anew; a training that is given the smaller parts from the start ends bit by bit alike.
"""

import logging
from typing import TYPE_CHECKING

from tasks.machine.memory import free_memory, is_out_of_memory
from tasks.training.divergence import TrainingError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tasks.training.gradients import LossOf

LOG = logging.getLogger("mixpool.train")


class Accumulation:
    """The gradients of a batch's loss, the same at any step (see ``GradientsOf``).

    Args:
        loss_of: loss of some blocks of a batch.
        model: its gradients are none before each batch.
        micro_batch: blocks in one forward pass; None is a whole batch.
        may_halve: whether it is halved where memory runs out, else the training is refused: of several
            processes that compute together, none may go its own way.
    """

    def __init__(
        self,
        loss_of: "LossOf",
        model: "PreTrainedModel",
        micro_batch: int | None = None,
        *,
        may_halve: bool = True,
    ) -> None:
        self.micro_batch = micro_batch
        self._loss_of, self._model, self._may_halve = loss_of, model, may_halve

    def __call__(self, tokens: "torch.Tensor", step: int) -> "torch.Tensor":
        """The loss of a batch, int64, shape (B, context + 1); its gradients are left at the parameters.

        Raises:
            TrainingError: memory does not hold what one block needs.
        """
        del step
        while (loss := self._attempt(tokens)) is None:
            self._halve(tokens)
        return loss

    def _attempt(self, tokens: "torch.Tensor") -> "torch.Tensor | None":
        """The loss, or None where memory ran out; then random state and gradients are as before."""
        before = _random_state(tokens.device)
        try:
            return self._sum(tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler, whose traceback holds what is to be given back.
        self._model.zero_grad(set_to_none=True)
        _restore(before, tokens.device)
        free_memory()
        return None

    def _sum(self, tokens: "torch.Tensor") -> "torch.Tensor":
        import torch

        if self.micro_batch is None or self.micro_batch >= len(tokens):
            loss = self._loss_of(tokens)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss
        total = tokens.new_zeros((), dtype=self._model.dtype)
        for part in torch.split(tokens, self.micro_batch):
            loss = self._loss_of(part) * (len(part) / len(tokens))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _halve(self, tokens: "torch.Tensor") -> None:
        blocks = min(self.micro_batch or len(tokens), len(tokens))
        if blocks == 1:
            raise TrainingError(
                f"the memory of {tokens.device} does not hold the training of this model on one block of "
                f"{tokens.shape[1] - 1} tokens: lower train.context_length, use a device with more memory, "
                "or spread it over several (runtime.shards)"
            )
        if not self._may_halve:
            raise TrainingError(
                f"the memory of {tokens.device} does not hold the training of this model on {blocks} blocks "
                f"at a time: set runtime.micro_batch to {(blocks + 1) // 2}"
            )
        self.micro_batch = (blocks + 1) // 2
        LOG.warning(
            "out of memory: the training goes on with %d of a batch's %d blocks at a time; set "
            "runtime.micro_batch to that from the start",
            self.micro_batch,
            len(tokens),
        )


def _random_state(device: "torch.device") -> "tuple[torch.Tensor, torch.Tensor | None]":
    import torch

    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_gpu


def _restore(state: "tuple[torch.Tensor, torch.Tensor | None]", device: "torch.device") -> None:
    import torch

    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
