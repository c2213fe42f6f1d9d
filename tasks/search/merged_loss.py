"""The loss of a merged model, and its gradient in the weights of the members.

With theta(w) = sum of w_i theta_i, the chain rule gives <dL/dtheta, theta_i - theta(w)> for member
i. This is the change of the loss as weight moves from all members to that one. It takes one
backward pass through the merged model, and one inner product for each member.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.arrays import Floats
from tasks.evaluation.forward import Scorer, TokenBatch
from tasks.machine.flops import Attention, forward_flops
from tasks.merging.pool import MergedModel, Pool
from tasks.mixtures.mixture import Mixture

RESOLUTION = 1 << 24
"""Weights are merged as multiples of one over this: finer than a float32 tells."""


class MergedLoss:
    """The loss of the merged model and its gradient in the members' weights.

    Raises:
        MergeError: the models have other tensors, shapes, types or integer tensors.
    """

    def __init__(self, models: Mapping[str, Path], gigabytes: float | None, device: str) -> None:
        import torch

        self._pool = Pool(models, device, gigabytes)
        self._merged = MergedModel(self._pool)
        self.model = self._merged.model
        self._score = Scorer(self.model)
        self._other = torch.empty_like(self._merged.flat)
        self.tokens, self.flops = 0, 0.0

    def __call__(
        self, weights: Floats, text: "Sequence[tuple[float, list[TokenBatch]]]"
    ) -> tuple[float, Floats]:
        """Judge one mixture.

        Args:
            weights: of the members, shape (members,), none negative.
            text: pairs of a factor and batches, whose nats are multiplied by the factor and summed.

        Returns:
            The objective and its gradient, shape (members,); its mean under ``weights`` is zero.
        """
        import torch

        named = dict(zip(self._pool.folders, weights.tolist(), strict=True))
        merged = Mixture.from_weights(named, RESOLUTION)
        self._pool.merge_into(self._merged.flat, merged, torch.float64)
        self.model.zero_grad()
        value = 0.0
        for factor, prepared in text:
            for batch in prepared:
                loss = self._score(batch).double().sum() * factor
                loss.backward()  # type: ignore[no-untyped-call]
                value += loss.item()
                self._count(batch)
        return value, np.array([self._toward(name) for name in self._pool.folders])

    def _toward(self, name: str) -> float:
        """Inner product of the gradient and the way from the merged model to a member."""
        import torch

        self._pool.merge_into(self._other, Mixture.uniform([name]), torch.float32)
        # What all members have in common is much larger than what they differ in.
        self._other.sub_(self._merged.flat)
        sizes = [tensor.numel() for tensor in self._merged.tensors]
        pairs = zip(torch.split(self._other, sizes), self._merged.tensors, strict=True)
        products = [
            way.double().dot(t.grad.flatten().double()) for way, t in pairs if t.grad is not None
        ]
        return float(torch.stack(products).sum())

    def _count(self, batch: TokenBatch) -> None:
        rows, length = batch.inputs.shape
        shape = Attention.of(self.model, length)
        self.tokens += rows * length
        # A backward pass costs twice a forward pass.
        self.flops += 3 * forward_flops(self._merged.num_parameters, rows * length, shape)
