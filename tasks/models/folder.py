"""Save, check and load model folders: Hugging Face's format with safetensors.

Tensors are stored under the names that they have in memory, so that an average of files can be put
into a model. Pickled weights are never read, and code in a model's folder is never run. A file that
lacks weights of its model is refused, because transformers would fill them with random numbers.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from storage.artifact import describe
from storage.fingerprint import fingerprint
from tasks.models.facts import FACTS, Facts
from tasks.tokens.folder import FolderError, loading, named

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


UNIMPORTANT = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
"""Fields of config.json that say nothing about the shape or the function of a model."""


def architecture_of(settings: Mapping[str, object]) -> str:
    """Fingerprint of what makes two models' weights correspond to one another."""
    kept = {name: value for name, value in settings.items() if name not in UNIMPORTANT}
    # Some limits of published configs are infinite, which has no canonical form as a number.
    plain = json.loads(json.dumps(kept, default=str), parse_constant=str)
    return fingerprint("architecture", plain)


def save_model(model: "PreTrainedModel", folder: Path, facts: Facts) -> None:
    """Write a model as a Hugging Face folder with its facts."""
    with _no_bars():
        # Transformers would split fused tensors (experts) into those of the published checkpoint.
        model.save_pretrained(folder, save_original_format=False)
    (folder / FACTS).write_text(facts.model_dump_json(indent=1))


def save_untrained(
    model: "PreTrainedModel", settings: Mapping[str, object], tokenizer: Path, output: Path
) -> Mapping[str, object]:
    """Write a model that has no base model, for the tokenizer in a folder; the facts for its record.

    Args:
        settings: the model's config, as a dictionary.
    """
    # Losses of such models went by their batches once: another name for them, and none is found again.
    turns = {"turning_lengths": found} if (found := turning_lengths(model)) else {}
    facts = Facts(
        architecture=architecture_of({**settings, **turns}),
        tokenizer=describe("tokenizer", tokenizer).digest,
        base=None,
        steps=0,
    )
    save_model(model, output, facts)
    return {"num_parameters": model.num_parameters()}


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' progress bars inside the block; they are as they were behind it."""
    from transformers.utils import logging

    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            logging.enable_progress_bar()


def check_safetensors(folder: Path) -> None:
    """Refuse a folder without safetensors. Raises FolderError naming what is there."""
    if any(folder.glob("model*.safetensors")):
        return
    others = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    raise FolderError(
        f"has no model*.safetensors (it has {', '.join(others) or 'no files'}): "
        "pickled weights can run code and are not read; convert them with save_pretrained"
    )


UNLOADABLE = (
    f"transformers {version('transformers')} cannot load it as a causal language model",
    "give one that AutoModelForCausalLM loads",
)
"""What is wrong with a model whose class raises something, and the remedy."""


def load_model(folder: Path, device: str = "cpu") -> "PreTrainedModel":
    """The model of a folder in float32, in evaluation mode.

    Raises:
        ValueError: as ``read_model``, with the folder's path.
    """
    with named(f"model folder {folder}"):
        return read_model(folder).to(device)


def read_model(folder: Path) -> "PreTrainedModel":
    """As ``load_model`` on the CPU, for a folder that a person knows by another address.

    Raises:
        FolderError: weights are pickled only, or not all there, or transformers cannot load the model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_safetensors(folder)
    with loading(folder, *UNLOADABLE):
        model, said = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # to say which, below
            output_loading_info=True,
        )
    for name, held, wanted in sorted(said["mismatched_keys"]):
        raise FolderError(
            f"its weight {name} has the shape {tuple(held)}, and by config.json it has {tuple(wanted)}: "
            "give the config that belongs to the weights"
        )
    if said["missing_keys"]:
        raise FolderError(
            f"lacks {len(said['missing_keys'])} weights of a {type(model).__name__} "
            f"({min(said['missing_keys'])}, ...): give a complete causal language model"
        )
    # RWKV would halve its own weights in its first pass in evaluation mode; weights are written over them.
    if getattr(model.config, "rescale_every", 0):
        model.config.rescale_every = 0
    return model.eval()


def check_context(model: "PreTrainedModel", length: int, field: str) -> None:
    """Refuse sequences that are longer than the model's. Raises ValueError naming ``field``."""
    check_limit(model.config.get_text_config(), length, field)


def check_limit(settings: "PretrainedConfig", length: int, field: str) -> None:
    """As ``check_context``, by the config of a model's text part."""
    longest = getattr(settings, "max_position_embeddings", None)
    # Below one it says that there is no limit.
    if longest is not None and 1 <= longest < length:
        raise ValueError(f"{field} {length} is more than the model's {longest}: lower it")


def longest_input(folder: Path) -> int | None:
    """Tokens that a model's config says it takes at most; None where it names no limit."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    longest: int = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    return longest if longest >= 1 else None


def turning_lengths(model: "PreTrainedModel") -> list[int]:
    """Lengths, ascending, beyond which the longest window of a batch changes how all of it is read.

    With rope of type longrope, other factors are taken for a whole batch (checked with transformers
    5.23).
    """
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    name = "original_max_position_embeddings"
    return sorted(kind[name] for kind in kinds if kind.get("rope_type") == "longrope")


def load_weights(folder: Path) -> dict[str, "torch.Tensor"]:
    """All tensors of a model folder by name; tied ones stand once."""
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        weights |= load_file(path)
    return weights
