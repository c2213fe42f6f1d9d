"""codecarbon's energy grows, comes without network and files, and heeds no settings but ours."""

import builtins
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.machine.codecarbon import CodecarbonEnergy, codecarbon_energy
from tasks.machine.facility import co2e_kg, facility_kwh
from tasks.machine.meter import Meter, energy_source

ROOT = Path(__file__).parents[3]


def burn(seconds: float) -> None:
    """Compute for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.fixture(scope="module")
def source() -> CodecarbonEnergy:
    found = energy_source("cpu", how="codecarbon")
    assert isinstance(found, CodecarbonEnergy)
    return found


def test_a_step_that_computes_costs_energy(source: CodecarbonEnergy) -> None:
    with Meter("cpu", source) as meter:
        burn(0.3)
    assert meter.cost.joules is not None
    assert meter.cost.joules / meter.cost.seconds > 1  # W: a core and its memory
    assert meter.cost.estimator == source.name
    assert source.name.startswith("codecarbon 3.")


def test_readings_never_fall_whoever_reads(source: CodecarbonEnergy) -> None:
    found: dict[int, list[float]] = {}

    def read(number: int) -> None:
        for _ in range(4):
            found.setdefault(number, []).append(source.read())
            burn(0.03)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for readings in found.values():
        assert readings == sorted(readings)
        assert readings[-1] > readings[0]


def test_there_is_one_source_for_a_device(source: CodecarbonEnergy) -> None:
    assert energy_source("cpu", how="codecarbon") is source is codecarbon_energy("cpu")


def test_the_name_says_how_codecarbon_measures(source: CodecarbonEnergy) -> None:
    parts = {type(hardware).__name__: hardware for hardware in source._tracker._hardware}
    assert {*parts} >= {"CPU", "RAM"}
    told = {"intel_rapl": "by RAPL", "cpu_load": "guessed from load"}
    how = told.get(parts["CPU"]._mode, "guessed from its model")
    assert f"CPU {how}" in source.name
    assert "memory guessed from size" in source.name


def test_a_gpu_that_is_not_there_is_said_not_to_be_counted() -> None:
    assert energy_source("cuda:99", how="codecarbon").name.endswith(", cuda device not counted")


def test_a_measurement_that_fails_leaves_joules_open() -> None:
    broken = CodecarbonEnergy("cpu")
    broken._tracker.stop()  # from now on it tells nobody anything
    with Meter("cpu", broken) as meter:
        pass
    assert meter.cost.joules is None


APART = """
import json, sys, time
asked = []
def hear(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        asked.append(f"{event} {args[1:]}")
sys.addaudithook(hear)
from tasks.machine.codecarbon import CodecarbonEnergy
source = CodecarbonEnergy("cpu")
start = source.read()
end = time.perf_counter() + 0.2
while time.perf_counter() < end:
    pass
used = source.read() - start
print(json.dumps([asked, source.name, used, source._tracker._pue, source._tracker.stop()]))
"""
"""codecarbon swallows its errors, so what it asks of the network is listened to, not refused."""


def apart(folder: Path, **variables: str) -> Any:
    """Measure in a process whose sockets are watched, in a folder of its own."""
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(folder), **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", APART],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_nothing_from_outside_gets_in_and_nothing_gets_out(tmp_path: Path) -> None:
    # What would double the energy, write files, look up a country and tell the world.
    (tmp_path / ".codecarbon.config").write_text(
        "[codecarbon]\npue = 2\noutput_methods = csv,api,logger\nlog_level = debug\n"
        "electricitymaps_api_token = x\nemissions_endpoint = http://localhost:1\n"
        "country_iso_code = FRA\nforce_ram_power = 100000\n"
    )
    asked, name, joules, effectiveness, emissions = apart(tmp_path, CODECARBON_PUE="3")
    assert asked == []
    assert name.startswith("codecarbon ")
    assert 0 < joules < 1000
    assert (effectiveness, emissions) == (1, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".codecarbon.config"]


def test_kilowatt_hours_and_kilograms() -> None:
    assert facility_kwh(3.6e6, 1) == 1
    assert facility_kwh(7.2e6, 1.5) == 3
    assert co2e_kg(3, 400) == 1.2


def test_without_the_package_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def lacking(name: str, *args: Any, **options: Any) -> Any:
        if name == "codecarbon":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(ValueError, match=r"pip install 'mixpool\[codecarbon\]', or set energy"):
        CodecarbonEnergy("cpu")
