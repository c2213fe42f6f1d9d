"""Take a mixture out of the store: its merged model as a Hugging Face folder, its weights as YAML."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from storage.artifact import Record
from storage.fingerprint import short
from storage.lineage import run_folders
from storage.store import Store
from tasks.mixture import Mixture
from tasks.ranking import MACRO_MEAN


@dataclass(frozen=True)
class RunContent:
    """A finished run as it is kept in the store."""

    name: str
    content: dict[str, Any]

    @property
    def models(self) -> dict[str, str]:
        """Digest of each partition's model."""
        return dict(self.content["models"])


def find_run(store: Store, name: str | None) -> RunContent:
    """The run of that name, or the latest finished one.

    Raises:
        ValueError: there is none.
    """
    finished = {run: content for run, content in run_folders(store).items() if content}
    if name is None and finished:
        name = max(finished)
    if name is None or name not in finished:
        known = ", ".join(finished) or "none; make one with `mixpool run`"
        raise ValueError(f"there is no finished run {name or ''!r} in {store.url}; runs: {known}")
    content = finished[name]
    assert content is not None
    return RunContent(name, content)


def parse_mixture(text: str, run: RunContent) -> Mixture:
    """A mixture as people write it: ``best``, ``a + b``, ``3 a + b``.

    Raises:
        ValueError: a partition that the run does not have.
    """
    if text.strip() == "best":
        text = str(run.content["summary"]["best"][MACRO_MEAN]["mixture"])
    parts: dict[str, int] = {}
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d+)\s*[*x]?\s+)?(\S+)\s*", term)
        name = match.group(2) if match else term.strip()
        if not match or name not in run.models:
            raise ValueError(
                f"{text!r}: {name!r} is no partition of run {run.name}; write a mixture as "
                f"'best' or '3 a + b' with partitions {', '.join(sorted(run.models))}"
            )
        parts[name] = parts.get(name, 0) + int(match.group(1) or 1)
    return Mixture.of(parts)


def export_model(store: Store, run: RunContent, mixture: Mixture, folder: Path) -> None:
    """Write the merged model of a mixture, with its tokenizer, as a Hugging Face folder.

    Raises:
        ValueError: the folder is not empty.
        MergeError: the members do not agree.
    """
    from safetensors.torch import save_file

    from tasks.model import average_weights, check_mergeable, facts_of, load_weights
    from tasks.tokenizer import copy_files

    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a new folder")
    models = _model_folders(store, run, mixture)
    check_mergeable({name: facts_of(path) for name, path in models.items()})
    merged = average_weights({n: load_weights(p) for n, p in models.items()}, dict(mixture.parts))
    first = next(iter(models.values()))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
        output = Path(name) / "model"
        output.mkdir()
        save_file(merged, output / "model.safetensors", metadata={"format": "pt"})
        for file in ("config.json", "generation_config.json"):
            if (first / file).exists():
                shutil.copyfile(first / file, output / file)
        copy_files(_tokenizer_folder(store, facts_of(first).tokenizer), output)
        facts = weights_tree(run, mixture) | {"merged_from": _digests(run, mixture)}
        (output / "mixpool-mixture.json").write_text(json.dumps(facts, indent=1))
        if folder.exists():
            folder.rmdir()
        output.rename(folder)


def _digests(run: RunContent, mixture: Mixture) -> dict[str, str]:
    return {name: run.models[name] for name in mixture.members}


def _model_folders(store: Store, run: RunContent, mixture: Mixture) -> dict[str, Path]:
    wanted = _digests(run, mixture)
    made = {record.output.digest: record for record in store.records("train")}
    return {name: _fetched(store, made, digest, name) for name, digest in wanted.items()}


def _tokenizer_folder(store: Store, digest: str) -> Path:
    made = {record.output.digest: record for record in store.records("tokenizer")}
    return _fetched(store, made, digest, "tokenizer")


def _fetched(store: Store, made: Mapping[str, Record], digest: str, name: str) -> Path:
    if digest not in made:
        raise ValueError(f"the store no longer has {name} ({short(digest)}): run the recipe again")
    return store.fetch(made[digest].output)


def weights_tree(run: RunContent, mixture: Mixture) -> dict[str, Any]:
    """A mixture as sampling weights by partition and by domain; both sum to 1."""
    weights = {name: float(weight) for name, weight in mixture.weights.items()}
    domains: dict[str, float] = {}
    for name, weight in weights.items():
        domain = run.content["domains"][name]
        domains[domain] = domains.get(domain, 0.0) + weight
    return {
        "mixture": mixture.label,
        "recipe": run.content["recipe"],
        "run": run.name,
        "weights": weights,
        "domains": domains,
    }


def export_weights(run: RunContent, mixture: Mixture, file: Path) -> None:
    """Write the sampling weights of a mixture as YAML."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(weights_tree(run, mixture), sort_keys=False))
