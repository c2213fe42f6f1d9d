"""Steps and calls: a step is a pure function from config and inputs to a folder, a call one use of it.

What can change a result is in a ``Call`` (step, config, inputs by digest) and so in its key; what
cannot is in ``Runtime``. Types keep the two apart: a step's function is given both, and only the
first can enter the fingerprint. ``storage.cache`` looks results up and builds them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from storage.artifact import Artifact, Record, step_key
from storage.checkpoint import Checkpoints
from storage.fingerprint import Config

C = TypeVar("C", bound=Config)

Progress = Callable[[int, int, str], None]
"""Called with (done, total, unit) while a step works."""


class Runtime(BaseModel):
    """What can never change a result's identity: where and how fast it is computed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: str = "auto"
    """torch devices, separated by commas (cuda:0,cuda:1); auto is every GPU, else the CPU.

    A run in one process uses the first.
    """
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one process; None leaves torch's default."""
    compile: bool = False
    """Whether torch.compile is used for training and evaluation."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Seconds between two resume points of a training."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one forward pass of an evaluation; None is 2,048 on a CPU and 32,768 on a GPU."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Blocks in one forward pass of a training, whose gradients are summed; None is a whole batch.

    Where memory runs out it is halved. Results move by rounding.
    """
    shards: int = Field(default=1, ge=1)
    """Devices that train one model together, each with a part of its weights and of every batch.

    For models whose training no single device holds. Results move by rounding.
    """
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
    """Measures what a step costs (see ``tasks.machine.meter``)."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

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
    def built(self) -> Artifact:
        """The artifact, where it is known to be built."""
        assert self.artifact is not None, f"{self.label} is not built"
        return self.artifact

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

    @cached_property
    def digests(self) -> dict[str, str] | None:
        """Digest of each input, or None while one is not built."""
        digests = {name: handle.digest for name, handle in self.inputs.items()}
        built = {name: digest for name, digest in digests.items() if digest is not None}
        return built if len(built) == len(digests) else None

    @cached_property
    def key(self) -> str | None:
        """The name of the result, or None while an input is not built."""
        if self.digests is None:
            return None
        return step_key(self.step.name, self.step.version, self.config, self.digests)

    @property
    def name(self) -> str:
        """``step label``, for people."""
        return f"{self.step.name} {self.label}"
