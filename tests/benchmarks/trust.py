"""How far the demo's ranking can be trusted, and what learning rate and length of training do to it.

The demo's recipe on its eight domains, with ``TRUST_REFERENCES`` (default 24) references over k = 2, 3, 4,
validated at each of ``TRUST_RATES`` (default "2e-4,5e-4,1e-3") and ``TRUST_STEPS`` (default "37,74") of the
partitions' training; ``TRUST_SETTINGS`` gives further overrides, separated by spaces. ``TRUST_TEXT=system``
takes other text (``system_text``). Everything is really trained, evaluated and kept below
``MIXPOOL_BENCHMARKS`` (default ``~/.cache/mixpool-benchmarks``): the first run takes about ten minutes of a
core for each pair of rate and length, later ones read the store.

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
from tasks.trust.agreement import POOLED, WITHIN
from tests.benchmarks import system_text
from tests.benchmarks.measure import Ratio
from tests.benchmarks.race import HOME

if TYPE_CHECKING:
    from tasks.trust.verdict import Trust

REFERENCES = int(os.environ.get("TRUST_REFERENCES", "24"))
RATES = os.environ.get("TRUST_RATES", "2e-4,5e-4,1e-3").split(",")
STEPS = os.environ.get("TRUST_STEPS", "37,74").split(",")
SETTINGS = os.environ.get("TRUST_SETTINGS", "").split()
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
    rows = [_row(home, corpus, rate, steps) for rate, steps in product(RATES, STEPS)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    words = (
        f"Pearson of log-perplexity for the {MACRO_MEAN} of all evaluation sets, merged models against "
        "really trained ones, with 95 % intervals (bootstrap over partitions)."
    )
    return ["\n".join(lines), words]


def prepare(home: Path) -> Path:
    """The demo's corpus after the arrival of its last domain, or the other text, gathered once."""
    corpus = home / "corpus"
    if TEXT == "system" and not corpus.exists():
        system_text.gather(corpus)
    elif not corpus.exists():
        gather(corpus)
        (corpus / "arriving" / f"{LATE}.jsonl").rename(corpus / "corpus" / f"{LATE}.jsonl")
    return corpus


def _row(home: Path, corpus: Path, rate: str, steps: str) -> list[str]:
    changes = [f"train.learning_rate={rate}", f"train.steps={steps}"]
    changes += [f"validation.references={REFERENCES}", SPACE]
    changes += [*(system_text.SETTINGS if TEXT == "system" else []), *SETTINGS]
    recipe = override_recipe(demo_recipe(str(corpus)), changes)
    run = InlineRunner(Store(str(home / "store"), create=True), Runtime(threads=1))
    found = execute(run, recipe, with_references=True)
    assert found.report.validation is not None
    return [rate, steps, *_cells(found.report.validation)]


def _cells(trust: "Trust") -> list[str]:
    rows: list[dict[Any, Any]] = [
        row
        for row in trust.table.to_dict("records")
        if (row["evaluation_set"], row["scope"]) == (MACRO_MEAN, "all")
    ]
    by = {(row["predictor"], row["k"]): row for row in rows}
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
