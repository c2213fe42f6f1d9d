"""How far the demo's ranking can be trusted, and what learning rate and length of training do to it.

The demo's recipe on its eight domains, with ``TRUST_REFERENCES`` (default 24) references over k = 2, 3, 4,
validated at each of ``TRUST_RATES`` (default "2e-4,5e-4,1e-3") and ``TRUST_STEPS`` (default "37,74") of the
partitions' training; ``TRUST_SETTINGS`` gives further overrides, separated by spaces. All predictors stand
side by side for each, those of ``TRUST_PREDICTORS`` (default "probability,scaled 1.5", separated by commas)
beside those that every validation has. ``TRUST_TEXT=system`` takes other text (``system_text``).
Everything is really trained, evaluated and kept below ``MIXPOOL_BENCHMARKS`` (default
``~/.cache/mixpool-benchmarks``): the first run takes about ten minutes of a core for each pair of rate and
length, later ones read the store.

The recipe's defaults were set by this table.
"""

import os
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.chain.recipe_file import override_recipe
from flows.command.demo import LATE, demo_recipe
from flows.command.demo_corpus import gather
from flows.run.execute import execute
from flows.runners.inline import InlineRunner
from storage.step import Runtime
from storage.store import Store
from tasks.ranking.rank import MACRO_MEAN
from tasks.report import trust_tables
from tasks.trust.agreement import POOLED, WITHIN
from tasks.trust.predictors import in_words
from tests.benchmarks import system_text
from tests.benchmarks.measure import Ratio
from tests.benchmarks.race import HOME

if TYPE_CHECKING:
    from tasks.trust.verdict import Trust

REFERENCES = int(os.environ.get("TRUST_REFERENCES", "24"))
RATES = os.environ.get("TRUST_RATES", "2e-4,5e-4,1e-3").split(",")
STEPS = os.environ.get("TRUST_STEPS", "37,74").split(",")
SETTINGS = os.environ.get("TRUST_SETTINGS", "").split()
PREDICTORS = os.environ.get("TRUST_PREDICTORS", "probability,scaled 1.5")
TEXT = os.environ.get("TRUST_TEXT", "demo")
SIZES = ("2", "3", "4")
SPACE = "mixtures.spaces=[{kind: subsets, sizes: [1, 2, 3, 4]}]"


def measure(repeats: int) -> list[Ratio | str]:
    """The table; nothing here is timed, so nothing is repeated."""
    del repeats
    home = HOME / ("trust" if TEXT == "demo" else f"trust-{TEXT}")
    corpus = prepare(home)
    heads = ["rate", "steps", "references", "within k", "pooled", *(f"k = {k}" for k in SIZES)]
    heads += ["mean of singles, within k", "pooled", "noise allows", "pairs with a barrier"]
    found = {pair: _validated(home, corpus, *pair) for pair in product(RATES, STEPS)}
    rows = [[*pair, *_cells(trust)] for pair, trust in found.items()]
    words = (
        f"Pearson of log-perplexity for the {MACRO_MEAN} of all evaluation sets, merged models against "
        "really trained ones, with 95 % intervals (bootstrap over partitions)."
    )
    beside = [
        f"Predictors at a rate of {rate} and {steps} steps:\n\n{predictors(trust)}"
        for (rate, steps), trust in found.items()
    ]
    return [_table([heads, *rows]), words, *beside]


def predictors(trust: "Trust") -> str:
    """Every predictor's Pearson for the macro mean: over all k, at each, pooled; pairs ordered right."""
    sizes = trust_tables.sizes_of(trust.table)
    order = [k for k in (WITHIN, POOLED) if k in sizes]
    order += [k for k in sizes if k not in order]
    names = {WITHIN: "within k", POOLED: "pooled"}
    rows = [["predictor", *(names.get(k, f"k = {k}") for k in order), "pairs right, within k"]]
    by = _by_cell(trust)
    for name in dict.fromkeys(predictor for predictor, _ in by):
        right = by[name, WITHIN]["pairs_right"]
        rows.append([in_words(name), *(_figure(by[name, k]) for k in order), f"{right:.2f}"])
    favoured = trust.favoured.get(MACRO_MEAN, "none beyond doubt")
    return f"{_table(rows)}\n\nThe references favour: {favoured}."


def _table(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def prepare(home: Path) -> Path:
    """The demo's corpus after the arrival of its last domain, or the other text, gathered once."""
    corpus = home / "corpus"
    if TEXT == "system" and not corpus.exists():
        system_text.gather(corpus)
    elif not corpus.exists():
        gather(corpus)
        (corpus / "arriving" / f"{LATE}.jsonl").rename(corpus / "corpus" / f"{LATE}.jsonl")
    return corpus


def _validated(home: Path, corpus: Path, rate: str, steps: str) -> "Trust":
    changes = [f"train.learning_rate={rate}", f"train.steps={steps}"]
    changes += [f"validation.references={REFERENCES}", SPACE]
    changes.append(f"evaluation.predictors=[{PREDICTORS}]")
    changes += [*(system_text.SETTINGS if TEXT == "system" else []), *SETTINGS]
    recipe = override_recipe(demo_recipe(str(corpus)), changes)
    run = InlineRunner(Store(str(home / "store"), create=True), Runtime(threads=1))
    found = execute(run, recipe, with_references=True)
    assert found.report.validation is not None
    return found.report.validation


def _by_cell(trust: "Trust") -> dict[tuple[str, str], dict[Any, Any]]:
    """Figures for the macro mean by predictor and k."""
    return {
        (row["predictor"], row["k"]): row
        for row in trust.table.to_dict("records")
        if (row["evaluation_set"], row["scope"]) == (MACRO_MEAN, "all")
    }


def _cells(trust: "Trust") -> list[str]:
    by = _by_cell(trust)
    proxies = [_figure(by["proxy", k]) for k in (WITHIN, POOLED, *SIZES)]
    alone = [_figure(by["singles", k]) for k in (WITHIN, POOLED)]
    assert trust.noise is not None
    floor = trust.noise[trust.noise["evaluation_set"] == MACRO_MEAN]["ceiling"].iloc[0]
    macro = trust.barriers[trust.barriers["evaluation_set"] == MACRO_MEAN]
    broken = f"{int(macro['broken'].sum())} of {len(macro)}"
    number = str(by["proxy", POOLED]["references"])
    return [number, *proxies, *alone, f"{floor:.2f}", broken]


def _figure(row: dict[Any, Any]) -> str:
    return f"{row['pearson']:.2f} ({row['pearson_low']:.2f} to {row['pearson_high']:.2f})"
