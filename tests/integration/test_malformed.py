"""Malformed recipes, corpora, stores, tables and models end in a sentence, and change nothing else.

`python -m tests.benchmarks malformed` carries out many more.
"""

from collections import Counter
from pathlib import Path

import pytest

from tests.malformed import KINDS
from tests.malformed.harness import carry_out, summary

COUNTS = {"recipes": 150, "corpora": 30, "stores": 40, "tables": 10, "models": 6}
"""As many as some 40 seconds of a processor are enough for; the dearest are carried out least."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_malformed_inputs_end_in_a_sentence(tmp_path: Path) -> None:
    counts = {kind: COUNTS[kind] for kind in KINDS}
    ends = carry_out(tmp_path, 0, counts)
    assert Counter(end.kind for end in ends) == counts
    assert [end for end in ends if end.fault is not None] == [], summary(ends)
    # As they come: most are refused, and those that do no harm are carried out.
    assert {end.code for end in ends} == {0, 1, 2}
