"""Steps: pure functions whose output is looked up by the fingerprint of their inputs before they run.

What can change a result is in a ``Call`` (step, config, inputs by digest) and so in its key; what
cannot is in ``Runtime``. The line is drawn by types: a step's function is given both, and only the
first can reach the fingerprint.
"""

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from storage.artifact import Artifact, Record, describe, step_key
from storage.checkpoint import Checkpoints
from storage.fingerprint import Config, Difference, Json, canonical, differences
from storage.provenance import provenance
from storage.store import Store

LOG = logging.getLogger("mixpool.cache")

C = TypeVar("C", bound=Config)

Progress = Callable[[int, int, str], None]
"""Called with (done, total, unit) while a step works."""


class Runtime(BaseModel):
    """What can never change a result's identity: where and how fast it is computed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: str = "auto"
    """torch devices, separated by commas (cuda:0,cuda:1); auto is every GPU, else the CPU.

    Whoever computes in one process uses the first.
    """
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one process; None leaves torch's default."""
    compile: bool = False
    """Whether torch.compile is used for training and evaluation."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Seconds between two resume points of a training."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one forward pass of an evaluation; None is 2,048 on a CPU and 32,768 on a GPU."""
    pool_gigabytes: float | None = Field(default=None, ge=0)
    """Memory for the models of a sweep; None is four fifths of what is free.

    Models that do not fit on a GPU stay in host memory, else in their files.
    """
    chunk: int = Field(default=64, ge=1)
    """Mixtures evaluated between two writes to the losses table."""
    time_limit_hours: float | None = Field(default=None, gt=0)
    """Hours after which one training or one chunk of a sweep is ended; None sets no limit.

    Resume points stay. The limit holds where devices have processes of their own.
    """
    settle_seconds: float = Field(default=0, ge=0)
    """Seconds for which new files of a corpus must have kept their size and time before they are read."""
    scratch: str | None = None
    """Folder for unfinished outputs; None is the system's temporary folder."""
    energy: Literal["auto", "codecarbon"] = "auto"
    """How energy is found: auto reads NVML or RAPL counters, else estimates it from CPU time.

    codecarbon asks that package (pip install 'mixpool[codecarbon]'), which estimates what it has no
    counter for.
    """
    power_usage_effectiveness: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    """Energy of the whole facility for one unit of energy of its computers; 1 counts these alone."""
    grid_intensity: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Grams of CO2 equivalent for one kWh from the grid; None leaves emissions out of the cost."""


class Meter(Protocol):
    """Measures what a step costs (see ``tasks.energy``)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def add(self, *, tokens: int = 0, flops: float = 0.0) -> None:
        """Count work that was done."""

    @property
    def cost(self) -> Any:
        """What was spent, as a JSON-like model; complete after the block has ended."""


@dataclass(frozen=True)
class Workspace:
    """What a step may use besides its config and inputs; none of it may change its output."""

    runtime: Runtime
    checkpoints: Checkpoints
    meter: Meter
    progress: Progress


@dataclass(frozen=True)
class Step(Generic[C]):
    """A named, versioned pure function from (config, input folders) to an output folder.

    ``build(config, inputs, output, workspace)`` writes the artifact's files into ``output`` and
    returns details for the record. ``version`` is raised by hand when equal inputs should give
    another output. ``on_device`` says that it computes on the runtime's device and needs it for
    itself; where a step runs cannot change its output, so that is in no key and no record.
    """

    name: str
    version: int
    kind: str
    config: type[C]
    build: Callable[[C, Mapping[str, Path], Path, Workspace], Mapping[str, object]]
    on_device: bool = False


@dataclass(frozen=True)
class Handle:
    """An artifact as a chain passes it on; ``artifact`` is None where a plan has not built it."""

    label: str
    kind: str
    artifact: Artifact | None
    record: Record | None = None
    hit: bool = True

    @property
    def digest(self) -> str | None:
        """Digest of the artifact, None in a plan."""
        return None if self.artifact is None else self.artifact.digest


@dataclass(frozen=True)
class Call(Generic[C]):
    """One use of a step: with its inputs' digests it has a key, the name of its result."""

    step: Step[C]
    config: C
    inputs: Mapping[str, Handle]
    label: str
    estimate: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Expected work (tokens), from which a plan estimates cost; bears no identity."""

    def __post_init__(self) -> None:
        if type(self.config) is not self.step.config:
            raise TypeError(
                f"step {self.step.name} takes {self.step.config.__name__}, "
                f"not {type(self.config).__name__}"
            )

    @property
    def digests(self) -> dict[str, str] | None:
        """Digest of each input, or None while one is not built."""
        found = {name: handle.digest for name, handle in self.inputs.items()}
        known = {name: digest for name, digest in found.items() if digest is not None}
        return known if len(known) == len(found) else None

    @property
    def key(self) -> str | None:
        """The name of the result, or None while an input is not built."""
        digests = self.digests
        return None if digests is None else self._key(digests)

    def _key(self, digests: dict[str, str]) -> str:
        return step_key(self.step.name, self.step.version, self.config, digests)

    @property
    def name(self) -> str:
        """``step label``, for people."""
        return f"{self.step.name} {self.label}"


def lookup(store: Store, call: Call[Any], *, fresh: bool = False) -> Handle | None:
    """The stored result of a call, or None."""
    key = call.key
    record = None if key is None else store.find(call.step.name, key, fresh=fresh)
    return None if record is None else Handle(call.label, call.step.kind, record.output, record)


def look_ahead(store: Store, calls: Iterable[Call[Any]]) -> None:
    """Read what the store has of many calls at once, before each is looked up."""
    keys: dict[str, list[str]] = {}
    for call in calls:
        if (key := call.key) is not None:
            keys.setdefault(call.step.name, []).append(key)
    for step, wanted in keys.items():
        store.look_ahead(step, wanted)


class OutOfSpaceError(OSError):
    """No space is left where a step writes; what was committed is safe."""


def build(
    store: Store, call: Call[Any], runtime: Runtime, meter: Meter, progress: Progress
) -> Handle:
    """Run a call under a lease and commit its output; a result that appears meanwhile is used.

    Raises:
        Busy: another live run is building the same key.
        OutOfSpaceError: the disk of the store or the scratch folder is full.
    """
    try:
        return _build(store, call, runtime, meter, progress)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise OutOfSpaceError(
            errno.ENOSPC,
            f"no space left while {call.name} was written (store {store.url}, scratch "
            f"{runtime.scratch or tempfile.gettempdir()}): free some and run again; "
            "everything committed is kept and unfinished training resumes",
        ) from error


def _build(
    store: Store, call: Call[Any], runtime: Runtime, meter: Meter, progress: Progress
) -> Handle:
    digests = call.digests
    assert digests is not None, f"{call.name}: an input is not built"
    folder = f"{call.step.name}/{call._key(digests)}"
    with store.lease(folder):
        checkpoints = Checkpoints(store.backend, f"work/{folder}")
        if (found := lookup(store, call, fresh=True)) is None:
            record = _run(store, call, digests, Workspace(runtime, checkpoints, meter, progress))
            found = Handle(call.label, call.step.kind, record.output, record, hit=False)
        # Also after a hit: a crash between commit and clear leaves resume points behind.
        checkpoints.clear()
    return found


def _run(store: Store, call: Call[Any], digests: dict[str, str], workspace: Workspace) -> Record:
    inputs = {name: _fetched(store, handle) for name, handle in call.inputs.items()}
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
            key=call._key(digests),
            label=call.label,
            config=canonical(call.config),
            inputs=digests,
            output=describe(call.step.kind, output),
            details=dict(details),
            cost=cost,
            provenance=provenance(str(cost.get("device", os.uname().machine))),
        )
        return store.commit(record, output)


def _fetched(store: Store, handle: Handle) -> Path:
    assert handle.artifact is not None
    return store.fetch(handle.artifact)


@dataclass(frozen=True)
class Explanation:
    """Why a call would run: how it differs from the record that is nearest to it."""

    call: Call[Any]
    nearest: Record | None
    differences: list[Difference]

    def __str__(self) -> str:
        if self.nearest is None:
            return f"{self.call.name}: no record of this step yet"
        nearest = f"{self.nearest.label} ({self.nearest.key[:10]})"
        if not self.differences:
            return f"{self.call.name}: is stored, as {nearest}"
        lines = [f"{self.call.name}: differs from {nearest} in"]
        return "\n".join([*lines, *(f"    {difference}" for difference in self.differences)])


def explain(call: Call[Any], records: list[Record]) -> Explanation:
    """Compare a call with the records of its step; an input that is not built is ``not built``."""
    target = _pre_image(
        call.step.version,
        canonical(call.config),
        {name: handle.digest or "not built" for name, handle in call.inputs.items()},
    )
    found = [
        (list(differences(_pre_image(r.version, r.config, r.inputs), target)), r) for r in records
    ]
    if not found:
        return Explanation(call, None, [])
    # Of records that are equally near, the one for the same thing tells more.
    fewest, record = min(found, key=lambda pair: (len(pair[0]), pair[1].label != call.label))
    return Explanation(call, record, fewest)


def _pre_image(version: int, config: Json, inputs: dict[str, str]) -> Json:
    return {"version": version, "config": config, "inputs": {**inputs}}


def deposit(
    store: Store, step: str, kind: str, label: str, folder: Path, details: Mapping[str, object]
) -> Handle:
    """Store a folder that came from outside or from a scan: its content is its whole identity."""
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
    )
    return Handle(label, kind, record.output, record)


def deposit_key(step: str, artifact: Artifact) -> str:
    """The key under which ``deposit`` records an artifact."""
    return step_key(step, 1, {"digest": artifact.digest}, {})
