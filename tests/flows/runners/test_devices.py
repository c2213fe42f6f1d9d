"""Work in the process of a device is the same work, and whatever happens to it stays there.

The processes, the models and the signals are real. One store and two processes on the CPU serve the
tests that leave them alive.
"""

import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError

from flows.chain.work import SweepPlan, SweepWork
from flows.runners.chunks import ResidentSweeper, run_chunk
from flows.runners.devices import Device, Devices
from flows.runners.process import DeviceChild, DeviceProcess, DeviceProcessError
from flows.runners.stopping import Stopped, TimeLimitError
from flows.runners.worker import Failed, Order, Worker
from storage.artifact import Artifact, CorruptError
from storage.cache import OutOfSpaceError, build, deposit, lookup
from storage.garbage import live_work
from storage.lease import Busy
from storage.step import Call, Handle, Progress, Runtime
from storage.store import CorruptArtifactError, Store
from tasks.evaluation.losses import LossRows
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.machine.meter import Meter
from tasks.mixtures.mixture import Mixture
from tasks.training.config import TrainConfig
from tasks.training.divergence import TrainingError
from tasks.training.train import TRAIN

pytest_plugins = ["tests.tasks.tiny_models"]

ROOT = Path(__file__).parents[3]
TWO = Runtime(device="cpu,cpu", threads=1, checkpoint_seconds=3600)
LONG = 1_000_000
"""Steps that nobody waits for."""


def silent(done: int, total: int, unit: str) -> None:
    """Progress that nobody looks at."""


def quiet() -> threading.Event:
    """A stop that never comes."""
    return threading.Event()


class Bench:
    """A store with a model and tokens to train it on."""

    def __init__(self, url: str, model: Path, tokens: Path) -> None:
        self.store = Store(url)
        self.inputs = {
            name: deposit(self.store, "given", name, name, folder, {})
            for name, folder in {"model": model, "tokens": tokens}.items()
        }

    def call(self, seed: int, steps: int = 4, **config: Any) -> Call[TrainConfig]:
        """A training that differs from others by its seed."""
        wanted = {"steps": steps, "seed": seed, "batch_size": 4, "context_length": 16, **config}
        return Call(TRAIN, TrainConfig.model_validate(wanted), self.inputs, f"seed {seed}")

    def inline(self, call: Call[Any], progress: Progress = silent) -> Handle:
        """Its result, made in this process."""
        runtime = Runtime(device="cpu", threads=1)
        return build(self.store, call, runtime, Meter("cpu"), progress)

    def resume_points(self, call: Call[Any]) -> list[str]:
        """Indexes of its resume points."""
        work = self.store.backend.list(f"work/train/{call.key}")
        return [path for path in work if path.endswith("checkpoint.json")]


@pytest.fixture(scope="module")
def new_bench(
    llama: Path, tokens: Callable[[list[str]], Path], prose: Callable[..., list[str]]
) -> Callable[[str], Bench]:
    """``new_bench(url)`` makes a store."""
    corpus = tokens(prose(1))
    return lambda url: Bench(url, llama, corpus)


@pytest.fixture(scope="module")
def bench(new_bench: Callable[[str], Bench], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The store that tests share."""
    return new_bench(str(tmp_path_factory.mktemp("shared")))


@pytest.fixture(scope="module")
def two(bench: Bench) -> Iterator[Devices]:
    """Two processes on the CPU."""
    with Devices(bench.store.url, TWO) as devices:
        yield devices


def compute(
    devices: Devices, call: Call[Any], progress: Progress = silent, stop: Any = None
) -> Handle:
    """The result of a call on a free device."""
    stop = stop or quiet()
    with devices.take(stop) as device:
        return device.build(call, progress, stop)


def pid_of(device: Device) -> int:
    """The process of a device."""
    assert isinstance(device, DeviceProcess)
    assert device.pid is not None
    return device.pid


def is_gone(pid: int, seconds: float = 0.0) -> bool:
    """Whether a process ends in so many seconds."""
    try:
        process = psutil.Process(pid)
        until = time.monotonic() + seconds
        while (alive := process.status() != psutil.STATUS_ZOMBIE) and time.monotonic() < until:
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        return True
    return not alive


# The same results -----------------------------------------------------------------------------------


def test_two_trainings_at_once_are_those_of_one_process(
    bench: Bench, two: Devices, new_bench: Callable[[str], Bench], tmp_path: Path
) -> None:
    both = threading.Barrier(2, timeout=120)

    def progress(done: int, *_: object) -> None:
        if done == 0:
            both.wait()  # neither gets on before the other has begun

    calls = [bench.call(1), bench.call(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda call: compute(two, call, progress), calls))
    other = new_bench(str(tmp_path))
    expected = [other.inline(other.call(1)), other.inline(other.call(2))]
    assert [h.digest for h in found] == [h.digest for h in expected]
    assert not any(handle.hit for handle in found)
    assert compute(two, bench.call(1)).hit
    record = lookup(bench.store, bench.call(1))
    assert record is not None
    assert record.digest == expected[0].digest


def test_a_store_in_memory_is_used_in_this_process(
    bench: Bench, two: Devices, new_bench: Callable[[str], Bench], memory_store: Store
) -> None:
    other = new_bench(memory_store.url)
    with Devices(memory_store.url, TWO) as devices:
        assert devices.names == ["cpu"]
        stop = quiet()
        with pytest.raises(Stopped):
            compute(devices, other.call(1, LONG), lambda *_: stop.set(), stop)
        assert compute(devices, other.call(1)).digest == compute(two, bench.call(1)).digest


def test_sweep_is_that_of_one_process(
    bench: Bench,
    two: Devices,
    new_bench: Callable[[str], Bench],
    windows: Callable[..., Path],
    prose: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    """Two chunks in one process, one of them again; another sweep beside it in the other."""
    folder = windows(prose(9))
    work = sweep_work(bench, lambda call: compute(two, call), folder)
    plan = SweepPlan.of(bench.store, work)
    first, second = plan.chunks(2)
    told: list[tuple[int, int, str]] = []
    with two.take(quiet()) as device, two.take(quiet()) as other:
        found = [
            device.sweep(work, c, lambda *shown: told.append(shown), quiet())
            for c in (first, second)
        ]
        again = device.sweep(work, second, silent, quiet())
        beside = work._replace(config=EvaluateConfig(average="float32"))
        assert other.sweep(beside, first, silent, quiet()).num_evaluated == 2
        assert device.sweep(beside, second, silent, quiet()).num_evaluated == 2
    assert told == [(1, 2, "mixtures"), (2, 2, "mixtures")] * 2
    assert [(f.num_evaluated, f.num_known, len(f.sweep_costs)) for f in found] == [(2, 0, 1)] * 2
    assert (again.num_evaluated, again.num_known, again.sweep_costs) == (0, 2, [])
    inline = new_bench(str(tmp_path))
    assert plan.rows() == inline_rows(inline.store, sweep_work(inline, inline.inline, folder))


def test_sets_that_could_not_be_read_are_read_at_the_next_try(
    bench: Bench, windows: Callable[..., Path], prose: Callable[..., list[str]]
) -> None:
    """And a pool stays when sets change."""
    work = sweep_work(bench, bench.inline, windows(prose(9)))
    folder = windows(prose(10))
    others = {"other": deposit(bench.store, "given", "windows", "other", folder, {})}
    resident = ResidentSweeper(bench.store, work, Runtime(device="cpu", threads=1))
    before = resident.get()
    artifact = others["other"].artifact
    assert artifact is not None
    path = bench.store.fetch(artifact) / "windows.safetensors"
    hidden = path.rename(path.with_name(".hidden"))
    with pytest.raises((OSError, CorruptError)):
        resident.turn_to(work._replace(sets=others))
    hidden.rename(path)
    resident.turn_to(work._replace(sets=others))
    after = resident.get()
    assert after is not before
    job = SweepPlan.of(bench.store, work._replace(sets=others)).jobs[0]
    with Meter("cpu") as meter:
        (row,) = after.evaluate([job], meter, silent)
    assert row.evaluation_set == "other"
    resident.turn_to(work)
    assert resident.get() is after


def sweep_work(bench: Bench, obtain: Callable[[Call[Any]], Handle], folder: Path) -> SweepWork:
    """Four mixtures of three models on one set."""
    pool = {f"p{seed}": obtain(bench.call(seed)) for seed in (1, 2, 3)}
    sets = {"set": deposit(bench.store, "given", "windows", "set", folder, {})}
    mixtures = [Mixture.uniform(m) for m in (["p1"], ["p2"], ["p1", "p2"], ["p1", "p3"])]
    return SweepWork(mixtures, pool, sets, EvaluateConfig())


def inline_rows(store: Store, work: SweepWork) -> LossRows:
    """All rows of a sweep, those that are missing evaluated in this process."""
    plan, runtime = SweepPlan.of(store, work), Runtime(device="cpu", threads=1)
    sweeper = ResidentSweeper(store, work, runtime)
    run_chunk(store, plan.table, plan.jobs, sweeper, silent)
    return plan.rows()


def divide(done: int, *_: object) -> None:
    """Progress that fails after the first step."""
    assert 1 // (done < 64)


def test_progress_and_logs_arrive_in_the_calling_thread(
    bench: Bench, two: Devices, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mixpool")
    call, told = bench.call(20, 3), []
    with pytest.raises(ZeroDivisionError):
        bench.inline(call, divide)
    caplog.clear()
    compute(two, call, lambda *shown: told.append((*shown, threading.get_ident())))
    here = threading.get_ident()
    assert told == [(done, 192, "tokens", here) for done in (64, 128, 192)]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("mixpool.train", "INFO")
    assert record.getMessage() == "resuming at step 1"
    caplog.clear()
    caplog.set_level(logging.WARNING, "mixpool")
    with pytest.raises(ZeroDivisionError):
        compute(two, bench.call(21), divide)
    assert not caplog.records, "who wants warnings only is told nothing else"


# Ends -----------------------------------------------------------------------------------------------


def test_stopped_in_the_middle_and_resumed(bench: Bench, two: Devices) -> None:
    call, stop, reached = bench.call(30, LONG), quiet(), []

    def progress(done: int, *_: object) -> None:
        reached.append(done)
        if done >= 5 * 64:
            stop.set()

    began = time.monotonic()
    with two.take(quiet()) as device:
        pid = pid_of(device) if isinstance(device, DeviceProcess) and device.pid else None
        with pytest.raises(Stopped):
            device.build(call, progress, stop)
        assert pid in {None, pid_of(device)}, "it ended by itself"
    assert time.monotonic() - began < 60
    assert live_work(bench.store) == []
    assert bench.resume_points(call)
    with pytest.raises(Stopped):
        compute(two, call, progress, stop)
    reached.clear()
    with pytest.raises(KeyError, match="of whoever looks"):
        compute(two, call, lambda done, *_: failing(reached, done))
    assert reached[0] >= 5 * 64
    assert live_work(bench.store) == []


def failing(reached: list[int], done: int) -> None:
    """Progress that cannot be shown."""
    reached.append(done)
    raise KeyError("of whoever looks")


def test_signals_to_the_whole_group_are_not_for_the_process(bench: Bench, two: Devices) -> None:
    with two.take(quiet()) as device:

        def progress(*_: object) -> None:
            os.kill(pid_of(device), signal.SIGINT)
            os.kill(pid_of(device), signal.SIGTERM)

        assert not device.build(bench.call(40), progress, quiet()).hit


def test_time_limit(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the present folder has modules that are called like ours."""
    (tmp_path / "flows.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    runtime = TWO.model_copy(update={"device": "cpu", "time_limit_hours": 1e-5})
    with Devices(bench.store.url, runtime) as devices:
        words = (
            r"^train seed 50 on cpu took longer .* limit of 1e-05 hours.*resume point.*limit_hours"
        )
        with pytest.raises(TimeLimitError, match=words):
            compute(devices, bench.call(50, LONG))
    assert live_work(bench.store) == []


@pytest.mark.slow
def test_killed_process_is_replaced(bench: Bench) -> None:
    call, reached = bench.call(60, 6), []
    runtime = TWO.model_copy(update={"device": "cpu", "checkpoint_seconds": 0})
    with Devices(bench.store.url, runtime) as devices, devices.take(quiet()) as device:

        def progress(done: int, *_: object) -> None:
            if done == 3 * 64:
                os.kill(pid_of(device), signal.SIGKILL)

        with pytest.raises(
            DeviceProcessError, match=r"of cpu was killed.*at train seed 60;.*again"
        ):
            device.build(call, progress, quiet())
        assert not device.build(call, lambda done, *_: reached.append(done), quiet()).hit
        # The resume point of the step before may still have been on its way.
        assert reached[0] >= 64
        pid = pid_of(device)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # all its threads, too
        assert device.build(call, silent, quiet()).hit, "one that died idle is nobody's fault"
        last = pid_of(device)
    assert last != pid
    assert is_gone(last)


def test_process_that_hangs_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.runners.worker.STOP_SECONDS", 1.0)
    runtime, stop = TWO.model_copy(update={"device": "cpu"}), quiet()
    with Devices(bench.store.url, runtime) as devices, devices.take(stop) as device:

        def progress(done: int, *_: object) -> None:
            if done:
                os.kill(pid_of(device), signal.SIGSTOP)
                pids.append(pid_of(device))
                stop.set()

        pids: list[int] = []
        with pytest.raises(Stopped):
            device.build(bench.call(70, LONG), progress, stop)
        assert is_gone(pids[0])


PARENT = """
import sys, threading
from pathlib import Path
from flows.runners.devices import Devices
from storage.artifact import CorruptError
from storage.step import Runtime
from tests.flows.runners.test_devices import LONG, Bench

url, model, tokens = sys.argv[1:]
bench, stop = Bench(url, Path(model), Path(tokens)), threading.Event()
runtime = Runtime(device="cpu", threads=1, checkpoint_seconds=3600)
with Devices(url, runtime) as devices, devices.take(stop) as device:
    device.build(bench.call(1, LONG), lambda done, *_: print(device.pid, done, flush=True), stop)
"""


@pytest.mark.slow
def test_killed_parent_takes_the_process_with_it(
    llama: Path,
    tokens: Callable[[list[str]], Path],
    prose: Callable[..., list[str]],
    new_bench: Callable[[str], Bench],
    tmp_path: Path,
) -> None:
    arguments = [str(tmp_path), str(llama), str(tokens(prose(1)))]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            pid, done = map(int, line.split())
            if done >= 3 * 64:
                break
        parent.kill()
    assert is_gone(pid, 20)
    bench = new_bench(str(tmp_path))
    assert live_work(bench.store) == []
    assert bench.resume_points(bench.call(1, LONG))


ENDLESS = """
import time
import flows.runners.worker as worker
worker.STOP_SECONDS = 1.0
worker.Worker.build = lambda *_: time.sleep(600)
worker.main()
"""


def test_work_that_never_reports_ends_some_time_after_the_parent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.runners.process.ENTRY", ENDLESS)
    child = DeviceChild.start(bench.store.url, TWO)
    child.send(pickle.dumps(Order(Worker.build, (bench.call(90),))))
    assert child.end(30) == 1
    assert "Timeout" in capfd.readouterr().err, "and tells where it was"


# Faults ---------------------------------------------------------------------------------------------


def test_faults_are_raised_as_they_were(bench: Bench, two: Devices, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan at step .* lower") as diverged:
        compute(two, bench.call(80, learning_rate=1e30))
    assert diverged.value.__notes__[0].startswith("in the process of cpu:\nTraceback")
    assert 'tasks/training/train.py", line' in diverged.value.__notes__[0]

    call = bench.call(81)
    with (
        bench.store.lease(f"train/{call.key}"),
        pytest.raises(Busy, match=f"process {os.getpid()} on") as busy,
    ):
        compute(two, call)
    assert busy.value.holder.startswith(f"process {os.getpid()} ")

    runtime = TWO.model_copy(update={"scratch": str(tmp_path / "none"), "device": "cpu"})
    with Devices(bench.store.url, runtime) as devices, pytest.raises(FileNotFoundError) as lacking:
        compute(devices, call)
    assert lacking.value.errno == errno.ENOENT
    assert str(lacking.value.filename).startswith(str(tmp_path / "none"))


def test_process_is_not_used_again_after_an_error_of_cuda(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which comes as a RuntimeError, and stays for good in the process that had it."""
    broken = ENDLESS.replace("time.sleep(600)", "(_ for _ in ()).throw(RuntimeError('of CUDA'))")
    with monkeypatch.context() as patch:
        patch.setattr("flows.runners.process.ENTRY", broken)
        device = DeviceProcess(bench.store.url, TWO)
        with pytest.raises(RuntimeError, match="of CUDA"):
            device.build(bench.call(91), silent, quiet())
    assert device.pid is None


class Odd(Exception):  # noqa: N818
    """Composes its message of other arguments, and adds to it when it is given one."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")
        self.name = name


@pytest.mark.parametrize(
    "error",
    [
        Busy("train/x", "process 7"),
        OutOfSpaceError(errno.ENOSPC, "no space left"),
        FileNotFoundError(errno.ENOENT, "there is none", "a name"),
        CorruptArtifactError(Artifact(kind="model", digest="0" * 64, files={}), ["gone"]),
        ClientError({"Error": {"Code": "403", "Message": "no"}}, "GetObject"),
        Odd("bread"),
        ValueError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_the_way(error: Exception) -> None:
    arrived = Failed.of(error).error()
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)
    if isinstance(error, OSError):
        assert isinstance(arrived, OSError)
        assert (arrived.errno, arrived.filename) == (error.errno, error.filename)


def test_errors_that_cannot_be_sent_are_told_in_words() -> None:
    class HereError(ValueError):
        """Known to this function only."""

    for error in (HereError("of here"), ValueError(threading.Lock()), KeyboardInterrupt("now")):
        arrived = Failed.of(error).error()
        assert type(arrived) is RuntimeError
        assert str(arrived) == f"{type(error).__name__}: {error}"


# Taking turns ---------------------------------------------------------------------------------------


def test_devices_that_train_together_are_taken_together() -> None:
    """In groups, each device under its own guard; one that is left over is in none."""
    guarded: list[str] = []

    def guard(name: str) -> AbstractContextManager[Any]:
        guarded.append(name)
        return nullcontext()

    runtime = Runtime(device="cpu,cpu,cpu,cpu,cpu", shards=2)
    with Devices("nowhere", runtime, guard) as devices, devices.take(quiet()) as one:
        assert one.name == "cpu,cpu"
        assert guarded == ["cpu", "cpu"]
        with devices.take(quiet()) as other:
            assert other is not one
            stop = quiet()
            threading.Timer(0.1, stop.set).start()
            with pytest.raises(Stopped), devices.take(stop):
                pass
    few = Devices("nowhere", Runtime(device="cpu,cpu", shards=3))
    with few, few.take(quiet()) as all_of_them:
        assert all_of_them.name == "cpu,cpu"


def test_devices_are_taken_and_given_back() -> None:
    devices, stop = Devices("nowhere", TWO), quiet()
    with devices.take(stop) as one, devices.take(stop) as other:
        assert one is not other
        assert devices.names == ["cpu", "cpu"]
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(Stopped), devices.take(stop):
            pass
    with pytest.raises(Stopped), devices.take(stop):
        pass
    waiting = ThreadPoolExecutor(1)
    with devices.take(quiet()) as third, devices.take(quiet()):
        future = waiting.submit(lambda: devices.take(quiet()).__enter__())
        assert third is one, "the one that is warm"
    assert future.result(timeout=20) in {one, other}
    assert isinstance(one, DeviceProcess)
    assert one.pid is None, "nothing starts before it is used"


def test_guard_lets_other_runs_have_their_turn() -> None:
    entered: list[str] = []
    taken = {"cpu": 2, "cpu:0": 3}

    def guard(name: str) -> AbstractContextManager[None]:
        entered.append(name)
        taken[name] -= 1
        if taken[name] >= 0:
            raise TimeoutError
        return nullcontext()

    devices = Devices("nowhere", TWO.model_copy(update={"device": "cpu, cpu:0"}), guard)
    with devices.take(quiet()) as device:
        assert device.name == "cpu"
        assert entered == ["cpu", "cpu:0", "cpu", "cpu:0", "cpu"]
    stop = quiet()
    taken.update(dict.fromkeys(taken, 10**6))
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Stopped), devices.take(stop):
        pass
    taken.update(dict.fromkeys(taken, 0))
    with devices.take(quiet()), devices.take(quiet()):
        pass


def test_device_that_there_is_not() -> None:
    devices = Devices("nowhere", Runtime(device="cpu,gpu"))
    with (
        pytest.raises(ValueError, match=r"device 'gpu' is none that torch knows"),
        devices.take(quiet()),
    ):
        pass
