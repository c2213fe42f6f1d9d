"""Where a result came from is written down."""

import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import Popen

from storage.fingerprint import canonical_bytes
from storage.provenance import commit, now, provenance

ROOT = Path(__file__).parents[2]


RECORDED = """
import json, sys
from storage.provenance import provenance
print(json.dumps(provenance("cpu")))
"""


def test_it_is_plain_json_and_reads_no_environment(
    python: Callable[..., "Popen[str]"],
) -> None:
    process = python(RECORDED, "--token", "hunter2", env={**os.environ, "SOME_KEY": "hunter3"})
    facts = json.loads(process.communicate()[0])
    assert facts["command"] == ["-c", "--token", "***"]
    assert facts["device"] == "cpu"
    assert set(facts["packages"]) >= {"torch", "transformers", "numpy"}
    assert "hunter" not in json.dumps(facts)
    assert canonical_bytes(provenance("cpu"))


def test_the_time_is_in_utc() -> None:
    stamp = datetime.fromisoformat(now())
    assert stamp.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - stamp) < timedelta(seconds=5)


def test_the_commit_is_that_of_the_code() -> None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        assert commit() is None
    else:
        assert commit() in (done.stdout.strip(), done.stdout.strip() + "+dirty")
