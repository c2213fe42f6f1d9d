"""The configuration of a training: everything that changes its result."""

import math
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from storage.fingerprint import NEUTRAL, Config
from tasks.training.adapter import AdapterConfig

OPTIONS = ("adapter", "teacher", "sharpness", "layers")
"""Fields of a training's config that change how it is trained, and are None where it is plain."""


class Sharpness(Config):
    """How far uphill the gradient is taken (sharpness-aware minimisation)."""

    rho: float = Field(default=0.05, gt=0)
    """Distance in weights, by the Euclidean norm over all that is trained."""
    ascent_fraction: float = Field(default=0.25, gt=0, le=1)
    """Share of a batch whose gradient shows the way up: its first blocks, rounded up."""


class Layers(Config):
    """Which layers are trained, by the gradients that the text makes in them (experimental)."""

    mode: Literal["freeze", "scale"]
    """Freeze trains only layers of more than the mean; scale lowers the learning rate of the others."""
    blocks: int = Field(default=16, ge=1)
    """Blocks of each of both texts whose gradients are measured."""


class TeacherConfig(Config):
    """Teachers from whose probabilities a model learns beside its text (distillation)."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    from_: Literal["pool", "path", "mixture"] | None = Field(
        default=None, alias="from", json_schema_extra={NEUTRAL: None}
    )
    """Where they come from; required, and no part of a key, as each teacher's digest is. pool: the model
    of each partition, trained without a teacher; path: given models; mixture: the average of some of the
    pool's models, as one teacher."""
    names: list[str] = Field(default=[], json_schema_extra={NEUTRAL: []})
    """Of path: local folders or hub names of the models. Of mixture: partitions, or domains, which stand
    for their partitions; all of these weigh alike. Of pool: none."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher's part in the loss."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits of teacher and student are divided by this in the teacher's part, which is then multiplied
    by its square."""
    stop: float = Field(default=0.3, ge=0, le=1)
    """Share of the steps that have a teacher, from the first on; the others learn from text alone."""
    choice: Literal["random", "mean"] = "random"
    """Of several teachers: one at random at each step, or the mean of their probabilities, which costs
    as many forward passes as there are teachers."""

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        for name in ("share", "stop"):
            if not getattr(self, name):
                raise ValueError(
                    f"{name} is 0, so nothing would be learnt from it: leave teacher out"
                )
        if self.from_ not in {None, "pool"} and not self.names:
            what = "models" if self.from_ == "path" else "partitions or domains"
            raise ValueError(f"from is {self.from_!r} and names is empty: give {what}")
        if self.from_ == "pool" and self.names:
            raise ValueError(
                f"from is 'pool', which is all partitions, and names is {self.names}: leave names out"
            )
        if self.from_ == "mixture" and self.choice == "mean":
            raise ValueError("from is 'mixture', which is one teacher: leave choice out")
        return self

    @property
    def of_step(self) -> Self:
        """What a training knows of it: its teachers are inputs, wherever they came from."""
        return self.model_copy(update={"from_": None, "names": []})


class RepeatAs(Config):
    """How often a longer run would read each source: a short one repeats its text as often.

    In the longer run of T tokens, a source (a domain) of A tokens at hand has the share s and is read
    e = T * s / A times. A training that draws n own blocks from one of the source's partitions, which
    has c blocks, keeps min(c, ceil(n / e)) of them, by its seed, and repeats these. A partition's
    training stands for no mixture: there s is even, 1 / sources. In a reference s is the weight of the
    source in its mixture; as n is in proportion to it too, both cancel, and what is kept of a source is
    as large a part of it as the training is of the longer run.
    """

    tokens: int | None = Field(default=None, ge=1, json_schema_extra={NEUTRAL: None})
    """Tokens of the longer run; required, and no part of a key, as ``epochs`` follow from it."""
    sources: int | None = Field(default=None, ge=1, json_schema_extra={NEUTRAL: None})
    """Sources among which the longer run would be shared evenly; None is the number of domains, so that
    all partitions are trained anew where a domain arrives."""
    epochs: list[str] = Field(default=[], json_schema_extra={NEUTRAL: []})
    """How often it reads the source of each token file, as exact fractions; none in a recipe, as it is
    worked out from the corpus."""


class TrainConfig(Config):
    """How a model is trained."""

    steps: int = Field(ge=1)
    """Number of optimizer steps; the same for every partition, so that they can be averaged."""
    batch_size: int = Field(default=32, ge=1)
    """Blocks in one step."""
    context_length: int = Field(default=2048, ge=2)
    """Tokens predicted in each block."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Learning rate at its highest."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate moves after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero."""
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """Where cosine and linear schedules end, as a share of the learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean gradient."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the mean squared gradient."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's weight decay, on matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    optimizer_state: Literal["fresh", "carried"] = "fresh"
    """Whether the optimizer starts afresh, or with the base model's state, carried on."""
    keep_optimizer: bool = False
    """Whether the optimizer's state is stored with the model."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Bfloat16 computes matrix products in it (autocast); weights stay in float32."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of the order of blocks and of dropout."""
    replay: float = Field(default=0.0, ge=0, le=1, json_schema_extra={NEUTRAL: 0.0})
    """Share of all blocks that come from the base model's documents, so that less is forgotten."""
    of: int | None = Field(default=None, ge=1, json_schema_extra={NEUTRAL: None})
    """Steps of the whole training of which this is a phase; None where it is all of it."""
    begins_at: int = Field(default=0, ge=0, json_schema_extra={NEUTRAL: 0})
    """Step of the whole training at which this phase begins, in its learning rate and its replay."""
    sharpness: Sharpness | None = Field(default=None, json_schema_extra={NEUTRAL: None})
    """How far uphill each step's gradient is taken, for flat minima; None takes it where the weights are."""
    layers: Layers | None = Field(default=None, json_schema_extra={NEUTRAL: None})
    """Which layers a partition's text trains; None trains all of them alike."""
    teacher: TeacherConfig | None = Field(default=None, json_schema_extra={NEUTRAL: None})
    """From which models it learns beside its text; None is from text alone."""
    adapter: AdapterConfig | None = Field(default=None, json_schema_extra={NEUTRAL: None})
    """Low-rank updates of the linear layers (LoRA) are trained, and nothing else; None trains all weights."""
    weights: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, min_length=1, json_schema_extra={NEUTRAL: None}
    )
    """Whole parts of the own blocks that each token file gives, in the order of their names; None reads
    them as one text. None in a recipe: a validation fills it in for its mixtures."""
    repeat_as: RepeatAs | None = Field(default=None, json_schema_extra={NEUTRAL: None})
    """A longer run whose repetition of each source is matched; None uses all of a partition's text."""

    @field_validator("weights")
    @classmethod
    def _have_one_form(cls, weights: list[int] | None) -> list[int] | None:
        return None if weights is None else [part // math.gcd(*weights) for part in weights]

    @model_validator(mode="after")
    def _phases_add_up(self) -> Self:
        end = self.begins_at + self.steps
        if self.begins_at and self.of is None:
            raise ValueError(
                f"begins_at is {self.begins_at}: give in 'of' the steps of the whole training"
            )
        if self.of is not None and end > self.of:
            raise ValueError(
                f"begins_at {self.begins_at} and steps {self.steps} end at step {end}, and 'of' says that "
                f"the whole training has {self.of}: lower steps or begins_at, or raise 'of'"
            )
        if self.of is not None and self.teacher is not None:
            raise ValueError(
                f"'of' is {self.of} and there is a teacher: nobody has tried a phase of a training that has "
                "one; leave out teacher, or of and begins_at"
            )
        return self

    @model_validator(mode="after")
    def _were_tried_together(self) -> Self:
        given = [name for name in OPTIONS if getattr(self, name) is not None]
        if len(given) > 1 and given != ["sharpness", "layers"]:
            raise ValueError(
                f"{given[0]} and {given[1]} are given, which nobody has tried together: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _layers_are_on_their_own(self) -> Self:
        if self.layers and (self.keep_optimizer or self.optimizer_state == "carried"):
            raise ValueError(
                "layers chooses what is trained, and an optimizer's state is that of all weights: set "
                "keep_optimizer to false and optimizer_state to fresh, or leave layers out"
            )
        return self

    @model_validator(mode="after")
    def _layers_go_by_all_of_a_text(self) -> Self:
        if self.layers and (self.weights or self.repeat_as):
            raise ValueError(
                "layers are chosen by all of a text, of which weights and repeat_as draw a part: leave "
                "layers out, or these"
            )
        return self

    @model_validator(mode="after")
    def _an_adapter_starts_afresh(self) -> Self:
        if self.adapter is None:
            return self
        if self.optimizer_state == "carried":
            raise ValueError(
                "optimizer_state is 'carried', and an adapter's weights are new: set it to 'fresh', or "
                "leave adapter out"
            )
        if self.keep_optimizer:
            raise ValueError(
                "keep_optimizer keeps a state that no training can carry on, as an adapter is added to the "
                "weights in the end: set it to false, or leave adapter out"
            )
        return self


def training_tokens(config: TrainConfig) -> int:
    """Tokens that a training of this config predicts."""
    return config.steps * config.batch_size * config.context_length
