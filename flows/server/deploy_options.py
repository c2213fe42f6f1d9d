"""What is to be registered with a Prefect server: plain facts, which a command line can state.

``flows.server.deployments`` makes them true. This module is apart from it because Prefect reads its
settings when it is imported, and the address of a server that is yet to be started is one of them.
"""

from dataclasses import dataclass
from typing import Any

PROCESS = "process"
"""The type of work pool whose runs are processes beside their worker."""


@dataclass(frozen=True)
class DeployOptions:
    """What is to be registered."""

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
