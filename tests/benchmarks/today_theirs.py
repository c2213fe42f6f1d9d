"""Today's tools in one process: mergekit merges state dictionaries, lm-evaluation-harness judges.

Run by the Python of the other environment, so it imports nothing of this repository. What can be
kept between mixtures is kept (pool, model, tokenizer, task index), and nothing is computed or logged
that was not asked for. One evaluation before the timed ones warms up.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate  # type: ignore[import-not-found]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]
from mergekit.merge_methods import merge_state_dicts  # type: ignore[import-not-found]
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Answer the request: cost and bits per byte of the mixtures for each batch size."""
    request = json.loads(Path(sys.argv[1]).read_text())
    pool = {name: _weights(Path(folder)) for name, folder in request["models"].items()}
    folder = next(iter(request["models"].values()))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tasks = TaskManager(include_path=request["task"])
    harnesses = {
        size: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device="cpu")
        for size in request["batch_sizes"]
    }
    judge(pool, request["mixtures"][0], model, harnesses[request["batch_sizes"][-1]], tasks)
    answer = {}
    for size, harness in harnesses.items():
        wall, processor = time.perf_counter(), time.process_time()
        bits = [judge(pool, names, model, harness, tasks) for names in request["mixtures"]]
        answer[size] = {
            "wall": time.perf_counter() - wall,
            "processor": time.process_time() - processor,
            "bits_per_byte": bits,
        }
    (Path(request["folder"]) / "result.json").write_text(json.dumps(answer))


def judge(
    pool: dict[str, dict[str, torch.Tensor]],
    names: list[str],
    model: Any,
    harness: HFLM,
    tasks: TaskManager,
) -> float:
    """Merge and evaluate one mixture; its bits per byte."""
    with torch.no_grad():
        members = {name: pool[name] for name in names}
        merged = merge_state_dicts(members, "linear", parameters={"weight": 1.0})
        # The output embedding is the input embedding and is not in the files.
        model.load_state_dict(merged, strict=False)
    found = simple_evaluate(
        harness, tasks=["documents"], task_manager=tasks, log_samples=False, bootstrap_iters=0
    )
    bits: float = found["results"]["documents"]["bits_per_byte,none"]
    return bits


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("model*.safetensors"))
        for name, tensor in load_file(path).items()
    }


if __name__ == "__main__":
    main()
