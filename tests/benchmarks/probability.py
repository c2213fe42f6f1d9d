"""Ranking every mixture of 20 partitions by averaged probabilities, against the product and logarithms alone.

``PROBABILITY_BITS`` (default 16) says how many of the 2^20 mixtures: those of the first so many partitions,
each with weights over all 20 models. 25,000 scored tokens in 250 groups of documents, random nats. The floor
multiplies the same matrices, tile by tile, and takes the logarithms: no sums by group, no means, no best. A
second ratio is the highest memory for all of them against that for a quarter of them.
"""

import os
import time
from collections.abc import Callable, Iterator

import numpy as np

from tasks.arrays import Floats
from tasks.evaluation.probability import MIXTURES, TOKENS, TokenProbabilities
from tasks.evaluation.window import Windows
from tests.benchmarks.measure import Ratio, compare, peak_growth, ratio_of

BITS = int(os.environ.get("PROBABILITY_BITS", "16"))
MODELS, SCORED, GROUPS, BEST = 20, 25_000, 250, 10


def measure(repeats: int, bits: int = BITS, scored: int = SCORED) -> list[Ratio | str]:
    """All mixtures of the first ``bits`` partitions, on ``scored`` tokens."""
    windows, nats = _text(scored)
    mixed = TokenProbabilities([*nats], windows)
    tiles = np.split(np.exp(-nats).T, range(TOKENS, scored, TOKENS))

    def ours(number: int = bits) -> tuple[np.ndarray, Floats]:
        best, losses = np.zeros(0, np.int64), np.zeros(0)
        for start, weights in _blocks(number):
            found = mixed.sums(weights).sum(axis=1) / scored
            losses = np.concatenate([losses, found])
            best = np.concatenate([best, np.arange(start, start + len(found))])
            order = np.argsort(losses, kind="stable")[:BEST]
            best, losses = best[order], losses[order]
        return best, losses

    def floor() -> None:
        for _, weights in _blocks(bits):
            shares = np.ascontiguousarray(weights.T, dtype=np.float32)
            room = np.empty((TOKENS, len(weights)), np.float32)
            for tile in tiles:
                product = room[: len(tile)]
                np.matmul(tile, shares, out=product)
                np.log(product, out=product)

    what = f"ranking 2^{bits} mixtures of {MODELS} models on {scored:,} tokens by probabilities"
    against = "the product and logarithms"
    wall = compare(what, against, ours, floor, min(repeats, 3), "<= 1.50")
    pairs = [(_cpu_seconds(ours), _cpu_seconds(floor)) for _ in range(min(repeats, 3))]
    cpu = ratio_of("CPU seconds of the same", against, pairs, "<= 1.50")
    sizes = [(peak_growth(lambda n=n: ours(n))) for n in (bits, bits - 2)]  # type: ignore[misc]
    memory = ratio_of(
        f"highest memory, 2^{bits}", f"2^{bits - 2}", [(sizes[0], sizes[1])], "<= 1.10", "bytes"
    )
    best, losses = ours()
    weights = next(_blocks(bits, int(best[0]), 1))[1][0]
    check = -np.log(weights @ np.exp(-nats.astype(np.float64))).mean()
    return [
        wall,
        cpu,
        memory,
        f"The best has {losses[0]:.6f} nats per token; in float64 {check:.6f}.",
    ]


def _cpu_seconds(work: Callable[[], object]) -> float:
    """What others do on the machine shows less in it than in wall time."""
    start = time.process_time()
    work()
    return time.process_time() - start


def _text(scored: int) -> tuple[Windows, np.ndarray]:
    generator = np.random.default_rng(0)
    group = np.sort(generator.integers(0, GROUPS, scored)).astype(np.int32)
    counts, ones = np.bincount(group, minlength=GROUPS), np.ones(scored, np.int32)
    none = np.zeros((scored, 1), np.int32)
    windows = Windows(none, none, 0 * ones, ones, group, counts, counts, counts)
    # Models of one base: they differ less than tokens do.
    common = generator.exponential(3, scored)
    nats = np.abs(common + generator.normal(0, 0.5, (MODELS, scored))).astype(np.float32)
    return windows, nats


def _blocks(bits: int, first: int = 0, most: int = MIXTURES) -> Iterator[tuple[int, Floats]]:
    """Uniform mixtures by number, whose binary digits are the members; number 0 is of all models."""
    for start in range(first, 1 << bits, most):
        numbers = np.arange(start, min(start + most, 1 << bits))
        holds = ((numbers[:, None] >> np.arange(MODELS)) & 1).astype(float)
        holds[numbers == 0] = 1
        yield start, holds / holds.sum(axis=1, keepdims=True)
