"""What a run costs as work grows: 10, 100, 1,000 partitions; 1,000, 10,000, 100,000 mixtures.

Trainings should cost the same each, however many there are, and so should mixtures; the memory of the
process that drives should stay as it is. Models have 5,000 parameters, so what is not constant shows.
Everything is real: scan, tokens, one training step for each partition, a sweep over one evaluation
set of 64 tokens, rankings, report. Each size is a run in a process of its own on a store of its own;
for mixtures, the pool of 90 models is there already.

Environment variables: MIXPOOL_GROWTH_PARTITIONS (default "10,40,160"), MIXPOOL_GROWTH_MIXTURES (default
"1000,4000,16000": the nearest numbers of subsets of three are taken).
"""

import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flows.chain.recipe import Recipe
from flows.chain.recipe_file import load_recipe, to_yaml
from flows.run.execute import execute
from flows.runners.inline import InlineRunner
from storage.step import Runtime
from storage.store import Store
from tests.benchmarks.fabricated import domain_names, recipe_of, write_corpus
from tests.benchmarks.measure import Ratio, ratio_of

PARTITIONS = [*map(int, os.environ.get("MIXPOOL_GROWTH_PARTITIONS", "10,40,160").split(","))]
MIXTURES = [*map(int, os.environ.get("MIXPOOL_GROWTH_MIXTURES", "1000,4000,16000").split(","))]
POOL = 90
MEMBERS = 3
TOKENS = 150
"""Tokens of a partition."""


class Spent(NamedTuple):
    """What one run took."""

    number: int
    """Partitions or mixtures."""
    cpu: float
    """CPU seconds of the process, system included."""
    wall: float
    """Seconds from the first step to the index page."""
    peak: int
    """Largest resident size in bytes."""


def measure(repeats: int) -> list[Ratio | str]:
    """Partitions, then mixtures; one series of runs for every seven ``repeats``, as each is long."""
    times = max(1, repeats // 7)
    with tempfile.TemporaryDirectory() as name:
        pool = Path(name) / "pool"
        prepare(pool, POOL, [{"kind": "subsets", "sizes": [1]}])
        run_apart(pool)
        partitions = [[_partitions(Path(name), n) for n in PARTITIONS] for _ in range(times)]
        mixtures = [[_mixtures(Path(name), pool, n) for n in MIXTURES] for _ in range(times)]
    return [*_ratios("partition", partitions), *_ratios("mixture", mixtures)]


def _partitions(folder: Path, number: int) -> Spent:
    place = folder / "partitions"
    prepare(place, number, [{"kind": "subsets", "sizes": [1]}])
    spent = run_apart(place)
    shutil.rmtree(place)
    return spent._replace(number=number)


def _mixtures(folder: Path, pool: Path, number: int) -> Spent:
    place = folder / "mixtures"
    shutil.copytree(pool, place)
    # The nearest number of subsets.
    names = min(range(MEMBERS, POOL + 1), key=lambda n: abs(math.comb(n, MEMBERS) - number))
    only = domain_names(1, POOL)[:names]
    spaces = [{"kind": "subsets", "sizes": [MEMBERS], "only": only}]
    write_recipe(place, pool / "corpus", POOL, spaces)
    spent = run_apart(place)
    shutil.rmtree(place)
    return spent._replace(number=math.comb(names, MEMBERS))


def prepare(folder: Path, partitions: int, spaces: list[dict[str, Any]]) -> None:
    """A corpus of one domain with at least so many partitions, and a recipe."""
    write_corpus(folder / "corpus", 1, 60 + 16 * partitions)
    write_recipe(folder, folder / "corpus", partitions, spaces)


def write_recipe(folder: Path, corpus: Path, partitions: int, spaces: list[dict[str, Any]]) -> None:
    """Where a run of ``folder`` finds it."""
    recipe = recipe_of(corpus, spaces, partitions=partitions, tokens=TOKENS, heldout=4)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))


def run_apart(folder: Path) -> Spent:
    """Run a folder's recipe in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.growth", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Spent(*json.loads(done.stdout))


def run_here(folder: Path) -> Spent:
    """Run a folder's recipe in this process."""
    recipe: Recipe = load_recipe(folder / "recipe.yaml")
    start = time.perf_counter()
    run = InlineRunner(Store(str(folder / "store")), Runtime(device="cpu", threads=1))
    result = execute(run, recipe)
    wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    number = len(result.outcome.mixtures)
    return Spent(number, used.ru_utime + used.ru_stime, wall, used.ru_maxrss * 1024)


def _ratios(unit: str, found: Sequence[Sequence[Spent]]) -> list[Ratio | str]:
    """The last step up in size against the first one, and the largest memory against the smallest."""
    small, middle, large = (f"{spent.number:,}" for spent in found[0][:: len(found[0]) // 2][:3])
    steps, peaks = [], []
    for one in found:
        first, between, last = one[0], one[len(one) // 2], one[-1]
        steps.append((_each(between, last), _each(first, between)))
        peaks.append((float(last.peak), float(first.peak)))
    each = f"CPU time for each further {unit}, from {middle} to {large}"
    memory = f"peak memory with {large} {unit}s"
    rows = [
        f"| {one.number:,} | {one.wall:.1f} s | {one.cpu:.1f} s | {one.peak / 1e6:.0f} MB |"
        for one in sorted(spent for runs in found for spent in runs)
    ]
    head = [f"| {unit}s | whole run | CPU time | peak memory |", "|---|---|---|---|"]
    grown = (found[0][-1].peak - found[0][0].peak) / (found[0][-1].number - found[0][0].number)
    note = f"Memory for each further {unit}: {grown / 1e3:.1f} kB."
    return [
        ratio_of(each, f"from {small} to {middle}", steps, "<= 1.1"),
        ratio_of(memory, f"with {small}", peaks, "<= 1.2", "bytes"),
        "\n".join([*head, *rows]),
        note,
    ]


def _each(one: Spent, other: Spent) -> float:
    return (other.cpu - one.cpu) / (other.number - one.number)


if __name__ == "__main__":
    print(json.dumps(run_here(Path(sys.argv[1]))))
