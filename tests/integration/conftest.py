"""What the tests of whole runs share: runs in other processes, and what a store holds."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows.chain.recipe import Recipe
from storage import audit, garbage, lineage
from storage.store import Store
from tasks.evaluation.losses_file import decode

ROOT = Path(__file__).parents[2]

Losses = dict[tuple[str, str], tuple[float, tuple[float, ...]]]


class Running(NamedTuple):
    """A run in another process."""

    pid: int
    report: Path

    @property
    def said(self) -> Path:
        """A file with the lines that the run has said so far."""
        return self.report.with_suffix(".said")


class Runs:
    """Starts runs in processes of their own; they share one import of torch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        (folder / "scratch").mkdir()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("victims.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "scratch")},
        )

    def _ask(self, order: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def start(
        self,
        store: str | Path,
        recipe: Recipe,
        kill_at: int | None = None,
        environment: dict[str, str] | None = None,
        counted: str = "",
    ) -> Running:
        """Begin a run that kills itself at event number ``kill_at`` of those that match ``counted``."""
        report = self._folder / f"{next(self._numbers)}.json"
        report.with_suffix(".said").touch()
        tree = recipe.model_dump(mode="json")
        order = {"store": str(store), "recipe": tree, "report": str(report), "kill_at": kill_at}
        order |= {"counted": counted, "environment": environment or {}}
        return Running(self._ask(order), report)

    def wait(self, running: Running) -> int:
        """Exit status of a run; minus the signal's number where it was killed."""
        return self._ask({"wait": running.pid})

    def finish(self, running: Running) -> dict[str, Any]:
        """What a run that must come to its end has to say."""
        assert self.wait(running) == 0
        report: dict[str, Any] = json.loads(running.report.read_text())
        return report

    def close(self) -> None:
        """Let go of the process."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Runs in other processes."""
    found = Runs(tmp_path_factory.mktemp("reports"))
    yield found
    found.close()


class Place:
    """A store anywhere and what tests ask about it."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def store(self) -> Store:
        """A new client of the store."""
        return Store(self.url, create=False)

    def losses(self) -> Losses:
        """Every row of the losses tables, the first of each pair."""
        found: Losses = {}
        backend = self.store.backend
        for path in backend.list("losses"):
            for row in decode(backend.read(path)) if path.endswith(".parquet") else ():
                found.setdefault((row.mixture, row.windows), (row.nll, tuple(row.group_nll)))
        return found

    def ranking(self, report: dict[str, Any]) -> bytes:
        """The ranking that a run left, as it was written."""
        return self.store.backend.read(f"{report['folder']}/ranking.parquet")

    def trained(self) -> dict[str, str]:
        """Label of each training that is committed, by key."""
        return {record.key: record.label for record in self.store.records("train")}

    def summaries(self) -> list[dict[str, Any]]:
        """What each finished run said, oldest first."""
        found = lineage.run_folders(self.store).values()
        return [content["summary"] for content in found if content is not None]

    def check_sound(self) -> None:
        """Nothing in the store is damaged, and nobody works on it."""
        assert audit.verify(self.store, lambda done, total, unit: None) == []
        assert garbage.live_work(self.store) == []


class Shelf(Place):
    """A store on the local disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.path = folder
        Store(self.url)

    def files(self, top: str = "") -> dict[str, tuple[int, bytes]]:
        """Time of the last change and content of every file below a folder of the store."""
        return {
            path.relative_to(self.path).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted((self.path / top).rglob("*"))
            if path.is_file()
        }


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Shelf]:
    """``shelves("name")`` makes an empty store."""
    folder = tmp_path_factory.mktemp("stores")
    return lambda name: Shelf(folder / name)
