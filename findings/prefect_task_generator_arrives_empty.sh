#!/usr/bin/env bash
# prefect 3.8.8: a generator given to a task arrives there empty, although nothing is cached.
#
# Most expect: a task gets what was passed, as a plain function does; results are not persisted unless asked for
#   (PREFECT_RESULTS_PERSIST_BY_DEFAULT is false), so nobody needs a cache key and nothing touches the arguments.
# Seen: before the body runs, the default cache policy hashes the inputs all the same. JSON serialization walks any
#   iterator to its end: the sum of a generator is 0, csv.reader has no rows, and the run is Completed. Where an item is
#   no JSON, hashing gives up there: a generator of objects loses its first one (an error is logged, the run goes on).
# What helps: a list, cache_policy=NO_CACHE, or persist_result=False in words, which is not the same as the default.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check prefect==3.8.8 fastapi==0.150.0 SQLAlchemy==2.0.58
cat > "$dir/seen.py" <<'PY'
import csv
from importlib.metadata import version

from prefect import flow, task
from prefect.cache_policies import NO_CACHE


class Batch:
    pass


def total(numbers):
    return sum(numbers)


def count(items):
    return sum(1 for _ in items)


@flow
def passes_iterators():
    return {
        "plain function, generator of 0 1 2 3": total(n for n in range(4)),
        "task, generator": task(total)(n for n in range(4)),
        "task, generator, submitted": task(total).submit(n for n in range(4)).result(),
        "task, generator, persist_result=False": task(persist_result=False)(total)(n for n in range(4)),
        "task, generator, NO_CACHE": task(cache_policy=NO_CACHE)(total)(n for n in range(4)),
        "task, rows of csv.reader of 3 lines": task(count)(csv.reader(["a,1", "b,2", "c,3"])),
        "task, generator of 4 objects": task(count)(Batch() for _ in range(4)),
    }


seen = passes_iterators()
print("prefect", version("prefect"))
for case, value in seen.items():
    print(f"{case}: {value}")
assert list(seen.values()) == [6, 0, 0, 6, 6, 0, 3], "the behaviour has changed"
print("as described: default tasks lose what an iterator holds, and no run fails")
PY
unset PREFECT_API_URL PREFECT_PROFILE
export PREFECT_HOME="$dir/home" PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=120 DO_NOT_TRACK=1
export PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_LOGGING_LEVEL=CRITICAL
"$dir/venv/bin/python" "$dir/seen.py"
test ! -e "$dir/home/storage" # where results would be: none was persisted
