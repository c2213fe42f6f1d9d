"""What the installed Prefect makes of names and templates: JSON from standard input to output.

Run by ``test_files.py`` as a process of its own, because Prefect changes the process it is imported
into. It asks no server: a job's manifest needs none.
"""

import asyncio
import json
import sys
import uuid
from collections.abc import Iterator
from typing import Any

from flows.server.deploy_options import DeployOptions
from flows.server.deployments import deployments_of

# isort: split
# Our settings come before Prefect reads them.
import prefect.settings
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings.base import PrefectBaseSettings
from prefect_kubernetes.settings import KubernetesSettings  # type: ignore[import-untyped]
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration  # type: ignore[import-untyped]
from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings  # type: ignore[import-untyped]
from prefect_redis.client import RedisMessagingSettings  # type: ignore[import-untyped]
from prefect_redis.messaging import RedisMessagingPublisherSettings  # type: ignore[import-untyped]

INTEGRATIONS = (
    RedisMessagingSettings,
    RedisMessagingPublisherSettings,
    RedisWorkerCleanupQueueSettings,
    KubernetesSettings,
)


def variables_of(model: type[PrefectBaseSettings]) -> Iterator[str]:
    """Variables that a settings model of an integration reads."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, PrefectBaseSettings):
            yield from variables_of(kind)
        else:
            yield f"{model.model_config['env_prefix']}{name}".upper()


def unknown(names: list[str]) -> list[str]:
    """Those names that are no setting of Prefect or of its integrations."""
    of_integrations = {name for model in INTEGRATIONS for name in variables_of(model)}
    return [name for name in names if name not in of_integrations and not _is_core(name)]


def _is_core(name: str) -> bool:
    return hasattr(prefect.settings, name)


async def manifest(template: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The Kubernetes job that the worker would make for a flow run."""
    nobody = PrefectClient(api="http://127.0.0.1:9/api")
    make = KubernetesWorkerJobConfiguration.from_template_and_values
    configuration = await make(template, values, client=nobody)
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid.uuid4(), name="a run"))
    made: dict[str, Any] = configuration.job_manifest
    return made


def deployments() -> Iterator[dict[str, Any]]:
    """What ``mixpool deploy`` registers, as prefect.yaml would write it."""
    for made in deployments_of(DeployOptions(store="STORE", recipe="RECIPE", corpus="any")):
        options = made.concurrency_options
        triggers = [trigger.model_dump(mode="json") for trigger in made.triggers]
        yield {
            "entrypoint": made.entrypoint,
            "description": made.description,
            "tags": made.tags,
            "parameters": made.parameters,
            "env": made.job_variables["env"],
            "concurrency": options and [made.concurrency_limit, options.collision_strategy.value],
            "triggers": [[trigger["expect"], trigger["parameters"]] for trigger in triggers],
        }


def main() -> None:
    """Answer."""
    asked = json.load(sys.stdin)
    template = asked["template"]
    manifests = [asyncio.run(manifest(template, values)) for values in asked["values"]]
    found = {"unknown": unknown(asked["names"]), "manifests": manifests}
    json.dump({**found, "deployments": list(deployments())}, sys.stdout)


if __name__ == "__main__":
    main()
