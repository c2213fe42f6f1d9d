"""Export a mixture: its merged model as a folder, its sampling weights as a file for a trainer."""

import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from flows.export.formats import Sampling, Share, decimals
from flows.export.model_card import MODEL, Form, model_card
from flows.run.stored import RunContent
from storage.artifact import Record
from storage.fingerprint import short
from storage.store import Store
from tasks.mixtures.mixture import Mixture, Unit
from tasks.shown import lines
from tasks.tokens.tokenizer import TRAIN_TOKENIZER
from tasks.training.train import TRAIN


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
    """Write the merged model of a mixture, its tokenizer and a model card as a Hugging Face folder.

    Raises:
        ValueError: the folder is not empty.
        MergeError: the members do not agree.
    """
    from safetensors.torch import save_file

    from tasks.merging.average import average_weights
    from tasks.models.facts import facts_of
    from tasks.models.folder import load_weights
    from tasks.tokens.tokenizer import copy_files

    with new_folder(folder) as output:
        trained, models = members_of(store, run, mixture)
        weights = {name: load_weights(path) for name, path in models.items()}
        merged = average_weights(weights, dict(mixture.parts))
        save_file(merged, output / "model.safetensors", metadata={"format": "pt"})
        first = next(iter(models.values()))
        for file in ("config.json", "generation_config.json"):
            if (first / file).exists():
                shutil.copyfile(first / file, output / file)
        named = {"tokenizer": facts_of(first).tokenizer}
        tokenizer = _records(store, TRAIN_TOKENIZER.name, named)["tokenizer"]
        copy_files(store.fetch(tokenizer.output), output)
        describe_mixture(store, run, mixture, trained, output)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which is ``folder`` once the block has ended without an error.

    Raises:
        ValueError: ``folder`` is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
        output = Path(name) / "model"
        output.mkdir()
        yield output
        if folder.exists():
            folder.rmdir()
        output.rename(folder)


def members_of(
    store: Store, run: RunContent, mixture: Mixture
) -> tuple[dict[str, Record], dict[str, Path]]:
    """How each member of a mixture was trained, and the folder of its model, by partition.

    Raises:
        ValueError: a model is no longer in the store.
        MergeError: the members do not agree.
    """
    from tasks.merging.average import check_mergeable
    from tasks.models.facts import facts_of

    trained = _records(store, TRAIN.name, {name: run.models[name] for name in mixture.members})
    models = {name: store.fetch(record.output) for name, record in trained.items()}
    check_mergeable({name: facts_of(path) for name, path in models.items()})
    return trained, models


def describe_mixture(
    store: Store,
    run: RunContent,
    mixture: Mixture,
    trained: Mapping[str, Record],
    output: Path,
    form: Form = MODEL,
) -> None:
    """Write into a folder which models were merged, and a card for people."""
    facts = weights_tree(run, mixture)
    exact = {
        "parts": dict(mixture.parts),
        "merged_from": {name: run.models[name] for name in mixture.members},
    }
    tree = json.dumps({**facts, **exact}, indent=1, default=float)
    (output / "mixpool-mixture.json").write_text(tree)
    card = model_card(store, run, facts, trained, form)
    (output / "README.md").write_text(card, encoding="utf-8")


def _records(store: Store, step: str, digests: Mapping[str, str]) -> dict[str, Record]:
    """How each artifact was made, by name."""
    records = {record.output.digest: record for record in store.records(step)}
    for name, digest in digests.items():
        if digest not in records:
            raise ValueError(
                f"the store no longer has {name} ({short(digest)}): run the recipe again"
            )
    return {name: records[digest] for name, digest in digests.items()}


def replays(store: Store, run: RunContent, mixture: Mixture) -> dict[str, float]:
    """The share of replay in the training of each member that has some and is still in the store."""
    shares = {r.output.digest: r.config.get("replay", 0) for r in store.records(TRAIN.name)}
    found = {name: shares.get(run.models[name], 0) for name in mixture.members}
    return {name: share for name, share in found.items() if share}


def weights_tree(run: RunContent, mixture: Mixture) -> dict[str, Any]:
    """A mixture as sampling weights by partition and by domain; both sum to exactly 1."""
    return {
        "mixture": mixture.label,
        "recipe": run.content["recipe"],
        "run": run.name,
        "weights": decimals(_parts(run, mixture, "partition")),
        "domains": decimals(_parts(run, mixture, "domain")),
    }


def _parts(run: RunContent, mixture: Mixture, unit: Unit) -> dict[str, int]:
    if unit == "partition":
        return dict(mixture.parts)
    parts: Counter[str] = Counter()
    for name, part in mixture.parts:
        parts[run.content["domains"][name]] += part
    return dict(parts)


def sampling_of(
    run: RunContent, mixture: Mixture, unit: Unit = "domain", paths: Iterable[str] = ()
) -> Sampling:
    """A mixture as sources to sample from.

    Args:
        unit: of a source. A domain's weight is the sum over its partitions in the mixture.
        paths: where each source's data lies, as ``read_paths`` takes it.

    Raises:
        ValueError: as ``read_paths``.
    """
    domains = run.content["domains"]
    placed = read_paths(paths, domains if unit == "partition" else set(domains.values()))
    weights = decimals(_parts(run, mixture, unit))
    shares = [Share(name, weight, placed.get(name, ())) for name, weight in weights.items()]
    return Sampling(weights_tree(run, mixture), unit, shares)


def read_paths(options: Iterable[str], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Paths by name, from ``NAME=PATH`` (again for a further path) and YAML files that map them.

    Raises:
        ValueError: an option that is neither, or a name that the run does not have.
    """
    # The longest first: a name comes from data and may hold an equals sign.
    longest_first = sorted(names, key=len, reverse=True)
    paths_of: dict[str, tuple[str, ...]] = {}
    for option in options:
        name = next((name for name in longest_first if option.startswith(f"{name}=")), None)
        pairs = _mapped(option) if name is None else {name: [option[len(name) + 1 :]]}
        for source, paths in pairs.items():
            if source not in longest_first or not all(paths):
                raise ValueError(
                    f"--paths {option}: {source!r} with {paths} gives no path of a source; the "
                    f"sources of this run are {', '.join(sorted(longest_first))}"
                )
            paths_of[source] = (*paths_of.get(source, ()), *paths)
    return paths_of


def _mapped(option: str) -> dict[str, list[str]]:
    if not Path(option).is_file():
        name = option.partition("=")[0]
        if "=" in option:
            return {name: [option.partition("=")[2]]}
        raise ValueError(
            f"--paths {option}: give NAME=PATH, or a YAML file that maps names to paths"
        )
    tree = yaml.safe_load(Path(option).read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError(f"--paths {option}: the file maps no names to paths")
    return {
        str(name): [str(path) for path in (paths if isinstance(paths, list) else [paths])]
        for name, paths in tree.items()
    }


def write_text(file: Path | None, text: str) -> None:
    """Write a file and the folder that it is to be in, or print the text."""
    if file is None:
        # A program that reads it gets it as it is.
        print(lines(text) if sys.stdout.isatty() else text, end="")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
