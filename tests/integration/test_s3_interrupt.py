"""Ctrl-C ends a command within seconds, though the server that it waits for is gone."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faulty import Fault, FaultyProxy
from tests.servers import BUCKET

if TYPE_CHECKING:
    from tests.servers import S3Server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# A shell that runs tests in the background has them ignore interrupts, and their children with them.
HEED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"

SCRIPT = """
import os, sys
from pathlib import Path
from storage.artifact import describe
from storage.store import Store
url, room, what = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
store = Store(url, room / "cache")
record = next(store.records("step"))
def silence(): print("now", flush=True); sys.stdin.readline()
silence()
if what == "read": store.backend.read("x")
if what == "fetch": store.fetch(record.output)
if what == "check": store.check()
if what == "records": list(store.records())
"""

HOLDING = """
import sys, time
from storage.store import Store
store = Store(sys.argv[1])
with store.lease("train/a"), store.lease("train/b"):
    print("now", flush=True); sys.stdin.readline()
    store.backend.read("x")
"""

RECORDING = """
import sys
from pathlib import Path
from storage.artifact import Record, describe, step_key
from storage.store import Store
folder = Path(sys.argv[2]) / "made"
folder.mkdir()
for name in "abcdef": (folder / name).write_bytes(name.encode() * 1000)
key = step_key("step", 1, {}, {})
Store(sys.argv[1]).commit(Record(step="step", version=1, key=key, label="x", config={}, inputs={},
    output=describe("model", folder)), folder)
"""


@pytest.fixture(scope="module")
def url(s3_server: "S3Server", tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with one record and its artifact, which tests only read."""
    found = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    subprocess.run(
        [sys.executable, "-c", RECORDING, found, str(tmp_path_factory.mktemp("recorded"))],
        env={**os.environ, **s3_server.environment, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return found


@pytest.mark.parametrize("what", ["read", "fetch", "check", "records", "lease"])
def test_an_interrupt_does_not_wait_for_a_dead_server(
    url: str, s3_server: "S3Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    for name, value in {**s3_server.environment, "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    faults = (Fault.UNAVAILABLE, Fault.RESET)
    with FaultyProxy(s3_server.endpoint, 0, seed=0, faults=faults, longest=10**9) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        script = HEED + (HOLDING if what == "lease" else SCRIPT)
        running = subprocess.Popen(
            [sys.executable, "-c", script, url, str(tmp_path), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stdout is not None
        assert running.stdout.readline() == "now\n"
        proxy.rate = 1  # from here on nothing is answered as it should be
        seen = proxy.requests
        assert running.stdin is not None
        running.stdin.write("\n")
        running.stdin.flush()
        wait_until(lambda: proxy.requests >= seen + 3)
        began = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert "KeyboardInterrupt" in errors


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return when it is so. Raises TimeoutError."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if is_so():
            return
        time.sleep(0.02)
    raise TimeoutError("it was not so for 30 s")
