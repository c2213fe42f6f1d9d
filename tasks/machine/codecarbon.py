"""Energy as the package codecarbon measures or estimates it.

codecarbon is asked for energy alone, with a PUE of 1 and without looking up a country, so that it
needs no network; ``tasks.machine.facility`` does the rest. Where a machine has no counters,
codecarbon guesses from load and size, and the name of the source says so.
"""

import contextlib
import functools
import logging
import threading
from typing import Any

from tasks.machine.counters import nvml_handle
from tasks.machine.facility import JOULES_PER_KWH

SAMPLE_SECONDS = 1.0

_NEVER = 1e9  # s: its own thread measures beside ours, and both would count the same time


class CodecarbonEnergy:
    """Energy of this process and of one GPU by codecarbon: its counters, or its guesses.

    It is read once a second while a meter runs. Two readings within 50 ms are the same to it, so a
    shorter step reads 0 J.

    Raises:
        ValueError: codecarbon is not installed.
    """

    sample_seconds: float | None = SAMPLE_SECONDS

    def __init__(self, device: str) -> None:
        gpus = _gpus(device)
        self._last, self._lock = _Last(), threading.Lock()
        self._tracker = _tracker(gpus, self._last)
        self._tracker.start()
        self.name = _name(self._tracker, counted=bool(gpus) or device == "cpu", device=device)

    def read(self) -> float:
        """Joules since construction. OSError where codecarbon could not measure."""
        with self._lock:
            self._last.kwh = None
            self._tracker.flush()
            if self._last.kwh is None:
                raise OSError("codecarbon could not measure")
            return self._last.kwh * JOULES_PER_KWH


@functools.cache
def codecarbon_energy(device: str) -> CodecarbonEnergy:
    """The one source for a device in this process: each keeps threads. ValueError as above."""
    return CodecarbonEnergy(device)


class _Last:
    """An output handler of codecarbon: keeps the last energy that it is given."""

    kwh: float | None = None

    def out(self, total: Any, delta: Any) -> None:
        """Keep the energy of all time, in kWh."""
        del delta
        self.kwh = float(total.energy_consumed)

    def exit(self) -> None:
        """Nothing is to be closed."""


def _tracker(gpus: list[int], output: _Last) -> Any:
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError as error:
        raise ValueError(
            "energy is 'codecarbon', and that package is not installed: "
            "pip install 'mixpool[codecarbon]', or set energy to 'auto'"
        ) from error
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before log_level holds
    # Whatever is not given here it takes from its own files and variables, where it may be anything.
    return OfflineEmissionsTracker(
        measure_power_secs=_NEVER,
        api_call_interval=-1,
        output_methods=[],
        output_handlers=[output],
        emissions_endpoint=None,
        output_dir=".",
        gpu_ids=gpus,
        tracking_mode="process",
        log_level="critical",
        logger_preamble="",
        pue=1.0,
        wue=0.0,
        force_carbon_intensity_g_co2e_kwh=0.0,
        force_cpu_power=None,
        force_ram_power=None,
        force_mode_cpu_load=False,
        electricitymaps_api_token=None,
        country_iso_code=None,
        country_2letter_iso_code=None,
        region=None,
        cloud_provider=None,
        cloud_region=None,
        allow_multiple_runs=True,
        rapl_include_dram=False,
        rapl_prefer_psys=False,
    )


def _gpus(device: str) -> list[int]:
    """Number of the GPU in NVML's order; none where it cannot be found."""
    if device.startswith("cuda"):
        with contextlib.suppress(Exception):
            import pynvml

            return [int(pynvml.nvmlDeviceGetIndex(nvml_handle(name))) for name in device.split(",")]
    return []


def _name(tracker: Any, *, counted: bool, device: str) -> str:
    from codecarbon import __version__

    how = [_method(hardware) for hardware in tracker._hardware] or ["finds nothing to measure"]
    if not counted:
        how.append(f"{device.partition(':')[0]} device not counted")
    return f"codecarbon {__version__}: {', '.join(how)}"


def _method(hardware: Any) -> str:
    # Private like the list, checked with codecarbon 3.3: how it measures, its public facts do not say.
    kind, mode = type(hardware).__name__, getattr(hardware, "_mode", "")
    if kind == "CPU" and mode == "intel_rapl":
        return "CPU by RAPL"
    if kind == "CPU":
        return f"CPU guessed from {'load' if mode == 'cpu_load' else 'its model'}"
    return {"RAM": "memory guessed from size", "GPU": "GPU by NVML"}.get(kind, kind)
