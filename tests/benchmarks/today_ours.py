"""Our side of the comparison with today's tools, as a process: cut the text, load the pool, sweep.

`python -m tests.benchmarks.today_ours REQUEST.json` answers with the bits per byte of each mixture
and what the sweep cost once the pool was resident. What a user pays besides (start of
Python, imports, windows, reading the pool) is in the time of the process.
"""

import json
import math
import sys
import time
from pathlib import Path

from storage.artifact import describe
from storage.step import Runtime
from tasks.evaluation.losses import LossRow
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.evaluation.sweep import Job, PreparedSet, Sweeper
from tasks.evaluation.window import WindowConfig, build
from tasks.machine.meter import Meter
from tasks.mixtures.mixture import Mixture
from tests.benchmarks.tiny import workspace
from tests.benchmarks.today_setup import Request


def main() -> None:
    """Answer the request."""
    request = Request.model_validate_json(Path(sys.argv[1]).read_bytes())
    request.result.write_text(json.dumps(answer(request)))


def answer(request: Request) -> dict[str, float | list[float]]:
    """Seconds of wall and processor time in the sweep, and bits per byte of each mixture."""
    windows = request.folder / "windows"
    num_bytes = cut(request, windows)
    prepared = PreparedSet("english", describe("windows", windows).digest, windows)
    sweeper = Sweeper(request.models, [prepared], EvaluateConfig(), Runtime(device="cpu"))
    jobs = [
        Job(Mixture.uniform(names), str(number), ("english",))
        for number, names in enumerate(request.mixtures)
    ]
    wall, processor = time.perf_counter(), time.process_time()
    with Meter("cpu") as meter:
        rows = sweeper.evaluate(jobs, meter, lambda done, total, unit: None)
    return {
        "wall": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
        "bits_per_byte": bits_per_byte(rows, num_bytes),
    }


def cut(request: Request, windows: Path) -> int:
    """Write the windows that lm-evaluation-harness would use; returns the documents' bytes."""
    windows.mkdir(exist_ok=True)
    config = WindowConfig(format="paloma", context_length=request.context)
    inputs = {"documents": request.documents, "tokenizer": request.tokenizer}
    build(config, inputs, windows, workspace(windows.parent))
    num_bytes: int = json.loads((windows / "windows.json").read_text())["num_bytes"]
    return num_bytes


def bits_per_byte(rows: list[LossRow], num_bytes: int) -> list[float]:
    """Of each row, in the order of the jobs."""
    by_label = {int(row.label): row.nll / math.log(2) / num_bytes for row in rows}
    return [by_label[number] for number in range(len(rows))]


if __name__ == "__main__":
    main()
