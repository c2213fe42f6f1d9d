"""The chain: from corpus to the losses of every mixture, readable top to bottom.

Nothing here computes. ``ablate`` says which step is needed with which inputs, and the runner that it is
given looks each up, builds it, or counts it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flows.chain.race import RaceOutcome, run_race
from flows.chain.recipe import Recipe, TrainBase
from flows.chain.runner import Runner
from flows.chain.work import SweepWork
from storage.artifact import Artifact
from storage.fingerprint import Config
from storage.step import Call, Handle
from tasks.evaluation.losses import LossRows
from tasks.evaluation.window import WINDOW
from tasks.mixtures.mixture import Mixture
from tasks.mixtures.spaces import enumerate_mixtures
from tasks.models.given import IMPORT_MODEL, GivenModel, ImportConfig, given_model, given_tokenizer
from tasks.models.initialise import INITIALISE, InitialiseConfig
from tasks.partitions import manifest
from tasks.partitions.manifest import Manifest, PartitionEntry, SetEntry
from tasks.partitions.scan import scan
from tasks.tokens.tokenize import TOKENIZE, TokenizeConfig
from tasks.tokens.tokenizer import TRAIN_TOKENIZER, GivenTokenizer
from tasks.training.config import training_tokens
from tasks.training.train import TRAIN

BASE = "base model"
"""The base model's label where it is evaluated like a mixture of one."""


@dataclass(frozen=True)
class Prepared:
    """The pool and the evaluation sets, built or planned: all that evaluating a mixture needs."""

    manifest: Manifest
    tokenizer: Handle
    base: Handle
    partitions: list[PartitionEntry]
    tokens: dict[str, Handle]
    """Tokens of each partition."""
    pool: dict[str, Handle]
    """Model of each partition."""
    sets: list[SetEntry]
    windows: dict[str, Handle]
    """Windows of each evaluation set."""

    @property
    def domains(self) -> dict[str, str]:
        """Domain of each partition."""
        return {entry.name: entry.domain for entry in self.partitions}


@dataclass(frozen=True)
class Outcome(Prepared):
    """The result of a chain: pool, sets, mixtures and losses; in a plan without the losses."""

    mixtures: list[Mixture]
    """Over names of partitions."""
    rows: LossRows | None
    """Losses of every mixture of ``judged`` on every set; None in a plan."""
    race: RaceOutcome | None = None
    """How the mixtures were screened; None where each was evaluated in full."""

    @property
    def judged(self) -> list[Mixture]:
        """The mixtures that were evaluated in full: all, or the finalists of a race."""
        return self.mixtures if self.race is None else self.race.finalists or []


def ablate(run: Runner, recipe: Recipe, corpus: Manifest | None = None) -> Outcome:
    """Bring everything that the recipe asks for up to date and return it.

    Args:
        corpus: the manifest that ``scan_corpus`` has just made; None scans now.

    Raises:
        ValueError: the data or the recipe cannot be used; what was committed stays.
    """
    corpus = corpus or scan_corpus(run, recipe)
    # Before anything is trained: a space may name a domain that does not exist.
    domains = {entry.name: entry.domain for entry in partitions_of(corpus, recipe)}
    mixtures = enumerate_mixtures(recipe.mixtures, domains)
    check_labels(mixtures)
    prepared = prepare(run, recipe, corpus)
    work = SweepWork(mixtures, prepared.pool, prepared.windows, recipe.evaluation.evaluate)
    rules = recipe.evaluation.race
    race = None if rules is None else run_race(run, rules, work)
    rows = race.rows if race else run.sweep(work)
    return Outcome(**vars(prepared), mixtures=mixtures, rows=rows, race=race)


def prepare(run: Runner, recipe: Recipe, corpus: Manifest) -> Prepared:
    """Bring the pool and the evaluation sets up to date; no mixture is judged.

    Raises:
        ValueError: the data or the recipe cannot be used; what was committed stays.
    """
    tokenizer = Handle("tokenizer", "tokenizer", corpus.tokenizer)
    partitions = partitions_of(corpus, recipe)
    base = base_model(run, recipe, corpus, tokenizer)
    names = [entry.name for entry in partitions]
    documents = [tokenize(manifest.handle(entry), tokenizer) for entry in partitions]
    tokens = dict(zip(names, run.map(documents), strict=True))
    trainings = [train(recipe, base, {"tokens": tokens[name]}, name) for name in names]
    pool = dict(zip(names, run.map(trainings), strict=True))
    sets = wanted_sets(corpus, recipe)
    handles = run.map([window(recipe, entry, tokenizer) for entry in sets])
    windows = {entry.name: handle for entry, handle in zip(sets, handles, strict=True)}
    return Prepared(corpus, tokenizer, base, partitions, tokens, pool, sets, windows)


def partitions_of(corpus: Manifest, recipe: Recipe) -> list[PartitionEntry]:
    """The partitions that the recipe trains a model on."""
    return corpus.partitions(with_open=recipe.corpus.short_partitions)


def check_labels(mixtures: Iterable[Mixture]) -> None:
    """Raise ValueError where two mixtures have the same label."""
    seen: set[str] = set()
    for mixture in mixtures:
        if (label := mixture.label) in seen:
            raise ValueError(
                f"two mixtures are both called {label!r}, because a domain's name has ' + ' "
                "or a number in front: rename the domain (corpus.source.format)"
            )
        seen.add(label)


def wanted_sets(corpus: Manifest, recipe: Recipe) -> list[SetEntry]:
    """The evaluation sets that the recipe asks for. Raises ValueError where two have one name."""
    names = {config.name for config in recipe.evaluation.sets}
    available = corpus.evaluation_sets()
    heldout = [e for e in available if e.domain is not None and recipe.evaluation.heldout]
    if both := sorted(names & {entry.name for entry in heldout}):
        raise ValueError(
            f"evaluation set {both[0]!r} has the name of a domain, whose held-out documents are a "
            "set too: rename it in evaluation.sets, or set evaluation.heldout to false"
        )
    return [*heldout, *(e for e in available if e.domain is None and e.name in names)]


def scan_corpus(run: Runner, recipe: Recipe) -> Manifest:
    """Assign new documents; the tokenizer is given, or made by the corpus's first scan."""
    config: Config = recipe.tokenizer
    given: Artifact | None = None
    if isinstance(recipe.tokenizer, GivenTokenizer):
        given = given_tokenizer(run.store, recipe.tokenizer)
        config = Given(digest=given.digest)

    def make(documents: Artifact | None) -> Artifact:
        if given is not None:
            return given
        if documents is None:
            raise ValueError(
                "tokenizer.kind is 'train' and there are no documents for it: set "
                "corpus.split.base_fraction, or give a tokenizer"
            )
        inputs = {"documents": Handle("base", "documents", documents)}
        (made,) = run.map([Call(TRAIN_TOKENIZER, recipe.tokenizer, inputs, recipe.corpus.name)])
        return made.built

    source = recipe.base.source if isinstance(recipe.base, TrainBase) else None
    return scan(
        run.store,
        recipe.corpus,
        recipe.evaluation.sets,
        config,
        make,
        base_source=source,
        progress=run.reporter.task("scan"),
        scratch=run.runtime.scratch,
        settle_seconds=run.runtime.settle_seconds,
        threads=run.runtime.threads,
    )


class Given(Config):
    """What identifies a given tokenizer in the rules of a chain."""

    digest: str
    """Digest of the tokenizer."""


def base_model(run: Runner, recipe: Recipe, corpus: Manifest, tokenizer: Handle) -> Handle:
    """The model that all partitions start from."""
    if isinstance(recipe.base, GivenModel):
        source = given_model(run.store, recipe.base)
        inputs = {"source": source, "tokenizer": tokenizer}
        return run.map([Call(IMPORT_MODEL, ImportConfig(), inputs, "base")])[0]
    initial = InitialiseConfig(architecture=recipe.base.architecture)
    (model,) = run.map([Call(INITIALISE, initial, {"tokenizer": tokenizer}, "initial")])
    documents = Handle("base", "documents", corpus.base_documents)
    (tokens,) = run.map([tokenize(documents, tokenizer)])
    inputs = {"model": model, "tokens": tokens}
    estimate = {"tokens": float(training_tokens(recipe.base.train))}
    return run.map([Call(TRAIN, recipe.base.train, inputs, "base", estimate)])[0]


def tokenize(documents: Handle, tokenizer: Handle) -> Call[TokenizeConfig]:
    """Tokens of documents."""
    inputs = {"documents": documents, "tokenizer": tokenizer}
    return Call(TOKENIZE, TokenizeConfig(), inputs, documents.label)


def train(
    recipe: Recipe, base: Handle, tokens: dict[str, Handle], label: str, times: int = 1
) -> Call[Any]:
    """A model trained from the base model on one or several token files, ``times`` as long."""
    config = recipe.train.model_copy(update={"steps": recipe.train.steps * times})
    estimate = {"tokens": float(training_tokens(config))}
    return Call(TRAIN, config, {"model": base, **tokens}, label, estimate)


def window(recipe: Recipe, entry: SetEntry, tokenizer: Handle) -> Call[Any]:
    """Windows of an evaluation set."""
    inputs = {"documents": manifest.handle(entry), "tokenizer": tokenizer}
    return Call(WINDOW, recipe.evaluation.windows, inputs, entry.name)
