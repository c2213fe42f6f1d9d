"""Task runs that Prefect's own cache answers, as fast as they can be; run by ``cached.py``.

``python -m tests.benchmarks.prefect_cached NUMBER``, in a process of its own whose environment leads
to a server. A first flow run fills the cache; then two more find everything in it: one calls the
tasks in turn, one maps them over a pool of threads. Prints the seconds of the faster one.
"""

import sys
import time

from flows.prefect.settings import set_defaults

set_defaults()  # before the import of Prefect, which reads them

from prefect import flow, task  # noqa: E402
from prefect.cache_policies import INPUTS  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

WORKERS = 8


@task(cache_policy=INPUTS, persist_result=True, result_serializer="json")
def loss(number: int) -> float:
    """As little as a task can do."""
    return number / 2


@flow(task_runner=ThreadPoolTaskRunner(max_workers=WORKERS))  # type: ignore[arg-type]
def evaluate(number: int, *, mapped: bool) -> tuple[float, list[str]]:
    """Seconds, and the names of the states in which ``number`` task runs ended."""
    start = time.perf_counter()
    if mapped:
        futures = loss.map(range(number))
        states = [future.state for future in futures if future.wait() is None]
    else:
        states = [loss(turn, return_state=True) for turn in range(number)]
    return time.perf_counter() - start, [str(state.name) for state in states]


def main() -> None:
    """Fill the cache, measure both ways, print the better."""
    number = int(sys.argv[1])
    evaluate(number, mapped=False)
    seconds = []
    for mapped in (False, True):
        spent, names = evaluate(number, mapped=mapped)
        assert set(names) == {"Cached"}, f"not all came from the cache: {set(names)}"
        seconds.append(spent)
    print(f"seconds {min(seconds)}")


if __name__ == "__main__":
    main()
