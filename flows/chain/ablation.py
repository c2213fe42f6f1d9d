"""The chain: from corpus to the losses of every mixture, readable top to bottom.

Nothing here computes. ``ablate`` says which step is needed with which inputs, and the runner that it is
given looks each up, builds it, or counts it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.chain.drawing import drawing, lengthened
from flows.chain.measured import localised, sharpness_of
from flows.chain.predicted import Predictor
from flows.chain.race import RaceOutcome, run_race
from flows.chain.recipe import Recipe, TrainBase
from flows.chain.runner import Runner
from flows.chain.work import Stage, SweepWork
from storage.artifact import Artifact
from storage.fingerprint import Config
from storage.step import Call, Handle
from tasks.evaluation.losses import LossRows
from tasks.evaluation.predicted import MERGE
from tasks.evaluation.window import WINDOW
from tasks.mixtures.mixture import Mixture
from tasks.mixtures.spaces import enumerate_mixtures
from tasks.mixtures.units import Catalogue
from tasks.models.fit import check_fit
from tasks.models.given import (
    IMPORT_MODEL,
    GivenModel,
    GivenTeacher,
    ImportConfig,
    address,
    given_model,
    given_tokenizer,
)
from tasks.models.initialise import INITIALISE, InitialiseConfig
from tasks.models.probe import PROBE, ProbeConfig
from tasks.partitions import manifest
from tasks.partitions.manifest import Manifest, PartitionEntry, SetEntry
from tasks.partitions.scan import scan
from tasks.tokens.folder import named
from tasks.tokens.tokenize import TOKENIZE, TokenizeConfig
from tasks.tokens.tokenizer import TRAIN_TOKENIZER, GivenTokenizer
from tasks.training.config import training_tokens
from tasks.training.teacher import PREFIX
from tasks.training.train import TRAIN, check_runtime

BASE = "base model"
"""The base model's label where it is evaluated like a mixture of one."""
TEACHER = "teacher "
"""Prefix of the label of a model that teaches."""
CONTROL = "control"
"""The label of the model that is trained as long as a partition's, on the base model's documents alone."""


@dataclass(frozen=True)
class Prepared:
    """The pool and the evaluation sets, built or planned: all that evaluating a mixture needs."""

    manifest: Manifest
    tokenizer: Handle
    base: Handle
    probe: Handle | None
    """What was found on a given base model; None for one that is made here."""
    partitions: list[PartitionEntry]
    tokens: dict[str, Handle]
    """Tokens of each partition."""
    further: dict[str, Handle]
    """What every training has beside its own tokens: the base model's, where these are replayed, and
    teachers, where it has some."""
    pool: dict[str, Handle]
    """Model of each partition, and the control where the recipe has one."""
    sets: list[SetEntry]
    windows: dict[str, Handle]
    """Windows of each evaluation set."""
    ordinary: Handle | None = field(default=None, kw_only=True)
    """Tokens of the base model's documents; None where nothing uses them."""
    sharpness: dict[str, Handle] = field(default_factory=dict, kw_only=True)
    """How sharp each partition model's minimum is; empty where the recipe does not ask."""

    @property
    def domains(self) -> dict[str, str]:
        """Domain of each partition; the control is one of its own."""
        own = {CONTROL: CONTROL} if CONTROL in self.pool else {}
        return {entry.name: entry.domain for entry in self.partitions} | own


@dataclass(frozen=True)
class Outcome(Prepared):
    """The result of a chain: pool, sets, mixtures and losses; in a plan without the losses."""

    mixtures: list[Mixture]
    """Over names of partitions."""
    rows: LossRows | None
    """Losses of every mixture of ``judged`` on every set; None in a plan."""
    race: RaceOutcome | None = None
    """How the mixtures were screened; None where each was evaluated in full."""
    base_rows: LossRows | None = None
    """Losses of the base model, where adapters are trained; None in a plan."""
    ranked_by: str = MERGE
    """The predictor that ``rows`` are of."""

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
    if recipe.control:
        mixtures = [*mixtures, Mixture.uniform([CONTROL])]
    check_labels(mixtures)
    prepared = prepare(run, recipe, corpus)
    work, name = work_of(recipe, prepared)._replace(mixtures=mixtures), recipe.evaluation.rank_by
    rules = recipe.evaluation.race
    race = None if rules is None else run_race(run, rules, work)
    rows = race.rows if race else Predictor(run, name, work).rows(mixtures)
    base = base_losses(run, prepared, work) if recipe.train.adapter else None
    return Outcome(
        **vars(prepared), mixtures=mixtures, rows=rows, race=race, base_rows=base, ranked_by=name
    )


def work_of(recipe: Recipe, prepared: Prepared) -> SweepWork:
    """The work of evaluating mixtures of the pool on every set, without any mixture yet."""
    evaluate = recipe.evaluation.evaluate
    return SweepWork([], prepared.pool, prepared.windows, evaluate, base=prepared.base)


def base_losses(run: Runner, prepared: Prepared, work: SweepWork) -> LossRows | None:
    """The losses of the base model, evaluated like a mixture of one; None in a plan that lacks them."""
    alone = [Mixture.uniform([BASE])]
    return run.sweep(work._replace(mixtures=alone, pool={BASE: prepared.base}, stage=Stage(BASE)))


def prepare(run: Runner, recipe: Recipe, corpus: Manifest) -> Prepared:
    """Bring the pool and the evaluation sets up to date; no mixture is judged.

    Raises:
        ValueError: the data or the recipe cannot be used; what was committed stays.
    """
    tokenizer = Handle("tokenizer", "tokenizer", corpus.tokenizer)
    partitions = partitions_of(corpus, recipe)
    if recipe.control and CONTROL in {entry.domain for entry in partitions}:
        raise ValueError(
            f"a domain is called {CONTROL!r}, as the model is that control asks for: rename the domain "
            "(corpus.source.format), or set control to false"
        )
    teaching = teaching_partitions(recipe, partitions)
    check_runtime(recipe.train, run.runtime)
    if isinstance(recipe.base, TrainBase):
        check_runtime(recipe.base.train, run.runtime, "base.train")
    general = base_tokens(run, recipe, corpus, tokenizer)
    base = base_model(run, recipe, tokenizer, general)
    probe = probe_base(run, recipe, base, tokenizer)
    names = [entry.name for entry in partitions]
    documents = [tokenize(manifest.handle(entry), tokenizer) for entry in partitions]
    tokens = dict(zip(names, run.map(documents), strict=True))
    replay = {"replay": general} if recipe.train.replay and general else {}
    own = {name: {"tokens": tokens[name], **replay} for name in names}
    taught = teachers(
        run, recipe, base, tokenizer, {name: own[name] for name in teaching}, partitions
    )
    drawn = {name: drawing(recipe, partitions, [name]) for name in names}
    trainings = [train(drawn[name], base, {**own[name], **taught}, name) for name in names]
    if recipe.control and general:
        all_replay = recipe.train.model_copy(update={"replay": 1.0, "repeat_as": None})
        alone = recipe.model_copy(update={"train": all_replay})
        trainings.append(train(alone, base, {"replay": general}, CONTROL))
    trainings = localised(run, trainings, general)
    pool = {call.label: made for call, made in zip(trainings, run.map(trainings), strict=True)}
    sharpness = sharpness_of(run, recipe, tokens, pool)
    sets = wanted_sets(corpus, recipe)
    handles = run.map([window(recipe, entry, tokenizer) for entry in sets])
    windows = {entry.name: handle for entry, handle in zip(sets, handles, strict=True)}
    return Prepared(
        *(corpus, tokenizer, base, probe, partitions, tokens, replay | taught, pool, sets, windows),
        ordinary=general,
        sharpness=sharpness,
    )


def partitions_of(corpus: Manifest, recipe: Recipe) -> list[PartitionEntry]:
    """The partitions that the recipe trains a model on."""
    limit = recipe.corpus.split.partitions_per_domain
    return corpus.partitions(with_open=recipe.corpus.short_partitions, limit=limit)


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
    """Assign new documents; the tokenizer is given, or made by the corpus's first scan.

    The manifest's ``problems`` begin with what is to be known of given ones. Raises ValueError.
    """
    config: Config = recipe.tokenizer
    given: Artifact | None = None
    notes: list[str] = []
    if isinstance(recipe.tokenizer, GivenTokenizer):
        given, notes = given_tokenizer(run.store, recipe.tokenizer)
        config = Given(digest=given.digest)
    if isinstance(recipe.base, GivenModel):
        contexts = {
            "train.context_length": recipe.train.context_length,
            "evaluation.windows.context_length": recipe.evaluation.windows.context_length,
        }
        notes += check_fit(recipe.base, contexts, None if given is None else run.store.fetch(given))
    teacher = recipe.train.teacher
    for path in teacher.names if teacher is not None and teacher.from_ == "path" else ():
        assert given is not None, "a recipe with given teachers gives a tokenizer"
        model = GivenTeacher(path=path)
        lengths = {f"{address(model)}: train.context_length": recipe.train.context_length}
        notes += check_fit(model, lengths, run.store.fetch(given))

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

    told: list[str] = []
    found = scan(
        run.store,
        recipe.corpus,
        recipe.evaluation.sets,
        config,
        make,
        base_source=recipe.base.source,
        progress=run.reporter.task("scan"),
        scratch=run.runtime.scratch,
        settle_seconds=run.runtime.settle_seconds,
        threads=run.runtime.threads,
        tell=told.extend,
    )
    problems = [*notes, *found.problems]
    return found.model_copy(update={"problems": problems, "story": told})


class Given(Config):
    """What identifies a given tokenizer in the rules of a chain."""

    digest: str
    """Digest of the tokenizer."""


def base_tokens(run: Runner, recipe: Recipe, corpus: Manifest, tokenizer: Handle) -> Handle | None:
    """Tokens of the base model's documents; None where nothing is trained on them."""
    documents = corpus.base_documents
    if documents is None or (
        isinstance(recipe.base, GivenModel) and not recipe.uses_base_documents
    ):
        return None
    return run.map([tokenize(Handle("base", "documents", documents), tokenizer)])[0]


def base_model(run: Runner, recipe: Recipe, tokenizer: Handle, tokens: Handle | None) -> Handle:
    """The model that all partitions start from."""
    if isinstance(recipe.base, GivenModel):
        return imported(run, recipe.base, tokenizer, "base")
    initial = InitialiseConfig(architecture=recipe.base.architecture)
    (model,) = run.map([Call(INITIALISE, initial, {"tokenizer": tokenizer}, "initial")])
    assert tokens is not None, "a base model that is trained here has documents"
    inputs = {"model": model, "tokens": tokens}
    estimate = {"tokens": float(training_tokens(recipe.base.train))}
    return run.map([Call(TRAIN, recipe.base.train, inputs, "base", estimate)])[0]


def imported(run: Runner, model: GivenModel, tokenizer: Handle, label: str) -> Handle:
    """A given model, taken over."""
    inputs = {"source": given_model(run.store, model), "tokenizer": tokenizer}
    with named(address(model)):
        return run.map([Call(IMPORT_MODEL, ImportConfig(), inputs, label)])[0]


def probe_base(run: Runner, recipe: Recipe, base: Handle, tokenizer: Handle) -> Handle | None:
    """Whether a given base model can be used with the recipe's contexts, before anything is trained."""
    if not isinstance(recipe.base, GivenModel):
        return None
    lengths = (recipe.train.context_length, recipe.evaluation.windows.context_length)
    config = ProbeConfig(train=lengths[0], windows=lengths[1])
    with named(address(recipe.base)):
        return run.map([Call(PROBE, config, {"model": base, "tokenizer": tokenizer}, "base")])[0]


def tokenize(documents: Handle, tokenizer: Handle) -> Call[TokenizeConfig]:
    """Tokens of documents."""
    inputs = {"documents": documents, "tokenizer": tokenizer}
    return Call(TOKENIZE, TokenizeConfig(), inputs, documents.label)


def train(
    recipe: Recipe, base: Handle, tokens: dict[str, Handle], label: str, times: int = 1
) -> Call[Any]:
    """A model trained from the base model on one or several token files, ``times`` as long.

    A phase is as long as it is, however many files there are.
    """
    teacher = recipe.train.teacher and recipe.train.teacher.of_step
    config = lengthened(recipe.train, times).model_copy(update={"teacher": teacher})
    estimate = {"tokens": float(training_tokens(config))}
    return Call(TRAIN, config, {"model": base, **tokens}, label, estimate)


def teaching_partitions(recipe: Recipe, partitions: list[PartitionEntry]) -> list[str]:
    """Partitions whose models teach. Raises ValueError where the recipe names one that is not there."""
    teacher = recipe.train.teacher
    if teacher is None or teacher.from_ == "path":
        return []
    domains = {entry.name: entry.domain for entry in partitions}
    if teacher.from_ == "pool":
        return [*domains]
    catalogue = Catalogue(domains, "train.teacher")
    groups = [catalogue.group(name, "names", "partition") for name in teacher.names]
    return sorted({member for group in groups for member in group})


def teachers(
    run: Runner,
    recipe: Recipe,
    base: Handle,
    tokenizer: Handle,
    teaching: dict[str, dict[str, Handle]],
    partitions: list[PartitionEntry],
) -> dict[str, Handle]:
    """The teachers as inputs of every training but their own, which have none.

    Args:
        teaching: inputs of the training of each partition whose model teaches, by partition.
        partitions: those of the pool.
    """
    if (teacher := recipe.train.teacher) is None:
        return {}
    if teacher.from_ == "path":
        models = [
            imported(run, GivenTeacher(path=path), tokenizer, f"{TEACHER}{Path(path).name}")
            for path in teacher.names
        ]
    else:
        alone = recipe.train.model_copy(update={"teacher": None})
        untaught = recipe.model_copy(update={"train": alone})
        models = run.map(
            [
                train(drawing(untaught, partitions, [name]), base, own, f"{TEACHER}{name}")
                for name, own in teaching.items()
            ]
        )
    # Numbered by digest, so that the same teachers make one key whatever they are called.
    models.sort(key=lambda model: model.digest or model.label)
    is_one = teacher.from_ == "mixture"
    return {
        f"{PREFIX}0.{number:04d}" if is_one else f"{PREFIX}{number}": model
        for number, model in enumerate(models)
    }


def window(recipe: Recipe, entry: SetEntry, tokenizer: Handle) -> Call[Any]:
    """Windows of an evaluation set."""
    inputs = {"documents": manifest.handle(entry), "tokenizer": tokenizer}
    return Call(WINDOW, recipe.evaluation.windows, inputs, entry.name)
