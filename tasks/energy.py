"""What a step cost: seconds, tokens, floating-point operations and joules.

Joules are the difference of a counter between the start and the end of a step, and a figure is worth
as much as its counter: the name of the estimator stands beside every number, and figures of
different estimators are never added. A counter that is not there or fails makes a cost less exact,
never a step fail.

A counter sees its whole device, other processes included. NVML's is renewed every 10 to 100 ms, so
whole steps are measured, not single batches.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from pydantic import Field

from storage.fingerprint import Config

POWERCAP = Path("/sys/class/powercap")

# Server processors draw 4 to 8 W per core under load (64 cores at 280 W, 40 at 270 W), desktop ones
# 10 to 16 W (8 cores at 125 W); memory and power conversion come on top. Good to a factor of two.
WATTS_PER_CORE = 10.0

# A package counter holds 65 kJ or more: read every 20 s, it loses no wrap below 3 kW per package.
RAPL_SAMPLE_SECONDS = 20.0


class Cost(Config):
    """What was spent on a step, or on several of the same estimator and device."""

    seconds: float = Field(ge=0)
    """Wall-clock time in seconds."""

    tokens: int = Field(default=0, ge=0)
    """Number of tokens that were trained on or evaluated."""

    flops: float = Field(default=0.0, ge=0)
    """Number of floating-point operations, by formula, a multiply-add counted as two."""

    joules: float | None = Field(default=None, ge=0)
    """Energy in joules by the estimator; None where its counter failed."""

    estimator: str
    """How the joules were found and what they leave out, in words."""

    device: str
    """The device on which the step ran, such as cpu or cuda:0."""


def total(costs: Iterable[Cost]) -> list[Cost]:
    """One sum for each estimator and device, sorted by both.

    The joules of a sum are None where those of a cost are: a sum that left it out would be too low.
    """
    groups: dict[tuple[str, str], list[Cost]] = {}
    for cost in costs:
        groups.setdefault((cost.estimator, cost.device), []).append(cost)
    return [_sum(groups[key]) for key in sorted(groups)]


def _sum(costs: list[Cost]) -> Cost:
    joules = [cost.joules for cost in costs if cost.joules is not None]
    return Cost(
        seconds=math.fsum(cost.seconds for cost in costs),
        tokens=sum(cost.tokens for cost in costs),
        flops=math.fsum(cost.flops for cost in costs),
        joules=math.fsum(joules) if len(joules) == len(costs) else None,
        estimator=costs[0].estimator,
        device=costs[0].device,
    )


class EnergySource(Protocol):
    """A counter of joules; ``sample_seconds`` is how often it must be read at least, if it wraps."""

    name: str
    sample_seconds: float | None

    def read(self) -> float:
        """Joules since some fixed moment; OSError or ValueError if it cannot be read now."""


class NvmlEnergy:
    """The total-energy counter (mJ) of one NVIDIA GPU, found by UUID whatever devices are visible.

    Construction fails without library, driver, device or counter (before Volta; MIG slices).
    """

    sample_seconds: float | None = None

    def __init__(self, device: str) -> None:
        import pynvml
        import torch

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self.name = "NVML total-energy counter, host not counted"
        self.read()

    def read(self) -> float:
        """Joules since the driver was loaded."""
        import pynvml

        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except pynvml.NVMLError as error:
            raise OSError(f"NVML gives no energy: {error}") from error


class RaplEnergy:
    """Energy of all CPU packages by the counters (uJ) in Linux' powercap tree, ``powercap``.

    Only top-level package domains are summed: core and uncore lie within them, psys contains them,
    and few machines count memory. Counters wrap at ``max_energy_range_uj``, and only one wrap between two
    readings can be told: a meter reads them every ``sample_seconds``.

    OSError if no package counter is there or may be read (which often needs root).
    """

    sample_seconds: float | None = RAPL_SAMPLE_SECONDS

    def __init__(self, powercap: Path = POWERCAP) -> None:
        zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _is_package(zone)]
        self._counters = [counter for zone in zones if (counter := _opened(zone))]
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


def _opened(zone: Path) -> _WrappingCounter | None:
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


def energy_source(device: str, powercap: Path = POWERCAP) -> EnergySource:
    """The best counter there is: NVML for a CUDA device, else RAPL, else the estimate.

    A source that does not see ``device`` (an accelerator without counter) says so in its name.
    """
    if device.startswith("cuda"):
        # Whatever fails here (library, driver, device, permission), the step itself can do without.
        with contextlib.suppress(Exception):
            return NvmlEnergy(device)
    source: RaplEnergy | CpuTimeEstimate
    try:
        source = RaplEnergy(powercap)
    except OSError:
        source = CpuTimeEstimate()
    if device != "cpu":
        source.name += f", {device.partition(':')[0]} device not counted"
    return source


class Meter:
    """Measures what the block under ``with`` costs; ``cost`` is there afterwards, also on failure.

    One meter measures one block. It takes well under a millisecond, except for the first on a GPU,
    which loads NVML. It does not wait for a GPU: the block must end with its results on the host.
    ``device`` is text (cpu, cuda:0) or a torch.device; ``source`` by default the best one for it.
    """

    def __init__(self, device: object, source: EnergySource | None = None) -> None:
        self._device = str(device)
        self._source = source or energy_source(self._device)
        self._tokens, self._flops = 0, 0.0
        self._cost: Cost | None = None
        self._done = threading.Event()
        self._sampler: threading.Thread | None = None

    def add(self, tokens: int = 0, flops: float = 0.0) -> None:
        """Count work that the block has done; numbers below zero or not finite raise ValueError."""
        if tokens < 0 or not 0 <= flops < math.inf:
            raise ValueError(
                f"work done is tokens={tokens}, flops={flops}: give finite numbers >= 0"
            )
        self._tokens += tokens
        self._flops += flops

    @property
    def cost(self) -> Cost:
        """What the block has cost; RuntimeError before its end."""
        if self._cost is None:
            raise RuntimeError("the cost is known after the block under `with Meter(...)`")
        return self._cost

    def __enter__(self) -> Self:
        self._start_joules = _read(self._source)
        if self._source.sample_seconds is not None:
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._start
        self._done.set()
        if self._sampler is not None:
            self._sampler.join()
        self._cost = Cost(
            seconds=seconds,
            tokens=self._tokens,
            flops=self._flops,
            joules=_spent(self._start_joules, _read(self._source)),
            estimator=self._source.name,
            device=self._device,
        )

    def _sample(self) -> None:
        while not self._done.wait(self._source.sample_seconds):
            _read(self._source)


def _read(source: EnergySource) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return source.read()
    return None


def _spent(start: float | None, end: float | None) -> float | None:
    # A counter that ran backwards was set to zero (driver reloaded), and what it had is lost.
    return None if start is None or end is None or end < start else end - start


class Attention(NamedTuple):
    """The shape on which the cost of attention depends: width is the number of heads times the size
    of a head, context the number of tokens in a sequence."""

    layers: int
    width: int
    context: int


def forward_flops(
    num_parameters: int, num_tokens: int, attention: Attention | None = None
) -> float:
    """Floating-point operations to evaluate ``num_tokens``: 2*N*D, and 4*layers*width*context*D.

    The first term is section 2.1 of Kaplan et al. 2020 (arXiv 2001.08361), the second, a third of
    12*L*H*Q*T per token, appendix B of the PaLM paper (Chowdhery et al. 2022, arXiv 2204.02311); it
    takes no discount for the causal mask.

    Args:
        num_parameters: those that take part in matrix products: without an embedding table that is
            only looked up, with one that is also the output layer.
        num_tokens: all tokens together, over all sequences and epochs.
        attention: shape of the model; None leaves the second term out.
    """
    scores = 4 * math.prod(attention) if attention else 0
    return float((2 * num_parameters + scores) * num_tokens)


def training_flops(
    num_parameters: int, num_tokens: int, attention: Attention | None = None
) -> float:
    """6*N*D, and 12*layers*width*context*D: ``forward_flops``, and twice that for the way back."""
    return 3 * forward_flops(num_parameters, num_tokens, attention)
