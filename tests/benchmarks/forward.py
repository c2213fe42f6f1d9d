"""The forward pass with loss against ``model(input_ids, labels=...)`` of transformers.

Transformers is given its best batch size, found first, and the same windows in the same order. Once
the windows are full and each token is scored; once they are documents of differing lengths, cut as
evaluation sets are, where transformers pads a batch with tokens that do not count. Peak memory is
what one pass adds to the process; `forward_memory` measures it alone, in seconds, at the batch size
that was best for transformers on two cores.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tasks.evaluation.forward import Scorer, default_batch, token_batches
from tasks.evaluation.onednn import has_onednn
from tasks.evaluation.window import Windows, load_windows
from tasks.models.folder import load_model
from tests.benchmarks.material import M8, M30, Size, base_model, full_windows, ragged_windows
from tests.benchmarks.measure import Ratio, compare, peak_growth, ratio_of, seconds

TOKENS = 8_192
WINDOWS_IN_A_BATCH = (1, 2, 4, 16)


def measure(repeats: int) -> list[Ratio | str]:
    """Time and memory at 8M and 30M parameters, both with a vocabulary of 32,000."""
    found: list[Ratio | str] = []
    for size in (M8, M30):
        with tempfile.TemporaryDirectory() as name:
            model = base_model(size, Path(name, "model"))
            for kind, make in (("full", full_windows), ("ragged", ragged_windows)):
                windows = load_windows(
                    make(size.vocabulary, size.context, TOKENS, Path(name, kind))
                )
                found += _both(size, model, windows, kind, repeats)
    return found


def _both(size: Size, folder: Path, windows: Windows, kind: str, repeats: int) -> list[Ratio]:
    model = load_model(folder)
    ours = our_pass(load_model(folder), windows)
    best = min(WINDOWS_IN_A_BATCH, key=lambda count: _fastest(their_pass(model, windows, count)))
    theirs = their_pass(model, windows, best)
    if abs(ours() / theirs() - 1) > 1e-5:
        raise AssertionError(f"losses differ: {ours()} and {theirs()} nats")
    what = f"forward with loss, {size.name} parameters, {kind} windows"
    against = f"transformers with labels, {best} windows in a batch (its best)"
    plain = our_pass(load_model(folder), windows, onednn=False)
    return [
        compare(what, against, ours, theirs, repeats, "<= 0.77"),
        compare(what, "the same by MKL instead of oneDNN", ours, plain, repeats),
        memory(what, against, ours, theirs),
    ]


def our_pass(model: Any, windows: Windows, *, onednn: bool = True) -> Callable[[], float]:
    """Nats of all scored tokens, as a sweep computes them, by oneDNN where there is one and we may."""
    score = Scorer(model, onednn=onednn and has_onednn())
    ready = token_batches(windows, default_batch("cpu"), "cpu")
    score.expect(ready)

    def run() -> float:
        with torch.inference_mode():
            return float(sum(score(batch).double().sum() for batch in ready))

    return run


def their_pass(model: Any, windows: Windows, count: int) -> Callable[[], float]:
    """The same by transformers, so many windows in a batch."""
    given = _labelled(windows, count)

    def run() -> float:
        with torch.inference_mode():
            return sum(
                float(model(input_ids=ids, labels=labels, use_cache=False).loss.double()) * n
                for ids, labels, n in given
            )

    return run


def memory(
    what: str, against: str, ours: Callable[[], object], theirs: Callable[[], object]
) -> Ratio:
    """Bytes that one pass adds to the process."""
    grown = [(float(peak_growth(ours)), float(peak_growth(theirs))) for _ in range(3)]
    return ratio_of(f"{what}: peak memory", against, grown, "< 0.33", "bytes")


def _fastest(work: Callable[[], object]) -> float:
    return min(seconds(work) for _ in range(2))


def _labelled(windows: Windows, count: int) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Token ids, labels (-100 where nothing is scored) and number of scored tokens of each batch."""
    order = windows.length.argsort(kind="stable")
    found = []
    for start in range(0, len(order), count):
        rows = order[start : start + count]
        longest = int(windows.length[rows].max())
        ids = torch.zeros(len(rows), longest + 1, dtype=torch.int64)
        labels = torch.full_like(ids, -100)
        for n, row in enumerate(rows):
            first, length = int(windows.first[row]), int(windows.length[row])
            ids[n, :length] = torch.from_numpy(windows.inputs[row, :length].astype("int64"))
            ids[n, length] = int(windows.targets[row, length - 1])
            labels[n, first + 1 : length + 1] = ids[n, first + 1 : length + 1]
        # Transformers drops the last position's logits, so ids carry one token more.
        scored = int((labels[:, 1:] != -100).sum())
        found.append((ids, labels, scored))
    return found
