"""A run in which everything is cached: 200 partitions, 20,028 mixtures, 20 evaluation sets.

Ours is the whole of `mixpool run` in a process of its own: imports, a scan with nothing new, lookups,
the losses table, rankings, report, run.json, index page. The store is fabricated (see there). Theirs
is Prefect's task cache: a flow of 200 trivial task runs, all of which it finds in its cache, against
a local server, flow alone and without imports; multiplied to as many task runs as there are trainings
and losses, and to one for each training and mixture.

Environment variables: MIXPOOL_CACHED_DOCUMENTS, documents of each set and so sums of each loss
(default 24 as in the demo; from 256 on there are 256), MIXPOOL_CACHED_TASKS, task runs that are
measured (default 200).
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from flows.chain.ablation import ablate
from flows.chain.recipe_file import to_yaml
from storage.store import Store
from tests.benchmarks.fabricated import Fabricator, domain_names, recipe_of, write_corpus
from tests.benchmarks.measure import Ratio, ratio_of, seconds
from tests.prefect_server import PrefectServer, clean_environment

DOCUMENTS = int(os.environ.get("MIXPOOL_CACHED_DOCUMENTS", "24"))
TASKS = int(os.environ.get("MIXPOOL_CACHED_TASKS", "200"))
DOMAINS = 20
PER_DOMAIN = 10
FOURS, PAIRS = 27, 68
"""Of so many partitions all mixtures of four, or of two, are judged, besides all single ones."""


class Pair(NamedTuple):
    """One of our runs, and Prefect's after it."""

    ours: float
    """Seconds of `mixpool run`."""
    cpu: float
    """CPU seconds of the same."""
    theirs: float
    """Seconds of one cached task run."""


def measure(repeats: int) -> list[Ratio | str]:
    """`mixpool run` against Prefect's cache, in alternation."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        losses, trainings, mixtures = fabricate(folder)
        server = PrefectServer(folder / "prefect")
        server.start()
        try:
            run_ours(folder)  # the first one compiles modules and warms the disk's cache
            found = [_pair(folder, server) for _ in range(repeats)]
        finally:
            server.stop()
    what = f"`mixpool run`, all cached: {trainings} partitions, {mixtures:,} mixtures, {losses:,} losses"
    against = f"Prefect's task cache, {TASKS} task runs measured, extrapolated to"
    sides = (("loss", trainings + losses, "<= 0.01"), ("mixture", trainings + mixtures, ""))
    ratios = [
        ratio_of(
            what,
            f"{against} {number:,} (one for each training and {unit})",
            [(pair.ours, pair.theirs * number) for pair in found],
            goal,
        )
        for unit, number, goal in sides
    ]
    return [*ratios, _note(found, [ratio.median for ratio in ratios])]


def _pair(folder: Path, server: PrefectServer) -> Pair:
    before = _children_cpu()
    ours = seconds(lambda: run_ours(folder))
    return Pair(ours, _children_cpu() - before, theirs(server))


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _note(found: list[Pair], ratios: list[float]) -> str:
    middle = {name: statistics.median(getattr(p, name) for p in found) for name in Pair._fields}
    return (
        f"All cached, {DOCUMENTS} documents in each set: {middle['ours']:.1f} s (goal: less than "
        f"10 s), of it {middle['cpu']:.1f} s of CPU time; Prefect: {1e3 * middle['theirs']:.1f} ms "
        f"for a task run. So {1 / ratios[0]:.0f} times as fast as a task run for each loss would "
        f"be, and {1 / ratios[1]:.0f} times as fast as one for each mixture."
    )


def fabricate(folder: Path) -> tuple[int, int, int]:
    """Corpus, recipe and store below ``folder``; numbers of losses, partitions and mixtures."""
    # 30 % of the documents are held out, 10 % are the base model's, the rest fills partitions.
    write_corpus(folder / "corpus", DOMAINS, 220 + 4 * DOCUMENTS)
    names = domain_names(DOMAINS, PER_DOMAIN)
    spaces = [
        {"kind": "subsets", "sizes": [1]},
        {"kind": "subsets", "sizes": [2], "only": names[:PAIRS]},
        {"kind": "subsets", "sizes": [4], "only": names[:FOURS]},
    ]
    recipe = recipe_of(
        folder / "corpus", spaces, partitions=PER_DOMAIN, tokens=300, heldout=DOCUMENTS
    )
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    made = ablate(Fabricator(Store(str(folder / "store"))), recipe)
    return len(made.mixtures) * len(made.sets), len(made.partitions), len(made.mixtures)


def run_ours(folder: Path) -> None:
    """`mixpool run`, which must find everything."""
    command = [sys.executable, "-c", "from flows.command.main import main; main()", "run"]
    done = subprocess.run(
        [*command, str(folder / "recipe.yaml"), "--store", str(folder / "store")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "trained now: 0" in done.stdout, done.stdout
    assert "losses evaluated now: 0" in done.stdout, done.stdout


def theirs(server: PrefectServer) -> float:
    """Seconds of a cached task run."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.prefect_cached", str(TASKS)],
        env={**clean_environment(), **server.environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.rpartition("seconds ")[2]) / TASKS
