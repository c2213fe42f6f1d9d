"""Task runs: each does one piece of work in a thread; work that another run holds is left for last.

Our own look-up is the first thing in a task run, and a hit ends it as ``Cached``; Prefect's cache and
result storage are off. A task run whose work another run is doing ends at once as ``Elsewhere``, so that
it keeps no slot. It is submitted again when that work is done or its lease has ended.
"""

import errno
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.chain.runner import POLL_SECONDS
from flows.runners.stopping import Stopped, check
from storage.backends.deadline import UnreachableError
from storage.backends.secrets import errors_without_secrets
from storage.cache import OutOfSpaceError
from storage.lease import Busy
from tasks.readable import duration
from tasks.shown import line

LOG = logging.getLogger("mixpool.run")

LONGEST_POLL_SECONDS = 15.0
"""Work that another run holds is looked at ever more rarely, down to this."""

LASTING = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    OutOfSpaceError,
    UnreachableError,
)
"""Errors that another attempt would meet again, or that were retried long enough."""


class Piece(NamedTuple):
    """The work of one task run."""

    step: str
    name: str
    act: Callable[[threading.Event], bool]
    """Does the work until the event is set; whether the store had it. Raises Busy and Stopped."""
    is_free: Callable[[], bool]
    """Whether to try again: the other run has ended the work, or its lease has expired."""


def may_pass(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another attempt can help: errors of disks, networks and devices may pass."""
    del task, task_run
    error = state.data
    if not isinstance(error, OSError) or isinstance(error, LASTING):
        return False
    return error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=[2, 20, 60],
    retry_condition_fn=may_pass,
)
def carry_out(name: str, act: Callable[[], bool]) -> Any:
    """Do one piece of work; returns, to the flow only, whether it is done."""
    began = time.monotonic()
    try:
        with errors_without_secrets():
            hit = act()
    except Busy as busy:
        LOG.info("%s: %s is at it; waiting", name, busy.holder)
        return Completed(name="Elsewhere", message=f"{busy.holder} is at it", data=False)
    except Stopped as stopped:
        LOG.info("%s: stopped; what it had done is kept", name)
        return Cancelled(message=str(stopped))
    if hit:
        return Completed(name="Cached", message="the store had it", data=True)
    LOG.info("%s: done in %s", name, duration(time.monotonic() - began))
    return True


@functools.cache
def task_of(step: str) -> Task[..., Any]:
    """The one task function under a step's name; its tags may be given limits in Prefect."""
    return carry_out.with_options(name=step, tags={"mixpool", f"mixpool-{step}"})


def carry_out_all(pieces: Sequence[Piece], workers: int) -> None:
    """Do all pieces, ``workers`` at a time; what another run holds is left for last."""
    held = submit(pieces, workers)
    pause = POLL_SECONDS
    while held:
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
        free = {piece.name for piece in held if piece.is_free()}
        still = [piece for piece in held if piece.name not in free]
        held = still + submit([piece for piece in held if piece.name in free], workers)


def submit(pieces: Sequence[Piece], workers: int) -> list[Piece]:
    """Do pieces, each in a task run; returns those that another run holds.

    The first error ends all of them.
    """
    stop = threading.Event()
    with ThreadPoolTaskRunner[Any](max_workers=workers) as threads:
        futures = [
            threads.submit(
                task_of(piece.step),
                {"name": line(piece.name), "act": functools.partial(_unless_stopped, piece, stop)},
            )
            for piece in pieces
        ]
        try:
            done = [future.result() for future in futures]
        except BaseException:  # also an interrupt, which would leave a training to its thread
            stop.set()
            for future in futures:
                future.wait()  # the pool would end what still runs, and what waits, as crashed
            raise
    return [piece for piece, is_done in zip(pieces, done, strict=True) if not is_done]


def _unless_stopped(piece: Piece, stop: threading.Event) -> bool:
    check(stop)
    return piece.act(stop)
