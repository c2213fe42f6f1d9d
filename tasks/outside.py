"""Models and tokenizers from outside: a local folder or a hub name, taken into the store once.

What enters a key is the digest of the files, so the same model under another path is the same model,
and a folder that changed is another one.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from storage.artifact import Artifact
from storage.cache import Handle, deposit
from storage.store import Store
from tasks.model import GivenModel, check_safetensors
from tasks.tokenizer import GivenTokenizer, import_given

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
        found = deposit(store, "tokenizer", "tokenizer", Path(config.path).name, output, facts)
    assert found.artifact is not None
    return found.artifact


def given_model(store: Store, config: GivenModel) -> Handle:
    """The model's files in the store. Raises ValueError where they are not safetensors."""
    folder = _folder(config.path, "base.path", MODEL_FILES)
    check_safetensors(folder)
    with tempfile.TemporaryDirectory() as name:
        _link(folder, MODEL_FILES, Path(name) / "source")
        label = Path(config.path).name
        return deposit(store, "source", "source", label, Path(name) / "source", {})


def _folder(path: str, field: str, wanted: Sequence[str]) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=list(wanted)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{field} {path!r} is no folder here and cannot be had from the hub "
            f"({type(error).__name__}): give a local folder, or check the name and the network"
        ) from error


def _link(folder: Path, patterns: Sequence[str], target: Path) -> None:
    target.mkdir()
    for path in {path for pattern in patterns for path in folder.glob(pattern)}:
        (target / path.name).symlink_to(path.resolve())
