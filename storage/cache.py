"""The cache: look a result up by the fingerprint of its inputs, or build it and commit it.

``explain`` names the fields in which a call differs from the nearest record: why something is built
again, before a run. Steps and calls themselves are in ``storage.step``.
"""

import errno
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.artifact import Artifact, Record, describe, step_key
from storage.checkpoint import Checkpoints
from storage.fingerprint import Difference, Json, canonical, canonical_bytes, differences
from storage.provenance import provenance
from storage.step import Call, Handle, Meter, Progress, Runtime, Workspace
from storage.store import Store

LOG = logging.getLogger("mixpool.cache")

NOT_BUILT = "not built"
"""Stands for the digest of an input that is not built."""


def lookup(store: Store, call: Call[Any], *, fresh: bool = False) -> Handle | None:
    """The stored result of a call, or None."""
    key = call.key
    record = None if key is None else store.find(call.step.name, key, fresh=fresh)
    return None if record is None else Handle(call.label, call.step.kind, record.output, record)


def look_ahead(store: Store, calls: Iterable[Call[Any]]) -> None:
    """Read the records of many calls at once, before each call is looked up."""
    keys: dict[str, list[str]] = {}
    for call in calls:
        if (key := call.key) is not None:
            keys.setdefault(call.step.name, []).append(key)
    for step, step_keys in keys.items():
        store.look_ahead(step, step_keys)


class OutOfSpaceError(OSError):
    """The disk of the store or of the scratch folder is full; committed results are safe."""


def build(
    store: Store, call: Call[Any], runtime: Runtime, meter: Meter, progress: Progress
) -> Handle:
    """Run a call under a lease and commit its output, unless another run has done so meanwhile.

    Raises:
        Busy: another live run is building the same key.
        OutOfSpaceError: the disk of the store or the scratch folder is full.
    """
    try:
        return _build(store, call, runtime, meter, progress)
    except Exception as error:
        if not is_full(error):
            raise
        raise OutOfSpaceError(
            errno.ENOSPC,
            f"no space left while {call.name} was written (store {store.url}, scratch "
            f"{runtime.scratch or tempfile.gettempdir()}): free some and run again; "
            "everything committed is kept and unfinished training resumes",
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether a disk, or a share of one, is full."""
    full = {errno.ENOSPC, errno.EDQUOT}
    if isinstance(error, OSError):
        return error.errno in full
    # A library in Rust, such as safetensors, raises errors of its own, which only quote the system's.
    return any(f"(os error {number})" in str(error) for number in full)


def _build(
    store: Store, call: Call[Any], runtime: Runtime, meter: Meter, progress: Progress
) -> Handle:
    assert call.key is not None, f"{call.name}: an input is not built"
    folder = f"{call.step.name}/{call.key}"
    with store.lease(folder):
        checkpoints = Checkpoints(store.backend, f"work/{folder}")
        if (handle := lookup(store, call, fresh=True)) is None:
            record = _run(store, call, Workspace(runtime, checkpoints, meter, progress))
            handle = Handle(call.label, call.step.kind, record.output, record, hit=False)
        # Also after a hit: a crash between commit and clear leaves resume points behind.
        checkpoints.clear()
    return handle


def _run(store: Store, call: Call[Any], workspace: Workspace) -> Record:
    key, digests = call.key, call.digests
    assert key is not None
    assert digests is not None
    inputs = {name: store.fetch(handle.built) for name, handle in call.inputs.items()}
    with tempfile.TemporaryDirectory(dir=workspace.runtime.scratch, prefix="mixpool-") as scratch:
        output = Path(scratch) / "output"
        output.mkdir()
        with workspace.meter as meter:
            details = call.step.build(call.config, inputs, output, workspace)
        cost = canonical(meter.cost)
        assert isinstance(cost, dict)
        record = Record(
            step=call.step.name,
            version=call.step.version,
            key=key,
            label=call.label,
            config=canonical(call.config),
            inputs=digests,
            output=describe(call.step.kind, output),
            details=dict(details),
            cost=cost,
            provenance=provenance(str(cost.get("device", os.uname().machine))),
        )
        return store.commit(record, output, spare=True)


@dataclass(frozen=True)
class Explanation:
    """Why a call would run: its differences from the nearest record."""

    call: Call[Any]
    nearest: Record | None
    differences: list[Difference]
    is_new: bool = False
    """Whether only inputs differ, and no record has its label: a new thing, made like the others."""

    def __str__(self) -> str:
        # A name may hold line breaks; the lines of this text are its own.
        name = " ".join(self.call.name.split())
        if self.nearest is None:
            return f"{name}: no record of this step yet"
        nearest = f"{' '.join(self.nearest.label.split())} ({self.nearest.key[:10]})"
        if not self.differences:
            return f"{name}: is stored, as {nearest}"
        if self.is_new:
            return f"{name}: new"
        lines = [f"{name}: differs from {nearest} in"]
        return "\n".join([*lines, *(f"    {_told(difference)}" for difference in self.differences)])


def _told(difference: Difference) -> str:
    """A difference for a person, whom two digests would tell nothing."""
    if not difference.path.startswith("inputs."):
        return str(difference)
    return f"{difference.path}: {'not built yet' if difference.new == NOT_BUILT else 'another one'}"


class Nearest:
    """The records of one step, to explain many calls: version and config are compared once for all alike."""

    def __init__(self, records: list[Record]) -> None:
        self._records = [
            (canonical_bytes([r.version, r.config]), frozenset(r.inputs.items()), r)
            for r in records
        ]
        self._labels = {record.label for record in records}
        self._apart: dict[bytes, dict[bytes, int]] = {}
        """For each version and config of a call: in how many fields those of records differ."""

    def explain(self, call: Call[Any]) -> Explanation:
        """Compare a call with the records of its step; an unbuilt input has the digest ``not built``."""
        if not self._records:
            return Explanation(call, None, [])
        inputs = {name: handle.digest or NOT_BUILT for name, handle in call.inputs.items()}
        version, config = call.step.version, canonical(call.config)
        own = canonical_bytes([version, config])
        if own not in self._apart:
            target = _pre_image(version, config, {})
            self._apart[own] = {
                text: len([*differences(_pre_image(r.version, r.config, {}), target)])
                for text, r in {text: record for text, _, record in self._records}.items()
            }
        apart = self._apart[own]

        own_inputs = frozenset(inputs.items())

        def distance(known: tuple[bytes, frozenset[tuple[str, str]], Record]) -> tuple[int, bool]:
            text, items, record = known
            others = len(inputs.keys() - record.inputs.keys())
            unequal = len(items) - len(items & own_inputs) + others
            # Of records that are equally near, one with the same label is the more useful.
            return apart[text] + unequal, record.label != call.label

        _, _, nearest = min(self._records, key=distance)
        old = _pre_image(nearest.version, nearest.config, nearest.inputs)
        fewest = [*differences(old, _pre_image(version, config, inputs))]
        only_inputs = all(difference.path.startswith("inputs.") for difference in fewest)
        return Explanation(call, nearest, fewest, only_inputs and call.label not in self._labels)


def _pre_image(version: int, config: Json, inputs: dict[str, str]) -> Json:
    return {"version": version, "config": config, "inputs": {**inputs}}


def deposit(
    store: Store,
    step: str,
    kind: str,
    label: str,
    folder: Path,
    details: Mapping[str, object],
    *,
    spare: bool = False,
) -> Handle:
    """Store a folder that no step made, such as a given model or scanned documents.

    Its key follows from its content alone. What is ``spare`` may be gone afterwards.
    """
    artifact = describe(kind, folder)
    config: Json = {"digest": artifact.digest}
    key = deposit_key(step, artifact)
    record = store.find(step, key) or store.commit(
        Record(
            step=step,
            version=1,
            key=key,
            label=label,
            config=config,
            inputs={},
            output=artifact,
            details=dict(details),
            provenance=provenance("none"),
        ),
        folder,
        spare=spare,
    )
    return Handle(label, kind, record.output, record)


def deposit_key(step: str, artifact: Artifact) -> str:
    """The key under which ``deposit`` records an artifact."""
    return step_key(step, 1, {"digest": artifact.digest}, {})
