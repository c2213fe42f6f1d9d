"""Save, check and load model folders: Hugging Face's format with safetensors.

Tensors are stored under the names that they have in memory, so that an average of files can be put
into a model. Pickled weights are never read, and code in a model's folder is never run. A file that
lacks weights of its model is refused, because transformers would fill them with random numbers.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from storage.artifact import describe
from storage.fingerprint import fingerprint
from tasks.models.facts import FACTS, Facts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


UNIMPORTANT = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
"""Fields of config.json that say nothing about the shape or the function of a model."""


def architecture_of(settings: Mapping[str, object]) -> str:
    """Fingerprint of what makes two models' weights correspond to one another."""
    kept = {name: value for name, value in settings.items() if name not in UNIMPORTANT}
    return fingerprint("architecture", json.loads(json.dumps(kept, default=str)))


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
    facts = Facts(
        architecture=architecture_of(settings),
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
    """Refuse a folder without safetensors. Raises ValueError naming what is there."""
    if any(folder.glob("model*.safetensors")):
        return
    others = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    raise ValueError(
        f"model folder {folder} has no model*.safetensors (it has {', '.join(others) or 'no files'}): "
        "pickled weights can run code and are not read; convert them with save_pretrained"
    )


def load_model(folder: Path, device: str = "cpu") -> "PreTrainedModel":
    """The model of a folder in float32, in evaluation mode.

    Raises:
        ValueError: weights are pickled only, or not all there, or the class is not in transformers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_safetensors(folder)
    with _no_bars():
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if loading["missing_keys"]:
        raise ValueError(
            f"model folder {folder} lacks {len(loading['missing_keys'])} weights of a "
            f"{type(model).__name__} ({min(loading['missing_keys'])}, ...): give a complete causal "
            "language model"
        )
    return model.to(device).eval()


def check_context(model: "PreTrainedModel", length: int, field: str) -> None:
    """Refuse sequences that are longer than the model's. Raises ValueError naming ``field``."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise ValueError(f"{field} {length} is more than the model's {longest}: lower it")


def load_weights(folder: Path) -> dict[str, "torch.Tensor"]:
    """All tensors of a model folder by name; tied ones stand once."""
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        weights |= load_file(path)
    return weights
