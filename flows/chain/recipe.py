"""The recipe: everything that can change a result, in one frozen tree.

It is read from YAML, drawn as a form by Prefect, and varied with ``--set a.b=c``. A wrong field is refused
with its path and the allowed values. Store, devices and folders are no part of it.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from storage.backends.secrets import shows_user
from storage.fingerprint import Config
from tasks.corpus.source import Source
from tasks.evaluation.losses_table import EvaluateConfig
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
        if not self.evaluation.sets and not (
            self.evaluation.heldout and self.corpus.split.heldout_fraction
        ):
            yield (
                "there is nothing to evaluate on: give evaluation.sets, or a "
                "corpus.split.heldout_fraction above 0 with evaluation.heldout"
            )
        if isinstance(self.base, TrainBase):
            yield from self._base_contradictions(self.base)
        elif self.corpus.split.base_fraction and not isinstance(self.tokenizer, TrainTokenizer):
            yield (
                "corpus.split.base_fraction puts documents aside that nothing uses: base and "
                "tokenizer are given; set it to 0"
            )

    def _base_contradictions(self, base: TrainBase) -> Iterable[str]:
        if base.source is None and not self.corpus.split.base_fraction:
            yield (
                "base.kind is 'train' and it has no documents: set corpus.split.base_fraction, or "
                "give base.source"
            )
        if self.train.optimizer_state == "carried" and not base.train.keep_optimizer:
            yield "train.optimizer_state is 'carried': set base.train.keep_optimizer to true"
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
    elif isinstance(value, str) and shows_user(value):
        yield f"{where} holds a user name or password: recipes are stored and shown; leave it out"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where} is {value}: give a finite number"
