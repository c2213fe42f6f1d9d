"""A run with nothing to do on a store that has 10,000 more trainings than it needs.

Each run is a process of its own. The other records are copies of one with other configs, moved away for
every second run; their artifacts are the one's.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from storage.artifact import Record, seal, step_key
from storage.store import Store
from tasks.training.train import TRAIN
from tests.benchmarks.growth import Spent, prepare, run_apart
from tests.benchmarks.measure import Ratio, ratio_of

NUMBER = 10_000
PARTITIONS = 20


def measure(repeats: int) -> list[Ratio | str]:
    """CPU time and time of a run with and without the other records."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, PARTITIONS, [{"kind": "subsets", "sizes": [1]}])
        run_apart(folder)
        for record in others(Store(str(folder / "store"))):
            (folder / "store" / record.path).write_bytes(seal(record))
        found = [_pair(folder) for _ in range(repeats)]
    what, against = f"run, all cached, beside {NUMBER:,} more trainings", "without these"
    cpu = [(more.cpu, few.cpu) for more, few in found]
    wall = [(more.wall, few.wall) for more, few in found]
    return [
        ratio_of(f"CPU time of a {what}", against, cpu, "<= 1.3"),
        ratio_of(f"a {what}", against, wall, "<= 1.3"),
    ]


def others(store: Store, number: int = NUMBER) -> Iterator[Record]:
    """So many records of trainings that nobody asks for."""
    one = next(store.records(TRAIN.name))
    for seed in range(number):
        config = one.config | {"seed": 1_000_000 + seed}
        key = step_key(one.step, one.version, config, one.inputs)
        yield one.model_copy(update={"config": config, "key": key, "label": f"other {seed}"})


def _pair(folder: Path) -> tuple[Spent, Spent]:
    more, records, away = (
        run_apart(folder),
        folder / "store" / "records" / TRAIN.name,
        folder / "away",
    )
    away.mkdir()
    for path in records.glob("other-*"):
        path.rename(away / path.name)
    few = run_apart(folder)
    for path in away.iterdir():
        path.rename(records / path.name)
    away.rmdir()
    return more, few
