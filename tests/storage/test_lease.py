"""One holder at a time, among threads, processes, the killed, the stopped and the late."""

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen

import pytest

from storage.backends.backend import Backend, MemoryBackend
from storage.backends.local import LocalBackend
from storage.backends.urls import open_backend
from storage.lease import Busy, Lease, lease_numbers

Python = Callable[..., "Popen[str]"]

ELSEWHERE = json.dumps({"host": "far", "boot": "far 0", "pid": 7, "started": 0.0, "token": "t"})


def line_of(process: "Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_exactly_one_of_16_threads_holds_it(backend: Backend) -> None:
    inside: list[int] = []
    crowds: list[list[int]] = []
    refusals: list[str] = []

    def hold(number: int) -> None:
        while True:
            try:
                with Lease(backend, "work/x", time_to_live=5):
                    inside.append(number)
                    time.sleep(0.005)
                    crowds.append(list(inside))
                    inside.remove(number)
                return
            except Busy as busy:
                refusals.append(busy.holder)
                time.sleep(0.005)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(hold, range(16)))
    assert sorted(crowds) == [[number] for number in range(16)]
    assert refusals
    assert all(holder.startswith("process ") for holder in refusals)
    assert backend.list("work") == {}


HOLD_THRICE = """
import os, sys, time
from storage.backends.urls import open_backend
from storage.lease import Busy, Lease
backend, room = open_backend(sys.argv[1]), sys.argv[2]
held = 0
while held < 3:
    try:
        with Lease(backend, "work/x", time_to_live=5):
            os.close(os.open(room, os.O_CREAT | os.O_EXCL))  # fails where somebody else is inside
            time.sleep(0.01)
            os.unlink(room)
            held += 1
    except Busy:
        time.sleep(0.01)
print(held)
"""


def test_exactly_one_of_8_processes_holds_it(python: Python, tmp_path: Path) -> None:
    processes = [python(HOLD_THRICE, tmp_path / "store", tmp_path / "room") for _ in range(8)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert answers == [("3\n", "")] * 8
    assert open_backend(str(tmp_path / "store")).list("") == {}


def test_release_lets_the_next_in_also_after_an_error(backend: Backend) -> None:
    with Lease(backend, "work/x"), pytest.raises(Busy, match=r"^work/x is being worked on by"):
        Lease(backend, "work/x").__enter__()
    with pytest.raises(RuntimeError, match="inside"), Lease(backend, "work/x"):
        raise RuntimeError("inside")
    with Lease(backend, "work/x"), Lease(backend, "work/y"):
        pass
    assert backend.list("") == {}


def test_renewal_keeps_it(backend: Backend) -> None:
    with Lease(backend, "work/x", time_to_live=1):
        until = time.monotonic() + 2
        while time.monotonic() < until:
            with pytest.raises(Busy):
                Lease(backend, "work/x", time_to_live=1).__enter__()
            time.sleep(0.05)


@pytest.mark.parametrize("content", [ELSEWHERE, "", "[]", "3", "{}", '{"boot": 1}', "\udcff"])
def test_an_expired_lease_is_taken_over_and_a_fresh_one_is_not(
    backend: Backend, content: str
) -> None:
    backend.put("work/x/lease.4", content.encode(errors="surrogateescape"))
    with pytest.raises(Busy):
        Lease(backend, "work/x", time_to_live=30).__enter__()
    time.sleep(0.25)
    with Lease(backend, "work/x", time_to_live=0.2):
        assert lease_numbers(backend, "work/x") == [5]


def test_of_many_that_find_it_expired_one_takes_over(backend: Backend) -> None:
    backend.put("work/x/lease.0", ELSEWHERE.encode())
    time.sleep(1.1)
    start, leave = threading.Barrier(8), threading.Barrier(8)

    def take(_: int) -> bool:
        lease = Lease(backend, "work/x", time_to_live=1)
        start.wait()
        try:
            with lease:
                leave.wait()
                return True
        except Busy:
            leave.wait()
            return False

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, range(8)))
    assert taken.count(True) == 1


HOLD = """
import sys
from storage.backends.urls import open_backend
from storage.lease import Lease
with Lease(open_backend(sys.argv[1]), "work/x", time_to_live=float(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
print("left", flush=True)
"""


def test_a_killed_holder_on_this_host_is_replaced_at_once(python: Python, tmp_path: Path) -> None:
    backend = open_backend(str(tmp_path / "store"))
    holder = python(HOLD, tmp_path / "store", 600)
    assert line_of(holder) == "held"
    with pytest.raises(Busy, match=f"process {holder.pid} on "):
        Lease(backend, "work/x", 600).__enter__()
    holder.kill()
    deadline = time.monotonic() + 5  # until the kernel has ended it; nobody has waited for it yet
    while True:
        try:
            with Lease(backend, "work/x", 600):
                break
        except Busy:
            assert time.monotonic() < deadline, "a dead process still holds the lease"


def test_one_that_was_taken_over_notices_and_leaves_the_new_one_alone(
    python: Python, tmp_path: Path
) -> None:
    backend = open_backend(str(tmp_path / "store"))
    holder = python(HOLD, tmp_path / "store", 1)
    assert line_of(holder) == "held"
    holder.send_signal(19)  # SIGSTOP: a machine that sleeps, a container that is frozen
    time.sleep(1.3)
    with Lease(backend, "work/x", 1):
        assert lease_numbers(backend, "work/x") == [1]
        holder.send_signal(18)  # SIGCONT
        time.sleep(0.6)
        output, errors = holder.communicate("\n")
        assert output == "left\n"
        assert "work/x/lease.0 was taken over by another run" in errors
        assert lease_numbers(backend, "work/x") == [1]
        with pytest.raises(Busy):
            Lease(backend, "work/x", 1).__enter__()


def test_a_create_whose_answer_was_lost_is_recognised(memory_url: str) -> None:
    class LosesAnswers(MemoryBackend):
        def create(self, path: str, data: bytes) -> bool:
            super().create(path, data)
            return False

    memory = open_backend(memory_url)
    with Lease(LosesAnswers(memory.fs, memory.root), "work/x"), pytest.raises(Busy):
        Lease(memory, "work/x").__enter__()
    assert memory.list("") == {}


def test_a_process_that_was_stopped_for_long_knows_that_it_may_hold_it_no_more(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(backend, "work/x", time_to_live=30) as lease:
        assert lease.is_held
        clock = time.monotonic
        with monkeypatch.context() as later:
            later.setattr(time, "monotonic", lambda: clock() + 31)
            assert not lease.is_held
        assert lease.is_held
        backend.delete("work/x/lease.0")
        assert not lease.is_held


class NoRouteError(Exception):
    """As clients of object stores have: no OSError."""


class Failing(LocalBackend):
    """A disk or network that fails while ``broken`` is set."""

    broken = False

    def read(self, path: str) -> bytes:
        if self.broken:
            raise NoRouteError("no route")
        return super().read(path)


def test_a_failing_release_does_not_undo_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = open_backend(str(tmp_path))
    backend = Failing(plain.fs, plain.root)
    with Lease(backend, "work/x"):
        backend.broken = True
    assert "could not release work/x/lease.0 (no route)" in caplog.text


def test_renewal_goes_on_after_a_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = open_backend(str(tmp_path))
    backend = Failing(plain.fs, plain.root)
    with Lease(backend, "work/x", time_to_live=0.9):
        backend.broken = True
        time.sleep(0.7)
        assert "could not renew work/x/lease.0 (no route); trying again" in caplog.text
        backend.broken = False
        time.sleep(0.9)
        with pytest.raises(Busy):
            Lease(plain, "work/x", time_to_live=0.9).__enter__()


def test_a_lease_whose_time_lies_ahead_names_its_remedy(tmp_path: Path) -> None:
    backend = open_backend(str(tmp_path))
    backend.put("work/x/lease.4", ELSEWHERE.encode())
    later = time.time() + 7200
    os.utime(tmp_path / "work" / "x" / "lease.4", (later, later))
    with pytest.raises(Busy, match=r"work/x/lease\.4, which lies ahead: .* or delete that file"):
        Lease(backend, "work/x").__enter__()
