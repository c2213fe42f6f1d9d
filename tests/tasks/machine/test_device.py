"""How many CPU threads a training uses."""

import pytest
import torch

from storage.step import Runtime
from tasks.machine.device import SMALL_STEP, threads_for


@pytest.mark.parametrize(
    ("runtime", "device", "flops", "threads"),
    [
        (Runtime(), "cpu", SMALL_STEP / 2, 1),
        (Runtime(), "cpu", SMALL_STEP, 3),
        (Runtime(threads=3), "cpu", SMALL_STEP / 2, 3),
        (Runtime(), "cuda", SMALL_STEP / 2, 3),
    ],
)
def test_small_steps_compute_on_one_thread(
    runtime: Runtime, device: str, flops: float, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads_for(runtime, device, flops):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
