"""``gc`` keeps what a kept run reaches and nothing else, refuses when in doubt, and may be interrupted.

The reference: reachability written down as sets, over small stores of drawn records, runs, manifests
and tables.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import audit, lineage
from storage.artifact import CorruptError, Record, describe, seal, step_key
from storage.backends.backend import Backend, FileInfo
from storage.backends.local import LocalBackend
from storage.backends.urls import open_backend
from storage.garbage import COLLECTING, InUseError, collect, collector, find_garbage, live_work
from storage.lease import Lease
from storage.store import Store


def _commit(store: Store, number: int, inputs: Iterable[Record], label: str = "label") -> Record:
    digests = {f"input{n}": record.output.digest for n, record in enumerate(inputs)}
    config = {"number": number}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "file").write_text(f"content {number}")
        record = Record(
            step="step",
            version=1,
            key=step_key("step", 1, config, digests),
            label=label,
            config=config,
            inputs=digests,
            output=describe("text", Path(name)),
        )
        return store.commit(record, Path(name))


def _finish(store: Store, name: str, **used: list[str]) -> None:
    """A run folder with its page and ``run.json``."""
    store.backend.create(f"runs/{name}/report.html", b"page")
    content: dict[str, Any] = {"records": [], "manifests": [], "losses": [], **used}
    content |= {"name": name, "files": {"report.html": hashlib.sha256(b"page").hexdigest()}}
    store.backend.create(f"runs/{name}/run.json", seal(content))


def _publish(store: Store, chain: str, number: int, named: Iterable[Record]) -> str:
    path = f"manifests/{chain}/{number:06d}.json"
    outputs = [record.output for record in named]
    content = {"chain": chain, "number": number, "index": outputs}
    assert store.backend.create(path, seal(content))
    return path


class Drawn(NamedTuple):
    """A store in numbers: inputs of each record, and what each chain and run names."""

    inputs: list[list[int]]
    chains: list[list[list[int]]]
    """Records named by each manifest of each chain."""
    runs: list[tuple[list[int], list[tuple[int, int]], list[int]]]
    """Records, (chain, number) of manifests, tables of each run."""
    keep: list[int]


@st.composite
def drawn_stores(draw: st.DrawFn) -> Drawn:
    """Up to six records, two chains, three runs of which some are kept."""
    size = draw(st.integers(1, 6))
    inputs = [draw(st.lists(st.integers(0, n - 1), max_size=2)) if n else [] for n in range(size)]
    some = st.lists(st.integers(0, size - 1), max_size=3)
    chains = draw(st.lists(st.lists(some, min_size=1, max_size=3), min_size=1, max_size=2))
    places = [(c, n) for c, chain in enumerate(chains) for n in range(len(chain))]
    run = st.tuples(
        some, st.lists(st.sampled_from(places), max_size=2), st.lists(st.integers(0, 1), max_size=2)
    )
    runs = draw(st.lists(run, min_size=1, max_size=3))
    numbers = st.integers(0, len(runs) - 1)
    return Drawn(inputs, chains, runs, draw(st.lists(numbers, min_size=1, unique=True)))


def _build(store: Store, drawn: Drawn) -> list[Record]:
    records: list[Record] = []
    for number, inputs in enumerate(drawn.inputs):
        records.append(_commit(store, number, [records[i] for i in inputs]))
    for c, chain in enumerate(drawn.chains):
        for number, named in enumerate(chain):
            _publish(store, f"chain{c}", number, [records[i] for i in named])
    for table in range(2):
        store.backend.create(f"losses/table{table}/evaluation.json", seal({}))
    for number, (used, places, tables) in enumerate(drawn.runs):
        _finish(
            store,
            f"run{number}",
            records=[records[i].path for i in used],
            manifests=[f"manifests/chain{c}/{n:06d}.json" for c, n in places],
            losses=[f"table{table}" for table in tables],
        )
    store.backend.put("work/step/key/checkpoint.json", b"")
    store.backend.create("artifacts/text/nobody/file", b"left by a crash")
    return records


def _expected(drawn: Drawn, records: list[Record]) -> set[str]:
    """Every path that stays."""
    kept = [drawn.runs[number] for number in drawn.keep]
    wanted = {i for used, _, _ in kept for i in used}
    chains = {c for _, places, _ in kept for c, _ in places}
    for c in chains:
        wanted |= {*drawn.chains[c][-1]}
    wanted |= {i for _, places, _ in kept for c, n in places for i in drawn.chains[c][n]}
    for number in reversed(range(len(records))):
        wanted |= {*drawn.inputs[number]} if number in wanted else set()
    paths = {records[i].path for i in wanted} | {f"{records[i].output.prefix}/file" for i in wanted}
    manifests = {place for _, places, _ in kept for place in places}
    manifests |= {(c, len(drawn.chains[c]) - 1) for c in chains}
    paths |= {f"manifests/chain{c}/{n:06d}.json" for c, n in manifests}
    paths |= {f"losses/table{t}/evaluation.json" for _, _, tables in kept for t in tables}
    names = ("report.html", "run.json")
    return paths | {f"runs/run{n}/{name}" for n in drawn.keep for name in names} | {"store.json"}


class InterruptedGcError(OSError):
    """The deletion ends here."""


class BreakingBackend(LocalBackend):
    """Fails at the deletion with a given number; a dead process would leave no live lease."""

    left = 10**9

    def delete(self, path: str) -> None:
        self.left -= not path.startswith("work/gc/")
        if self.left < 0 and not path.startswith("work/gc/"):
            raise InterruptedGcError(path)
        super().delete(path)


def _paths(store: Store) -> set[str]:
    return {*store.backend.list("records")}


def _sound(store: Store) -> bool:
    return audit.verify(store, lambda done, total, unit: None) == []


@settings(max_examples=40)
@given(drawn_stores(), st.integers(0, 40))
def test_what_kept_runs_reach_stays_and_nothing_else(drawn: Drawn, breaks_at: int) -> None:
    with tempfile.TemporaryDirectory() as room:
        backend = BreakingBackend(open_backend(room).fs, room)
        store = Store(room, backend=backend)
        records = _build(store, drawn)
        before = backend.list("")
        keep = [f"run{number}" for number in drawn.keep]
        garbage = find_garbage(store, keep)
        assert backend.list("") == before
        backend.left = breaks_at
        try:
            assert collect(store, keep) == garbage
        except InterruptedGcError:
            backend.left = 10**9
            assert _expected(drawn, records) <= backend.list("").keys()
            assert _sound(store)
            collect(store, keep)
        else:
            gone = before.keys() - backend.list("").keys()
            assert garbage.num_bytes == sum(before[path].num_bytes for path in gone)
        assert backend.list("").keys() == _expected(drawn, records)
        assert _sound(store)
        assert not any(find_garbage(store, keep)[:-1])


@pytest.fixture
def store(backend: Backend) -> Store:
    """An empty store of each kind of backend."""
    return Store("a store", backend=backend)


def test_on_any_backend_one_run_stays_and_the_other_goes(store: Store) -> None:
    base = _commit(store, 0, [])
    mine, other = _commit(store, 1, [base]), _commit(store, 2, [base])
    _finish(store, "mine", records=[mine.path])
    _finish(store, "other", records=[other.path])
    collect(store, ["mine"])
    assert {record.path for record in store.records()} == {base.path, mine.path}
    assert [*lineage.run_folders(store)] == ["mine"]
    assert store.backend.list(other.output.prefix) == {}


def test_a_live_lease_forbids_it(store: Store) -> None:
    _finish(store, "run")
    with store.lease("run/other"), pytest.raises(InUseError, match="run/other"):
        find_garbage(store, ["run"])
    record = _commit(store, 1, [])
    with store.lease("train/key"), pytest.raises(InUseError, match="train/key"):
        collect(store, ["run"])
    assert store.find("step", record.key) == record


def test_two_do_not_collect_at_once_and_a_run_can_see_it(store: Store) -> None:
    _finish(store, "run")
    assert collector(store) is None
    with store.lease(COLLECTING):
        assert str(os.getpid()) in str(collector(store))
        assert live_work(store) == []
        with pytest.raises(InUseError, match="somebody else is deleting garbage"):
            collect(store, None)
    assert collector(store) is None
    assert not any(collect(store, None)[:-1])


class HalvingBackend(LocalBackend):
    """Of some group of files it deletes half, in an order of its own, as many requests at once may."""

    left, first = 10**9, 0

    def delete_each(self, paths: Iterable[str]) -> None:
        self.left -= 1
        super().delete_each(paths if self.left else sorted(paths)[self.first :: 2])
        if not self.left:
            raise InterruptedGcError


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("group", range(1, 6))
def test_half_of_a_group_may_be_deleted_and_nothing_names_what_is_gone(
    tmp_path: Path, group: int, first: int
) -> None:
    backend = HalvingBackend(open_backend(str(tmp_path)).fs, str(tmp_path))
    store = Store(str(tmp_path), backend=backend)
    old, new = _commit(store, 1, []), _commit(store, 2, [])
    _publish(store, "chain", 0, [old])
    _finish(store, "mine")
    for name in ("other", "another"):
        _finish(store, name, records=[new.path], manifests=[_publish(store, name, 0, [new])])
    _finish(store, "last", manifests=[_publish(store, "chain", 1, [new])])
    assert collect(store, None).records == [old.path]
    backend.left, backend.first = group, first
    with pytest.raises(InterruptedGcError):
        collect(store, ["mine"])
    assert _sound(store)


class VisitedBackend(LocalBackend):
    """Somebody comes before the n-th listing."""

    def __init__(self, folder: Path, number: int, come: Callable[[], object]) -> None:
        super().__init__(open_backend(str(folder)).fs, str(folder))
        self.left, self.come = number, come

    def list(self, prefix: str) -> dict[str, FileInfo]:
        self.left -= 1
        if self.left == 0:
            self.come()
        return super().list(prefix)


@pytest.mark.parametrize("listing", range(1, 11))
def test_a_run_that_comes_meanwhile_keeps_its_lease(tmp_path: Path, listing: int) -> None:
    run, other = Store(str(tmp_path)).lease("run/other"), Store(str(tmp_path))
    backend = VisitedBackend(tmp_path, listing, run.__enter__)
    store = Store(str(tmp_path), backend=backend)
    _finish(store, "run")
    with contextlib.suppress(InUseError):
        collect(store, ["run"])
    assert backend.left <= 0, "nobody came"
    assert "(run/other)" in str(live_work(other))
    run.__exit__(None, None, None)


def test_a_collector_that_was_stopped_for_long_deletes_nothing_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = _commit(store, 1, [])
    _finish(store, "run")
    with monkeypatch.context() as stopped:
        stopped.setattr(Lease, "is_held", False)
        with pytest.raises(InUseError, match="stopped for so long that a run may have"):
            collect(store, None)
    assert [*store.records()] == [lost]
    assert collect(store, None).records == [lost.path]


def test_all_finished_runs_can_be_kept(store: Store) -> None:
    kept, lost = _commit(store, 1, []), _commit(store, 2, [])
    _finish(store, "run", records=[kept.path])
    store.backend.create("runs/unfinished/recipe.yaml", b"")
    garbage = collect(store, None)
    assert (garbage.records, garbage.runs) == ([lost.path], ["runs/unfinished/recipe.yaml"])
    assert [*store.records()] == [kept]


def test_the_lease_of_a_dead_run_forbids_nothing(
    backend: Backend, python: Callable[..., Any]
) -> None:
    store = Store("a store", backend=backend)
    _finish(store, "run")
    script = (
        "from storage.lease import _this_process; import json; print(json.dumps(_this_process()))"
    )
    owner, _ = python(script).communicate()
    backend.put("work/run/dead/lease.0", owner.encode())
    assert live_work(store) == []
    garbage = find_garbage(store, ["run"])
    assert garbage.work == ["work/run/dead/lease.0"]


@pytest.mark.parametrize("keep", [["nobody"], ["run", "unfinished"]])
def test_unknown_and_unfinished_runs_cannot_be_kept(store: Store, keep: list[str]) -> None:
    _finish(store, "run")
    store.backend.create("runs/unfinished/recipe.yaml", b"")
    with pytest.raises(ValueError, match=rf"'{keep[-1]}' to keep; there are: run$"):
        find_garbage(store, keep)


def test_to_keep_nothing_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"no run is to be kept.*there are: none"):
        find_garbage(store, [])


def test_a_record_made_again_under_another_label_is_kept(store: Store) -> None:
    record = _commit(store, 1, [])
    _finish(store, "run", records=[record.path])
    store.retract(record.output)
    again = _commit(store, 1, [], label="another")
    assert again.path != record.path
    assert again.path not in find_garbage(store, ["run"]).records


def test_a_planted_record_cannot_take_the_place_of_another(store: Store) -> None:
    record = _commit(store, 1, [])
    _finish(store, "run", records=[record.path])
    other = _commit(store, 2, [])
    forged = record.model_copy(update={"output": other.output})
    store.backend.create(f"records/step/planted.{record.key}.json", seal(forged))
    assert find_garbage(store, ["run"]).artifacts == []
    store.backend.create(f"records/else/label.{record.key}.json", seal(forged))
    with pytest.raises(CorruptError, match=r"records/else/.* is damaged or not believed.*deleted"):
        collect(store, ["run"])
    assert store.faults(record.output) == store.faults(other.output) == []


@pytest.mark.parametrize(
    "wrong",
    [{"records": ["x"]}, {"records": ["../x.json"]}, {"manifests": [1]}, {"losses": None}],
    ids=str,
)
def test_a_run_that_does_not_say_what_it_needs_forbids_it(
    store: Store, wrong: dict[str, Any]
) -> None:
    record = _commit(store, 1, [])
    _finish(store, "run", **wrong)
    with pytest.raises(CorruptError, match=f"runs/run .*{next(iter(wrong))}.*nothing is deleted"):
        collect(store, None)
    assert [*store.records()] == [record]


def test_what_an_unfinished_validation_needs_stays_until_it_is_done(store: Store) -> None:
    base, model = _commit(store, 0, []), _commit(store, 1, [])
    reference = _commit(store, 2, [base])
    _finish(store, "run", records=[model.path])
    lacking = f"records/step/reference.{'0' * 64}.json"
    needs = {"records": [reference.path, lacking], "manifests": [], "losses": []}
    for name, data in (("recipe.yaml", b""), (lineage.VALIDATION, seal(needs))):
        store.backend.create(f"runs/validation/{name}", data)
    for keep in (None, ["run"]):
        assert not any(collect(store, keep)[:-1])
    assert _paths(store) == {base.path, model.path, reference.path}
    # Done again, it is a run that can be kept or not.
    _finish(store, "again", records=[model.path, reference.path, lacking])
    assert collect(store, None).runs == [
        "runs/validation/recipe.yaml",
        f"runs/validation/{lineage.VALIDATION}",
    ]
    assert _paths(store) == {base.path, model.path, reference.path}
    assert collect(store, ["run"]).records == sorted([base.path, reference.path])


def test_a_damaged_run_or_manifest_forbids_it_and_says_what_to_do(store: Store) -> None:
    _finish(store, "run", manifests=[_publish(store, "chain", 0, [])])
    store.backend.put("manifests/chain/000001.json", b"{}")
    with pytest.raises(CorruptError, match=r"chain/000001\.json.*nothing is deleted"):
        find_garbage(store, ["run"])
    store.backend.put("runs/other/run.json", b"{}")
    with pytest.raises(CorruptError, match="delete runs/other to go on without that run"):
        find_garbage(store, ["run"])


def test_a_run_in_the_folder_of_another_is_refused(store: Store) -> None:
    store.backend.create("runs/one/run.json", seal({"name": "one", "records": []}))
    store.backend.create("runs/two/run.json", store.backend.read("runs/one/run.json"))
    with pytest.raises(CorruptError, match=r"runs/two/run\.json is that of run 'one': restore it"):
        lineage.run_folders(store)


def test_files_of_writers_that_were_killed_go_after_a_day(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    _finish(store, "run")
    old, new = (tmp_path / "store/records/step" / f".tmp-{name}" for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    for path in (old, new):
        path.write_bytes(b"half a record")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    garbage = collect(store, ["run"])
    assert (garbage.unfinished, garbage.num_bytes) == (["records/step/.tmp-old"], 13)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_tree_shows_what_an_artifact_is_made_of(store: Store) -> None:
    given, base = "d" * 64, _commit(store, 0, [], "base")
    top = _commit(store, 1, [base], "top").model_copy(
        update={"inputs": {"model": base.output.digest, "tokens": given}}
    )
    made = {base.output.digest: base, top.output.digest: top}
    assert lineage.producers(store).keys() == made.keys()
    assert [*lineage.tree(top.output.digest, made, {given: "tokens of law"})] == [
        f"step top  text {top.output.digest[:10]}  key {top.key[:10]}",
        f"    model: step base  text {base.output.digest[:10]}  key {base.key[:10]}",
        f"    tokens: tokens of law {given[:10]}",
    ]
    assert [*lineage.tree(given, {}, {})] == [f"(no record) {given[:10]}"]
