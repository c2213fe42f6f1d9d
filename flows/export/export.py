"""Export a mixture: its merged model as a folder, and text to a file."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flows.export.model_card import MODEL, UNKNOWN, Form, model_card
from flows.export.sampling import weights_tree
from flows.run.stored import RunContent
from storage.artifact import Record
from storage.fingerprint import short
from storage.store import Store
from tasks.mixtures.mixture import Mixture
from tasks.shown import lines
from tasks.tokens.tokenizer import TRAIN_TOKENIZER
from tasks.training.train import TRAIN


def export_model(
    store: Store, run: RunContent, mixture: Mixture, folder: Path, licence: str = UNKNOWN
) -> None:
    """Write the merged model of a mixture, its tokenizer and a model card as a Hugging Face folder.

    Args:
        licence: of the model, as the hub calls it.

    Raises:
        ValueError: the folder is not empty.
        MergeError: the members do not agree.
    """
    from safetensors.torch import save_file

    from tasks.merging.average import average_weights
    from tasks.models.facts import facts_of
    from tasks.models.folder import load_weights, longest_input
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
        length = longest_input(first)
        if length is not None:  # else transformers cuts no text off
            settings_file = output / "tokenizer_config.json"
            settings = {**json.loads(settings_file.read_bytes()), "model_max_length": length}
            settings_file.write_text(
                json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8"
            )
        form = MODEL._replace(licence=licence, length=length)
        describe_mixture(store, run, mixture, trained, output, form)


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
        # safetensors writes files that nobody else may read, whatever the umask says.
        ordinary = output.stat().st_mode & 0o666
        for file in output.iterdir():
            file.chmod(ordinary)
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


def write_text(file: Path | None, text: str) -> None:
    """Write a file and the folder that it is to be in, or print the text."""
    if file is None:
        # A program that reads it gets it as it is.
        print(lines(text) if sys.stdout.isatty() else text, end="")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
