"""A step's result is looked up before it is made, by what can change it and by nothing else."""

import contextlib
import ctypes
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import Popen
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from storage.artifact import Artifact, Record, step_key
from storage.cache import Nearest, OutOfSpaceError, build, lookup
from storage.fingerprint import Config, canonical, differences
from storage.lease import Busy
from storage.step import Call, Handle, Runtime, Step, Workspace
from storage.store import CorruptArtifactError, Store


class Repeat(Config):
    text: str = "ab"
    """What is written."""
    times: int = 2
    """How often, in copies."""
    scale: float = 1.0
    """A factor, without unit."""
    upper: bool = False
    """Whether in capitals."""


class Counter:
    """A meter that counts the blocks that it measured."""

    def __init__(self) -> None:
        self.tokens = self.entered = self.left = 0

    def __enter__(self) -> Self:
        self.entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.left += 1

    def add(self, *, tokens: int = 0, flops: float = 0.0) -> None:
        self.tokens += tokens + int(flops)

    @property
    def cost(self) -> dict[str, object]:
        return {"tokens": self.tokens, "device": "abacus"}


def repeat(
    config: Repeat, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    text = config.text * config.times
    text += "".join((inputs[name] / "text").read_text() for name in sorted(inputs))
    workspace.meter.add(tokens=len(text))
    workspace.progress(1, 1, "text")
    (output / "text").write_text(text.upper() if config.upper else text)
    return {"length": len(text)}


AS_IS = Repeat()
REPEAT = Step("repeat", 1, "text", Repeat, repeat)


@dataclass
class Work:
    """A store and what a call is built with."""

    store: Store
    runtime: Runtime
    meter: Counter = field(default_factory=Counter)
    progress: list[tuple[int, int, str]] = field(default_factory=list)

    def build(self, call: Call[Any]) -> Handle:
        return build(
            self.store, call, self.runtime, self.meter, lambda *seen: self.progress.append(seen)
        )

    def text(self, handle: Handle) -> str:
        assert handle.artifact is not None
        return (self.store.fetch(handle.artifact) / "text").read_text()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(Store(str(tmp_path / "store")), Runtime(scratch=str(tmp_path)))


def call(config: Repeat = AS_IS, label: str = "label", **inputs: Handle) -> Call[Repeat]:
    return Call(REPEAT, config, inputs, label)


def works(*_: object) -> Mapping[str, object]:
    raise AssertionError("a stored result was computed again")


def test_a_miss_is_built_and_recorded_in_full(work: Work) -> None:
    source = work.build(call(Repeat(text="in"), "source"))
    handle = work.build(call(label="of a source", source=source))
    assert work.text(handle) == "ababinin"
    assert not handle.hit
    record = handle.record
    assert record is not None
    assert source.digest is not None
    assert record.inputs == {"source": source.digest}
    assert record.config == {"text": "ab", "times": 2, "scale": 1.0, "upper": False}
    assert record.key == record.recomputed_key()
    assert record.details == {"length": 8}
    assert record.cost == {"tokens": 12, "device": "abacus"}
    assert record.provenance["device"] == "abacus"
    assert work.progress == [(1, 1, "text")] * 2
    assert list(work.store.records("repeat")) == sorted(
        [record, *([source.record] if source.record else [])], key=lambda r: r.path
    )


def test_nothing_is_left_behind(work: Work, tmp_path: Path) -> None:
    work.build(call())
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert work.store.backend.list("work") == {}


def test_a_hit_does_not_run_the_function(work: Work) -> None:
    made = work.build(call())
    again = replace(call(label="called otherwise"), step=replace(REPEAT, build=works))
    found = lookup(Store(work.store.url), again)
    assert found is not None
    assert found.hit
    assert found.label == "called otherwise"
    assert found.artifact == made.artifact
    assert work.build(again) == found
    assert work.meter.entered == 1


def test_a_result_that_another_run_made_meanwhile_is_used(work: Work) -> None:
    assert lookup(work.store, call()) is None
    made = Work(Store(work.store.url), work.runtime).build(call())
    assert lookup(work.store, call()) is None  # names are listed once
    found = work.build(call())
    assert (found.hit, found.artifact, work.meter.entered) == (True, made.artifact, 0)


CONFIGS = st.builds(
    Repeat,
    text=st.sampled_from(["", "a", "b"]),
    times=st.sampled_from([0, 1]),
    scale=st.sampled_from([0.0, -0.0, 1.0]),
    upper=st.booleans(),
)
HANDLES = st.dictionaries(st.sampled_from("xy"), st.sampled_from(["0" * 64, "1" * 64]))
CALLS = st.tuples(st.sampled_from(["s", "t"]), st.sampled_from([1, 2]), CONFIGS, HANDLES)


@given(CALLS, CALLS)
def test_keys_are_equal_exactly_where_step_version_config_and_inputs_are(
    one: tuple[str, int, Repeat, dict[str, str]], other: tuple[str, int, Repeat, dict[str, str]]
) -> None:
    assert (step_key(*one) == step_key(*other)) == (one == other)


def test_the_key_changes_with_each_thing_that_can_change_the_result(work: Work) -> None:
    one, two = (work.build(call(Repeat(text=text), text)) for text in ("one", "two"))
    calls = [
        call(),
        call(Repeat(text="abc")),
        call(Repeat(times=3)),
        call(Repeat(scale=1.5)),
        call(Repeat(upper=True)),
        call(source=one),
        call(source=two),
        call(other=one),
        call(source=one, other=two),
        call(source=two, other=one),
        replace(call(), step=replace(REPEAT, version=2)),
        replace(call(), step=replace(REPEAT, name="otherwise")),
    ]
    assert len({one.key for one in calls}) == len(calls)


def test_the_key_changes_with_nothing_else(work: Work) -> None:
    source = work.build(call(Repeat(text="in"), "source"))
    key = call(source=source).key
    renamed = replace(source, label="renamed", hit=True, record=None)
    assert call(label="other", source=renamed).key == key
    assert replace(call(source=source), estimate={"tokens": 7.0}).key == key
    work.runtime = Runtime(scratch=work.runtime.scratch, device="cpu", chunk=1, batch_tokens=1)
    handle = work.build(call(source=source))
    assert handle.record is not None
    assert handle.record.key == key


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=CONFIGS)
def test_every_config_is_found_again_as_it_was_made(work: Work, config: Repeat) -> None:
    made = work.build(call(config))
    found = lookup(Store(work.store.url), call(config))
    assert found is not None
    assert found.artifact == made.artifact
    expected = config.text * config.times
    assert work.text(found) == (expected.upper() if config.upper else expected)


def test_two_calls_with_equal_output_share_one_artifact_and_have_two_records(work: Work) -> None:
    one, other = work.build(call(Repeat(scale=1.0))), work.build(call(Repeat(scale=2.0)))
    assert one.artifact == other.artifact
    assert one.record != other.record
    assert not other.hit


def test_a_config_of_another_step_is_refused() -> None:
    class More(Repeat):
        pass

    with pytest.raises(TypeError, match="step repeat takes Repeat, not More"):
        Call(REPEAT, More(), {}, "label")


def test_a_call_with_an_input_that_is_not_built_has_no_key(work: Work) -> None:
    planned = call(source=Handle("source", "text", None))
    assert (planned.key, planned.digests) == (None, None)
    assert lookup(work.store, planned) is None


def test_work_in_progress_is_busy_and_later_free(work: Work) -> None:
    key = call().key
    with Store(work.store.url).lease(f"repeat/{key}"):
        with pytest.raises(Busy, match=f"work/repeat/{key} is being worked on by process"):
            work.build(call())
        assert not work.build(call(Repeat(times=9))).hit
    assert not work.build(call()).hit


BUILD = """
import sys, time
from pathlib import Path
from storage.cache import build
from storage.fingerprint import Config, canonical, differences
from storage.lease import Busy
from storage.step import Call, Runtime, Step
from storage.store import Store
store, log = sys.argv[1:]
class Empty(Config):
    pass
class Free:
    cost = {"seconds": 0.0}
    def __enter__(self): return self
    def __exit__(self, *error): pass
def slow(config, inputs, output, workspace):
    with open(log, "a") as file:
        file.write("built\\n")
    time.sleep(0.3)
    (output / "x").write_text("x")
    return {}
call = Call(Step("slow", 1, "text", Empty, slow), Empty(), {}, "label")
while True:
    try:
        handle = build(Store(store), call, Runtime(), Free(), lambda *_: None)
        break
    except Busy:
        time.sleep(0.02)
print(handle.digest)
"""


def test_six_processes_build_a_step_once(
    python: Callable[..., "Popen[str]"], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    runs = [python(BUILD, tmp_path / "store", log) for _ in range(6)]
    answers = [run.communicate(timeout=60) for run in runs]
    assert {errors for _, errors in answers} == {""}
    assert len({digest for digest, _ in answers}) == 1
    assert log.read_text() == "built\n"


def failing(
    config: Repeat, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    state = output.parent / "state"
    if workspace.checkpoints.load(state) is not None:
        return repeat(config, inputs, output, workspace)
    (output / "text").write_text("half")
    state.mkdir()
    (state / "position").write_text("7")
    workspace.checkpoints.save(state, 7)
    raise RuntimeError("power cut")


def test_a_failing_step_leaves_no_record_no_artifact_and_resumes(
    work: Work, tmp_path: Path
) -> None:
    failed = replace(call(), step=replace(REPEAT, build=failing))
    with pytest.raises(RuntimeError, match="power cut"):
        work.build(failed)
    assert work.meter.left == 1
    assert lookup(Store(work.store.url), failed) is None
    assert {path.split("/")[0] for path in work.store.backend.list("")} == {"store.json", "work"}
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert work.text(work.build(failed)) == "abab"
    assert work.store.backend.list("work") == {}


def test_resume_points_of_a_result_that_is_there_are_removed(work: Work) -> None:
    work.build(call())
    left = f"work/repeat/{call().key}/checkpoint.000000001/weights"
    work.store.backend.put(left, b"as a crash after the commit leaves them")
    assert work.build(call()).hit
    assert work.store.backend.list("work") == {}


def test_a_step_that_writes_nothing_is_refused(work: Work) -> None:
    def nothing(*_: object) -> Mapping[str, object]:
        return {}

    with pytest.raises(ValueError, match="a step must write its output there"):
        work.build(replace(call(), step=replace(REPEAT, build=nothing)))
    assert list(work.store.records()) == []


def test_a_damaged_input_is_made_anew(work: Work) -> None:
    source = work.build(call(Repeat(text="in"), "source"))
    assert source.artifact is not None
    path = work.store.backend.local(f"{source.artifact.prefix}/text")
    assert path is not None
    path.write_text("rot")
    fresh = Work(Store(work.store.url), work.runtime)
    with pytest.raises(CorruptArtifactError, match="text has other content"):
        fresh.build(call(source=source))
    assert not (again := fresh.build(call(Repeat(text="in"), "source"))).hit
    assert again.artifact == source.artifact
    assert fresh.text(fresh.build(call(source=again))) == "ababinin"


def test_explain_names_the_fields_that_differ_from_the_nearest_record(work: Work) -> None:
    source = work.build(call(Repeat(text="in"), "source"))
    near = work.build(call(Repeat(times=5, scale=0.5), "near", source=source))
    work.build(call(Repeat(text="far", times=9, upper=True), "far"))
    records = list(work.store.records("repeat"))
    assert near.record is not None
    asked = call(Repeat(times=5, scale=0.25), "wanted", source=source)
    assert str(Nearest(records).explain(asked)) == (
        f"repeat wanted: differs from near ({near.record.key[:10]}) in\n"
        "    config.scale: 0.5 -> 0.25"
    )
    newer = replace(asked, step=replace(REPEAT, version=2), config=Repeat(times=5, scale=0.5))
    assert str(Nearest(records).explain(newer)).splitlines()[1:] == ["    version: 1 -> 2"]
    later = call(Repeat(times=5, scale=0.5), "near", source=Handle("source", "text", None))
    assert str(Nearest(records).explain(later)).splitlines()[1:] == [
        "    inputs.source: not built yet"
    ]
    other = replace(later, inputs={"source": work.build(call(Repeat(text="x"), "other"))})
    assert str(Nearest(records).explain(other)).splitlines()[1:] == [
        "    inputs.source: another one"
    ]
    assert str(Nearest(records).explain(replace(other, label="wanted"))) == "repeat wanted: new"


def test_explain_prefers_the_record_of_the_same_thing(work: Work) -> None:
    for label in ("one", "two", "three"):
        work.build(call(Repeat(text=label), label))
    records = list(work.store.records("repeat"))
    nearest = Nearest(records).explain(call(Repeat(text="new"), "two")).nearest
    assert nearest is not None
    assert nearest.label == "two"


def test_of_many_records_the_nearest_is_the_one_with_the_fewest_differences() -> None:
    draw = random.Random(0)
    made = Artifact(kind="text", digest="0" * 64, files={})

    def config() -> Repeat:
        return Repeat(times=draw.randrange(3), text=draw.choice("ab"), upper=draw.random() < 0.5)

    def inputs() -> dict[str, str]:
        return {name: draw.choice("abc") * 64 for name in draw.sample(["one", "two", "three"], 2)}

    records = [
        Record(
            step="repeat", version=draw.randrange(2), key=f"{number:064x}", label=draw.choice("pqr"),
            config=canonical(config()), inputs=inputs(), output=made, provenance={},
        )
        for number in range(60)
    ]  # fmt: skip
    nearest = Nearest(records)
    for _ in range(100):
        given_inputs = {
            name: Handle(name, "text", made.model_copy(update={"digest": digest}))
            for name, digest in inputs().items()
        }
        asked = Call(REPEAT, config(), given_inputs, draw.choice("pqs"))

        def apart(record: Record, asked: Call[Repeat] = asked) -> tuple[int, bool]:
            old = {"version": record.version, "config": record.config, "inputs": record.inputs}
            new = {"version": 1, "config": canonical(asked.config), "inputs": asked.digests or {}}
            found = [*differences(canonical(old), canonical(new))]
            return len(found), record.label != asked.label

        found = nearest.explain(asked)
        assert found.nearest is min(records, key=apart)
        assert len(found.differences) == apart(found.nearest)[0]


def test_explain_where_nothing_differs_and_where_nothing_is(work: Work) -> None:
    assert str(Nearest([]).explain(call())) == "repeat label: no record of this step yet"
    made = work.build(call())
    assert made.record is not None
    asked = Nearest(list(work.store.records())).explain(call(label="asked"))
    assert asked.differences == []
    assert str(asked) == f"repeat asked: is stored, as label ({made.record.key[:10]})"


# A disk that is really full ------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=1m"):
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    yield disk
    assert libc.umount2(os.fsencode(disk), 2) == 0


BIG = Repeat(text="x" * 1024, times=2048)


def test_a_full_store_is_told_and_keeps_what_it_has(small_disk: Path, tmp_path: Path) -> None:
    work = Work(Store(str(small_disk / "store")), Runtime(scratch=str(tmp_path)))
    small = work.build(call(label="small"))
    with pytest.raises(OutOfSpaceError, match="no space left while repeat big was written"):
        work.build(call(BIG, "big"))
    again = Store(work.store.url)
    assert lookup(again, call(BIG)) is None
    assert work.store.backend.list("work") == {}
    assert small.artifact is not None
    assert again.faults(small.artifact) == []
    assert not [path for path in small_disk.rglob("*") if path.name.startswith(".tmp-")]
    assert shutil.disk_usage(small_disk).free > 900_000


def test_a_full_scratch_folder_is_told(small_disk: Path, tmp_path: Path) -> None:
    work = Work(Store(str(tmp_path / "store")), Runtime(scratch=str(small_disk)))
    with pytest.raises(OutOfSpaceError, match=f"scratch {small_disk}"):
        work.build(call(BIG))
    assert list(small_disk.iterdir()) == []
    work.runtime = Runtime(scratch=str(tmp_path))
    assert len(work.text(work.build(call(BIG)))) == 2 << 20


def tensors(
    config: Repeat, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    del inputs, workspace
    save_file({"x": np.zeros(config.times, np.float32)}, output / "x.safetensors")
    return {}


def test_a_disk_that_is_full_of_tensors_is_told(small_disk: Path, tmp_path: Path) -> None:
    step = Step("tensors", 1, "tensors", Repeat, tensors)
    work = Work(Store(str(tmp_path / "store")), Runtime(scratch=str(small_disk)))
    with pytest.raises(
        OutOfSpaceError, match="no space left while tensors big was written"
    ) as told:
        work.build(Call(step, Repeat(times=1 << 20), {}, "big"))
    # An error of the library's own, without a number.
    assert not isinstance(told.value.__cause__, OSError)
    assert list(small_disk.iterdir()) == []
    assert work.build(Call(step, Repeat(times=1 << 10), {}, "small")).built


def test_a_store_without_room_for_a_lease_is_told(small_disk: Path, tmp_path: Path) -> None:
    work = Work(Store(str(small_disk / "store")), Runtime(scratch=str(tmp_path)))
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(b"\0" * (2 << 20))
    assert shutil.disk_usage(small_disk).free == 0
    with pytest.raises(OutOfSpaceError, match="everything committed is kept"):
        work.build(call())
    (small_disk / "filler").unlink()
    assert json.loads((small_disk / "store" / "store.json").read_text())["content"] == {"format": 1}
    assert not work.build(call()).hit
