"""Stop glibc from returning freed memory to the kernel between steps, which slows CPU training.

glibc returns large blocks to the kernel as soon as they are free, and the kernel fills every page
with zeros when it is touched again. A training or a sweep on the CPU allocates the same activations
again and again: that took a fifth of a training's time at 30M parameters. Two thresholds of glibc's
allocator prevent it; results are the same bit by bit. The peak of resident memory rises by the gaps
between blocks (by a quarter, at 30M parameters). Other allocators and systems are left as they are,
and so is glibc where the environment sets its thresholds.
"""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3

KEEP = {TRIM_THRESHOLD: (1 << 31) - 1, MMAP_THRESHOLD: 1 << 30}
"""Bytes: nothing is given back, and only blocks above 1 GiB are mapped on their own."""

USUAL = {TRIM_THRESHOLD: 1 << 26, MMAP_THRESHOLD: 1 << 25}
"""Bytes: where glibc's own moving thresholds end once a block of 32 MiB was freed."""


@contextlib.contextmanager
def kept_heap(device: str) -> Iterator[None]:
    """Keep freed memory while the block computes on the device; give it back at its end."""
    if device != "cpu" or _are_chosen():
        yield
        return
    libc = ctypes.CDLL(None)
    _set(libc, KEEP)
    try:
        yield
    finally:
        _set(libc, USUAL)
        _call(libc, "malloc_trim", 0)


def _are_chosen() -> bool:
    variables = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return not variables.isdisjoint(os.environ) or "glibc.malloc." in tunables


def _set(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        _call(libc, "mallopt", option, value)


def _call(libc: ctypes.CDLL, name: str, *arguments: int) -> None:
    function: Callable[..., int] | None = getattr(libc, name, None)
    if function is not None:
        function(*arguments)


def free_memory() -> None:
    """Give back what torch keeps on a GPU for its next use; others may want it meanwhile."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None:
        torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch, or Python, could not get the memory that it asked for."""
    import torch

    # On a CPU torch has no class for it; the text is checked with torch 2.13.
    has_class = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return has_class or "can't allocate memory" in str(error)
