"""Merge pending ingest runs into one; end and reschedule runs when `mixpool serve` stops.

A thousand files that land together start a thousand runs, of which one at a time may work. A run lists
the corpus after it has begun, so it sees all files for which the runs behind it were started: it cancels
them, with that reason. A run that is started later waits its turn, so nothing that lands is missed.
"""

import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled, Cancelling, Scheduled
from prefect.types import DateTime

LOG = logging.getLogger("mixpool.run")

WAITING = "mixpool.flow-run.waits"
"""The event that a run waits: no heartbeat is to be expected of it until it runs again."""
STOPPING = "its server is being stopped"
MOST = 200
"""Runs in one answer of the server."""


def cover_waiting() -> int:
    """Cancel the pending runs of this run's deployment with the same parameters; their number."""
    deployment, own = runtime.deployment.id, runtime.flow_run.id
    if deployment is None or own is None:
        return 0
    covered = 0
    with get_client(sync_client=True) as client:
        mine = client.read_flow_run(UUID(own))
        while waiting := [
            run
            for run in _due(client, UUID(deployment))
            if run.id != mine.id and _asked(run) == _asked(mine)
        ]:
            for run in waiting:
                message = f"flow run {mine.name!r} looks at everything that had landed"
                client.set_flow_run_state(run.id, Cancelled(name="Covered", message=message), True)
            covered += len(waiting)
    if covered:
        LOG.info("%d other runs were waiting for the same data: this one answers them", covered)
    return covered


def _due(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    state = FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PENDING])
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=state),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=DateTime.now("utc")),
        ),
        limit=MOST,
    )


def _asked(run: FlowRun) -> dict[str, object]:
    """What a run was asked for; which ``uri`` landed does not count."""
    return {name: value for name, value in run.parameters.items() if name != "uri"}


def end_runs(pool: str, patience: float) -> list[FlowRun]:
    """Cancel the running runs of a work pool, as a person would do it; returns them.

    So trainings leave resume points and leases end, which may take ``patience`` seconds.
    """
    with get_client(sync_client=True) as client:
        ending = _in_pool(client, pool, [StateType.RUNNING, StateType.PENDING])
        for run in ending:
            client.set_flow_run_state(run.id, Cancelling(message=STOPPING))
        limit = time.monotonic() + patience
        while _in_pool(client, pool, [StateType.CANCELLING]) and time.monotonic() < limit:
            time.sleep(0.5)
    return ending


def broken_off_runs(pool: str) -> list[FlowRun]:
    """The runs of a work pool that began and have not ended, when no worker is left.

    Runs that a person was cancelling are cancelled now and are not returned.
    """
    with get_client(sync_client=True) as client:
        left = _in_pool(client, pool, [StateType.RUNNING, StateType.PENDING])
        for run in _in_pool(client, pool, [StateType.CANCELLING]):
            if run.state is not None and run.state.message == STOPPING:
                left.append(run)
            else:
                client.set_flow_run_state(run.id, Cancelled(), force=True)
    return left


def schedule_again(runs: Iterable[FlowRun]) -> None:
    """Let runs go on as soon as there is a worker; what they had committed is not done again."""
    waiting: State[Any] = Scheduled(message="its server was stopped; it goes on when that is back")
    with get_client(sync_client=True) as client:
        for run in runs:
            client.set_flow_run_state(run.id, waiting, force=True)
            _send_waiting(client, run)


def announce_waiting(pool: str) -> None:
    """Send the event of each begun run that waits to go on once more: a busy SQLite loses events."""
    with get_client(sync_client=True) as client:
        for run in _in_pool(client, pool, [StateType.SCHEDULED]):
            if run.start_time is not None:
                _send_waiting(client, run)


def _send_waiting(client: SyncPrefectClient, run: FlowRun) -> None:
    """Send the event that a run waits, for the automation that listens for heartbeats.

    A run's own state events cannot be relied on: a server that was killed holds them back until
    earlier ones arrive, which never do.
    """
    post_event(client, WAITING, {"prefect.resource.id": f"prefect.flow-run.{run.id}"})


def post_event(client: SyncPrefectClient, name: str, resource: dict[str, str], **more: Any) -> None:
    """Send one event at once; ``more`` is its payload, and its id where it has one already."""
    now = datetime.now(UTC).isoformat()
    event = {"id": str(uuid4()), "occurred": now, "event": name, "resource": resource, **more}
    client.request("POST", "/events", json=[event]).raise_for_status()


def _in_pool(client: SyncPrefectClient, pool: str, states: list[StateType]) -> list[FlowRun]:
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=states))
    return client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        flow_run_filter=FlowRunFilter(state=state),
        limit=MOST,
    )
