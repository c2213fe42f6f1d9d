"""Pools of random models and windows of random tokens: speed does not depend on what they say."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file

from storage.step import Runtime
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.evaluation.sweep import Job, PreparedSet, Sweeper
from tasks.evaluation.window import spans
from tasks.mixtures.mixture import Mixture
from tasks.models.facts import Facts
from tasks.models.folder import load_model, save_model
from tasks.models.initialise import LlamaArchitecture
from tests.benchmarks.tiny import random_model


class Size(NamedTuple):
    """A Llama-like model with tied embeddings."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    context: int


M1 = Size("1M", 4096, 128, 3, 4, 344, 256)
M8 = Size("8M", 32000, 192, 4, 6, 512, 512)
M30 = Size("30M", 32000, 512, 4, 8, 1376, 512)


def base_model(size: Size, folder: Path) -> Path:
    """A model of this size with random weights."""
    architecture = LlamaArchitecture(
        hidden_size=size.hidden,
        num_layers=size.layers,
        num_heads=size.heads,
        intermediate_size=size.intermediate,
        context_length=size.context,
    )
    return random_model(folder, architecture, size.vocabulary)


def random_pool(base: Path, members: int, folder: Path, device: str = "cpu") -> dict[str, Path]:
    """Models that lie around one another, by name."""
    facts = Facts.model_validate_json((base / "mixpool.json").read_bytes())
    model = load_model(base, device)
    torch.manual_seed(0)
    found = {}
    for number in range(members):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        found[f"model-{number:02}"] = folder / f"model-{number:02}"
        save_model(model, folder / f"model-{number:02}", facts)
    return found


def full_windows(vocabulary: int, context: int, tokens: int, folder: Path) -> Path:
    """Windows of full length, each a document of its own, that hold so many tokens."""
    return _windows(vocabulary, context, [context] * (tokens // context), folder)


def ragged_windows(vocabulary: int, context: int, tokens: int, folder: Path) -> Path:
    """Documents of log-normal length, median 0.6 contexts, in windows as ``paloma`` cuts them."""
    generator = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(int(np.clip(context * generator.lognormal(-0.5, 0.8), 8, 8192)))
    return _windows(vocabulary, context, lengths, folder)


def _windows(vocabulary: int, context: int, lengths: list[int], folder: Path) -> Path:
    cut = [
        (group, end - start, first)
        for group, length in enumerate(lengths)
        for start, first, end in spans(length, context, "paloma")
    ]
    group, length, first = (np.array(column, dtype=np.int32) for column in zip(*cut, strict=True))
    counts = np.repeat(np.array(lengths, dtype=np.int64)[:, None], 3, axis=1)
    ids = np.random.default_rng(1).integers(0, vocabulary, (len(cut), context + 1))
    folder.mkdir()
    arrays = {"tokens": ids.astype(np.int32), "first": first, "length": length, "group": group}
    save_file({**arrays, "counts": counts}, folder / "windows.safetensors")
    return folder


def sweeper(
    models: dict[str, Path],
    windows: Path,
    runtime: Runtime | None = None,
    config: EvaluateConfig | None = None,
) -> Sweeper:
    """A sweeper over one set, which is called ``set``."""
    prepared = PreparedSet("set", "0" * 64, windows)
    return Sweeper(models, [prepared], config or EvaluateConfig(), runtime or Runtime())


def jobs(models: dict[str, Path], count: int, members: int) -> list[Job]:
    """So many mixtures, each of so many neighbours in the pool."""
    names = list(models)
    chosen = [[names[(n + k) % len(names)] for k in range(members)] for n in range(count)]
    return [Job(Mixture.uniform(c), str(n), ("set",)) for n, c in enumerate(chosen)]
