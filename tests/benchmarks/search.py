"""How many evaluations until the best of 4,095 mixtures is found, and until all of the best ten are?

Twelve partitions of real text of this Python environment, a base model and twelve partition models
trained here, eight evaluation sets of 40 documents of 32 tokens, and every subset of the twelve
evaluated for real, once: the first run takes a quarter of an hour or more on one core; later ones
find it stored below ``MIXPOOL_BENCHMARKS`` (default ``~/.cache/mixpool-benchmarks``; who changes the
constants here gives another folder).

Then searches on the stored losses, from several seeds: with each surrogate alone, with the choice
among all, and at random. Descent through the merged model runs for real, its landings are evaluated.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.chain.ablation import Outcome, ablate
from flows.chain.recipe import Recipe
from flows.chain.recipe_file import parse_recipe
from flows.chain.search import descent_call
from flows.chain.work import SweepWork
from flows.command.demo_corpus import gather
from flows.runners.inline import InlineRunner
from storage.step import Runtime
from storage.store import Store
from tasks.evaluation.losses import LossRows
from tasks.evaluation.window import load_windows
from tasks.mixtures.constraints import ConstraintsConfig, Feasible
from tasks.mixtures.mixture import Mixture
from tasks.search.descent import DescentConfig, load_descents
from tasks.search.objective import Objective
from tasks.search.rounds import Search, SearchConfig
from tasks.surrogates.kinds import SURROGATES
from tests.benchmarks.measure import Ratio, ratio_of
from tests.benchmarks.race import HOME, PARTITIONS, prepare, write

Floats = NDArray[np.float64]

DOCUMENTS = 40
TWELVE = (*PARTITIONS, "manual", "mathematics")
SETS = ("python", "cpp", "prose", "models", "tests", "services", "cython", "manual")
OF_MATHEMATICS = ("sympy/", "networkx/")
"""What the twelfth partition is made of: the tests of these packages."""

TOP = 10
GOAL = 0.05
"""Share of all mixtures that is to do for the best."""
MOST = 0.2
"""Share of all mixtures at which a search ends without having found what it looks for."""
RANDOM = "random"
DRAWS = 1001
"""Random searches, each another order of all mixtures."""


def measure(repeats: int) -> list[Ratio | str]:
    """Searches from ``repeats`` seeds; the choice among all surrogates is slow, so from three at most."""
    return compared(HOME / "search-store", prepare_twelve(HOME / "search", TWELVE, SETS), repeats)


def prepare_twelve(
    home: Path, partitions: Sequence[str], sets: Sequence[str], documents: int = DOCUMENTS
) -> Recipe:
    """Write the corpus below ``home``; the recipe that trains on it and evaluates every subset."""
    if "mathematics" in partitions:
        _split_tests(home, documents if "tests" in sets else 0)
    tree = prepare(home, partitions, sets, documents).model_dump(mode="json")
    tree["name"] = tree["corpus"]["name"] = "search"
    tree["mixtures"]["limit"] = 5000
    return parse_recipe(tree)


def _split_tests(home: Path, held_out: int) -> None:
    """Make two partitions of the domain ``tests``, before the race's corpus takes it as one."""
    lines = gather(home / "race-text")["tests"].path.read_text().splitlines()
    rows = sorted(map(json.loads, lines), key=_shuffled)
    ours = [row for row in rows if row["id"].startswith(OF_MATHEMATICS)]
    rest = [row for row in rows if not row["id"].startswith(OF_MATHEMATICS)]
    corpus = home / "race-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    write(corpus / "train-mathematics.jsonl", [{**row, "domain": "mathematics"} for row in ours])
    write(corpus / "eval-tests.jsonl", rest[:held_out])
    write(corpus / "train-tests.jsonl", rest[held_out:])


def _shuffled(row: dict[str, str]) -> str:
    return hashlib.sha256(row["text"].encode()).hexdigest()


def compared(
    store: Path, recipe: Recipe, repeats: int, rules: DescentConfig | None = None
) -> list[Ratio | str]:
    """Evaluate everything, unless the store has it, and search; descend by ``rules``."""
    run = InlineRunner(Store(str(store)), Runtime(threads=1))
    full = ablate(run, recipe)
    assert full.rows is not None
    bits = in_bits(run, full, full.rows)
    table = dict(zip(full.mixtures, bits, strict=True))
    found = {name: searches(full, table, [name], repeats) for name in SURROGATES}
    everyone = searches(full, table, [*SURROGATES], min(3, repeats))
    return [
        ratio_of(
            f"evaluations until the best of {len(table):,} mixtures is found",
            "evaluating every mixture",
            [(first, float(len(table))) for first, _ in everyone],
            f"<= {GOAL}",
            "evaluations",
        ),
        told({**found, "the choice among all": everyone, RANDOM: at_random(bits)}, len(table)),
        landed(run, recipe, full, bits, rules or DescentConfig()),
    ]


def in_bits(run: InlineRunner, full: Outcome, rows: LossRows) -> Floats:
    """Bits per byte, shape (mixtures, sets)."""
    folders = [run.store.fetch(handle.built) for handle in full.windows.values()]
    sizes = np.array([load_windows(folder).num_bytes.sum() for folder in folders])
    found: Floats = rows.nll / sizes / math.log(2)
    return found


# Searches on stored losses ------------------------------------------------------------------------

Counts = tuple[float, float]
"""Evaluations until the best, and until all of the best ten; infinite where they were not found."""


def searches(
    full: Outcome, table: Mapping[Mixture, Floats], names: list[str], repeats: int
) -> list[Counts]:
    """What searches from several seeds needed."""
    best = sorted(table, key=lambda mixture: float(table[mixture].mean()))[:TOP]
    return [counted(tries(full, table, names, seed), best) for seed in range(repeats)]


def tries(
    full: Outcome, table: Mapping[Mixture, Floats], names: list[str], seed: int
) -> Iterator[Mixture]:
    """The mixtures that a search evaluates, in order."""
    budget = math.ceil(MOST * len(table))
    rules = SearchConfig(seed=seed, surrogates=names, evaluations=budget, descent=None)
    search = state(full, rules, even=True)
    tried = search.first()
    while tried:
        yield from (one.mixture for one in tried)
        search.learn(tried, np.stack([table[one.mixture] for one in tried]))
        tried = search.next()


def state(full: Outcome, rules: SearchConfig, *, even: bool) -> Search:
    """A search that has evaluated nothing yet."""
    feasible = Feasible(ConstraintsConfig(even=even), full.domains)
    objective = Objective(rules.objective, list(full.windows), feasible.names)
    return Search(rules, feasible, objective, {name: (name,) for name in full.pool})


def counted(mixtures: Iterator[Mixture], best: Sequence[Mixture]) -> Counts:
    """After how many the first, and all, of the best are there; no more are asked for than needed."""
    left, first = set(best), math.inf
    for number, mixture in enumerate(mixtures, 1):
        if mixture == best[0]:
            first = number
        left.discard(mixture)
        if not left:
            return first, number
    return first, math.inf


def at_random(bits: Floats) -> list[Counts]:
    """The same for mixtures in random order."""
    generator, size = np.random.default_rng(0), len(bits)
    found = []
    for _ in range(DRAWS):
        places = generator.permutation(size)[:TOP] + 1
        found.append((float(places[0]), float(places.max())))
    return found


def told(found: Mapping[str, list[Counts]], size: int) -> str:
    """A table of what each kind of search needed."""
    lines = [
        f"Evaluations of {size:,} until found, median over seeds (worst); a search ends at "
        f"{math.ceil(MOST * size):,}:",
        "",
        f"| surrogate | seeds | the best | share | the best {TOP} | share |",
        "|---|---|---|---|---|---|",
    ]
    for name, counts in found.items():
        cells = [cell for place in (0, 1) for cell in _cells([c[place] for c in counts], size)]
        lines.append(f"| {name} | {len(counts)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(counts: Sequence[float], size: int) -> tuple[str, str]:
    middle, worst = statistics.median(counts), max(counts)
    if math.isinf(middle):
        return "not found", "-"
    shown = "not found" if math.isinf(worst) else f"{worst:,.0f}"
    return f"{middle:,.0f} ({shown})", f"{100 * middle / size:.1f} %"


# Descent ------------------------------------------------------------------------------------------


def landed(
    run: InlineRunner, recipe: Recipe, full: Outcome, bits: Floats, descent: DescentConfig
) -> str:
    """Where descent through the merged model lands, against all subsets."""
    rules, means = SearchConfig(), np.sort(bits.mean(axis=1))
    search = state(full, rules, even=False)
    (made,) = run.map([descent_call(full, search, descent)])
    landings = load_descents(run.store.fetch(made.built))
    weights = [landing.weights for landing in landings]
    free = _means(run, recipe, full, search.landed(weights))
    even = _means(run, recipe, full, state(full, rules, even=True).landed(weights))
    places = sorted({1 + int((means < value - 1e-12).sum()) for value in even})
    ahead = means[0] - free.min()
    assert made.record is not None
    tokens = made.record.details["forward_tokens"]
    return (
        f"Descent from {len(landings)} starts, {3 * tokens / _tokens(run, full):,.0f} evaluations' worth "
        f"of compute: the subsets nearest to its landings are numbers {places} of {len(means):,}; with "
        f"free weights (multiples of 1/100) its best landing is {abs(ahead):.4f} bits per byte "
        f"{'better' if ahead > 0 else 'worse'} than the best subset ({means[0]:.4f}; the spread of all "
        f"subsets is {means[-1] - means[0]:.4f})."
    )


def _means(run: InlineRunner, recipe: Recipe, full: Outcome, mixtures: list[Mixture]) -> Floats:
    work = SweepWork(mixtures, full.pool, full.windows, recipe.evaluation.evaluate)
    means: Floats = in_bits(run, full, run.sweep(work)).mean(axis=1)
    return means


def _tokens(run: InlineRunner, full: Outcome) -> int:
    folders = [run.store.fetch(handle.built) for handle in full.windows.values()]
    return sum(int(load_windows(folder).length.sum()) for folder in folders)
