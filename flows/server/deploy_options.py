"""Options of `mixpool deploy`: what ``flows.server.deployments`` registers with a Prefect server.

A module of its own, because Prefect reads its settings when it is imported, and `mixpool serve` must
know these options before it knows the address of its server.
"""

from dataclasses import dataclass
from typing import Any

PROCESS = "process"
"""The type of work pool whose runs are processes beside their worker."""


@dataclass(frozen=True)
class DeployOptions:
    """What is registered with a Prefect server, and under which names."""

    store: str
    """Default store of every flow."""
    recipe: str
    """Default recipe: its address."""
    corpus: str
    """Name of the recipe's corpus: its events start ``ingest``."""
    name: str = "mixpool"
    """Name of the deployments; another one for each corpus."""
    pool: str = "mixpool"
    """Work pool."""
    pool_type: str = PROCESS
    """Where runs are carried out: process, docker or kubernetes."""
    job_template: dict[str, Any] | None = None
    """Base job template of a new work pool; None is the type's own."""
    image: str | None = None
    """Container image, for docker and kubernetes."""
    folder: str | None = None
    """Working folder of the runs of a process pool, to which relative paths belong."""
    command: str | None = None
    """What starts a run in a process pool; None is the worker's own Python."""
    every: float | None = None
    """Seconds between two looks for new data."""
    cron: str | None = None
    """When to look for new data, as five fields of cron in UTC."""
