"""Flow runs against a temporary Prefect server, and what its API then says: ``FOLDER/observed.json``.

Run by ``test_prefect.py`` as a process of its own, because Prefect changes the process it is imported
into. ``FOLDER`` holds ``recipe.yaml``.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.prefect.flow_runs import ablate_flow, search_flow, sweep_flow

# isort: split
# Prefect reads its settings when it is imported; in a process of ours our defaults are set by then.
import fsspec
from fsspec.implementations.local import LocalFileSystem
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import get_current_settings

from flows.chain.recipe_file import load_recipe
from flows.prefect.progress import FIRST_SECONDS
from flows.prefect.runner import PrefectRunner
from storage.fingerprint import Config
from storage.step import Call, Progress, Runtime, Step, Workspace
from storage.store import Store


class NoteConfig(Config):
    """A text that bears identity."""

    text: str
    """What is written."""


class Counted(LocalFileSystem):  # type: ignore[misc] # fsspec has no types
    """The local disk, which counts how often it is listed from the top."""

    protocol = "counted"
    finds = 0

    def find(self, path: str, **kwargs: Any) -> Any:
        Counted.finds += 1
        return super().find(path, **kwargs)


Act = Callable[[Progress], None]


def note(text: str, act: Act = lambda progress: None) -> Call[NoteConfig]:
    """Writes a file after ``act``."""

    def write(
        config: NoteConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
    ) -> Mapping[str, object]:
        del inputs
        logging.getLogger("mixpool.note").info("writing %s", text)
        act(workspace.progress)
        (output / "note.txt").write_text(config.text)
        return {}

    return Call(Step("note", 1, "note", NoteConfig, write), NoteConfig(text=text), {}, text)


@flow
def held_flow(url: str) -> list[bool]:
    """Two notes; another holds the first until the second is written."""
    store, wanted, done = Store(url), note("wanted"), threading.Event()
    held = threading.Event()

    def hold() -> None:
        with store.lease(f"note/{wanted.key}"):
            held.set()
            done.wait(60)

    threading.Thread(target=hold, daemon=True).start()
    held.wait(60)
    handles = PrefectRunner(store).map([wanted, note("free", lambda progress: done.set())])
    return [handle.hit for handle in handles]


@flow
def stumbling_flow(url: str) -> list[bool]:
    """A note that can be written at the second attempt only."""
    faults = iter([OSError("connection lost")])

    def stumble(progress: Progress) -> None:
        progress(0, 1, "notes")
        for fault in faults:
            raise fault

    return [handle.hit for handle in PrefectRunner(Store(url)).map([note("stumbling", stumble)])]


@flow
def failing_flow(url: str) -> None:
    """A note that cannot be written, and one that would take very long."""

    def fail(progress: Progress) -> None:
        progress(1, 1, "notes")
        raise ValueError("no such word")

    def linger(progress: Progress) -> None:
        for done in range(600):
            progress(done, 600, "notes")
            time.sleep(0.2)

    PrefectRunner(Store(url)).map([note("failing", fail), note("lingering", linger)])


@flow
def showing_flow(url: str) -> list[list[Any]]:
    """What Prefect shows in the middle of work that takes some seconds."""
    seen: list[list[Any]] = []

    def show(progress: Progress) -> None:
        progress(0, 10, "notes")
        time.sleep(FIRST_SECONDS)
        progress(5, 10, "notes")
        with get_client(sync_client=True) as client:
            bars = [a for a in client.read_artifacts() if a.type == "progress"]
        seen.extend([bar.data, bar.description] for bar in bars)
        progress(10, 10, "notes")

    with PrefectRunner(Store(url)) as runner:
        runner.map([note("showing", show)])
    return seen


def listing(run: Callable[..., Any], **form: Any) -> dict[str, Any]:
    """What a flow returned, and how often it listed the corpus."""
    before = Counted.finds
    return {**run(**form), "listings": Counted.finds - before}


def outcome(run: Callable[[], Any]) -> dict[str, Any]:
    """What a flow returned, or how it failed."""
    try:
        return {"result": run()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def task_runs(client: SyncPrefectClient, flow_run: UUID) -> list[dict[str, Any]]:
    """Name, state and number of attempts of a flow run's task runs, in order of time."""
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    found = client.read_task_runs(flow_run_filter=chosen)
    return [
        {"name": run.name, "state": run.state_name, "attempts": run.run_count}
        for run in sorted(found, key=lambda run: str(run.start_time))
    ]


def settled(client: SyncPrefectClient) -> dict[str, dict[str, Any]]:
    """Every flow run by id; the server records task runs a little later than they happen."""
    final = {"Completed", "Cached", "Elsewhere", "Failed", "Cancelled"}
    seen: dict[str, dict[str, Any]] = {}
    for _ in range(30):
        before, seen = seen, {}
        for run in client.read_flow_runs():
            entry = {"state": run.state_name, "tasks": task_runs(client, run.id)}
            seen[str(run.id)] = entry
        states = {task["state"] for run in seen.values() for task in run["tasks"]}
        if seen == before and states <= final:
            break
        time.sleep(1)
    return seen


def observe() -> dict[str, Any]:
    """What the API knows after all flow runs."""
    with get_client(sync_client=True) as client:
        return {
            "flow_runs": settled(client),
            "flow_names": {str(run.id): run.name for run in client.read_flow_runs()},
            "artifacts": [
                {"key": a.key, "type": a.type, "data": a.data, "flow_run": str(a.flow_run_id)}
                for a in client.read_artifacts()
            ],
            "logs": [
                {"logger": log.name, "message": log.message, "in_task": log.task_run_id is not None}
                for log in client.read_logs()
            ],
        }


def main(folder: Path) -> None:
    """Run every flow once and write down what happened."""
    recipe, store = load_recipe(folder / "recipe.yaml"), str(folder / "store")
    form: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "runtime": {"device": "cpu", "threads": 1},
    }
    other = {**form, "recipe": {**form["recipe"], "name": "sweeping"}}
    fsspec.register_implementation("counted", Counted)
    counted = f"corpus.source.urls=['counted://{folder}/corpus/*.jsonl']"
    few = ["search.evaluations=8", "search.start=6"]
    few += ["search.descent={starts: 1, steps: 2, tokens: 64}"]
    seeking = {
        **form,
        "recipe": {**form["recipe"], "name": "seeking"},
        "overrides": [counted, *few],
    }
    named: dict[str, Any] = {"flow_run_name": "{url}"}
    outcomes = {
        "first": outcome(
            lambda: ablate_flow(recipe, store, runtime=Runtime(device="cpu", threads=1, chunk=8))
        ),
        "second": outcome(lambda: ablate_flow(**form, store=store)),
        "sweeping": outcome(lambda: sweep_flow(**other, overrides=["train.steps=6"], store=store)),
        "sweeping again": outcome(
            lambda: listing(sweep_flow, **other, overrides=[counted], store=store)
        ),
        "seeking": outcome(lambda: listing(search_flow, **seeking, store=store)),
        "showing": outcome(lambda: showing_flow.with_options(**named)("memory://showing")),
        "held": outcome(lambda: held_flow.with_options(**named)("memory://held")),
        "stumbling": outcome(lambda: stumbling_flow.with_options(**named)("memory://stumbling")),
        "failing": outcome(lambda: failing_flow.with_options(**named)("memory://failing")),
    }
    server = get_current_settings().server
    settings = {
        "timeout": server.ephemeral.startup_timeout_seconds,
        "batch": server.services.task_run_recorder.batch_size,
    }
    has_s3_client = "storage.backends.retry" in sys.modules  # accelerate loads boto3 where it is
    observed = {
        "settings": settings,
        "has_s3_client": has_s3_client,
        "outcomes": outcomes,
        **observe(),
    }
    (folder / "observed.json").write_text(json.dumps(observed, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
