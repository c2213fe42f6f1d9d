"""Judge many mixtures against one resident pool: average in memory, evaluate, write sums.

Parameters of the merged model are views of one flat buffer, so a merge is one weighted sum written
over it. A mixture's losses depend on its members, parts and the windows alone: not on its chunk, not
on what was evaluated before it. What the losses table has is never evaluated again, and every chunk
is written as soon as it is done, so a killed sweep loses one chunk.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from storage.cache import Meter, Progress, Runtime
from tasks.device import choose_device
from tasks.energy import Attention, forward_flops
from tasks.losses import EvaluateConfig, LossesTable, Row, identity
from tasks.merging import (
    MergeError,
    check_mergeable,
    check_same_tensors,
    facts_of,
    load_weights,
    weighted_sum,
)
from tasks.mixture import Mixture
from tasks.model import check_context, load_model
from tasks.window import Windows, load_windows

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel


PIECE = 1024
"""Tokens whose logits are lifted to float32 at once."""


class Job(NamedTuple):
    """One mixture and the sets it still lacks."""

    mixture: Mixture
    """Members are digests of models."""
    label: str
    """The mixture by the names of its partitions."""
    sets: tuple[str, ...]
    """Names of the evaluation sets to run."""


class PreparedSet(NamedTuple):
    """An evaluation set as the sweep needs it."""

    name: str
    """The set as people call it."""
    digest: str
    """Digest of its windows."""
    folder: Path
    """Where its windows are."""


def missing_jobs(
    table: LossesTable, mixtures: Sequence[tuple[Mixture, str]], sets: Mapping[str, str]
) -> list[Job]:
    """What is not in the table yet.

    Args:
        mixtures: (mixture over model digests, label).
        sets: digest of the windows by name of the set.
    """
    jobs = []
    for mixture, label in mixtures:
        name = identity(mixture)
        lacking = tuple(s for s, digest in sets.items() if (name, digest) not in table)
        if lacking:
            jobs.append(Job(mixture, label, lacking))
    return jobs


class Pool:
    """The members' weights, each one flat float32 vector, resident on the device that merges."""

    def __init__(self, folders: Mapping[str, Path], device: str) -> None:
        import torch

        self.folders = dict(folders)
        first_name = ""
        first: dict[str, torch.Tensor] = {}
        self._flat: dict[str, torch.Tensor] = {}
        for name, folder in folders.items():
            weights = load_weights(folder)
            if first:
                check_same_tensors(first_name, first, name, weights)
            else:
                first_name, first = name, weights
                self.layout = {
                    key: tensor.shape
                    for key, tensor in weights.items()
                    if tensor.is_floating_point()
                }
            parts = [weights[key].float().flatten() for key in self.layout]
            self._flat[name] = torch.cat(parts).to(device)
        self._facts = {name: facts_of(folder) for name, folder in folders.items()}

    def merge(self, mixture: Mixture, dtype: "torch.dtype") -> "torch.Tensor":
        """The flat average of a mixture's members, float32, shape (num_weights,).

        Raises:
            MergeError: the members differ in architecture, tokenizer, base model or steps.
        """
        check_mergeable({name: self._facts[name] for name in mixture.members})
        tensors = [self._flat[name] for name in mixture.members]
        return weighted_sum(tensors, [part for _, part in mixture.parts], dtype)


class MergedModel:
    """A model whose parameters are views of one flat buffer that merges are written into."""

    def __init__(self, pool: Pool, device: str, *, compiled: bool = False) -> None:
        import torch

        self.model: PreTrainedModel = load_model(next(iter(pool.folders.values())), device)
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        lacking = [name for name in pool.layout if name not in tensors]
        if lacking:
            raise MergeError(f"the model class has no tensor {lacking[0]!r} that the files hold")
        sizes = [shape.numel() for shape in pool.layout.values()]
        self.flat = torch.empty(sum(sizes), device=device)
        for name, view in zip(pool.layout, torch.split(self.flat, sizes), strict=True):
            tensors[name].data = view.view(pool.layout[name])
        self.forward = torch.compile(self.model) if compiled else self.model


class TokenBatch(NamedTuple):
    """B windows of at most T positions that are run together; S of their tokens are scored."""

    inputs: "torch.Tensor"
    """Token ids, int64, shape (B, T)."""
    scored: "torch.Tensor"
    """Positions in the flattened batch, int64, shape (S,)."""
    targets: "torch.Tensor"
    """The token that follows at each, int64, shape (S,)."""
    group: "np.ndarray"
    """Group of each one's document, shape (S,)."""


def batches(windows: Windows, tokens: int, device: str) -> list[TokenBatch]:
    """Windows in batches of at most ``tokens`` positions, of like length, shortest first.

    The order depends on the windows alone, so a set's sums are added in one order.
    """
    import numpy as np

    order = np.argsort(windows.length, kind="stable")
    found: list[list[int]] = []
    for row in order.tolist():
        # Sorted by length, so this row would be the longest of the batch.
        if not found or int(windows.length[row]) * (len(found[-1]) + 1) > tokens:
            found.append([])
        found[-1].append(row)
    return [_batch(windows, np.array(rows), device) for rows in found]


def _batch(windows: Windows, rows: "np.ndarray", device: str) -> TokenBatch:
    import numpy as np
    import torch

    length = int(windows.length[rows].max())
    position = np.arange(length)
    scored = (position >= windows.first[rows, None]) & (position < windows.length[rows, None])
    inputs = windows.inputs[rows, :length].astype(np.int64)
    targets = windows.targets[rows, :length][scored].astype(np.int64)
    return TokenBatch(
        torch.from_numpy(inputs).to(device),
        torch.from_numpy(np.flatnonzero(scored)).to(device),
        torch.from_numpy(targets).to(device),
        np.repeat(windows.group[rows], scored.sum(1)),
    )


def group_losses(
    model: MergedModel, prepared: list[TokenBatch], num_groups: int, precision: str
) -> "np.ndarray":
    """Sum of nats for each group of documents, float64, shape (num_groups,)."""
    import numpy as np
    import torch

    device = model.flat.device.type
    sums = np.zeros(num_groups)
    with (
        torch.inference_mode(),
        torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        for batch in prepared:
            logits = model.forward(input_ids=batch.inputs, use_cache=False).logits
            nll = token_losses(logits.flatten(0, 1), batch).double().cpu().numpy()
            sums += np.bincount(batch.group, weights=nll, minlength=num_groups)
    return sums


def token_losses(logits: "torch.Tensor", batch: TokenBatch) -> "torch.Tensor":
    """Nats of each scored token, float32, shape (S,), from logits of shape (B * T, vocabulary)."""
    import torch
    import torch.nn.functional as F

    # In pieces, because float32 logits of a whole batch are the largest tensor of all.
    pieces = zip(torch.split(batch.scored, PIECE), torch.split(batch.targets, PIECE), strict=True)
    losses = [
        F.cross_entropy(logits[scored].float(), targets, reduction="none")
        for scored, targets in pieces
    ]
    return torch.cat(losses)


class Sweeper:
    """A resident pool and the evaluation sets in batches: what every chunk of a sweep shares.

    Raises:
        MergeError: the models have other tensors, shapes, types or integer tensors.
        ValueError: a set's windows are longer than the models' context.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        sets: Sequence[PreparedSet],
        config: EvaluateConfig,
        runtime: Runtime,
    ) -> None:
        self.device = choose_device(runtime)
        self._config = config
        self._pool = Pool(models, self.device)
        self._model = MergedModel(self._pool, self.device, compiled=runtime.compile)
        self._prepared = {
            s.name: (s, w := load_windows(s.folder), batches(w, runtime.batch_tokens, self.device))
            for s in sets
        }
        for _, windows, _ in self._prepared.values():
            length = windows.inputs.shape[1]
            check_context(self._model.model, length, "evaluation.windows.context_length")

    def lacks(self, table: LossesTable, job: Job) -> bool:
        """Whether the table still lacks a row of the job."""
        name = identity(job.mixture)
        return any((name, self._prepared[s][0].digest) not in table for s in job.sets)

    def evaluate(self, jobs: Sequence[Job], meter: Meter, progress: Progress) -> list[Row]:
        """Rows of all jobs.

        Raises:
            MergeError: members of a mixture do not agree.
            ValueError: a loss is not finite.
        """
        import torch

        dtype = torch.float64 if self._config.average == "float64" else torch.float32
        rows = []
        for done, job in enumerate(jobs):
            try:
                self._model.flat.copy_(self._pool.merge(job.mixture, dtype))
            except MergeError as error:
                raise MergeError(f"mixture {job.label!r}: {error}") from error
            rows += list(_evaluate(self._model, job, self._prepared, self._config, meter))
            progress(done + 1, len(jobs), "mixtures")
        return rows


def _evaluate(
    model: MergedModel,
    job: Job,
    prepared: Mapping[str, tuple[PreparedSet, Windows, list[TokenBatch]]],
    config: EvaluateConfig,
    meter: Meter,
) -> Iterator[Row]:
    import numpy as np

    settings = model.model.config
    for name in job.sets:
        entry, windows, ready = prepared[name]
        sums = group_losses(model, ready, len(windows.num_tokens), config.precision)
        tokens = int(windows.length.sum())
        shape = Attention(settings.num_hidden_layers, settings.hidden_size, windows.inputs.shape[1])
        meter.add(tokens=tokens, flops=forward_flops(model.model.num_parameters(), tokens, shape))
        if not np.isfinite(sums).all():
            raise ValueError(
                f"mixture {job.label!r} has a loss of {sums.sum()} on {name!r}: a model of it has "
                "weights that are not finite, or outputs beyond the range of the precision"
            )
        yield Row(
            mixture=identity(job.mixture),
            windows=entry.digest,
            label=job.label,
            evaluation_set=name,
            nll=float(sums.sum()),
            group_nll=sums.tolist(),
        )
