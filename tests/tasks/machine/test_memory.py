"""Freed memory stays with the process inside the block only."""

import ctypes
import resource
from pathlib import Path

import numpy as np
import pytest

from tasks.machine.memory import kept_heap

BLOCK = 64 << 20
PAGES = BLOCK // resource.getpagesize()

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)


@pytest.fixture(autouse=True)
def nothing_is_free() -> None:
    """What tests before this one have freed is the system's, or a block would lie in it."""
    ctypes.CDLL(None).malloc_trim(0)


def faults(times: int) -> int:
    """Page faults while a block is filled and freed so many times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.empty(BLOCK, dtype=np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_pages_are_touched_once_inside_the_block_and_each_time_outside() -> None:
    before = resident()
    with kept_heap("cpu"):
        faults(1)
        assert faults(4) < PAGES / 10
        assert resident() - before > BLOCK / 2
    assert resident() - before < BLOCK / 2
    assert faults(4) > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072"),
    ],
)
def test_thresholds_that_somebody_chose_stay(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    before = resident()
    with kept_heap("cpu"):
        faults(1)
        assert resident() - before < BLOCK / 2


def fail() -> None:
    with kept_heap("cpu"):
        faults(1)
        raise RuntimeError("no")


def test_given_back_also_after_a_failure() -> None:
    with kept_heap("cpu"):
        faults(1)
    before = resident()
    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert resident() - before < BLOCK / 2
