"""Runs recipes in forked children that kill themselves where they are told to.

A script that imports everything once, then reads orders, one JSON object a line: ``{"store", "recipe",
"report", "kill_at", "counted", "environment"}`` forks a child and answers its process id, ``{"wait": pid}``
answers how it ended.
A child counts what it does to the disk and what it tells a person; it dies at number ``kill_at``, or
ends and writes what it did to ``report``. The code and the disk (or S3 server) are the real ones.
"""

import gc
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import jinja2  # noqa: F401
import pandas  # noqa: F401
import pyarrow.pandas_compat
import pyarrow.parquet  # noqa: F401
import safetensors.numpy  # noqa: F401
import tokenizers.trainers  # noqa: F401
import torch
import transformers.convert_slow_tokenizer
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401

from flows.chain.recipe_file import parse_recipe
from flows.run.execute import execute
from flows.runners.inline import InlineRunner
from storage.backends.local import LocalBackend
from storage.step import Progress, Runtime
from storage.store import Store


class Events:
    """What a child did, one line each; the last is number ``kill_at`` of those ``counted``, a pattern."""

    def __init__(self, kill_at: int | None, counted: str) -> None:
        self.seen: list[str] = []
        self._kill_at, self._counted, self._number = kill_at, counted, 0

    def __call__(self, what: str) -> None:
        self.seen.append(what)
        self._number += re.match(self._counted, what) is not None
        if self._number == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedBackend(LocalBackend):
    """A local disk on which every write and deletion is an event: before, in the middle, after."""

    def __init__(self, root: str, events: Events) -> None:
        super().__init__(fsspec.filesystem("file"), root)
        self._events = events

    def _publish(
        self, path: str, write: Callable[[Path], object], *, replace: bool = False
    ) -> bool:
        def write_watched(temporary: Path) -> None:
            write(temporary)
            self._events(f"unpublished {path}")

        self._events(f"before {path}")
        done = super()._publish(path, write_watched, replace=replace)
        self._events(f"after {path}")
        return done

    def delete(self, path: str) -> None:
        self._events(f"undeleted {path}")
        super().delete(path)


class WatchedReporter:
    """Every report of progress is an event; where each piece of work began is kept."""

    def __init__(self, events: Events, said: Path) -> None:
        self.began: dict[str, int] = {}
        self._events = events
        self._said = said

    def task(self, name: str) -> Progress:
        """A function that notes how far the named work is."""

        def progress(done: int, total: int, unit: str) -> None:
            self.began.setdefault(name, done)
            self._events(f"{name}: {done} of {total} {unit}")

        return progress

    def say(self, message: str) -> None:
        """Waiting for another run is an event too, and seen from outside at once."""
        with self._said.open("a") as file:
            print(message, file=file)
        self._events(message)


def carry_out(order: dict[str, Any]) -> None:
    """Run the recipe of an order to its end, or to its death."""
    events = Events(order["kill_at"], order["counted"])
    reporter = WatchedReporter(events, Path(order["report"]).with_suffix(".said"))
    os.environ.update(order["environment"])
    backend = None if "://" in order["store"] else WatchedBackend(order["store"], events)
    store = Store(order["store"], backend=backend)
    runtime = Runtime(threads=1, checkpoint_seconds=0, chunk=2)
    run = InlineRunner(store, runtime, reporter)
    result = execute(run, parse_recipe(order["recipe"]))
    report = {"folder": result.folder, "began": reporter.began, "events": events.seen}
    Path(order["report"]).write_text(json.dumps({**report, "summary": result.summary}))


def fork(order: dict[str, Any]) -> int:
    """Process id of a child that carries out the order."""
    if child := os.fork():
        return child
    try:
        carry_out(order)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Carry out orders until there are no more."""
    torch.set_num_threads(1)
    # Children look for garbage, and must not look through all that was imported.
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = fork(order)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
