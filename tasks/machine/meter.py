"""What a step costs: seconds, tokens, floating-point operations and joules.

Joules are the difference of a counter between the start and the end of a step. A figure is worth as
much as its counter: the name of the estimator stands beside every number, and figures of different
estimators are never added. A counter that is missing or fails makes a cost less exact; it never
makes a step fail.

A counter counts its whole device, other processes included, so whole steps are measured, not single
batches. The counters are in ``tasks.machine.counters``.
"""

import contextlib
import math
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol, Self

from pydantic import Field

from storage.fingerprint import Config
from tasks.machine.codecarbon import codecarbon_energy
from tasks.machine.counters import POWERCAP, CpuTimeEstimate, NvmlEnergy, RaplEnergy


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


def energy_source(
    device: str, powercap: Path = POWERCAP, how: Literal["auto", "codecarbon"] = "auto"
) -> EnergySource:
    """The best counter there is: NVML for a CUDA device, else RAPL, else the estimate.

    A source that does not see ``device`` (an accelerator without counter) says so in its name.
    ``how`` may ask codecarbon instead; ValueError where that is not installed.
    """
    if how == "codecarbon":
        return codecarbon_energy(device)
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
        self._start_joules = _joules(self._source)
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
            joules=_spent(self._start_joules, _joules(self._source)),
            estimator=self._source.name,
            device=self._device,
        )

    def _sample(self) -> None:
        while not self._done.wait(self._source.sample_seconds):
            _joules(self._source)


def _joules(source: EnergySource) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return source.read()
    return None


def _spent(start: float | None, end: float | None) -> float | None:
    # A counter that ran backwards was set to zero (driver reloaded), and what it had is lost.
    return None if start is None or end is None or end < start else end - start
