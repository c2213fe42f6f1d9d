"""What one device can do, as a yardstick: its data sheet, a large matrix product, a large copy.

Model FLOPs utilisation is meant against the data sheet. Nothing reaches that, so the rate of one large
bfloat16 matrix product of random numbers on the same device, under the same power limit, is told too.
"""

import contextlib
import functools
import time
from collections.abc import Callable

import torch

from tasks.machine.meter import EnergySource

PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
"""Dense bfloat16 FLOP/s by the makers' data sheets; the first name that a device's contains counts."""


def device_name(device: str) -> str:
    """The device as its maker calls it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def peak(device: str) -> float | None:
    """FLOP/s of the data sheet; None for a device that is not listed."""
    return next((rate for name, rate in PEAKS.items() if name in device_name(device)), None)


def wait(device: str) -> None:
    """Until the device has done all that it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: str, repeats: int = 20) -> float:
    """Mean time of a call, after three to warm up."""
    for _ in range(3):
        work()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


@functools.cache
def matrix_rate(device: str) -> float:
    """FLOP/s of a square bfloat16 matrix product."""
    size = 8192 if device.startswith("cuda") else 128
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: one @ other, device)


def copy_rate(device: str, num_bytes: int) -> float:
    """Bytes read and written in a second by a copy on the device."""
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds_of(lambda: target.copy_(source), device)


def joules(source: EnergySource) -> float | None:
    """The counter now; None where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return source.read()
    return None
