"""An error that nobody foresaw: one line for a person, its traceback in a file, no secret in either."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.command.main import main
from flows.run import execute
from flows.run.unforeseen import is_fault, is_unforeseen, leave_traceback, told
from tests.flows.conftest import Place

PanicException = type("PanicException", (BaseException,), {})
"""What pyo3 makes of a panic: its class cannot be imported."""


@pytest.mark.parametrize(
    ("error", "fault", "unforeseen"),
    [
        (ValueError("x"), True, False),
        (OSError(28, "x"), True, False),
        (BrokenPipeError(32, "x"), False, False),
        (MemoryError(), True, False),
        (RuntimeError("x"), True, False),
        (RecursionError("x"), False, True),
        (KeyError("x"), False, True),
        (PanicException("x"), False, True),
        (KeyboardInterrupt(), False, False),
        (SystemExit(1), False, False),
        (GeneratorExit(), False, False),
    ],
)
def test_what_is_foreseen(error: BaseException, fault: bool, unforeseen: bool) -> None:
    assert (is_fault(error), is_unforeseen(error)) == (fault, unforeseen)


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def _mixpool(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mixpool", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tracebacks of commands without a run are put."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "states"))
    monkeypatch.delenv("MIXPOOL_DEBUG", raising=False)
    return tmp_path / "states" / "mixpool"


def test_a_command_says_one_line_and_where_the_traceback_is(
    finished: Place,
    states: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = PanicException("s3://me:hunter2@bucket/x\n\x1b[31m password=hunter2")
    monkeypatch.setattr("flows.runners.planner.plan", _raise(error))
    monkeypatch.setattr("flows.command.main.read_recipe", lambda *_: None)
    monkeypatch.setattr("flows.command.main.read_runtime", lambda *_: None)
    _mixpool(monkeypatch, "plan", finished.recipe, "--set", "api_key=hunter2")
    (path,) = states.iterdir()
    said, trace = capsys.readouterr(), path.read_text()
    assert said.out == ""
    assert said.err == (
        "error: `mixpool plan` met an error that nobody foresaw, "
        f"{__name__}.PanicException: s3://***@bucket/x \\x1b[31m password=***: this is a fault of mixpool; "
        f"please report it with its traceback, {path}\n"
    )
    assert f"mixpool plan {finished.recipe}" in trace
    assert "in fail\n    raise error\n" in trace
    assert "hunter2" not in trace


def test_in_a_run_the_traceback_is_in_its_folder(
    finished: Place,
    tmp_path: Path,
    states: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = finished.copy(tmp_path)
    monkeypatch.setattr(execute, "rank_judged", _raise(KeyError("x")))
    _mixpool(monkeypatch, "run", place.recipe, "--store", place.store)
    (path,) = Path(place.store).glob("runs/*/traceback.txt")
    assert str(path) in capsys.readouterr().err
    assert path.read_text().endswith("KeyError: 'x'\n")
    assert not (path.parent / "run.json").exists()
    assert not states.exists()
    _verified(monkeypatch, place)


def _verified(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """What a run leaves that ended so is no fault of the store."""
    monkeypatch.setattr(sys, "argv", ["mixpool", "verify", "--store", place.store])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def test_a_developer_sees_it_in_place(
    finished: Place, states: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXPOOL_DEBUG", "1")
    monkeypatch.setattr("flows.runners.planner.plan", _raise(KeyError("x")))
    monkeypatch.setattr(sys, "argv", ["mixpool", "plan", finished.recipe])
    with pytest.raises(KeyError):
        main()
    assert not states.exists()


def test_where_no_folder_can_be_written_the_line_says_how_to_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    assert told(KeyError("x")).endswith("traceback, which MIXPOOL_DEBUG=1 shows")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line = told(KeyError("x"))
    assert Path(line.rpartition(" ")[2]).parent == tmp_path


def test_a_traceback_is_written_once() -> None:
    error, written = KeyError("x"), list[bytes]()

    def write(data: bytes) -> str:
        written.append(data)
        return "here"

    leave_traceback(error, write)
    leave_traceback(error, write)
    assert len(written) == 1
    assert told(error).endswith("traceback, here")
