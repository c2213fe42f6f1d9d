"""What came from what: trees for people, reachability for ``gc``.

A run's ``run.json`` names the records, manifests and losses that it used. Records name their inputs by
digest, manifests name artifacts, so everything a run needs can be reached from it. What no kept run
reaches is garbage; ``gc`` deletes records before content, so that an interrupted ``gc`` leaves only
files that no record names.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from storage.artifact import Record, unseal
from storage.fingerprint import short
from storage.lease import TIME_TO_LIVE, live_holder
from storage.store import Store


class Garbage(NamedTuple):
    """What no kept run reaches: paths by kind, in the order in which they are deleted."""

    runs: list[str]
    records: list[str]
    losses: list[str]
    manifests: list[str]
    artifacts: list[str]
    work: list[str]
    num_bytes: int

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to delete."""
        return not any(self[:-1])


class InUseError(RuntimeError):
    """A live run works on the store, so nothing may be deleted now."""


def producers(store: Store) -> dict[str, Record]:
    """The record that made each artifact, by digest."""
    return {record.output.digest: record for record in store.records()}


def tree(
    digest: str,
    made: Mapping[str, Record],
    names: Mapping[str, str],
    name: str = "",
    depth: int = 0,
) -> Iterator[str]:
    """Lines that show how an artifact was made, its inputs below it, with fingerprints.

    Args:
        made: the record that made each artifact, by digest.
        names: what to call an artifact that is not in ``made``, by digest.
    """
    start = "    " * depth + (f"{name}: " if name else "")
    record = made.get(digest)
    if record is None:
        yield f"{start}{names.get(digest, '(no record)')} {short(digest)}"
        return
    made_by = f"{record.step} {record.label}"
    yield f"{start}{made_by}  {record.output.kind} {short(digest)}  key {short(record.key)}"
    for below in sorted(record.inputs):
        yield from tree(record.inputs[below], made, names, below, depth + 1)


def run_folders(store: Store) -> dict[str, dict[str, Any] | None]:
    """Content of ``run.json`` for each run folder, oldest first; None where a run never ended."""
    found: dict[str, dict[str, Any] | None] = {}
    for path in store.backend.list("runs"):
        parts = PurePosixPath(path).parts
        found.setdefault(parts[1], None)
        if parts[2:] == ("run.json",):
            content = unseal(store.backend.read(path), path)
            assert isinstance(content, dict)
            found[parts[1]] = dict(content)
    return dict(sorted(found.items()))


def live_work(store: Store) -> list[str]:
    """Who is working on the store now, in words."""
    found = []
    for path in store.backend.list("work"):
        name = PurePosixPath(path).name
        is_lease = name.startswith("lease.") and name[6:].isdigit()
        if is_lease and (holder := live_holder(store.backend, path, TIME_TO_LIVE)):
            found.append(f"{holder} ({path.removeprefix('work/').rpartition('/')[0]})")
    return found


def find_garbage(store: Store, keep: Iterable[str]) -> Garbage:
    """Everything that the runs named in ``keep`` do not reach.

    Raises:
        InUseError: a live run works on the store.
        ValueError: a run in ``keep`` does not exist, or never ended.
    """
    if busy := live_work(store):
        raise InUseError(f"the store is in use by {'; '.join(busy)}: wait, or stop it first")
    runs = run_folders(store)
    kept = list(keep)
    for name in kept:
        if runs.get(name) is None:
            known = ", ".join(name for name, content in runs.items() if content) or "none"
            raise ValueError(f"there is no finished run {name!r} to keep; there are: {known}")
    roots = [runs[name] or {} for name in kept]
    chains = {PurePosixPath(path).parent.name for run in roots for path in run["manifests"]}
    tables = {key for run in roots for key in run["losses"]}
    listed = store.backend.list("manifests")
    manifests = [path for path in listed if PurePosixPath(path).parts[1] in chains]
    records = {record.path: record for record in store.records()}
    wanted = {path for run in roots for path in run["records"]}
    wanted_digests = _manifest_digests(store, _needed(manifests, roots))
    keep_records = _reach(records, wanted, wanted_digests)
    keep_prefixes = {records[path].output.prefix for path in keep_records}
    stored = store.backend.list("artifacts")
    prefixes = {"/".join(PurePosixPath(path).parts[:3]) for path in stored}
    run_files = store.backend.list("runs")
    losses = [p for p in store.backend.list("losses") if PurePosixPath(p).parts[1] not in tables]
    doomed_artifacts = sorted(prefixes - keep_prefixes)
    doomed_runs = [p for p in run_files if PurePosixPath(p).parts[1] not in kept]
    sizes = {**stored, **run_files, **store.backend.list("losses")}
    doomed = {*doomed_artifacts}
    freed = sum(
        info.num_bytes
        for path, info in sizes.items()
        if "/".join(PurePosixPath(path).parts[:3]) in doomed
        or path in {*doomed_runs}
        or path in {*losses}
    )
    all_records = store.backend.list("records")
    return Garbage(
        runs=doomed_runs,
        records=sorted({*all_records} - keep_records),
        losses=losses,
        manifests=sorted({*listed} - {*manifests}),
        artifacts=doomed_artifacts,
        work=list(store.backend.list("work")),
        num_bytes=freed,
    )


def _needed(manifests: list[str], roots: list[dict[str, Any]]) -> list[str]:
    """The manifests that the runs used and the last of each chain, from which the next scan starts."""
    newest: dict[str, str] = {}
    for path in sorted(manifests):
        newest[PurePosixPath(path).parent.name] = path
    used = {path for run in roots for path in run["manifests"]}
    return sorted(used | {*newest.values()})


def _manifest_digests(store: Store, paths: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        _collect(unseal(store.backend.read(path), path), found)
    return found


def _collect(value: object, found: set[str]) -> None:
    """Digests of everything in a JSON document that looks like an artifact."""
    if isinstance(value, dict):
        if {"kind", "digest", "files"} <= value.keys():
            found.add(str(value["digest"]))
        for item in value.values():
            _collect(item, found)
    elif isinstance(value, list):
        for item in value:
            _collect(item, found)


def _reach(records: dict[str, Record], wanted: set[str], digests: set[str]) -> set[str]:
    by_digest: dict[str, list[str]] = {}
    for path, record in records.items():
        by_digest.setdefault(record.output.digest, []).append(path)
    reached: set[str] = set()
    open_paths = [p for p in wanted if p in records]
    open_paths += [path for digest in digests for path in by_digest.get(digest, ())]
    while open_paths:
        path = open_paths.pop()
        if path not in reached:
            reached.add(path)
            for digest in records[path].inputs.values():
                open_paths += by_digest.get(digest, ())
    return reached


def delete(store: Store, garbage: Garbage) -> None:
    """Delete garbage: what names things first, then the things."""
    named = (garbage.runs, garbage.records, garbage.manifests, garbage.losses, garbage.work)
    for path in (path for paths in named for path in paths):
        store.backend.delete(path)
    for prefix in garbage.artifacts:
        store.delete_artifact(prefix)
