"""Merging k models against the bytes that must be moved, at the bandwidth of a plain copy.

A merge reads k models and writes one; a copy of n bytes reads n and writes n. So the floor of k
models of m bytes is a copy of (k + 1) * m / 2 bytes, by the same threads in the same run. Peak memory
is what loading the pool and one merge add to the process: at most the pool and two models where the
pool is resident, at most three models where it is read from its files. Sums are kept in float64; compiled
is what ``runtime.compile`` asks for, to the same bits.
"""

import shutil
import tempfile
from pathlib import Path

import torch

from tasks.merging.pool import MergedModel, Pool
from tasks.mixtures.mixture import Mixture
from tests.benchmarks.material import M30, base_model, random_pool
from tests.benchmarks.measure import Ratio, compare, peak_growth, ratio_of

MEMBERS = 16


def measure(repeats: int) -> list[Ratio | str]:
    """Merges of 2, 4, 8 and 16 of 16 models of 29M parameters."""
    with tempfile.TemporaryDirectory() as name:
        models = random_pool(base_model(M30, Path(name, "base")), MEMBERS, Path(name))
        Pool({"first": models["model-00"]}, "cpu")  # what is imported once does not count
        return [
            *(_memory(models, place, repeats) for place in ("device", "files")),
            *_times(models, repeats, compiled=False),
            *(_times(models, repeats, compiled=True) if shutil.which("c++") else ()),
        ]


def _times(models: dict[str, Path], repeats: int, *, compiled: bool) -> list[Ratio]:
    pool = Pool(models, "cpu", compiled=compiled)
    how = "compiled" if compiled else "torch as it is"
    target, source = torch.empty(pool.size), torch.randn(pool.size)

    def merge(members: int) -> None:
        mixture = Mixture.uniform(list(models)[:members])
        pool.merge_into(target, mixture, torch.float64)

    def copy(members: int) -> None:
        for _ in range((members + 1) // 2):
            target.copy_(source)
        if (members + 1) % 2:
            half = pool.size // 2
            target[:half].copy_(source[:half])

    return [
        compare(
            f"merge of {k} models of {pool.size / 1e6:.0f}M weights, {how}",
            "a copy that moves the same bytes",
            lambda k=k: merge(k),  # type: ignore[misc]
            lambda k=k: copy(k),  # type: ignore[misc]
            repeats,
            "<= 1.3" if compiled else "",
        )
        for k in (2, 4, 8, 16)
    ]


def _memory(models: dict[str, Path], place: str, repeats: int) -> Ratio:
    mixture = Mixture.uniform(list(models))
    sizes: list[int] = []

    def load_and_merge() -> None:
        pool = Pool(models, "cpu", None if place == "device" else 0)
        assert pool.place == place
        merged = MergedModel(pool)
        pool.merge_into(merged.flat, mixture, torch.float64)
        sizes.append(4 * pool.size)

    grown = [peak_growth(load_and_merge) for _ in range(min(repeats, 3))]
    models_held = len(models) + 2 if place == "device" else 3
    what = (
        f"peak memory of a pool of {len(models)}, {'resident' if place == 'device' else 'in files'}"
    )
    pairs = [(float(g), float(models_held * sizes[0])) for g in grown]
    return ratio_of(what, f"{models_held} models", pairs, "<= 1.0", "bytes")
