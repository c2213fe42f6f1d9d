"""Sharpness-aware training: each step's gradient is taken a little uphill, which leads to flat minima.

Foret et al. 2021 (arXiv 2010.01412); before compression by Na et al. 2022 (arXiv 2205.12694). With the
gradient g of a part of the batch, the whole batch's gradient is taken at w + rho * g / ||g||, and AdamW
moves w with it. The loss of a step is that of the second pass, a little uphill, too.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from tasks.training.config import Sharpness, TrainConfig
from tasks.training.gradients import GradientsOf

if TYPE_CHECKING:
    import torch

TINY = 1e-12
"""Is added to the norm of a gradient, which may be zero."""


def flat(
    gradients_of: GradientsOf, parameters: Sequence["torch.nn.Parameter"], sharpness: Sharpness
) -> GradientsOf:
    """What leaves the gradients of a place uphill at ``parameters``, which stay as they are.

    Each pass begins with the random state of a step without sharpness. So both draw the same dropout
    masks where both have the whole batch. A part of a batch draws masks of its own, as a mask's place in
    the stream goes by the shapes before it: the way up is then that of another draw, and the gradient
    behind it has the masks of a step without sharpness.
    """

    def uphill(tokens: "torch.Tensor", step: int) -> "torch.Tensor":
        import torch

        devices = [tokens.device] if tokens.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            gradients_of(tokens[: ascent_blocks(sharpness, len(tokens))], step)
        with raised(parameters, sharpness.rho):
            return gradients_of(tokens, step)

    return uphill


@contextlib.contextmanager
def raised(parameters: Sequence["torch.nn.Parameter"], rho: float) -> Iterator[None]:
    """Weights are w + rho * g / (||g|| + 1e-12) inside, with no gradients; behind it w, bit by bit.

    g are the gradients that the parameters come with, and their memory holds the place uphill; who has none
    stays where it is. w itself lies untouched meanwhile: adding and taking off again would round.
    """
    import torch
    from torch.nn.utils import get_total_norm

    moved = [(p, p.grad) for p in parameters if p.grad is not None]
    scale = rho / (get_total_norm([gradient for _, gradient in moved]) + TINY)
    before = [parameter.data for parameter, _ in moved]
    try:
        for parameter, gradient in moved:
            parameter.grad = None
            parameter.data = torch.addcmul(parameter.data, gradient, scale, out=gradient)
        yield
    finally:
        for (parameter, _), weights in zip(moved, before, strict=True):
            parameter.data = weights


def ascent_blocks(sharpness: Sharpness, blocks: int) -> int:
    """Blocks of a batch that show the way up."""
    return math.ceil(Fraction(str(sharpness.ascent_fraction)) * blocks)


def passes(config: TrainConfig) -> float:
    """Forward and backward passes of a step, in passes over its batch."""
    if config.sharpness is None:
        return 1.0
    return 1 + ascent_blocks(config.sharpness, config.batch_size) / config.batch_size
