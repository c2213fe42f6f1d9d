"""Joules are differences of counters, wraps included; a missing counter never stops a step."""

import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.machine.counters import WATTS_PER_CORE, CpuTimeEstimate, RaplEnergy
from tasks.machine.flops import Attention, forward_flops, training_flops
from tasks.machine.meter import Cost, Meter, energy_source, total

RANGE = 262_143_328_850


def zone(powercap: Path, folder: str, name: str, microjoules: int, wraps_at: int = RANGE) -> Path:
    """One zone of a powercap tree, as Linux lays it out; returns its counter."""
    (powercap / folder).mkdir(parents=True)
    (powercap / folder / "name").write_text(f"{name}\n")
    (powercap / folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    (powercap / folder / "energy_uj").write_text(f"{microjoules}\n")
    return powercap / folder / "energy_uj"


class Ticks:
    """A counter that gains one joule per reading, and tells when it was read often enough."""

    name = "ticks"

    def __init__(self, sample_seconds: float | None = None, enough: int = 5) -> None:
        self.sample_seconds = sample_seconds
        self.enough = enough
        self.read_enough = threading.Event()
        self.joules = 0

    def read(self) -> float:
        self.joules += 1
        if self.joules >= self.enough:
            self.read_enough.set()
        return float(self.joules)


class Broken:
    """A counter that answers so many times, then fails."""

    name = "broken"
    sample_seconds: float | None = None

    def __init__(self, answers: int) -> None:
        self.answers = answers

    def read(self) -> float:
        self.answers -= 1
        if self.answers < 0:
            raise OSError("the counter is gone")
        return float(self.answers)


def test_only_package_domains_are_summed(tmp_path: Path) -> None:
    counted = [
        zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000),
    ]
    others = [
        zone(tmp_path, "intel-rapl:2", "psys", 0),
        zone(tmp_path, "intel-rapl:0:0", "core", 0),
        zone(tmp_path, "intel-rapl:0:1", "dram", 0),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    source = RaplEnergy(tmp_path)
    with Meter("cpu", source) as meter:
        counted[0].write_text("4000000\n")
        counted[1].write_text("5500000\n")
        for other in others:
            other.write_text("900000000\n")
    assert meter.cost.joules == 3.5
    assert meter.cost.estimator == "RAPL, 2 of 2 CPU packages"


@given(
    st.integers(1, RANGE), st.integers(0, RANGE - 1), st.lists(st.integers(0, RANGE), max_size=9)
)
def test_a_counter_that_wraps_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, wraps_at: int, start: int, spent: list[int]
) -> None:
    powercap = tmp_path_factory.mktemp("powercap")
    now = start % wraps_at
    counter = zone(powercap, "intel-rapl:0", "package-0", now, wraps_at)
    source = RaplEnergy(powercap)
    used = 0
    for step in spent:
        used += step % wraps_at
        counter.write_text(str((now + used) % wraps_at))
        assert source.read() == used / 1e6


def test_a_counter_that_wraps_is_read_during_the_step() -> None:
    source = Ticks(sample_seconds=0.001)
    with Meter("cpu", source):
        assert source.read_enough.wait(10)
    at_end = source.joules
    time.sleep(0.02)
    assert source.joules == at_end


def test_rapl_has_an_interval_in_which_no_counter_wraps_twice(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    seconds = RaplEnergy(tmp_path).sample_seconds
    assert seconds is not None
    assert 65_000 / seconds > 1_000  # W per package, with the smallest counters in use


def test_a_package_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    zone(tmp_path, "intel-rapl:1", "package-1", 0).unlink()
    assert RaplEnergy(tmp_path).name == "RAPL, 1 of 2 CPU packages"


@pytest.mark.parametrize(("content", "wraps_at"), [("not a number", RANGE), ("0", 0)])
def test_without_a_usable_counter_the_estimate_takes_over(
    tmp_path: Path, content: str, wraps_at: int
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0, wraps_at).write_text(content)
    assert energy_source("cpu", tmp_path).name == "estimate: CPU seconds x 10 W"
    assert energy_source("cpu", tmp_path / "absent").name == "estimate: CPU seconds x 10 W"
    with pytest.raises(OSError, match="no package counter"):
        RaplEnergy(tmp_path)


def test_rapl_is_preferred_to_the_estimate(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    assert energy_source("cpu", tmp_path).name == "RAPL, 1 of 1 CPU packages"
    assert energy_source("mps", tmp_path).name == (
        "RAPL, 1 of 1 CPU packages, mps device not counted"
    )


def test_a_gpu_that_is_not_there_stops_nothing() -> None:
    with Meter("cuda:99") as meter:
        meter.add(tokens=1)
    assert meter.cost.estimator.endswith(", cuda device not counted")
    assert meter.cost.device == "cuda:99"


def test_a_gpu_is_measured_by_its_counter() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    with Meter("cuda:0") as meter:
        square = torch.ones(4096, 4096, device="cuda:0")
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            (square @ square).sum().item()
    assert meter.cost.estimator == "NVML total-energy counter, host not counted"
    assert meter.cost.joules is not None
    assert 10 < meter.cost.joules / meter.cost.seconds < 2_000


def test_the_estimate_grows_with_cpu_time() -> None:
    source = CpuTimeEstimate()
    begin, joules = time.process_time(), source.read()
    while time.process_time() < begin + 0.1:
        math.factorial(200)
    # The kernel counts process times in ticks of 10 ms.
    spent = time.process_time() - begin
    assert source.read() - joules == pytest.approx(spent * WATTS_PER_CORE, abs=0.5)


@pytest.mark.parametrize("answers", [0, 1])
def test_a_counter_that_fails_leaves_joules_open(answers: int) -> None:
    with Meter("cpu", Broken(answers)) as meter:
        meter.add(tokens=3)
    assert meter.cost.joules is None
    assert (meter.cost.tokens, meter.cost.estimator) == (3, "broken")


def test_a_counter_set_back_leaves_joules_open() -> None:
    with Meter("cpu", Broken(2)) as meter:
        pass
    assert meter.cost.joules is None


def test_a_meter_adds_up_work_and_time() -> None:
    with Meter("cpu", Ticks()) as meter:
        meter.add(tokens=5, flops=1e9)
        meter.add(tokens=2)
        time.sleep(0.05)
    assert 0.05 <= meter.cost.seconds < 5
    assert (meter.cost.tokens, meter.cost.flops, meter.cost.joules) == (7, 1e9, 1.0)


def test_a_step_that_fails_has_its_cost() -> None:
    meter = Meter("cpu", Ticks())
    with pytest.raises(KeyError), meter:
        raise KeyError("step")
    assert meter.cost.joules == 1.0


def test_a_meter_refuses_what_it_cannot_know() -> None:
    meter = Meter("cpu", Ticks())
    with pytest.raises(RuntimeError, match="after the block"):
        _ = meter.cost
    for tokens, flops in [(-1, 0.0), (0, -1.0), (0, math.nan), (0, math.inf)]:
        with pytest.raises(ValueError, match="give finite numbers >= 0"):
            meter.add(tokens=tokens, flops=flops)


def test_a_meter_takes_less_than_a_millisecond(tmp_path: Path) -> None:
    for package in range(2):
        zone(tmp_path, f"intel-rapl:{package}", f"package-{package}", 0)
    fastest = math.inf
    for _ in range(200):
        begin = time.perf_counter()
        with Meter("cpu", RaplEnergy(tmp_path)):
            pass
        fastest = min(fastest, time.perf_counter() - begin)
    assert fastest < 1e-3


def cost(estimator: str, device: str = "cpu", joules: float | None = 1.0) -> Cost:
    return Cost(
        seconds=0.25, tokens=2, flops=3.0, joules=joules, estimator=estimator, device=device
    )


def test_costs_of_different_estimators_are_never_added() -> None:
    costs = [cost("b"), cost("a", "cuda:0"), cost("b"), cost("a"), cost("b")]
    assert total(costs) == [
        cost("a"),
        cost("a", "cuda:0"),
        Cost(seconds=0.75, tokens=6, flops=9.0, joules=3.0, estimator="b", device="cpu"),
    ]
    assert total([]) == []


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    assert [sum_.joules for sum_ in total([cost("a"), cost("a", joules=None)])] == [None]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.floats(0, 1e9))))
def test_totals_lose_nothing_and_forget_the_order(rows: list[tuple[str, str, float]]) -> None:
    costs = [cost(*row) for row in rows]
    for found in total(costs):
        mine = [
            j
            for estimator, device, j in rows
            if (estimator, device) == (found.estimator, found.device)
        ]
        assert found.joules == math.fsum(mine)
    assert total(costs) == total(reversed(costs))
    assert sum(found.tokens for found in total(costs)) == 2 * len(rows)


def test_negative_costs_are_refused() -> None:
    with pytest.raises(ValidationError):
        Cost(seconds=-1.0, estimator="a", device="cpu")


def test_operations_by_formula() -> None:
    shape = Attention(layers=12, width=768, context=2048)
    assert forward_flops(10**6, 10) == 2 * 10**7
    assert training_flops(10**6, 10) == 6 * 10**7
    assert forward_flops(10**6, 10, shape) == 2 * 10**7 + 10 * 4 * 12 * 768 * 2048
    # PaLM, appendix B: 6*N + 12*L*H*Q*T per token, H = 48 heads of Q = 256, 118 layers, T = 2048.
    palm = Attention(layers=118, width=48 * 256, context=2048)
    assert training_flops(540_350_000_000, 1, palm) == 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048


def test_nothing_heavy_is_imported_for_a_cpu_meter() -> None:
    program = (
        "import sys\nfrom tasks.machine.meter import Meter\nwith Meter('cpu'): pass\n"
        "print(sorted({'torch', 'pynvml', 'numpy', 'codecarbon'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
