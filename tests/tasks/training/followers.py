"""What a process of a sharded training may do instead of its work, for tests."""

import time
from typing import Any

from tasks.training.lead import Orders
from tasks.training.shards import Place


def sleep(job: Any, place: Place, orders: Orders) -> None:
    """Say that it is ready, and be busy with something else."""
    del job, place
    orders.ready()
    time.sleep(600)


def fail(job: Any, place: Place, orders: Orders) -> None:
    """Fail by an error of its own."""
    del orders
    raise ValueError(f"{job} on {place.device}")
