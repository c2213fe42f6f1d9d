"""Device limits: Prefect concurrency limits that let one run at a time compute on a device.

Each device of each host has a global concurrency limit of its own name with one slot. A run holds the
slot while it computes there, as a lease that ends within a minute after the run has died. Prefect's page
shows the holder of each slot, and there a device may be given more slots. Where each run has its devices
to itself, as in a pod, ``MIXPOOL_DEVICE_LIMITS=off`` switches limits off.

Limits order work, and nothing depends on them: where the server does not answer, work goes on. Prefect's
own ``concurrency`` is not used, since each of its attempts that fails leaves an error in the log.
"""

import contextlib
import contextvars
import functools
import logging
import os
import platform
import threading
from collections.abc import Iterator
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError

from storage.artifact import dashed

LOG = logging.getLogger("mixpool.run")

VARIABLE = "MIXPOOL_DEVICE_LIMITS"
LEASE_SECONDS = 60.0
LOCKED = 423
"""Status of the answer where no slot is free."""


def limit_name(device: str) -> str:
    """Name of the limit of a device of this host, as in ``mixpool-gpu01-cuda-0``.

    Args:
        device: torch's name for it. Under CUDA_VISIBLE_DEVICES that number differs from process to
            process, so the limit gets the number from that variable.
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
    """Hold a slot of the device's limit, which is made with ``slots`` slots if it does not exist.

    Raises:
        TimeoutError: other runs have them all.
    """
    lease = None if os.environ.get(VARIABLE) == "off" else _acquire(limit_name(device), slots)
    if lease is None:
        yield
        return
    done = threading.Event()
    # A thread learns the address of the server from its context only.
    act = functools.partial(contextvars.copy_context().run, _renew, lease, done)
    renewal = threading.Thread(target=act, name="mixpool-slot", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        done.set()
        renewal.join()
        trouble = f"slot {lease} could not be given back and ends by itself"
        with _only_warns(trouble), get_client(sync_client=True) as client:
            client.release_concurrency_slots_with_lease(lease_id=lease)


def _acquire(name: str, slots: int) -> UUID | None:
    """A lease of one slot; None where the server does not answer. Raises TimeoutError."""
    context = TaskRunContext.get()
    holder = ConcurrencyLeaseHolder(type="task_run", id=context.task_run.id) if context else None
    with _only_warns(f"no slot of {name} is held, and work goes on without"):
        make_limit(name, slots)
        with get_client(sync_client=True) as client:
            try:
                answer = client.increment_concurrency_slots_with_lease(
                    names=[name],
                    slots=1,
                    mode="concurrency",
                    lease_duration=LEASE_SECONDS,
                    holder=holder,
                )
            except PrefectHTTPStatusError as error:
                if error.response.status_code == LOCKED:
                    raise TimeoutError(f"other runs hold all slots of {name}") from error
                raise
            return UUID(answer.json()["lease_id"])
    return None


def _renew(lease: UUID, done: threading.Event) -> None:
    while not done.wait(LEASE_SECONDS / 4):
        with (
            _only_warns(f"slot {lease} could not be renewed"),
            get_client(sync_client=True) as client,
        ):
            client.renew_concurrency_lease(lease_id=lease, lease_duration=LEASE_SECONDS)


@contextlib.contextmanager
def _only_warns(trouble: str) -> Iterator[None]:
    """Log errors of the server as warnings: one that is restarted must not end a training."""
    try:
        yield
    except TimeoutError:
        raise
    except Exception as error:  # of httpx, of Prefect
        LOG.warning("%s (%s)", trouble, error)


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
