"""Energy counters of a machine: NVML, RAPL, and an estimate where there is neither.

Each is an ``EnergySource`` (see ``tasks.machine.meter``): its ``name`` says what it counts and what
it leaves out, and ``read`` gives joules since some fixed moment. NVML's counter is renewed every 10
to 100 ms; RAPL's counters wrap.
"""

import contextlib
import math
import os
import threading
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")

# Server processors draw 4 to 8 W per core under load (64 cores at 280 W, 40 at 270 W), desktop ones
# 10 to 16 W (8 cores at 125 W); memory and power conversion come on top. Good to a factor of two.
WATTS_PER_CORE = 10.0

# A package counter holds 65 kJ or more: read every 20 s, it loses no wrap below 3 kW per package.
RAPL_SAMPLE_SECONDS = 20.0


def nvml_handle(device: str) -> object:
    """NVML's handle of a torch device; raises whatever library, driver or device raise."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


class NvmlEnergy:
    """The total-energy counters (mJ) of NVIDIA GPUs, separated by commas.

    They are found by UUID, whatever devices are visible.
    Construction fails without library, driver, device or counter (before Volta; MIG slices).
    """

    sample_seconds: float | None = None

    def __init__(self, device: str) -> None:
        self._handles = [nvml_handle(name) for name in device.split(",")]
        self.name = "NVML total-energy counter, host not counted"
        self.read()

    def read(self) -> float:
        """Joules since the driver was loaded."""
        import pynvml

        try:
            read = pynvml.nvmlDeviceGetTotalEnergyConsumption
            return float(sum(read(handle) for handle in self._handles)) / 1e3
        except pynvml.NVMLError as error:
            raise OSError(f"NVML gives no energy: {error}") from error


class RaplEnergy:
    """Energy of all CPU packages by the counters (uJ) in Linux' powercap tree, ``powercap``.

    Only top-level package domains are summed: core and uncore lie within them, psys contains them,
    and few machines count memory. Counters wrap at ``max_energy_range_uj``. Only one wrap between two
    readings can be noticed, so a meter reads them every ``sample_seconds``.

    OSError if no package counter is there or may be read (which often needs root).
    """

    sample_seconds: float | None = RAPL_SAMPLE_SECONDS

    def __init__(self, powercap: Path = POWERCAP) -> None:
        zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _is_package(zone)]
        self._counters = [counter for zone in zones if (counter := _counter_of(zone))]
        if not self._counters:
            raise OSError(f"no package counter can be read in {powercap}")
        self.name = f"RAPL, {len(self._counters)} of {len(zones)} CPU packages"
        self._lock = threading.Lock()

    def read(self) -> float:
        """Joules since construction."""
        with self._lock:
            return sum(counter.advance() for counter in self._counters) / 1e6


class _WrappingCounter:
    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        if self._range < 1:
            raise ValueError(f"{zone} says that its counter wraps at {self._range}")
        self._last = int(self._file.read_text())
        self._counted = 0

    def advance(self) -> int:
        now = int(self._file.read_text())
        self._counted += (now - self._last) % self._range
        self._last = now
        return self._counted


def _is_package(zone: Path) -> bool:
    with contextlib.suppress(OSError):
        return zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")
    return False


def _counter_of(zone: Path) -> _WrappingCounter | None:
    with contextlib.suppress(OSError, ValueError):
        return _WrappingCounter(zone)
    return None


class CpuTimeEstimate:
    """CPU seconds of this process and its finished children, at a fixed power per core."""

    sample_seconds: float | None = None

    def __init__(self) -> None:
        self.name = f"estimate: CPU seconds x {WATTS_PER_CORE:g} W"

    def read(self) -> float:
        """Joules since the process began."""
        return math.fsum(os.times()[:4]) * WATTS_PER_CORE
