"""One flow run with very many task runs, made as the chain makes its own.

Run by ``test_team.py`` as a process of its own: ``python many_task_runs.py NUMBER``. Every other
task run ends as a hit does. Prints the id of the flow run.
"""

import functools
import sys
import threading

from flows.prefect.settings import set_defaults

set_defaults()  # before the import of Prefect, which reads them

from prefect import flow  # noqa: E402
from prefect.runtime import flow_run  # noqa: E402

from flows.prefect.task_runs import Piece, submit  # noqa: E402

WORKERS = 8


def act(hit: bool, stop: threading.Event) -> bool:
    """Nothing, which is the fastest that a task run can be."""
    del stop
    return hit


@flow(persist_result=False)
def many(number: int) -> str:
    """``number`` task runs, ``WORKERS`` at a time."""
    pieces = [
        Piece("note", f"note {turn}", functools.partial(act, turn % 2 == 0), lambda: True)
        for turn in range(number)
    ]
    assert not submit(pieces, WORKERS)
    return str(flow_run.get_id())


if __name__ == "__main__":
    print("flow run", many(int(sys.argv[1])))
