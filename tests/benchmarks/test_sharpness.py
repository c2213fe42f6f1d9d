"""Every side of the benchmark takes its steps, and as much is pruned as was said, the smallest first."""

import pytest
import torch

from tests.benchmarks.measure import Ratio
from tests.benchmarks.sharpness import prune, speed
from tests.benchmarks.train import SIZES


@pytest.mark.bench
def test_every_side_takes_its_steps() -> None:
    found = speed(SIZES["tiny"], 2)
    assert [r.against for r in found if isinstance(r, Ratio)][:2] == [
        "step without",
        "bare loop of the same",
    ]


@pytest.mark.bench
def test_the_smallest_entries_of_all_matrices_are_pruned() -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(20, 10), torch.nn.Linear(10, 5)
    model = torch.nn.Sequential(first, second)
    with torch.no_grad():
        second.weight *= 3
    before = [p.detach().clone() for p in model.parameters()]
    prune(model, 0.5)
    after = [*model.parameters()]
    zero = sum(int((p == 0).sum()) for p in after)
    assert zero == 125
    largest = max(
        b[p == 0].abs().max() for b, p in zip(before, after, strict=True) if (p == 0).any()
    )
    kept = min(p[p != 0].abs().min() for p in after if p.dim() == 2)
    assert largest <= kept
    assert all(p.equal(b) for b, p in zip(before, after, strict=True) if p.dim() == 1)
