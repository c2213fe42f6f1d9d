"""What the tests of ``storage`` share: backends to run on, and real other processes."""

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.backends.backend import Backend
from storage.backends.urls import open_backend

# Its assertions are to tell what they compared, though it is no test module itself.
pytest.register_assert_rewrite("tests.storage.contract")

ROOT = Path(__file__).parents[2]

Python = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def memory_url() -> Iterator[str]:
    """A place of its own in the process-wide memory file system."""
    name = uuid.uuid4().hex
    yield f"memory://{name}"
    files = MemoryFileSystem.store
    for path in [path for path in files if path.startswith(f"/{name}/")]:
        del files[path]


@pytest.fixture(params=["local", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, memory_url: str) -> Backend:
    """A backend of each kind."""
    return open_backend(str(tmp_path / "store") if request.param == "local" else memory_url)


@pytest.fixture
def python() -> Iterator[Python]:
    """Starts a script in another Python process: ``python(script, *arguments)``."""
    started: list[subprocess.Popen[str]] = []

    def start(
        script: str, *arguments: object, env: dict[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
