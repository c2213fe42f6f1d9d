"""Whatever runs and collectors do in whatever order, nothing is deleted that a run needs.

Runs here build nothing, but begin, look up, build under a lease, append, publish, end, fail and crash as
``flows.run.execute`` and its runners do, in sessions that keep one client. Another client collects; in the
middle of it a run may come, or the collector may fail. The model: what each run reaches, as sets.
"""

import hashlib
import itertools
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage import audit, garbage
from storage.artifact import Record, describe, seal, step_key
from storage.backends.backend import Backend
from storage.lease import Lease
from storage.stamp import PLACEHOLDER, stamp
from storage.store import Store, number_of
from tests.s3 import S3Door
from tests.servers import BUCKET
from tests.storage.contract import BackDoor
from tests.storage.test_store import LocalDoor

if TYPE_CHECKING:
    from tests.servers import S3Server

SESSIONS = range(2)
NUMBERS = st.integers(0, 5)
WORKS = st.lists(st.sampled_from(["map", "scan", "append_losses"]), min_size=1, max_size=4)
WAYS = st.sampled_from(["end", "end", "end", "fail", "crash"])
CHAINS, TABLES = ["chain0", "chain0", "chain1"], ["table0", "table1"]

DEAD_OWNER = """
import json
from storage.lease import _this_process
print(json.dumps(_this_process()))
"""


class PowerCutError(OSError):
    """The collector ends here."""


class Visited:
    """A backend before whose n-th operation something happens."""

    def __init__(self, backend: Backend, number: int, act: Callable[[], None]) -> None:
        self._backend, self._left, self._act = backend, number, act

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        return self._then(found) if callable(found) else found

    def _then(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*given: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self._act()
            return method(*given)

        return operation


class Failing:
    """A backend whose n-th deletion of several files leaves half of them, in no order."""

    def __init__(self, backend: Backend, number: int, first: int) -> None:
        self._backend, self._left, self._first = backend, number, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def delete_each(self, paths: Iterable[str]) -> None:
        self._left -= 1
        self._backend.delete_each(paths if self._left else [*paths][self._first :: 2])
        if not self._left:
            raise PowerCutError


def some_of(names: Iterable[str], least: int, most: int) -> st.SearchStrategy[list[str]]:
    each = st.sampled_from(sorted(names)) if names else st.nothing()
    return st.lists(each, min_size=least, max_size=most if names else 0, unique=True)


@dataclass
class Run:
    """What a run holds and has used so far."""

    name: str
    session: int
    lease: Lease
    has_begun: bool = False
    """False while it waits for a collector."""
    records: set[str] = field(default_factory=set)
    manifests: set[str] = field(default_factory=set)
    losses: set[str] = field(default_factory=set)
    at_hand: set[str] = field(default_factory=set)
    """Digests of artifacts that it may take as inputs."""


@dataclass
class Model:
    """Everything that was ever made, by path, and what is there now."""

    records: dict[str, Record] = field(default_factory=dict)
    manifests: dict[str, set[str]] = field(default_factory=dict)
    """Digests that each manifest names."""
    ended: dict[str, Run] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    """Every file outside ``work/``."""

    def reached(self, runs: list[Run]) -> set[str]:
        """Every file that these runs need, with the newest manifest of each chain they used."""
        used = {path for run in runs for path in run.manifests}
        chains = {path.split("/")[1] for path in used}
        paths = {path for path in self.manifests if path.split("/")[1] in chains}
        newest = {max(path for path in paths if path.split("/")[1] == chain) for chain in chains}
        digests = {digest for path in used | newest for digest in self.manifests[path]}
        wanted = {path for run in runs for path in run.records}
        while True:
            digests |= {d for path in wanted for d in self.records[path].inputs.values()}
            makers = {p for p, record in self.records.items() if record.output.digest in digests}
            if makers <= wanted:
                break
            wanted |= makers
        files = {f"{self.records[path].output.prefix}/file" for path in wanted}
        tables = {f"losses/{table}" for run in runs for table in run.losses}
        folders = tables | {f"runs/{run.name}" for run in runs}
        beside = {path for path in self.files if "/".join(path.split("/")[:2]) in folders}
        return {"store.json"} | wanted | files | (used & paths) | newest | beside

    def take_stock(self, there: set[str]) -> None:
        """Forget what is not there."""
        self.records = {path: record for path, record in self.records.items() if path in there}
        self.manifests = {path: named for path, named in self.manifests.items() if path in there}
        ended = [name for name in self.ended if f"runs/{name}/run.json" in there]
        self.ended = {name: self.ended[name] for name in ended}
        self.files &= there


class RunsAndCollectors(RuleBasedStateMachine):
    """Two sessions in which runs come and go, one collector, one store."""

    def __init__(self, room: Path, url: str, door: BackDoor, dead_owner: str) -> None:
        super().__init__()
        self.room, self.url, self.door, self.dead_owner = room, url, door, dead_owner
        for number in range(3):
            (room / f"output {number}").mkdir(parents=True)
            (room / f"output {number}" / "file").write_text(f"content {number}")
        self.store = Store(url, room / "cache")
        self.sessions = [self.opened(session) for session in SESSIONS]
        self.model = Model(files={"store.json"})
        self.live: list[Run] = []
        self.numbers = itertools.count()
        self.turn = 0

    def opened(self, session: int) -> Store:
        return Store(self.url, self.room / str(session), create=False)

    def teardown(self) -> None:
        for run in self.live:
            run.lease.__exit__(None, None, None)
        shutil.rmtree(self.room)

    # A run, as flows.run.execute and its runners have it -----------------------------------------------

    def come(self, session: int) -> None:
        """A run takes its lease and begins, or waits where it sees a collector."""
        name = f"{next(self.numbers):04d}-run"
        lease = self.sessions[session].lease(f"run/{name}").__enter__()
        self.live.append(Run(name, session, lease))
        self.begin_if_free(self.live[-1])

    def begin_if_free(self, run: Run) -> None:
        store = self.sessions[run.session]
        if not run.has_begun and garbage.collector(store) is None:
            assert self.create(store, f"runs/{run.name}/recipe.yaml", b"a recipe")
            run.has_begun = True

    def create(self, store: Store, path: str, data: bytes) -> bool:
        self.model.files.add(path)
        return store.backend.create(path, data)

    @initialize(data=st.data(), number=st.integers(2, 4))
    def have_a_past(self, data: st.DataObject, number: int) -> None:
        for session in range(number):
            self.begin_work_and_leave(data, session % len(SESSIONS))

    @rule(data=st.data(), session=st.sampled_from(SESSIONS))
    def begin_work_and_leave(self, data: st.DataObject, session: int) -> None:
        self.begin(session)
        self.let_work(data, self.live[-1])
        self.let_leave(data, self.live[-1])

    @precondition(lambda self: len(self.live) < 2)
    @rule(session=st.sampled_from(SESSIONS))
    def begin(self, session: int) -> None:
        self.come(session)
        assert self.live[-1].has_begun, "a lease of a collector that is gone"

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        self.let_work(data, self.some_run(data))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.let_leave(data, self.some_run(data))

    def some_run(self, data: st.DataObject) -> Run:
        name = data.draw(st.sampled_from([run.name for run in self.live]))
        return next(run for run in self.live if run.name == name)

    def let_work(self, data: st.DataObject, run: Run) -> None:
        for name in data.draw(WORKS):
            getattr(self, name)(data, run, self.sessions[run.session])

    def let_leave(self, data: st.DataObject, run: Run) -> None:
        getattr(self, data.draw(WAYS))(data, run, self.sessions[run.session])
        run.lease.__exit__(None, None, None)
        self.live.remove(run)

    def map(self, data: st.DataObject, run: Run, store: Store) -> None:
        """Several steps: found if anybody has made them of the same inputs, else built."""
        for call in self.calls(data, run, store):
            found = store.find("step", call.key) or self.build(store, call)
            assert self.model.records.get(found.path) == found
            run.records.add(found.path)
            run.at_hand.add(found.output.digest)

    def calls(self, data: st.DataObject, run: Run, store: Store) -> list[Record]:
        numbers = data.draw(st.lists(NUMBERS, min_size=1, max_size=3, unique=True))
        inputs = some_of(run.at_hand, 0, 2)
        found = [self.call(number, data.draw(inputs)) for number in numbers]
        store.look_ahead("step", [call.key for call in found])
        return found

    def call(self, number: int, inputs: list[str], step: str = "step") -> Record:
        """A record to be: of six numbers three give equal outputs."""
        folder = self.room / f"output {number // 2}"
        config, digests = {"number": number}, {f"input{n}": d for n, d in enumerate(inputs)}
        return Record(
            step=step,
            version=1,
            key=step_key(step, 1, config, digests),
            label="label",
            config=config,
            inputs=digests,
            output=describe("text", folder),
        )

    def folder(self, call: Record) -> Path:
        return self.room / f"output {call.config['number'] // 2}"

    def build(self, store: Store, call: Record) -> Record:
        with store.lease(f"{call.step}/{call.key}"):
            found = store.find(call.step, call.key, fresh=True)
            return found or self.commit(store, call)

    def commit(self, store: Store, call: Record) -> Record:
        assert store.commit(call, self.folder(call)) == call
        self.model.records[call.path] = call
        self.model.files |= {call.path, f"{call.output.prefix}/file"}
        return call

    def append_losses(self, data: st.DataObject, run: Run, store: Store) -> None:
        table = data.draw(st.sampled_from(TABLES))
        self.create(store, f"losses/{table}/evaluation.json", seal({"table": table}))
        rows = f"{next(self.numbers)} {PLACEHOLDER}".encode()
        self.model.files.add(store.append(f"losses/{table}", ".parquet", stamp(rows)))
        run.losses.add(table)

    def scan(self, data: st.DataObject, run: Run, store: Store) -> None:
        """Go on from a chain's newest manifest, or publish another, with a deposit of its own."""
        chain = data.draw(st.sampled_from(CHAINS))
        known = store.chain(f"manifests/{chain}")
        newest = known[-1] if known else None
        if newest is None or data.draw(st.booleans()):
            before = self.model.manifests[newest] if newest else set()
            deposit = self.call(data.draw(NUMBERS), [], "deposit")
            found = store.find("deposit", deposit.key) or self.commit(store, deposit)
            named = {*data.draw(some_of(before | run.at_hand, 0, 3)), found.output.digest}
            newest = self.publish(store, chain, newest, named)
        run.manifests.add(newest)
        run.at_hand |= self.model.manifests[newest]

    def publish(self, store: Store, chain: str, last: str | None, named: set[str]) -> str:
        number = number_of(last) + 1 if last else 0
        path = f"manifests/{chain}/{number:06d}.json"
        outputs = {r.output.digest: r.output for r in self.model.records.values()}
        index = [outputs[digest] for digest in sorted(named)]
        content = {"chain": chain, "number": number, "index": index}
        assert self.create(store, path, seal(content))
        self.model.manifests[path] = named
        return path

    def end(self, data: st.DataObject, run: Run, store: Store) -> None:
        del data
        files = {"recipe.yaml": b"a recipe", "report.html": b"a page"}
        self.create(store, f"runs/{run.name}/report.html", files["report.html"])
        content = {
            "name": run.name,
            "manifests": sorted(run.manifests),
            "records": sorted(run.records),
            "losses": sorted(run.losses),
            "files": {name: hashlib.sha256(page).hexdigest() for name, page in files.items()},
        }
        self.create(store, f"runs/{run.name}/run.json", seal(content))
        self.model.ended[run.name] = run

    def fail(self, data: st.DataObject, run: Run, store: Store) -> None:
        """In the middle of several steps; the session goes on with what it has read ahead."""
        self.calls(data, run, store)

    def crash(self, data: st.DataObject, run: Run, store: Store) -> None:
        """In the middle of a step; the dead process's leases stay."""
        call = self.call(data.draw(NUMBERS), [])
        for name in (f"run/{run.name}", f"step/{call.key}"):
            store.backend.put(f"work/{name}/lease.1", self.dead_owner.encode())
        store.backend.put(f"work/step/{call.key}/checkpoint.json", b"half a model")
        content = (self.folder(call) / "file").read_bytes()
        self.create(store, f"{call.output.prefix}/file", content)
        if len([other for other in self.live if other.session == run.session]) == 1:
            self.sessions[run.session] = self.opened(run.session)

    # The collector -----------------------------------------------------------------------------

    @precondition(lambda self: self.model.ended and len(self.live) == 1)
    @rule(data=st.data())
    def collect_in_vain(self, data: st.DataObject) -> None:
        assert not self.collect_with(self.store.backend, self.drawn_keep(data))

    @precondition(lambda self: self.model.ended)
    @rule(data=st.data(), how=st.sampled_from(["alone", "a run comes", "it fails"]))
    def collect(self, data: st.DataObject, how: str) -> None:
        for run in [*self.live]:
            self.let_leave(data, run)
        keep, backend = self.drawn_keep(data), self.store.backend
        if how == "alone":
            assert self.collect_with(backend, keep)
        elif how == "it fails":
            number, first = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 1))
            self.collect_with(Failing(backend, number, first), keep)
        else:
            number = data.draw(st.integers(1, 20))
            come: Callable[[], None] = lambda: self.come(number % len(SESSIONS))  # noqa: E731
            self.check_begun(self.collect_with(Visited(backend, number, come), keep))

    def check_begun(self, has_collected: bool) -> None:
        """A run that came meanwhile has waited, or nothing was deleted."""
        for run in self.live:
            assert not (run.has_begun and has_collected)
            self.begin_if_free(run)
            assert run.has_begun

    def drawn_keep(self, data: st.DataObject) -> list[str] | None:
        some = some_of(self.model.ended, 1, 2)
        return data.draw(some | some | st.none())

    def collect_with(self, backend: Any, keep: list[str] | None) -> bool:
        """Whether it came to its end: then all that stays is right, and else nothing needed is gone."""
        names = [*self.model.ended] if keep is None else keep
        needed = self.model.reached([self.model.ended[name] for name in names])
        before, is_done = {*self.door.paths()}, False
        try:
            garbage.collect(Store(self.url, create=False, backend=backend), keep)
            is_done = True
        except garbage.InUseError:
            needed = before
        except PowerCutError:
            pass
        after = {*self.door.paths()}
        self.model.take_stock(after)
        self.turn = 0  # look at once
        leases = {f"work/run/{run.name}/lease.0" for run in self.live}
        assert needed | leases == after if is_done else needed <= after
        return is_done

    # What holds at any time --------------------------------------------------------------------

    @invariant()
    def all_that_runs_reach_is_there_and_sound(self) -> None:
        # Where each look is a request, after a collection and now and then.
        if not self.store.backend.is_remote or self.turn % 6 == 0:
            runs = [*self.model.ended.values(), *self.live]
            assert self.model.reached(runs) <= {*self.door.paths()}
            assert audit.verify(self.store, lambda done, total, unit: None) == []
            live = " ".join(garbage.live_work(self.store))
            assert all(f"(run/{run.name})" in live for run in self.live)
        self.turn += 1


@pytest.fixture
def dead_owner(python: Callable[..., "Popen[str]"]) -> str:
    """What a lease holds whose process is gone."""
    owner, _ = python(DEAD_OWNER).communicate()
    return owner


def test_on_a_disk(tmp_path: Path, dead_owner: str) -> None:
    class OnDisk(RunsAndCollectors):
        def __init__(self) -> None:
            room = tmp_path / uuid.uuid4().hex
            super().__init__(room, str(room / "store"), LocalDoor(room / "store"), dead_owner)

    run_state_machine_as_test(OnDisk, settings=settings(max_examples=40, stateful_step_count=12))


def test_on_s3(
    s3_server: "S3Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead_owner: str
) -> None:
    class OnS3(RunsAndCollectors):
        def __init__(self) -> None:
            url, room = f"s3://{BUCKET}/{uuid.uuid4().hex}/the store", tmp_path / uuid.uuid4().hex
            super().__init__(room, url, S3Door(s3_server, url), dead_owner)

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    # To shrink an example takes longer than a test may; what fails here mostly fails on a disk too.
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    run_state_machine_as_test(
        OnS3,
        settings=settings(max_examples=3, stateful_step_count=12, phases=phases),
    )
