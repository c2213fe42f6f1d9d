"""A crash leaves the older resume point in force; a damaged one is reported and counts as none."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.artifact import describe, seal
from storage.backends.backend import Backend
from storage.backends.local import LocalBackend
from storage.backends.urls import open_backend
from storage.checkpoint import BackgroundSaves, Checkpoints

FOLDER = "work/train/abc"


@pytest.fixture
def checkpoints(backend: Backend) -> Checkpoints:
    return Checkpoints(backend, FOLDER)


def state(folder: Path, text: str) -> Path:
    (folder / text / "deep").mkdir(parents=True, exist_ok=True)
    (folder / text / "weights").write_text(text)
    (folder / text / "deep" / "moments").write_text(text * 2)
    return folder / text


def loaded(checkpoints: Checkpoints, target: Path) -> tuple[int | None, dict[str, str]]:
    position = checkpoints.load(target)
    files = [path for path in target.rglob("*") if path.is_file()]
    return position, {path.relative_to(target).as_posix(): path.read_text() for path in files}


def files_of(text: str) -> dict[str, str]:
    return {"weights": text, "deep/moments": text * 2}


def test_there_is_none_at_first(
    checkpoints: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert loaded(checkpoints, tmp_path / "out") == (None, {})
    assert caplog.text == ""


def test_the_latest_is_loaded_and_older_ones_are_gone(
    backend: Backend, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    checkpoints.save(state(tmp_path, "first"), 100)
    checkpoints.save(state(tmp_path, "second"), 1_234_567_890)
    assert loaded(checkpoints, tmp_path / "out") == (1_234_567_890, files_of("second"))
    assert set(backend.list("")) == {
        f"{FOLDER}/checkpoint.json",
        f"{FOLDER}/checkpoint.1234567890/weights",
        f"{FOLDER}/checkpoint.1234567890/deep/moments",
    }


def test_a_restart_from_the_beginning_replaces_a_later_one(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    checkpoints.save(state(tmp_path, "late"), 900)
    checkpoints.save(state(tmp_path, "again"), 100)
    assert loaded(checkpoints, tmp_path / "out") == (100, files_of("again"))


def test_clear_removes_all_and_nothing_else(
    backend: Backend, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    others = {f"{FOLDER}/lease.0", "work/train/abcd/checkpoint.json", "records/x"}
    for path in others:
        backend.create(path, b"")
    checkpoints.save(state(tmp_path, "first"), 1)
    checkpoints.clear()
    checkpoints.clear()
    assert set(backend.list("")) == others
    assert checkpoints.load(tmp_path / "out") is None


def test_a_crash_before_the_index_keeps_the_older(
    backend: Backend, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    checkpoints.save(state(tmp_path, "older"), 1)
    backend.put_from(f"{FOLDER}/checkpoint.000000002/weights", state(tmp_path, "newer") / "weights")
    assert loaded(checkpoints, tmp_path / "one") == (1, files_of("older"))
    checkpoints.save(state(tmp_path, "third"), 3)
    assert loaded(checkpoints, tmp_path / "two") == (3, files_of("third"))
    assert not backend.list(f"{FOLDER}/checkpoint.000000002")


def test_a_crash_after_the_index_has_the_newer(
    backend: Backend, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    checkpoints.save(state(tmp_path, "older"), 1)
    newer = state(tmp_path, "newer")
    for name in files_of("newer"):
        backend.put_from(f"{FOLDER}/checkpoint.000000002/{name}", newer / name)
    content = {"position": 2, "artifact": describe("checkpoint", newer)}
    backend.put(f"{FOLDER}/checkpoint.json", seal(content))
    assert loaded(checkpoints, tmp_path / "out") == (2, files_of("newer"))
    checkpoints.clear()
    assert backend.list("") == {}


class PowerCutError(Exception):
    """The machine went off."""


class Dying(LocalBackend):
    """A disk on a machine that goes off after so many changes."""

    changes_left = 0

    def _change(self) -> None:
        if self.changes_left == 0:
            raise PowerCutError
        self.changes_left -= 1

    def put(self, path: str, data: bytes) -> None:
        self._change()
        super().put(path, data)

    def put_from(self, path: str, source: Path) -> None:
        self._change()
        super().put_from(path, source)

    def delete(self, path: str) -> None:
        self._change()
        super().delete(path)


@pytest.mark.parametrize("changes", range(5))
def test_after_a_crash_at_any_moment_the_older_or_the_newer_is_there(
    tmp_path: Path, changes: int
) -> None:
    backend = open_backend(str(tmp_path / "store"))
    Checkpoints(backend, FOLDER).save(state(tmp_path, "older"), 1)
    dying = Dying(backend.fs, backend.root)
    dying.changes_left = changes
    with pytest.raises(PowerCutError):
        Checkpoints(dying, FOLDER).save(state(tmp_path, "newer"), 2)
    files_and_index = 3
    expected = (1, files_of("older")) if changes < files_and_index else (2, files_of("newer"))
    assert loaded(Checkpoints(backend, FOLDER), tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("checkpoint.000000001/weights", b"rot"),
        ("checkpoint.000000001/weights", None),
        ("checkpoint.000000001/deep/moments", b""),
        ("checkpoint.000000001/deep/moments", None),
        ("checkpoint.json", b""),
        ("checkpoint.json", b'{"seal": "", "content": {"position": 1}}'),
    ],
)
def test_a_damaged_one_is_reported_and_counts_as_none(
    backend: Backend,
    checkpoints: Checkpoints,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    path: str,
    data: bytes | None,
) -> None:
    checkpoints.save(state(tmp_path, "only"), 1)
    if data is None:
        backend.delete(f"{FOLDER}/{path}")
    else:
        backend.put(f"{FOLDER}/{path}", data)
    assert loaded(checkpoints, tmp_path / "out") == (None, {})
    assert f"{FOLDER}/{path}" in caplog.text
    assert "starting from the beginning" in caplog.text
    checkpoints.save(state(tmp_path, "anew"), 1)
    assert loaded(checkpoints, tmp_path / "out") == (1, files_of("anew"))


@pytest.mark.parametrize(
    "planted",
    [
        [],
        {},
        {"position": "x", "artifact": None},
        {"position": 1, "artifact": {"kind": "checkpoint", "digest": "../..", "files": {}}},
        {
            "position": 1,
            "artifact": {
                "kind": "checkpoint",
                "digest": "0" * 64,
                "files": {"../outside": {"sha256": "0" * 64, "num_bytes": 0}},
            },
        },
    ],
    ids=str,
)
def test_what_is_no_resume_point_counts_as_none(
    backend: Backend,
    checkpoints: Checkpoints,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    planted: object,
) -> None:
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "out").mkdir()
    backend.put(f"{FOLDER}/checkpoint.json", seal(planted))
    assert loaded(checkpoints, tmp_path / "out") == (None, {})
    assert "; starting from the beginning" in caplog.text
    assert "is no resume point" in caplog.text or not isinstance(planted, dict)
    assert (tmp_path / "outside").read_text() == "mine"


def test_a_file_of_a_checkpoint_may_be_called_like_the_index(
    backend: Backend, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "checkpoint.json").write_text("mine")
    checkpoints.save(tmp_path / "state", 1)
    assert loaded(checkpoints, tmp_path / "out") == (1, {"checkpoint.json": "mine"})
    checkpoints.clear()
    assert backend.list("") == {}


def test_saving_nothing_is_refused_and_keeps_the_older(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    checkpoints.save(state(tmp_path, "older"), 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file"):
        checkpoints.save(tmp_path / "empty", 2)
    assert loaded(checkpoints, tmp_path / "out") == (1, files_of("older"))


# In the background ---------------------------------------------------------------------------------


class Gated(LocalBackend):
    """A store to which nothing gets through until its gate is opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(None, str(root))
        self.gate = threading.Event()
        self.asked = threading.Event()

    def put_from(self, path: str, source: Path) -> None:
        self.asked.set()
        assert self.gate.wait(60)
        super().put_from(path, source)


class FullError(OSError):
    """The disk is full."""


class Full(LocalBackend):
    """A disk that is full."""

    def put_from(self, path: str, source: Path) -> None:
        raise FullError(path, source)


def writing(text: str) -> Callable[[Path], object]:
    """Writes what ``files_of`` lists."""

    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "weights").write_text(text)
        (folder / "deep" / "moments").write_text(text * 2)

    return write


def uploading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mixpool-checkpoint"]


def test_work_goes_on_while_one_is_saved_and_the_end_waits(tmp_path: Path) -> None:
    backend = Gated(tmp_path / "store")
    checkpoints = Checkpoints(backend, FOLDER)
    with BackgroundSaves(checkpoints, None, 0.0) as saves:
        assert not saves.is_saving
        saves.save(writing("first"), 1)
        assert backend.asked.wait(60)
        assert saves.is_saving
        assert saves.longest > 0
        assert checkpoints.load(tmp_path / "none") is None
        backend.gate.set()
    assert not uploading()
    assert loaded(checkpoints, tmp_path / "out") == (1, files_of("first"))


def test_one_at_a_time_in_order(backend: Backend, tmp_path: Path) -> None:
    checkpoints = Checkpoints(backend, FOLDER)
    most = 0
    with BackgroundSaves(checkpoints, str(tmp_path), 0.0) as saves:
        for position in range(1, 6):
            saves.save(writing(f"state {position}"), position)
            most = max(most, len(uploading()))
    assert most == 1
    assert loaded(checkpoints, tmp_path / "out") == (5, files_of("state 5"))
    assert len(backend.list(FOLDER)) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tmp")] == []


def test_what_went_wrong_is_raised_by_the_next(tmp_path: Path) -> None:
    with BackgroundSaves(Checkpoints(Full(None, str(tmp_path)), FOLDER), None, 0.0) as saves:
        saves.save(writing("first"), 1)
        with pytest.raises(FullError):
            saves.save(writing("second"), 2)
        saves.wait()  # told once
        saves.save(writing("third"), 3)
        with pytest.raises(FullError):
            saves.wait()


def test_what_goes_wrong_at_the_end_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with BackgroundSaves(Checkpoints(Full(None, str(tmp_path)), FOLDER), None, 0.0) as saves:
        saves.save(writing("only"), 1)
    assert "the last resume point could not be saved" in caplog.text


def failing(checkpoints: Checkpoints, patience: float, then: Callable[[], object]) -> None:
    with BackgroundSaves(checkpoints, None, patience) as saves:
        saves.save(writing("newer"), 2)
        then()
        raise PowerCutError


def test_a_failure_waits_a_little(tmp_path: Path) -> None:
    backend = Gated(tmp_path / "store")
    checkpoints = Checkpoints(backend, FOLDER)
    later = threading.Timer(0.2, backend.gate.set)
    with pytest.raises(PowerCutError):
        failing(checkpoints, 60.0, later.start)
    assert loaded(checkpoints, tmp_path / "out") == (2, files_of("newer"))


def test_what_was_given_up_is_never_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Gated(tmp_path / "store")
    checkpoints = Checkpoints(backend, FOLDER)
    backend.gate.set()
    checkpoints.save(state(tmp_path, "older"), 1)
    backend.gate.clear()
    backend.asked.clear()
    with pytest.raises(PowerCutError):
        failing(checkpoints, 0.0, lambda: backend.asked.wait(60))
    assert "was not uploaded within 0 s" in caplog.text
    backend.gate.set()
    for thread in uploading():
        thread.join(60)
    assert loaded(checkpoints, tmp_path / "out") == (1, files_of("older"))
