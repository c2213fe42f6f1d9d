"""Take models and tokenizers that a recipe gives, by folder or hub name, into the store.

Keys hold the digest of the files. So the same model under another path is the same model, and a
folder that changed is another one.
"""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

from pydantic import Field

from storage.artifact import Artifact
from storage.cache import deposit
from storage.fingerprint import NEUTRAL, Config
from storage.step import Handle, Step, Workspace
from storage.store import Store
from tasks.corpus.source import Source
from tasks.models.check import as_data, check_model, check_size
from tasks.models.folder import UNLOADABLE, check_safetensors, read_model, save_untrained
from tasks.tokens.folder import FolderError, files_of, loading, named, read_json
from tasks.tokens.published import OTHER_FORMATS, UNUSABLE, import_given
from tasks.tokens.tokenizer import Encoder, GivenTokenizer

LOG = logging.getLogger("mixpool.models")


class GivenModel(Config):
    """A model that exists: any ``AutoModelForCausalLM`` with safetensors."""

    kind: Literal["given"] = "given"
    """This choice's name."""
    path: str = Field(min_length=1)
    """Local folder or hub name of the model."""
    tokenizer: Literal["own", "any"] = "own"
    """Which tokenizer it may stand beside: own is the one in its folder; with any, ids may mean other
    tokens than those that it has learnt. It bears no identity."""
    source: Source | None = Field(default=None, json_schema_extra={NEUTRAL: None})
    """General text like that on which it was trained, for train.replay; None takes the share
    corpus.split.base_fraction of the corpus."""
    field: ClassVar[str] = "base.path"
    """The recipe's field in which it is given, for messages."""


class GivenTeacher(GivenModel):
    """A model that exists, from which others learn."""

    field: ClassVar[str] = "train.teacher.names"


class ImportConfig(Config):
    """Take over a model from outside; its files are the input."""


def build_import(
    config: ImportConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """A model of ``inputs["source"]`` in float32, for ``inputs["tokenizer"]``.

    Raises:
        FolderError: weights are not all there or not those of the config, or the vocabulary is
            smaller than the tokenizer's.
    """
    del config
    encoder = Encoder(inputs["tokenizer"])
    with loading(inputs["source"], *UNLOADABLE):
        check_size(inputs["source"])
        model = read_model(inputs["source"])
        check_vocabulary(model.config.get_text_config().vocab_size, encoder)
        details = save_untrained(model, model.config.to_dict(), inputs["tokenizer"], output)
    workspace.progress(1, 1, "model")
    return details


def check_vocabulary(num_embeddings: int, encoder: Encoder) -> None:
    """Refuse a tokenizer that has ids beyond a model's embeddings. Raises FolderError."""
    if num_embeddings < encoder.reach:
        raise FolderError(
            f"the model has {num_embeddings} embeddings and the tokenizer ids up to "
            f"{encoder.reach - 1} in a text: give the tokenizer that belongs to the model"
        )


IMPORT_MODEL = Step("import-model", 2, "model", ImportConfig, build_import)

MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model*.index.json")

TOKENIZER_FILES = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*",
    *OTHER_FORMATS,
)
OF_TYPE = ("model_type", "model_name", "tokenizer_class", "transformers_version", "_name_or_path")
"""Fields of config.json by which transformers chooses a tokenizer's class."""


def given_tokenizer(store: Store, config: GivenTokenizer) -> tuple[Artifact, list[str]]:
    """The tokenizer in the store, and sentences on it. Raises ValueError where it cannot be used."""
    folder = folder_of(config.path, "tokenizer.path", TOKENIZER_FILES)
    with named(f"tokenizer.path {config.path!r}"), TemporaryDirectory() as name:
        output, files = Path(name), files_of(folder, TOKENIZER_FILES)
        with laid(files, OF_TYPE) as (source, left_out), loading(source, *UNUSABLE):
            notes = import_given(config, source, output)
        facts = json.loads((output / "mixpool.json").read_text())
        handle = deposit(store, "tokenizer", "tokenizer", Path(config.path).name, output, facts)
    assert handle.artifact is not None
    return handle.artifact, [*notes, *left_out]


def given_model(store: Store, config: GivenModel) -> Handle:
    """The model's files in the store, without what would load code, of which a warning tells.

    Raises:
        ValueError: they are not safetensors, not all there, damaged, or not those of one model.
    """
    folder = folder_of(config.path, config.field, MODEL_FILES)
    with named(address(config)):
        check_safetensors(folder)
        files = files_of(folder, MODEL_FILES)
        check_model(files)
        with laid(files) as (source, left_out):
            for sentence in left_out:
                LOG.warning("%s", sentence)
            return deposit(store, "source", "source", Path(config.path).name, source, {})


def address(config: GivenModel) -> str:
    """Where a model was given, for messages; a step does not know it."""
    return f"{config.field} {config.path!r}"


def folder_of(path: str, field: str, patterns: Sequence[str]) -> Path:
    """A folder here, or some files of a name on the hub. Raises ValueError naming ``field``."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{field} {path!r} is no folder here and cannot be had from the hub "
            f"({type(error).__name__}): give a local folder, or check the name and the network"
        ) from error


@contextmanager
def laid(
    files: Mapping[str, Path], fields: Collection[str] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """A folder of these files by name, and sentences on what of them would load code and is left out.

    Args:
        fields: of config.json that count; None is all.

    Raises:
        FolderError: a JSON file is damaged, or another one without what would be left out.
    """
    with TemporaryDirectory() as folder:
        left_out = []
        for name, path in files.items():
            target = Path(folder) / name
            if not name.endswith(".json"):
                target.symlink_to(path)
                continue
            tree = read_json(name, path)
            if name == "config.json" and fields is not None:
                kept, gone = {field: tree[field] for field in fields if field in tree}, None
            else:
                kept, gone = as_data(name, tree)
            left_out += [gone] if gone else []
            if kept == tree:
                target.symlink_to(path)
            else:
                target.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
        yield Path(folder), left_out
