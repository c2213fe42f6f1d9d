"""What a person does in Prefect's page, over its HTTP API: start runs, end them, look at what they did.

For tests, whose process must not import Prefect. The token that the server asks of a browser is fetched
once; every wait has an end, and says then what the run had come to.

    with PrefectApi("http://127.0.0.1:4200") as api:
        run = api.start("ablate/mixpool", store="/data/store")
        assert api.wait(run, 60)["state_name"] == "Completed"
"""

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Self

import httpx

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
POLL_SECONDS = 0.5
MOST_TRIES = 10
"""With SQLite, whoever reads and then writes is sent away now and then; Prefect's clients ask again."""
SETTLE_SECONDS = 1.5
"""Task runs are recorded about a second after they happen."""


class PrefectApi:
    """A client of one server that knows its token; to be closed, or used as a context."""

    def __init__(
        self, url: str, trouble: Callable[[], str] = lambda: "", password: str | None = None
    ) -> None:
        """``url`` is the server's; what ``trouble`` says is added to the message of a wait in vain.

        ``password`` is ``user:password``, where the server asks for one.
        """
        self.url = url
        self._trouble = trouble
        user, _, word = (password or "").partition(":")
        auth = (user, word) if password else None
        self._client = httpx.Client(base_url=f"{url}/api", timeout=60, auth=auth)
        asked = str(uuid.uuid4())
        answer = self._client.get("/csrf-token", params={"client": asked}).raise_for_status()
        token = {"Prefect-Csrf-Token": answer.json()["token"], "Prefect-Csrf-Client": asked}
        self._client.headers.update(token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """What the server has at a path. Raises httpx.HTTPStatusError."""
        return self._client.get(path).raise_for_status().json()

    def post(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The server's answer, also where it refuses; asked again while its database is busy."""
        for _ in range(MOST_TRIES):
            answer = self._client.post(path, json=dict(body), headers=headers)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(POLL_SECONDS)
        return answer

    def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers to a POST. Raises httpx.HTTPStatusError."""
        return self.post(path, body).raise_for_status().json()

    def deployment(self, name: str) -> str:
        """Id of a deployment, such as ``ablate/mixpool``."""
        return str(self.get(f"/deployments/name/{name}")["id"])

    def create_run(self, deployment: str, parameters: Mapping[str, Any]) -> httpx.Response:
        """The answer to a form: the new flow run, or what is wrong with a field."""
        path = f"/deployments/{self.deployment(deployment)}/create_flow_run"
        return self.post(path, {"parameters": parameters, "state": {"type": "SCHEDULED"}})

    def start(self, deployment: str, **parameters: Any) -> str:
        """Id of a new run; parameters that are not given have the deployment's values."""
        answer = self.create_run(deployment, parameters)
        assert answer.is_success, answer.text
        return str(answer.json()["id"])

    def set_state(self, run: str, kind: str) -> None:
        """Ask for a state by its type, as ``CANCELLING``."""
        self.ask(f"/flow_runs/{run}/set_state", {"state": {"type": kind}})

    def run(self, run: str) -> dict[str, Any]:
        """What the server knows about a flow run."""
        found: dict[str, Any] = self.get(f"/flow_runs/{run}")
        return found

    def runs(self) -> list[dict[str, Any]]:
        """Every flow run, those that began last first."""
        found: list[dict[str, Any]] = self.ask("/flow_runs/filter", {"sort": "START_TIME_DESC"})
        return found

    def wait(self, run: str, seconds: float) -> dict[str, Any]:
        """A flow run in its final state. Raises TimeoutError."""
        self.until(run, lambda: self.run(run)["state_type"] in FINAL, seconds)
        return self.run(run)

    def until(self, run: str, is_so: Callable[[], bool], seconds: float) -> None:
        """Return when it is so. Raises TimeoutError, with what the run did and said last."""
        limit = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > limit:
                raise TimeoutError(f"not so after {seconds:g} s: {self._story(run)}")
            time.sleep(POLL_SECONDS)

    def _story(self, run: str) -> str:
        state, tasks = self.run(run)["state"], self._filtered("task_runs", run, "state_name")
        head = f"run {run} is {state['name']} ({state['message']}); tasks: {tasks}; it says:"
        return "\n".join([head, *self.logs(run)[-20:], self._trouble()])

    def _filtered(self, kind: str, run: str, *fields: str) -> list[Any]:
        found = self.ask(f"/{kind}/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return [{name: one[name] for name in ("name", *fields)} for one in found]

    def tasks(self, run: str, seconds: float = 30) -> dict[str, str]:
        """State of each task run by its name, the last of a name, once nothing changes any more.

        Raises:
            TimeoutError: some are not final, or still change, after ``seconds``.
        """
        limit, before = time.monotonic() + seconds, None
        while True:
            found = self._filtered("task_runs", run, "state_name", "state_type", "start_time")
            found.sort(key=lambda task: str(task["start_time"]))
            if found == before and all(task["state_type"] in FINAL for task in found):
                return {task["name"]: task["state_name"] for task in found}
            if time.monotonic() > limit:
                raise TimeoutError(f"task runs of {run} do not settle in {seconds:g} s: {found}")
            before = found
            time.sleep(SETTLE_SECONDS)

    def logs(self, run: str) -> list[str]:
        """What a flow run and its task runs said, in order."""
        chosen = {"flow_run_id": {"any_": [run]}}
        found = self.ask("/logs/filter", {"logs": chosen, "sort": "TIMESTAMP_ASC"})
        return [line["message"] for line in found]

    def bars(self, run: str) -> dict[str, float]:
        """How far the work that shows a bar has come, in percent, by its name."""
        chosen = {
            "flow_runs": {"id": {"any_": [run]}},
            "artifacts": {"type": {"any_": ["progress"]}},
        }
        found = self.ask("/artifacts/filter", chosen)
        return {bar["description"].partition(": ")[0]: bar["data"] for bar in found}

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """What a run left, by key; bars have none."""
        found = self.ask("/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return {left["key"]: left for left in found if left["key"]}
