"""How many malformed inputs end in a sentence: none may crash, hang, or write where it must not.

``MIXPOOL_MALFORMED`` says how many cases (10,000), ``MIXPOOL_MALFORMED_SEED`` which (0). Nothing is timed.
"""

import os
import tempfile
from pathlib import Path

from tests.malformed import KINDS
from tests.malformed.harness import carry_out, summary


def measure(repeats: int) -> list[str]:
    """Counts by kind and end, and every case that ended wrongly."""
    del repeats  # the same seed gives the same cases
    count = int(os.environ.get("MIXPOOL_MALFORMED", "10000")) // len(KINDS)
    seed = int(os.environ.get("MIXPOOL_MALFORMED_SEED", "0"))
    with tempfile.TemporaryDirectory() as folder:
        nurseries = len(os.sched_getaffinity(0))
        return [summary(carry_out(Path(folder), seed, dict.fromkeys(KINDS, count), nurseries))]
