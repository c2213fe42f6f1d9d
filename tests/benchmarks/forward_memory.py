"""Peak memory of a forward pass with loss, ours and transformers', without a search for its best batch."""

import tempfile
from pathlib import Path

from tasks.evaluation.window import load_windows
from tasks.models.folder import load_model
from tests.benchmarks.forward import TOKENS, memory, our_pass, their_pass
from tests.benchmarks.material import M8, M30, base_model, full_windows
from tests.benchmarks.measure import Ratio

WINDOWS = 4
"""In a batch of transformers: its best on two cores, as `forward` finds."""


def measure(repeats: int) -> list[Ratio | str]:
    """Bytes that one pass adds to the process, at a vocabulary of 32,000."""
    del repeats  # the kernel's own mark is exact
    found: list[Ratio | str] = []
    for size in (M8, M30):
        with tempfile.TemporaryDirectory() as name:
            model = base_model(size, Path(name, "model"))
            folder = full_windows(size.vocabulary, size.context, TOKENS // 2, Path(name, "windows"))
            windows = load_windows(folder)
            ours = our_pass(load_model(model), windows)
            theirs = their_pass(load_model(model), windows, WINDOWS)
            what = f"forward with loss, {size.name} parameters, full windows"
            found.append(memory(what, f"transformers, {WINDOWS} windows in a batch", ours, theirs))
    return found
