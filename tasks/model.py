"""Models: Hugging Face folders with safetensors, started from random weights or taken over.

Tensors are stored under the names that they have in memory, so that what is averaged from files can
be put into a model. Pickled weights are never read, code in a model's folder is never run, and a
file that lacks weights of its model is refused, because transformers would make them up at random.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from storage.artifact import describe
from storage.cache import Step, Workspace
from storage.fingerprint import Config, fingerprint
from tasks.merging import FACTS, Facts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNIMPORTANT = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
"""Fields of config.json that say nothing about the shape or the function of a model."""


class LlamaArchitecture(Config):
    """A Llama-like model that starts from random weights."""

    kind: Literal["llama"] = "llama"
    """This choice's name."""
    hidden_size: int = Field(ge=1)
    """Width of the residual stream."""
    num_layers: int = Field(ge=1)
    """Number of transformer blocks."""
    num_heads: int = Field(ge=1)
    """Number of attention heads; divides the width."""
    num_kv_heads: int | None = Field(default=None, ge=1)
    """Number of key and value heads; None is as many as attention heads."""
    intermediate_size: int = Field(ge=1)
    """Width of the feed-forward layer."""
    context_length: int = Field(ge=2)
    """Tokens that the model sees at most."""
    tie_embeddings: bool = True
    """Whether input and output embeddings are one tensor."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the random weights."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of the random weights."""


class GivenModel(Config):
    """A model that exists: any ``AutoModelForCausalLM`` with safetensors."""

    kind: Literal["given"] = "given"
    """This choice's name."""
    path: str = Field(min_length=1)
    """Local folder or hub name of the model."""


class InitialiseConfig(Config):
    """Random weights for an architecture and a tokenizer."""

    architecture: LlamaArchitecture
    """Shape and seed of the model."""


def build_initial(
    config: InitialiseConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """A model with random weights for ``inputs["tokenizer"]``.

    Raises:
        ValueError: the head count does not divide the width.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.tokenizer import Encoder

    encoder = Encoder(inputs["tokenizer"])
    settings = llama_config(config.architecture, encoder.vocab_size, encoder.end_of_text)
    torch.manual_seed(config.architecture.seed)
    model = AutoModelForCausalLM.from_config(settings)
    facts = Facts(
        architecture=architecture_of(settings.to_dict()),
        tokenizer=describe("tokenizer", inputs["tokenizer"]).digest,
        base=None,
        steps=0,
    )
    save_model(model, output, facts)
    workspace.progress(1, 1, "model")
    return {"num_parameters": model.num_parameters()}


def llama_config(architecture: LlamaArchitecture, vocab_size: int, end_of_text: int) -> Any:
    """The transformers configuration of an architecture."""
    from transformers import LlamaConfig

    if architecture.hidden_size % architecture.num_heads:
        raise ValueError(
            f"base.architecture.num_heads {architecture.num_heads} does not divide "
            f"hidden_size {architecture.hidden_size}"
        )
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        num_key_value_heads=architecture.num_kv_heads or architecture.num_heads,
        intermediate_size=architecture.intermediate_size,
        max_position_embeddings=architecture.context_length,
        tie_word_embeddings=architecture.tie_embeddings,
        initializer_range=architecture.initializer_range,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )


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
    from tasks.tokenizer import Encoder

    model = load_model(inputs["source"])
    encoder = Encoder(inputs["tokenizer"])
    if model.config.vocab_size < encoder.vocab_size:
        raise ValueError(
            f"the model has {model.config.vocab_size} embeddings and the tokenizer "
            f"{encoder.vocab_size} entries: give the tokenizer that belongs to the model"
        )
    facts = Facts(
        architecture=architecture_of(model.config.to_dict()),
        tokenizer=describe("tokenizer", inputs["tokenizer"]).digest,
        base=None,
        steps=0,
    )
    save_model(model, output, facts)
    workspace.progress(1, 1, "model")
    return {"num_parameters": model.num_parameters()}


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
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if found["missing_keys"]:
        raise ValueError(
            f"model folder {folder} lacks {len(found['missing_keys'])} weights of a "
            f"{type(model).__name__} ({min(found['missing_keys'])}, ...): give a complete causal "
            "language model"
        )
    return model.to(device).eval()


def check_context(model: "PreTrainedModel", length: int, field: str) -> None:
    """Refuse sequences that are longer than the model's. Raises ValueError naming ``field``."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise ValueError(f"{field} {length} is more than the model's {longest}: lower it")


INITIALISE = Step("initialise", 1, "model", InitialiseConfig, build_initial)
IMPORT_MODEL = Step("import-model", 1, "model", ImportConfig, build_import)
