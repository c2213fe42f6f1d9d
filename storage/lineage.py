"""Lineage: which record made each artifact, as a tree; and the folders of the store's runs.

Records name their inputs by digest, so an artifact's whole history can be followed from its record.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from storage.artifact import CorruptError, Record, UnsignedError, unseal
from storage.fingerprint import short
from storage.store import Store

VALIDATION = "validation.json"
"""File of a run's folder that names, like ``run.json``, what a validation needs, from its beginning."""


def producers(store: Store) -> dict[str, Record]:
    """The record that made each artifact, by digest."""
    return {record.output.digest: record for record in store.records()}


def tree(
    digest: str,
    records: Mapping[str, Record],
    names: Mapping[str, str],
    name: str = "",
    depth: int = 0,
) -> Iterator[str]:
    """Lines that show how an artifact was made, its inputs below it, with fingerprints.

    Args:
        records: the record that made each artifact, by digest.
        names: what to call an artifact that is not in ``records``, by digest.
    """
    start = "    " * depth + (f"{name}: " if name else "")
    record = records.get(digest)
    if record is None:
        yield f"{start}{names.get(digest, '(no record)')} {short(digest)}"
        return
    made_by = f"{record.step} {record.label}"
    yield f"{start}{made_by}  {record.output.kind} {short(digest)}  key {short(record.key)}"
    for below in sorted(record.inputs):
        yield from tree(record.inputs[below], records, names, below, depth + 1)


def run_folders(store: Store) -> dict[str, dict[str, Any] | None]:
    """Content of ``run.json`` for each run folder, oldest first; None where a run never ended.

    Raises:
        CorruptError: a ``run.json`` is not what was written, so what its run needs is not known.
    """
    contents: dict[str, dict[str, Any] | None] = {}
    paths = [*store.backend.list("runs")]
    ended = [path for path in paths if PurePosixPath(path).parts[2:] == ("run.json",)]
    for path, data in store.backend.read_each(ended):
        run = second_part(path)
        advice = f"restore it from a copy, or delete runs/{run} to go on without that run"
        contents[run] = content = None if data is None else unsealed(data, path, advice)
        if content is not None and content.get("name", run) != run:
            raise CorruptError(f"{path} is that of run {content['name']!r}: {advice}")
    return dict(sorted({**dict.fromkeys(map(second_part, paths)), **contents}.items()))


def begun_validations(store: Store, runs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What each validation needs that began to train references, by its run. Raises CorruptError."""
    advice = "restore it from a copy, or delete its folder to let go of its reference models"
    return {
        second_part(path): unsealed(data, path, advice)
        for path, data in store.backend.read_each(f"runs/{run}/{VALIDATION}" for run in runs)
        if data is not None
    }


def unsealed(data: bytes, path: str, advice: str) -> dict[str, Any]:
    """The content of a sealed object. Raises CorruptError with ``advice`` at its end."""
    try:
        return unseal(data, path)
    except UnsignedError:
        raise
    except CorruptError as error:
        raise CorruptError(f"{error}: {advice}") from error


def second_part(path: str) -> str:
    return PurePosixPath(path).parts[1]
