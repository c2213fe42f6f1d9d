"""The recipe: everything that can change a result, in one frozen tree.

It is read from YAML, drawn as a form by Prefect, and varied with ``--set a.b=c``. A wrong field is refused
with its path and the allowed values. Store, devices and folders are no part of it.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from storage.backends.secrets import holds_secret
from storage.fingerprint import NEUTRAL, Config
from tasks.corpus.source import Source
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.evaluation.predicted import MERGE, PredictorName
from tasks.evaluation.window import WindowConfig
from tasks.mixtures.spaces import MixturesConfig
from tasks.models.given import GivenModel
from tasks.models.initialise import LlamaArchitecture
from tasks.partitions.config import CorpusConfig, EvaluationSetConfig
from tasks.ranking.race import RaceConfig
from tasks.search.rounds import SearchConfig
from tasks.tokens.tokenizer import TokenizerConfig, TrainTokenizer
from tasks.training.config import TrainConfig
from tasks.trust.references import ValidationConfig


class TrainBase(Config):
    """A base model that is trained here, from random weights."""

    kind: Literal["train"] = "train"
    """This choice's name."""
    architecture: LlamaArchitecture
    """Shape of the model."""
    train: TrainConfig
    """How it is trained."""
    source: Source | None = None
    """Documents of its own; None takes the share corpus.split.base_fraction of the corpus."""


BaseConfig = Annotated[TrainBase | GivenModel, Field(discriminator="kind")]


class EvaluationConfig(Config):
    """On what and how mixtures are evaluated."""

    heldout: bool = True
    """Whether each domain's held-out documents are an evaluation set."""
    sets: list[EvaluationSetConfig] = []
    """Evaluation sets with a source of their own."""
    windows: WindowConfig = WindowConfig()
    """How documents are cut into windows."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How weights are averaged and in which precision models run."""
    race: RaceConfig | None = None
    """How the best mixtures are found without evaluating all in full; None evaluates all in full."""
    sharpness: float | None = Field(default=None, gt=0, json_schema_extra={NEUTRAL: None})
    """Distance uphill in weights at which each partition model's sharpness is measured; None does not."""
    predictors: list[PredictorName] = Field(default=[], json_schema_extra={NEUTRAL: []})
    """What a validation compares with merging: probability (averages the probabilities of the partition
    models, not their weights), singles (averages their losses), scaled 1.5 (goes 1.5 times as far from the
    base model as the average)."""
    rank_by: PredictorName = Field(default=MERGE, json_schema_extra={NEUTRAL: MERGE})
    """The predictor by which mixtures are ranked and searched: merge, or one as in predictors."""

    @property
    def others(self) -> list[str]:
        """The predictors that a validation compares with merging."""
        named = dict.fromkeys([*self.predictors, self.rank_by])
        return [name for name in named if name != MERGE]


class Recipe(Config):
    """Everything that can change a result."""

    name: str = Field(min_length=1)
    """Name of the recipe: run folders carry it; it bears no identity."""
    corpus: CorpusConfig
    """The data that partitions are made of."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """On what and how mixtures are evaluated."""
    tokenizer: TokenizerConfig = TrainTokenizer()
    """The tokenizer, trained or given."""
    base: BaseConfig
    """The model that all partition models start from, trained or given."""
    train: TrainConfig
    """How each partition's model is trained."""
    control: bool = Field(default=False, json_schema_extra={NEUTRAL: False})
    """Whether a model that is trained as long on the base model's documents alone is ranked, too."""
    mixtures: MixturesConfig = MixturesConfig()
    """Which mixtures are judged."""
    validation: ValidationConfig = ValidationConfig()
    """Which mixtures a validation really trains."""
    search: SearchConfig = SearchConfig()
    """Which mixture a search looks for, and how long; a run without a search does not use it."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if messages := list(self._contradictions()):
            raise ValueError("; ".join(messages))
        return self

    def _contradictions(self) -> Iterable[str]:
        yield from _unfit(self.model_dump(), "")
        names = [config.name for config in self.evaluation.sets]
        if len({*names}) < len(names):
            yield f"evaluation.sets have a name twice: {sorted(names)}"
        predictors = self.evaluation.predictors
        if len({*predictors}) < len(predictors):
            yield f"evaluation.predictors have a name twice: {sorted(predictors)}"
        if self.evaluation.race is not None and self.evaluation.rank_by != MERGE:
            yield (
                f"evaluation.rank_by is {self.evaluation.rank_by!r}, and evaluation.race evaluates merged "
                "models: leave one of them out"
            )
        if self.validation.ladder and self.evaluation.rank_by != MERGE:
            yield (
                f"evaluation.rank_by is {self.evaluation.rank_by!r}, and validation.ladder compares merged "
                "models: leave one of them out"
            )
        if not self.evaluation.sets and not (
            self.evaluation.heldout and self.corpus.split.heldout_fraction
        ):
            yield (
                "there is nothing to evaluate on: give evaluation.sets, or a "
                "corpus.split.heldout_fraction above 0 with evaluation.heldout"
            )
        if isinstance(self.base, TrainBase):
            yield from self._base_contradictions(self.base)
        elif isinstance(self.tokenizer, TrainTokenizer) and self.base.tokenizer == "own":
            yield (
                "tokenizer.kind is 'train' and base.kind is 'given': a model knows the tokens of one "
                "tokenizer; give it in tokenizer.path, or set base.tokenizer to any"
            )
        elif (
            self.corpus.split.base_fraction
            and not isinstance(self.tokenizer, TrainTokenizer)
            and (self.base.source or not self.uses_base_documents)
        ):
            yield (
                "corpus.split.base_fraction puts documents aside that nothing uses: base and "
                "tokenizer are given; set it to 0"
            )
        if self.train.replay == 1:
            yield (
                "train.replay is 1: no partition would be trained on, and all models would be one; give "
                "less, or set control to true for a model of replay alone"
            )
        if self.train.layers and self.control:
            yield (
                "control is true and train.layers is given: in the base model's own documents no layer "
                "stands out; leave one of them out"
            )
        if (
            isinstance(self.base, GivenModel)
            and self.uses_base_documents
            and self._lacks_base_documents
        ):
            layers = ", train.layers is given" if self.train.layers else ""
            yield (
                f"train.replay is {self.train.replay:g}, control is {str(self.control).lower()}{layers}, and "
                "there are no base documents: give base.source (text like what the model was trained on) or "
                "corpus.split.base_fraction"
            )

        yield from self._drawing_contradictions()
        yield from self._teacher_contradictions()
        if isinstance(self.base, GivenModel) and self.train.optimizer_state == "carried":
            yield (
                "train.optimizer_state is 'carried', and a given base model comes without an optimizer's "
                "state: set it to fresh"
            )

    def _drawing_contradictions(self) -> Iterable[str]:
        base = self.base.train if isinstance(self.base, TrainBase) else None
        for name, config in {"train": self.train, "base.train": base}.items():
            if config is not None and config.weights is not None:
                yield (
                    f"{name}.weights is {config.weights}: a training of the recipe has no mixture; give the "
                    "weights of a mixture in validation.mixtures"
                )
        if base is not None and base.repeat_as is not None:
            yield "base.train.repeat_as is for partitions' models: give train.repeat_as"
        if (rule := self.train.repeat_as) is None:
            return
        if rule.tokens is None:
            yield "train.repeat_as.tokens is not given: how many tokens does the longer run train on?"
        if rule.epochs:
            yield (
                f"train.repeat_as.epochs is {rule.epochs}: they follow from the corpus; give tokens, and "
                "leave epochs out"
            )

    def _teacher_contradictions(self) -> Iterable[str]:
        if isinstance(self.base, TrainBase) and self.base.train.teacher is not None:
            yield (
                "base.train.teacher is given: the base model learns from text alone, and the models that "
                "start from it may have teachers; give it in train.teacher"
            )
        if (teacher := self.train.teacher) is None:
            return
        if teacher.from_ is None:
            yield "train.teacher.from is not given: allowed are pool, path, mixture"
        if self.control:
            yield (
                "control is true and train.teacher is given: a teacher would tell the control of other text "
                "than the base model's documents; leave one of them out"
            )
        if teacher.from_ == "path" and isinstance(self.tokenizer, TrainTokenizer):
            yield (
                "train.teacher.from is 'path' and tokenizer.kind is 'train': a given model knows the tokens "
                "of one tokenizer; give it in tokenizer.path"
            )

    @property
    def uses_base_documents(self) -> bool:
        """Whether the base model's documents are trained on once more, or compared with."""
        return self.control or self.train.replay > 0 or self.train.layers is not None

    @property
    def _lacks_base_documents(self) -> bool:
        return self.base.source is None and not self.corpus.split.base_fraction

    def _base_contradictions(self, base: TrainBase) -> Iterable[str]:
        if self._lacks_base_documents:
            yield (
                "base.kind is 'train' and it has no documents: set corpus.split.base_fraction, or "
                "give base.source"
            )
        if self.train.optimizer_state == "carried" and not base.train.keep_optimizer:
            yield "train.optimizer_state is 'carried': set base.train.keep_optimizer to true"
        if base.train.replay:
            yield "base.train.replay replays what the base model is trained on anyway: set it to 0"
        if base.train.layers:
            yield (
                "base.train.layers chooses layers by how the text differs from the base model's, and this is "
                "its own training: give train.layers"
            )
        if base.train.adapter is not None:
            yield (
                "base.train.adapter trains little of a model that has random weights: leave it out, and "
                "give train.adapter for the partitions' models"
            )
        phases = (base.train.begins_at + base.train.steps, base.train.of)
        if self.train.of and phases != (self.train.begins_at, self.train.of):
            yield (
                f"train begins at step {self.train.begins_at} of {self.train.of}, and the base model ends "
                f"at step {phases[0]} of {phases[1] or phases[0]}: make base.train.steps and "
                "base.train.of fit"
            )
        shape = base.architecture
        kv_heads = shape.num_kv_heads or shape.num_heads
        if shape.hidden_size % (2 * shape.num_heads) or shape.num_heads % kv_heads:
            yield (
                f"base.architecture has hidden_size {shape.hidden_size}, num_heads {shape.num_heads} and "
                f"num_kv_heads {kv_heads}: the width must be an even multiple of the heads, and these a "
                "multiple of num_kv_heads"
            )
        longest = base.architecture.context_length
        lengths = {
            "train.context_length": self.train.context_length,
            "base.train.context_length": base.train.context_length,
            "evaluation.windows.context_length": self.evaluation.windows.context_length,
        }
        for field, length in lengths.items():
            if length > longest:
                yield f"{field} {length} is more than base.architecture.context_length {longest}"


def _unfit(value: object, where: str) -> Iterable[str]:
    """What no field may hold: credentials, and numbers that have no canonical form."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _unfit(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, str) and holds_secret(value):
        yield f"{where} holds a user, password, key or signature: recipes are stored and shown; leave it out"
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        yield f"{where} is 2^63 or more: give a smaller number"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where} is {value}: give a finite number"
