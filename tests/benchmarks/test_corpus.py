"""The benchmark of split and tokenize compares like with like."""

import itertools
from pathlib import Path

import pytest

from tests.benchmarks import corpus, corpus_text


@pytest.mark.bench
def test_both_sides_write_the_same_ids_of_documents_that_stand_once(tmp_path: Path) -> None:
    texts = list(itertools.islice(corpus_text.documents(), 2_000))
    assert len({*texts}) == len(texts)
    assert texts[:50] == list(itertools.islice(corpus_text.documents(), 50))
    ground = corpus.prepare(tmp_path, 0.2)
    assert len(ground.files) == corpus_text.FILES
    assert corpus.check_equal(ground) > 0.2e6 / 8
