"""How much of a training's end a domain should have, and is the end the place? Losses by share and place.

One schedule of ``PHASES_STEPS`` (default 1,760) steps on the demo's text and model. In a phase, half of
the blocks are the domain's and half general text; elsewhere all is general. *Late* phases of several
shares of the schedule go on from one trunk, optimizer included; *early* and *even* see as many tokens of
the domain as the late share of 0.2. ``PHASES_DOMAINS`` (default "models,services") are tried one by one.
Nothing is timed; all is kept below ``MIXPOOL_BENCHMARKS``, so that a second run reads the store.
"""

import os
import shutil
from pathlib import Path

import numpy as np

from flows.chain.ablation import (
    base_tokens,
    partitions_of,
    scan_corpus,
    tokenize,
    wanted_sets,
    window,
)
from flows.chain.recipe import Recipe, TrainBase
from flows.chain.recipe_file import override_recipe
from flows.chain.work import SweepWork, losses_of
from flows.command.demo import demo_recipe
from flows.runners.inline import InlineRunner
from storage.step import Call, Handle, Runtime
from storage.store import Store
from tasks.mixtures.mixture import Mixture
from tasks.models.initialise import INITIALISE, InitialiseConfig
from tasks.partitions.manifest import handle
from tasks.training.train import TRAIN
from tests.benchmarks.measure import Ratio
from tests.benchmarks.race import HOME
from tests.benchmarks.trust import prepare

STEPS = int(os.environ.get("PHASES_STEPS", "1760"))
DOMAINS = os.environ.get("PHASES_DOMAINS", "models,services").split(",")
SHARES = (0.05, 0.1, 0.2, 0.3, 1.0)
EQUAL = 0.2
"""The late share whose tokens *early* and *even* have, too."""
GENERAL = "general"
"""The held-out set of the general text: every 20th of its documents."""


def measure(repeats: int) -> list[Ratio | str]:
    """One table of mean nats for each domain; nothing is repeated."""
    del repeats
    home = HOME / "phases"
    run = InlineRunner(Store(str(home / "store"), create=True), Runtime(threads=1))
    recipe = _recipe(home)
    training = Training(run, recipe)
    pool = {"0": training.trunk(STEPS)}
    for domain in DOMAINS:
        pool |= {f"{domain} {name}": made for name, made in training.phases(domain).items()}
    mixtures = [Mixture.uniform([name]) for name in pool]
    rows = run.sweep(SweepWork(mixtures, pool, training.windows, recipe.evaluation.evaluate))
    counts = [counted.num_tokens for counted in losses_of(run.store, rows, training.windows).counts]
    losses = dict(zip(pool, rows.nll / np.array(counts), strict=True))
    return [_table(domain, losses, [*rows.sets]) for domain in DOMAINS]


def _recipe(home: Path) -> Recipe:
    """The demo's, with a held-out part of the general text."""
    corpus = home / "corpus"
    if not corpus.exists():
        shutil.copytree(prepare(HOME / "trust"), corpus)
        held = []
        for path in sorted((corpus / "base").glob("*.jsonl")):
            lines = path.read_text().splitlines(keepends=True)
            held += lines[::20]
            path.write_text("".join(line for n, line in enumerate(lines) if n % 20))
        (corpus / "evaluation" / f"{GENERAL}.jsonl").write_text("".join(held))
    place = f"{corpus}/evaluation/{GENERAL}.jsonl"
    sets = f"evaluation.sets=[{{name: {GENERAL}, source: {{urls: [{place}]}}}}]"
    return override_recipe(demo_recipe(str(corpus)), [sets])


class Training:
    """The phases of one schedule, each kept with its optimizer's state."""

    def __init__(self, run: InlineRunner, recipe: Recipe) -> None:
        assert isinstance(recipe.base, TrainBase)
        self._run, self._config = run, recipe.base.train
        corpus = scan_corpus(run, recipe)
        tokenizer = Handle("tokenizer", "tokenizer", corpus.tokenizer)
        general = base_tokens(run, recipe, corpus, tokenizer)
        assert general is not None
        self._general = general
        entries = partitions_of(corpus, recipe)
        tokens = run.map([tokenize(handle(entry), tokenizer) for entry in entries])
        self._tokens = {entry.domain: made for entry, made in zip(entries, tokens, strict=True)}
        initial = InitialiseConfig(architecture=recipe.base.architecture)
        (self._initial,) = run.map([Call(INITIALISE, initial, {"tokenizer": tokenizer}, "initial")])
        sets = wanted_sets(corpus, recipe)
        made = run.map([window(recipe, entry, tokenizer) for entry in sets])
        self.windows = {entry.name: windows for entry, windows in zip(sets, made, strict=True)}

    def phases(self, domain: str) -> dict[str, Handle]:
        """The models of one domain, by share or place."""
        made = {f"{share:g} late": self._late(domain, share) for share in SHARES}
        length = round(EQUAL * STEPS)
        early = self._phase(self._initial, 0, length, 0.5, domain)
        made[f"{EQUAL:g} early"] = self._phase(early, length, STEPS, 1.0)
        even = 1 - EQUAL / 2
        made[f"{EQUAL:g} even"] = self._phase(self._initial, 0, STEPS, even, domain)
        return made

    def _late(self, domain: str, share: float) -> Handle:
        start = STEPS - round(share * STEPS)
        return self._phase(self.trunk(start), start, STEPS, 0.5, domain)

    def trunk(self, end: int) -> Handle:
        """General text alone up to step ``end``; a chain of phases, which is one training to the bit."""
        ends = [STEPS - round(share * STEPS) for share in sorted(SHARES, reverse=True)]
        model, start = self._initial, 0
        for stop in sorted({*(e for e in ends if 0 < e < end), end} - {0}):
            model, start = self._phase(model, start, stop, 1.0), stop
        return model

    def _phase(
        self, model: Handle, start: int, end: int, replay: float, domain: str | None = None
    ) -> Handle:
        changes = {
            "steps": end - start,
            "begins_at": start,
            "of": STEPS,
            "replay": replay,
            "keep_optimizer": True,
            "optimizer_state": "carried" if start else "fresh",
        }
        inputs = {"model": model, "replay": self._general}
        inputs |= {"tokens": self._tokens[domain]} if domain else {}
        label = f"{domain or GENERAL} {start} to {end}"
        return self._run.map([Call(TRAIN, self._config.model_copy(update=changes), inputs, label)])[
            0
        ]


def _table(domain: str, losses: dict[str, np.ndarray], sets: list[str]) -> str:
    heads = ["share and place of the phase", domain, "general", "macro mean"]
    lines = [heads, ["---"] * len(heads)]
    for name, values in losses.items():
        if name == "0" or name.startswith(f"{domain} "):
            found = [values[sets.index(domain)], values[sets.index(GENERAL)], values.mean()]
            lines.append([name.removeprefix(f"{domain} "), *(f"{value:.3f}" for value in found)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
