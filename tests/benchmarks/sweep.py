"""A sweep, per mixture, against the same forward passes on one loaded model without any merging."""

import tempfile
from pathlib import Path

import torch

from storage.cache import Runtime
from tasks.documents import DocumentWriter, StoredDocument
from tasks.energy import Meter
from tasks.losses import EvaluateConfig
from tasks.merging import Facts
from tasks.mixture import Mixture
from tasks.model import load_model, save_model
from tasks.sweep import Job, PreparedSet, Sweeper, batches
from tasks.window import WindowConfig, build, load_windows
from tests.benchmarks.measure import Ratio, compare
from tests.benchmarks.tiny import CONTEXT, digest, prepare, text, workspace

MEMBERS = 8
MIXTURES = 8


def measure(repeats: int) -> list[Ratio]:
    """8 mixtures of 4 out of 8 models of 0.9M parameters on 8,192 tokens, pool resident."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer, model = prepare(folder)
        windows = _windows(folder, tokenizer)
        models = {f"model-{n}": _jittered(model, folder / f"model-{n}", n) for n in range(MEMBERS)}
        runtime = Runtime()
        prepared = PreparedSet("set", digest(windows), windows)
        sweeper = Sweeper(models, [prepared], EvaluateConfig(), runtime)
        jobs = [_job(n, list(models)) for n in range(MIXTURES)]
        loaded = load_model(model)
        ready = batches(load_windows(windows), runtime.batch_tokens, "cpu")

        def ours() -> None:
            with Meter("cpu") as meter:
                sweeper.evaluate(jobs, meter, lambda done, total, unit: None)

        def floor() -> None:
            with torch.inference_mode():
                for _ in range(MIXTURES):
                    for batch in ready:
                        logits = loaded(input_ids=batch.inputs, use_cache=False).logits
                        torch.nn.functional.cross_entropy(
                            logits.flatten(0, 1), batch.targets.flatten(), reduction="none"
                        )

        what = f"sweep of {MIXTURES} mixtures of 4, 0.9M parameters, 8k tokens"
        return [compare(what, "same forward passes, no merging", ours, floor, repeats)]


def _windows(folder: Path, tokenizer: Path) -> Path:
    documents, output = folder / "evaluation", folder / "windows"
    output.mkdir()
    with DocumentWriter(documents) as writer:
        for number in range(64):
            content = text(10_000 + number, 400)
            writer.add(StoredDocument(f"{number:064x}", "any", str(number), 0, content))
    config = WindowConfig(format="disjoint", context_length=CONTEXT, max_document_tokens=CONTEXT)
    build(config, {"documents": documents, "tokenizer": tokenizer}, output, workspace(folder))
    return output


def _jittered(source: Path, target: Path, seed: int) -> Path:
    model = load_model(source)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    facts = Facts.model_validate_json((source / "mixpool.json").read_bytes())
    save_model(model, target, facts)
    return target


def _job(number: int, names: list[str]) -> Job:
    chosen = [names[(number + step) % len(names)] for step in (0, 1, 3, 4)]
    return Job(Mixture.uniform(chosen), str(number), ("set",))
