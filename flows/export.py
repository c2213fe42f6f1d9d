"""Take a mixture out of the store: its merged model as a Hugging Face folder, its weights as YAML."""

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from flows.show import RunContent
from storage.artifact import Record
from storage.fingerprint import short
from storage.store import Store
from tasks.mixture import Mixture


def parse_mixture(text: str, run: RunContent) -> Mixture:
    """A mixture as people write it: ``best``, ``a + b``, ``3 a + b``.

    Raises:
        ValueError: a partition that the run does not have.
    """
    if text.strip() == "best":
        return Mixture.of(run.content["best"])
    # Names come from data and may hold spaces and plus signs ("C++-0"), so they are looked for as
    # they are, the longest first.
    names = "|".join(map(re.escape, sorted(run.models, key=len, reverse=True)))
    # A count is optional and taken last: "3 x" may be a name too.
    term = re.compile(rf"\s*(?:(\d+)(?:\s*[*x]\s*|\s+))??({names})\s*(\+|$)")
    parts: Counter[str] = Counter()
    position, separator = 0, "+"
    while separator:
        match = term.match(text, position)
        if match is None:
            wrong = text[position:].partition("+")[0].strip()
            raise ValueError(
                f"{text!r}: {wrong!r} is no partition of run {run.name}; write a mixture as "
                f"'best' or '3 a + b' with partitions {', '.join(sorted(run.models))}"
            )
        parts[match[2]] += int(match[1] or 1)
        position, separator = match.end(), match[3]
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
    domains: dict[str, Fraction] = {}
    for name, weight in mixture.weights.items():
        domain = run.content["domains"][name]
        domains[domain] = domains.get(domain, Fraction()) + weight
    return {
        "mixture": mixture.label,
        "recipe": run.content["recipe"],
        "run": run.name,
        "weights": {name: float(weight) for name, weight in mixture.weights.items()},
        "domains": {name: float(weight) for name, weight in domains.items()},
    }


def export_weights(run: RunContent, mixture: Mixture, file: Path) -> None:
    """Write the sampling weights of a mixture as YAML."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(weights_tree(run, mixture), sort_keys=False, allow_unicode=True)
    file.write_text(text, encoding="utf-8")
