"""Register mixpool with a Prefect server, so that people and events can start its flows.

Registered are a work pool, one deployment for each flow with working defaults, the event that starts
``ingest``, a limit for each device, and an automation that ends runs whose process is gone. Registering
again changes what differs. It keeps runs, and schedules of one's own where all have slugs.
"""

import asyncio
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.automations import EventTrigger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    StateType,
)
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, Posture
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron, Interval, Schedule
from prefect.types.entrypoint import EntrypointType
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from flows.chain.recipe_file import UsageError
from flows.prefect.flow_runs import FLOWS, ablate_flow, ingest_flow, search_flow, sweep_flow
from flows.prefect.limits import limit_name, make_limit
from flows.prefect.settings import CLIENT
from flows.prefect.waiting import WAITING
from flows.server.deploy_options import PROCESS, DeployOptions
from storage.artifact import dashed
from storage.step import Runtime
from tasks.machine.device import devices_of

LOG = logging.getLogger("mixpool.deploy")

SCHEDULE = "mixpool"
"""Slug of the schedule: registering again finds it, and leaves those that have other slugs."""
LANDED = "corpus.data.landed"
"""The event that starts ``ingest``."""
ANY_CORPUS = "any"
"""Stands for the corpus of an event that concerns every corpus."""

WITH_RECIPE = (ablate_flow, ingest_flow, sweep_flow, search_flow)

TAGS = {
    "ablate": ["trains", "evaluates"],
    "ingest": ["trains", "evaluates", "data"],
    "sweep": ["evaluates"],
    "search": ["trains", "evaluates"],
    "report": ["reads"],
    "verify": ["maintenance"],
    "gc": ["maintenance"],
}

MISSED_BEATS = 3
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Unchanged", "Covered")
WAITS = ("Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot", "Paused", "Suspended")
"""Names of the states after which no beat is expected; events are called after these, not after types."""
GONE = "mixpool: end runs whose process is gone"


def deploy(options: DeployOptions) -> dict[str, str]:
    """Register everything with the server at ``PREFECT_API_URL``.

    Returns:
        id of each deployment, by ``flow/name``.

    Raises:
        ValueError: the pool exists with another type, or the schedule cannot be read.
    """
    schedule = schedule_of(options)
    with get_client(sync_client=True) as client:
        _make_pool(client, options)
        _end_runs_that_are_gone(client)
    deployments = list(deployments_of(options))
    if options.pool_type == PROCESS:
        # One slot for each device of this host; workers make those of theirs when they need them.
        for name in map(limit_name, devices_of(Runtime())):
            if make_limit(name, 1):
                LOG.info("made the concurrency limit %s", name)
    ids = {deployment.full_name: str(deployment.apply()) for deployment in deployments}
    if schedule is None:
        ingest = UUID(ids[f"{ingest_flow.name}/{options.name}"])
        # An earlier registration may have made one; Prefect leaves it in force.
        with get_client(sync_client=True) as client:
            for entry in client.read_deployment_schedules(ingest):
                if entry.slug == SCHEDULE:
                    client.delete_deployment_schedule(ingest, entry.id)
    return ids


def deployments_of(options: DeployOptions) -> Iterator[RunnerDeployment]:
    """The deployment of each flow. Raises ValueError where the schedule cannot be read."""
    schedule = schedule_of(options)
    for flow in FLOWS:
        is_ingest = flow is ingest_flow
        recipe = {"recipe": options.recipe} if flow in WITH_RECIPE else {}
        deployment = RunnerDeployment.from_flow(
            flow,
            name=options.name,
            description=describe(flow),
            tags=["mixpool", *TAGS[flow.name]],
            parameters={**recipe, "store": options.store},
            schedule=schedule if is_ingest else None,
            triggers=[landed_trigger(options)] if is_ingest else [],
            # The run that works cancels those that wait for the same (flows.prefect.waiting).
            concurrency_limit=ConcurrencyLimitConfig(
                limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
            )
            if is_ingest
            else None,
            work_pool_name=options.pool,
            job_variables=_job_variables(options),
            # The code is installed where workers are, so nothing has to be fetched.
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        # Not the module that defines it: the one that finds ours beside other packages of its name.
        deployment.entrypoint = f"mixpool.{flow.name}_flow"
        yield deployment


def describe(flow: Flow[..., Any]) -> str:
    """The description of a flow: its docstring without the parameters, which the form shows."""
    return (flow.description or "").split("Args:")[0].strip()


def _job_variables(options: DeployOptions) -> dict[str, Any]:
    variables = {"working_dir": options.folder, "command": options.command, "image": options.image}
    given = {name: value for name, value in variables.items() if value is not None}
    return {"env": CLIENT, **given}


def schedule_of(options: DeployOptions) -> Schedule | None:
    """When ``ingest`` looks for new data by itself; None without ``every`` and ``cron``.

    Raises:
        UsageError: both ``every`` and ``cron`` are given, or one of them cannot be used.
    """
    if options.every is not None and options.cron is not None:
        raise UsageError("both every and cron say when to look for new data: give one of them")
    if options.every is not None:
        if options.every < 1:
            raise UsageError(f"every is {options.every:g} seconds: give at least one")
        return Interval(timedelta(seconds=options.every), slug=SCHEDULE)
    if options.cron is None:
        return None
    try:
        return Cron(options.cron, timezone="UTC", slug=SCHEDULE)
    except ValueError as error:
        raise UsageError(f"cron {options.cron!r} says no time: give five fields of cron") from error


def resource_id(corpus: str) -> str:
    """The resource of an event that data has landed: ``corpus.<name>``."""
    return f"corpus.{dashed(corpus)}"


def landed_trigger(options: DeployOptions) -> DeploymentEventTrigger:
    """Starts ``ingest`` for each event that says that data of its corpus has landed."""
    return DeploymentEventTrigger(
        name=f"mixpool: {options.name}: data landed in {options.corpus}",
        expect={LANDED},
        match={"prefect.resource.id": [resource_id(options.corpus), resource_id(ANY_CORPUS)]},
        parameters={"uri": {"__prefect_kind": "jinja", "template": "{{ event.payload.uri }}"}},
    )


def _make_pool(client: SyncPrefectClient, options: DeployOptions) -> None:
    try:
        pool = client.read_work_pool(options.pool)
    except ObjectNotFound:
        make = get_default_base_job_template_for_infrastructure_type
        template = options.job_template or asyncio.run(make(options.pool_type))
        if template is None:
            raise ValueError(
                f"Prefect knows no work pools of the type {options.pool_type!r}: give process, docker "
                "or kubernetes"
            ) from None
        client.create_work_pool(
            WorkPoolCreate(name=options.pool, type=options.pool_type, base_job_template=template)
        )
        return
    if pool.type != options.pool_type:
        raise ValueError(
            f"the work pool {options.pool!r} has the type {pool.type!r}, not {options.pool_type!r}: "
            "give another name, or that type"
        )


def _end_runs_that_are_gone(client: SyncPrefectClient) -> None:
    """Make the automation that ends runs without heartbeats.

    Else a run whose worker was killed too would be shown as running for ever.
    """
    beat = "prefect.flow-run.heartbeat"
    seconds = MISSED_BEATS * int(CLIENT["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    automation = AutomationCore(
        name=GONE,
        description="A run that lives says so every half minute. The next run goes on from what it "
        "had committed and from its resume points.",
        tags=["mixpool"],
        trigger=EventTrigger(
            after={beat},
            expect={beat, WAITING, *(f"prefect.flow-run.{end}" for end in (*ENDS, *WAITS))},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message=f"nothing was heard of its process for {seconds} seconds; run it again: it "
                "goes on from what was committed and from its resume points",
            )
        ],
    )
    standing = client.read_automations_by_name(GONE)
    for existing in standing:
        says, should_say = ((a.description, a.trigger, a.actions) for a in (existing, automation))
        # An automation that is written again forgets the beats that it has heard.
        if says != should_say:
            client.update_automation(existing.id, automation)
    if not standing:
        client.create_automation(automation)
