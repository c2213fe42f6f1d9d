"""The chain as a Prefect flow, on a temporary server: same results, and a UI that tells the truth."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.chain.ablation import ablate
from flows.chain.recipe import Recipe
from flows.chain.recipe_file import to_yaml
from flows.run.costs import EVERY_MIXTURE
from flows.runners.inline import InlineRunner
from storage.step import Runtime
from storage.store import Store
from tasks.models.initialise import INITIALISE
from tasks.search.descent import DESCEND
from tasks.tokens.tokenize import TOKENIZE
from tasks.training.train import TRAIN

ROOT = Path(__file__).parents[2]
NAME = "Tiny <b>1"
USERS_SETTING = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "150"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Session:
    """One process that ran every flow, and what it saw."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        (folder / "recipe.yaml").write_text(to_yaml(recipe))
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        own = {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(ROOT), **USERS_SETTING}
        script = Path(__file__).with_name("prefect_session.py")
        done = subprocess.run(
            [sys.executable, str(script), str(folder)],
            env={**kept, **own},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=540,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        observed = json.loads((folder / "observed.json").read_text())
        self.settings = observed["settings"]
        self.has_s3_client: bool = observed["has_s3_client"]
        self.outcomes: dict[str, Any] = observed["outcomes"]
        self.artifacts: list[dict[str, Any]] = observed["artifacts"]
        self.logs: list[dict[str, Any]] = observed["logs"]
        self._runs, self._names = observed["flow_runs"], observed["flow_names"]

    def ids(self, name: str) -> list[str]:
        """Ids of the flow runs of a name."""
        return [key for key, found in self._names.items() if found == name]

    def tasks(self, flow_run: str) -> list[tuple[str, str]]:
        """Name and state of each task run, in order of time."""
        return [(task["name"], task["state"]) for task in self._runs[flow_run]["tasks"]]

    def attempts(self, flow_run: str) -> list[int]:
        """How often each task run was tried."""
        return [task["attempts"] for task in self._runs[flow_run]["tasks"]]


@pytest.fixture(scope="module")
def session(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable[..., Recipe]
) -> Session:
    """Every flow run of this module; a server takes 10 to 30 s to start."""
    folder = tmp_path_factory.mktemp("prefect")
    return Session(folder, tiny_recipe(folder, f"name={NAME}"))


def ids_of_ablations(session: Session) -> list[str]:
    """The first run, which had an empty store, and the second."""
    return sorted(
        session.ids(NAME), key=lambda run: ("train base", "Completed") not in session.tasks(run)
    )


def test_gives_the_losses_that_a_run_without_prefect_gives(
    session: Session, tmp_path: Path
) -> None:
    runtime = Runtime(device="cpu", threads=1)
    inline = ablate(InlineRunner(Store(str(tmp_path / "inline")), runtime), session.recipe)
    reader = InlineRunner(Store(str(session.folder / "store")), runtime)
    # Rows hold sums of losses and, in a mixture's identity, the digests of the models.
    assert ablate(reader, session.recipe).rows == inline.rows
    assert not [entry for entry in reader.ledger.entries if entry.built]
    assert session.outcomes["first"]["result"]["losses_evaluated"] == len(inline.rows or [])


def test_sets_what_the_user_has_not_set(session: Session) -> None:
    assert session.settings == {"timeout": 150, "batch": 200}


def test_runs_on_a_disk_load_no_client_of_an_object_store(session: Session) -> None:
    assert not session.has_s3_client


def test_every_partition_and_every_chunk_is_a_task_run(session: Session) -> None:
    names = [name for name, _ in session.tasks(ids_of_ablations(session)[0])]
    assert [n for n in names if n.startswith("train ")] == [
        "train base", "train birds-0", "train cooking-0", "train law-0", "train letters-0",
        "train rivers-0", "train sums-0",
    ]  # fmt: skip
    assert names[-3:] == [f"sweep chunk {number} of 3" for number in (1, 2, 3)]


def test_second_run_is_shown_as_cached(session: Session) -> None:
    _, second = ids_of_ablations(session)
    assert {state for _, state in session.tasks(second)} == {"Cached"}
    assert ("train sums-0", "Cached") in session.tasks(second)
    result = session.outcomes["second"]["result"]
    assert (result["trained"], result["losses_evaluated"]) == ([], 0)


def test_leaves_ranking_summary_and_report_in_prefect(session: Session) -> None:
    result = session.outcomes["first"]["result"]
    left = {a["key"]: a for a in session.artifacts if a["flow_run"] == ids_of_ablations(session)[0]}
    ranking = json.loads(left["tiny-b-1-ranking"]["data"])
    assert left["tiny-b-1-ranking"]["type"] == "table"
    assert len(ranking) == 21
    best = result["best"]["macro mean"]
    assert (ranking[0]["mixture"], ranking[0]["rank"]) == (best["mixture"], str(best["rank"]))
    assert ranking[0]["perplexity"] == f"{best['perplexity']:.3f}"
    page = left["tiny-b-1-summary"]["data"]
    assert page.startswith("# Tiny &lt;b&gt;1\n")
    assert "trained now: 7 (base, birds-0," in page
    report = session.folder / "store" / result["run"] / "report.html"
    assert report.exists()
    assert f"report: `{report.as_uri()}`" in page
    assert "tiny-b-1-report" not in left, "a browser does not follow a link to a file"
    items = [row["item"] for row in json.loads(left["tiny-b-1-cost"]["data"])]
    assert items == ["training, now", "other steps, now", "evaluating, now", EVERY_MIXTURE]


def test_plan_says_before_anything_runs_what_will(session: Session) -> None:
    first, second = (
        next(a for a in session.artifacts if (a["key"], a["flow_run"]) == ("tiny-b-1-plan", run))
        for run in ids_of_ablations(session)
    )
    assert (
        "| train | 0 | 7 | base, birds-0, cooking-0, law-0, letters-0, rivers-0, sums-0 |"
        in first["data"]
    )
    assert "| losses | 0 | 126 |  |" in first["data"]
    assert "train base: no record of this step yet" in first["data"]
    assert "| train | 7 | 0 |  |" in second["data"]
    assert "Nothing to compute: everything is in the store." in second["data"]


def test_plan_and_run_list_the_corpus_once(session: Session) -> None:
    found = [session.outcomes[name]["result"] for name in ("sweeping again", "seeking")]
    assert [one["listings"] for one in found] == [1, 1]
    assert [one["trained"] for one in found] == [[], []]
    (plan,) = [a for a in session.artifacts if a["key"] == "seeking-plan"]
    assert "| descend | 0 | 1 | search |" in plan["data"]


def test_bar_is_there_while_work_goes_on_and_gone_when_it_is_done(session: Session) -> None:
    assert session.outcomes["showing"] == {"result": [[50.0, "note showing: 5 of 10 notes"]]}
    assert not [a for a in session.artifacts if a["type"] == "progress"]


def test_flow_that_only_evaluates_trains_nothing(session: Session) -> None:
    error = session.outcomes["sweeping"]["error"]
    assert "6 models are not in the store (birds-0, cooking-0," in error
    assert session.outcomes["sweeping again"]["result"]["losses_evaluated"] == 0


def test_a_descent_takes_the_device_and_its_process(session: Session) -> None:
    (run,) = session.ids("seeking")
    assert ("descend search", "Completed") in session.tasks(run)
    assert session.outcomes["seeking"]["result"]["trained"] == []
    said = {log["message"] for log in session.logs if log["in_task"]}
    on_device = {text.partition(":")[0] for text in said if text.endswith(": computing on cpu")}
    made = ["base", "birds-0", "cooking-0", "law-0", "letters-0", "rivers-0", "sums-0"]
    assert on_device == {"descend search", *(f"train {name}" for name in made)}
    commands = {
        step.name: {record.provenance["command"][0] for record in store.records(step.name)}
        for store in [Store(str(session.folder / "store"))]
        for step in (TRAIN, DESCEND, INITIALISE, TOKENIZE)
    }
    here = str(Path(__file__).with_name("prefect_session.py"))
    assert commands == {
        "train": {"-c"},
        "descend": {"-c"},
        "initialise": {here},
        "tokenize": {here},
    }


def test_logs_of_steps_reach_the_task_run(session: Session) -> None:
    found = [log for log in session.logs if log["message"] == "writing free"]
    assert found == [{"logger": "mixpool.note", "message": "writing free", "in_task": True}]


def test_work_that_another_run_holds_is_left_for_last(session: Session) -> None:
    (run,) = session.ids("memory://held")
    assert session.tasks(run) == [
        ("note wanted", "Elsewhere"),
        ("note free", "Completed"),
        ("note wanted", "Completed"),
    ]
    assert session.outcomes["held"] == {"result": [False, False]}


def test_fault_that_may_pass_is_tried_again(session: Session) -> None:
    (run,) = session.ids("memory://stumbling")
    assert session.tasks(run) == [("note stumbling", "Completed")]
    assert session.attempts(run) == [2]
    assert session.outcomes["stumbling"] == {"result": [False]}


def test_fault_that_stays_ends_the_run_at_once(session: Session) -> None:
    (run,) = session.ids("memory://failing")
    assert session.tasks(run) == [("note failing", "Failed"), ("note lingering", "Cancelled")]
    assert session.attempts(run)[0] == 1
    assert session.outcomes["failing"] == {"error": "ValueError: no such word"}
