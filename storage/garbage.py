"""Garbage collection: find everything that no kept run needs, and delete it.

A run's ``run.json`` names the records, manifests and losses that it used; records name their inputs and
manifests their artifacts, by digest. What cannot be reached that way from a kept run is garbage. A
validation that never ended counts as a kept run. A file is deleted before the files that it names, so
that an interrupted ``gc`` leaves no dangling name.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from storage.artifact import CorruptError, Record, first_fault
from storage.backends.deadline import limited
from storage.lease import TIME_TO_LIVE, Busy, Lease, live_holder
from storage.lineage import begun_validations, run_folders, second_part, unsealed
from storage.store import Store

COLLECTING = "gc"
"""Name of the lease under which garbage is deleted: a run that begins meanwhile waits for its end."""

QUIET = 900.0
"""Seconds without a sign of life after which a run of another host counts as dead: while it waits out
an outage, it cannot renew its lease."""

BATCH = 200
"""Files that are deleted between two looks at the lease."""

ABANDONED = 24 * 3600.0
"""Age in seconds from which a file that a writer did not finish belongs to nobody."""


class Garbage(NamedTuple):
    """What no kept run reaches: paths by kind, in the order in which they are deleted."""

    runs: list[str]
    manifests: list[str]
    records: list[str]
    losses: list[str]
    work: list[str]
    unfinished: list[str]
    """Files of writers that were killed more than a day ago."""
    artifacts: list[str]
    """Folders."""
    num_bytes: int
    """Sum of the sizes of all files in bytes."""


class InUseError(RuntimeError):
    """A live run works on the store, so nothing may be deleted now."""


def live_work(store: Store) -> list[str]:
    """Who is working on the store now, in words."""
    workers = []
    for path in store.backend.list("work"):
        name = PurePosixPath(path).name
        is_lease = name.startswith("lease.") and name[6:].isdigit()
        is_lease &= second_part(path) != COLLECTING
        if is_lease and (holder := live_holder(store.backend, path, QUIET)):
            workers.append(f"{holder} ({path.removeprefix('work/').rpartition('/')[0]})")
    return workers


def collector(store: Store) -> str | None:
    """Who is deleting garbage now, in words; None where nobody is."""
    paths = store.backend.list(f"work/{COLLECTING}")
    return next(filter(None, (live_holder(store.backend, path) for path in paths)), None)


def find_garbage(store: Store, keep: Iterable[str] | None) -> Garbage:
    """Everything that the runs named in ``keep`` do not reach; None keeps every finished run.

    Raises:
        InUseError: a live run works on the store.
        ValueError: there is nothing to keep, or a run in ``keep`` does not exist or never ended.
        CorruptError: a manifest or a ``run.json`` that says what is needed is damaged.
    """
    # Before it is known that nobody works: the lease of a run that waits is none of these.
    work = store.backend.list("work")
    if busy := live_work(store):
        raise InUseError(f"the store is in use by {'; '.join(busy)}: wait, or stop it first")
    runs = run_folders(store)
    kept = _chosen(runs, keep)
    named = {_key(path) for run in kept.values() for path in run["records"]}
    # Its references cost hours each. Done again it finds them, and is then a run like the others.
    unfinished = [name for name, content in runs.items() if content is None]
    for name, content in begun_validations(store, unfinished).items():
        begun = _checked(name, content)
        if not named.issuperset(map(_key, begun["records"])):
            kept[name] = begun
    tables = {key for run in kept.values() for key in run["losses"]}
    used = {path for run in kept.values() for path in run["manifests"]}
    chains = {second_part(path) for path in used}
    tops = ("runs", "manifests", "records", "losses", "artifacts")
    listed = {"work": work, **{top: store.backend.list(top) for top in tops}}
    manifests = [path for path in listed["manifests"] if second_part(path) in chains]
    # From the last manifest of each chain the next scan starts.
    newest = {second_part(path): path for path in sorted(manifests)}.values()
    needed = used.intersection(manifests) | {*newest}
    digests = _named_digests(store, sorted(needed))
    # By the path where it was found: what a record says of itself may be another one's path.
    records = dict(store.named_records())
    for path in listed["records"]:
        if path.endswith(".json") and path not in records:
            raise CorruptError(
                f"{path} is damaged or not believed, so what it needs is not known and nothing is "
                "deleted; `mixpool verify` says more, and with --repair sets aside what is damaged"
            )
    reached = _reach(records, {path for run in kept.values() for path in run["records"]}, digests)
    folders = {records[path].output.prefix for path in reached}
    doomed = {
        "runs": [path for path in listed["runs"] if second_part(path) not in kept],
        "manifests": sorted(listed["manifests"].keys() - needed),
        "records": sorted(listed["records"].keys() - reached),
        "losses": [path for path in listed["losses"] if second_part(path) not in tables],
        "work": [path for path in listed["work"] if second_part(path) != COLLECTING],
        # A file that lies higher is in no artifact's folder, and may have the name of a whole kind's.
        "artifacts": [
            path
            for path in listed["artifacts"]
            if path.count("/") > 2 and _folder(path) not in folders
        ],
    }
    halves = store.backend.unfinished(ABANDONED)
    sizes = [listed[top][path].num_bytes for top, paths in doomed.items() for path in paths]
    doomed["artifacts"] = sorted({_folder(path) for path in doomed["artifacts"]})
    freed = sum(sizes) + sum(info.num_bytes for info in halves.values())
    return Garbage(**doomed, unfinished=list(halves), num_bytes=freed)


def _key(path: str) -> str:
    """The key in a record's path."""
    return path.split(".")[-2]


def _folder(path: str) -> str:
    """The artifact in whose folder a file lies."""
    return "/".join(PurePosixPath(path).parts[:3])


def _chosen(
    runs: Mapping[str, dict[str, Any] | None], keep: Iterable[str] | None
) -> dict[str, dict[str, Any]]:
    finished = {name: content for name, content in runs.items() if content is not None}
    choices = ", ".join(finished) or "none"
    keep = [*(finished if keep is None else keep)]
    if not keep:
        raise ValueError(f"no run is to be kept, so everything would go; there are: {choices}")
    for name in keep:
        if name not in finished:
            raise ValueError(f"there is no finished run {name!r} to keep; there are: {choices}")
    return {name: _checked(name, finished[name]) for name in keep}


class _Needs(BaseModel):
    """The names in a run's content that say what is kept."""

    records: list[Annotated[str, Field(pattern=r"\.[0-9a-f]{64}\.json$")]]
    manifests: list[Annotated[str, Field(pattern=r"^manifests/[^/]+/[^/]+$")]]
    losses: list[str]


def _checked(name: str, content: dict[str, Any]) -> dict[str, Any]:
    try:
        return _Needs.model_validate(content).model_dump()
    except ValidationError as error:
        raise CorruptError(
            f"runs/{name} does not say what it needs ({first_fault(error)}), so nothing is deleted: move "
            "it away, or delete it to go on without that run"
        ) from error


def _named_digests(store: Store, paths: Iterable[str]) -> set[str]:
    advice = "what it names is not known, so nothing is deleted; `mixpool verify` says more"
    return {
        str(artifact["digest"])
        for path, data in store.backend.read_each(paths)
        if data is not None
        for artifact in named_artifacts(unsealed(data, path, advice))
    }


def named_artifacts(value: object) -> Iterator[dict[str, Any]]:
    """Everything in a JSON document that looks like an artifact."""
    if isinstance(value, dict):
        if {"kind", "digest", "files"} <= value.keys():
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from named_artifacts(item)


def _reach(records: Mapping[str, Record], names: set[str], digests: set[str]) -> set[str]:
    by_digest: dict[str, list[str]] = {}
    by_key: dict[str, list[str]] = {}
    for path, record in records.items():
        by_digest.setdefault(record.output.digest, []).append(path)
        by_key.setdefault(record.key, []).append(path)
    # A record that was set aside may have been made again under another label.
    todo = [path for name in names for path in by_key.get(_key(name), ())]
    todo += [path for digest in digests for path in by_digest.get(digest, ())]
    reached: set[str] = set()
    while todo:
        path = todo.pop()
        if path not in reached:
            reached.add(path)
            for digest in records[path].inputs.values():
                todo += by_digest.get(digest, ())
    return reached


def collect(store: Store, keep: Iterable[str] | None) -> Garbage:
    """Find garbage and delete it, while no run can begin; what was deleted.

    Raises:
        InUseError, ValueError, CorruptError: see ``find_garbage``; nothing is deleted.
        InUseError: also where another one collects, or the lease ran out on the way.
        PermissionError: the store is on a disk and cannot be written by this user.
    """
    store.backend.refuse_unwritable()
    try:
        with store.lease(COLLECTING) as lease:
            garbage = find_garbage(store, keep)
            for paths in _in_order(garbage):
                for start in range(0, len(paths), BATCH):
                    with _held(lease):
                        store.backend.delete_each(paths[start : start + BATCH])
            for prefix in garbage.artifacts:
                with _held(lease):
                    store.delete_artifact(prefix)
    except Busy as busy:
        raise InUseError(f"somebody else is deleting garbage: {busy.holder}") from busy
    return garbage


@contextlib.contextmanager
def _held(lease: Lease) -> Iterator[None]:
    """Deletes only while no run can have begun: not after a sleep, nor after a long outage."""
    if not lease.is_held:
        raise InUseError(
            "this process was stopped for so long that a run may have begun: nothing more is "
            "deleted; run gc again"
        )
    with limited(TIME_TO_LIVE / 3):
        yield


def _in_order(garbage: Garbage) -> Iterator[list[str]]:
    """Files, each group of which may go in any order: what names things goes before the things."""
    ends = {path for path in garbage.runs if PurePosixPath(path).name == "run.json"}
    yield sorted(ends)
    yield sorted({*garbage.runs} - ends)
    # An older manifest may name what is gone already, so it must not become the newest.
    newest = {*{second_part(path): path for path in garbage.manifests}.values()}
    yield sorted({*garbage.manifests} - newest)
    yield sorted(newest)
    yield from (garbage.records, garbage.losses, garbage.work, garbage.unfinished)
