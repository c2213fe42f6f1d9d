"""The comparison with today's tools, as far as it needs none of them."""

import json
import math
from pathlib import Path

import pytest
import torch

from tasks.models.folder import load_model
from tasks.tokens.tokenizer import Encoder
from tests.benchmarks.today_ours import answer
from tests.benchmarks.today_setup import (
    LARGEST,
    SMALLEST,
    TASK,
    Size,
    english,
    mixtures,
    prepare,
    write_task,
)


def test_the_text_has_the_size_that_was_asked_for_and_documents_of_differing_length() -> None:
    texts = english(50_000)
    assert sum(len(text.encode()) for text in texts) == pytest.approx(50_000, abs=3)
    assert max(map(len, texts)) > 5 * min(map(len, texts))
    with pytest.raises(ValueError, match="ask for fewer"):
        english(1 << 30)


def test_mixtures_are_different_and_of_every_size() -> None:
    names = [f"partition-{number}" for number in range(12)]
    found = mixtures(names, 64, seed=0)
    assert len({tuple(mixture) for mixture in found}) == 64
    assert {len(mixture) for mixture in found} == set(range(SMALLEST, LARGEST + 1))
    assert found == mixtures(names, 64, seed=0)


def test_the_task_reads_the_documents_as_they_are(tmp_path: Path) -> None:
    texts = ["Two lines\nof {{text}}.\n", "\u00fc"]
    write_task(texts, tmp_path / "task")
    task = json.loads((tmp_path / "task" / f"{TASK}.yaml").read_text())
    data = Path(task["dataset_kwargs"]["data_files"]["test"])
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert [row[task["doc_to_target"]] for row in rows] == texts


@pytest.mark.bench
def test_our_side_gives_the_rolling_perplexity_of_the_averaged_model(tmp_path: Path) -> None:
    size = Size("tiny", 300, 32, 1, 48, 16, mixtures=3, end_to_end=1, in_process=None)
    request = prepare(tmp_path, size, text_bytes=1500)
    found = answer(request)["bits_per_byte"]
    assert isinstance(found, list)
    texts = english(1500)
    expected = [_rolling(texts, names, tmp_path, context=16) for names in request.mixtures]
    assert found == pytest.approx(expected, rel=1e-5)
    # Mixtures must be told apart far better than the sides are asked to agree.
    assert (max(expected) - min(expected)) / min(expected) > 1e-4


def _rolling(texts: list[str], names: list[str], folder: Path, context: int) -> float:
    """Bits per byte by the definition: each token behind all that its window shows before it."""
    model = load_model(folder / names[0])
    weights = [load_model(folder / name).state_dict() for name in names]
    averaged = {key: torch.stack([w[key] for w in weights]).mean(0) for key in weights[0]}
    model.load_state_dict(averaged)
    encoder = Encoder(folder / "tokenizer")
    nats = 0.0
    for ids in encoder.encode(texts):
        tokens = [encoder.end_of_text, *ids[:-1].tolist()]
        for position in range(1, len(tokens)):
            # The window that predicts this token ends at a multiple of the context or at the end.
            end = min(len(tokens) - 1, math.ceil(position / context) * context)
            seen = tokens[max(0, end - context) : position]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([seen])).logits[0, -1]
            nats -= logits.double().log_softmax(0)[tokens[position]].item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)
