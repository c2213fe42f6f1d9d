"""One training on each device at a time, whatever runs are started: Prefect's concurrency limits.

Each device of each host has a global concurrency limit of its own name with one slot. A run holds the
slot while it computes there, as a lease that ends within a minute after the run has died. A person sees
in Prefect who holds which device, and may give a device more slots. Where each run has its devices to
itself, as in a pod, ``MIXPOOL_DEVICE_LIMITS=off`` says so.
"""

import contextlib
import logging
import os
import platform
from collections.abc import Iterator

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.prefect_text import dashed

LOG = logging.getLogger("mixpool.run")

VARIABLE = "MIXPOOL_DEVICE_LIMITS"
PATIENCE_SECONDS = 2.0
"""How long one attempt waits for a slot; the caller tries other devices, and again."""
LEASE_SECONDS = 60.0


def limit_name(device: str) -> str:
    """What the limit of a device of this host is called, as in ``mixpool-gpu01-cuda-0``.

    Args:
        device: as torch calls it; behind CUDA_VISIBLE_DEVICES it is another one for each process,
            so the limit is called after what that variable says.
    """
    kind, _, index = device.partition(":")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if kind == "cuda" and visible:
        index = visible.split(",")[int(index or 0)].strip()
    elif kind == "cuda":
        index = index or "0"
    return dashed("mixpool", platform.node(), kind, index)


@contextlib.contextmanager
def hold_device(device: str, slots: int = 1) -> Iterator[None]:
    """Hold a slot of the device's limit, which is made with so many slots where there is none.

    Raises:
        TimeoutError: other runs have them all.
    """
    with contextlib.ExitStack() as held:
        if os.environ.get(VARIABLE) != "off":
            name = limit_name(device)
            make_limit(name, slots)
            held.enter_context(
                concurrency(
                    name,
                    timeout_seconds=PATIENCE_SECONDS,
                    lease_duration=LEASE_SECONDS,
                    strict=True,
                    # A server that is restarted must not end a training.
                    raise_on_lease_renewal_failure=False,
                )
            )
        yield


def make_limit(name: str, slots: int) -> bool:
    """Make a limit where there is none of that name; whether it was made."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=name, limit=slots, active=True)
                )
                return True
    return False
