"""Take models and tokenizers that a recipe gives, by folder or hub name, into the store.

Keys hold the digest of the files. So the same model under another path is the same model, and a
folder that changed is another one.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from storage.artifact import Artifact
from storage.cache import deposit
from storage.fingerprint import Config
from storage.step import Handle, Step, Workspace
from storage.store import Store
from tasks.models.folder import check_safetensors, load_model, save_untrained
from tasks.tokens.tokenizer import Encoder, GivenTokenizer, import_given


class GivenModel(Config):
    """A model that exists: any ``AutoModelForCausalLM`` with safetensors."""

    kind: Literal["given"] = "given"
    """This choice's name."""
    path: str = Field(min_length=1)
    """Local folder or hub name of the model."""


class ImportConfig(Config):
    """Take over a model from outside; its files are the input."""


def build_import(
    config: ImportConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """A model of ``inputs["source"]`` in float32, for ``inputs["tokenizer"]``.

    Raises:
        ValueError: weights are pickled only or not all there, or the vocabulary is smaller than the
            tokenizer's.
    """
    del config
    model = load_model(inputs["source"])
    encoder = Encoder(inputs["tokenizer"])
    if model.config.vocab_size < encoder.vocab_size:
        raise ValueError(
            f"the model has {model.config.vocab_size} embeddings and the tokenizer "
            f"{encoder.vocab_size} entries: give the tokenizer that belongs to the model"
        )
    details = save_untrained(model, model.config.to_dict(), inputs["tokenizer"], output)
    workspace.progress(1, 1, "model")
    return details


IMPORT_MODEL = Step("import-model", 1, "model", ImportConfig, build_import)

MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model*.index.json")

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*",
)


def given_tokenizer(store: Store, config: GivenTokenizer) -> Artifact:
    """The tokenizer in the store. Raises ValueError where it cannot be loaded or is no fast one."""
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "source", Path(name) / "output"
        output.mkdir()
        _link(_folder(config.path, "tokenizer.path", TOKENIZER_FILES), TOKENIZER_FILES, source)
        facts = import_given(config, source, output)
        handle = deposit(store, "tokenizer", "tokenizer", Path(config.path).name, output, facts)
    assert handle.artifact is not None
    return handle.artifact


def given_model(store: Store, config: GivenModel) -> Handle:
    """The model's files in the store. Raises ValueError where they are not safetensors."""
    folder = _folder(config.path, "base.path", MODEL_FILES)
    check_safetensors(folder)
    with tempfile.TemporaryDirectory() as name:
        _link(folder, MODEL_FILES, Path(name) / "source")
        label = Path(config.path).name
        return deposit(store, "source", "source", label, Path(name) / "source", {})


def _folder(path: str, field: str, patterns: Sequence[str]) -> Path:
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


def _link(folder: Path, patterns: Sequence[str], target: Path) -> None:
    target.mkdir()
    for path in {path for pattern in patterns for path in folder.glob(pattern)}:
        (target / path.name).symlink_to(path.resolve())
