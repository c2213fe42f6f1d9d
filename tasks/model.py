"""Models: Hugging Face folders with safetensors, and what must agree before two are averaged.

Beside the usual files a model folder has ``mixpool.json``: the facts by which a merge is allowed or
refused (architecture, tokenizer, base model, number of steps). Pickled weights are never read.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from storage.artifact import describe
from storage.cache import Step, Workspace
from storage.fingerprint import Config, fingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FACTS = "mixpool.json"
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
    seed: int = 0
    """Seed of the random weights."""


class GivenModel(Config):
    """A model that exists: any ``AutoModelForCausalLM`` with safetensors."""

    kind: Literal["given"] = "given"
    """This choice's name."""
    path: str
    """Local folder or hub name of the model."""


Architecture = Annotated[LlamaArchitecture | GivenModel, Field(discriminator="kind")]


class InitialiseConfig(Config):
    """Random weights for an architecture and a tokenizer."""

    architecture: LlamaArchitecture
    """Shape and seed of the model."""


class Facts(Config):
    """What a merge compares."""

    architecture: str
    """Fingerprint of config.json without what does not matter."""
    tokenizer: str
    """Digest of the tokenizer."""
    base: str | None
    """Digest of the model that training started from; None for a model from outside."""
    steps: int
    """Optimizer steps since the base model."""


class MergeError(ValueError):
    """Models that may not be averaged; the message names the difference."""


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
        tokenizer=digest_of(inputs["tokenizer"]),
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
        ValueError: weights are pickled only, or the vocabulary is smaller than the tokenizer's.
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
        tokenizer=digest_of(inputs["tokenizer"]),
        base=None,
        steps=0,
    )
    save_model(model, output, facts)
    workspace.progress(1, 1, "model")
    return {"num_parameters": model.num_parameters()}


def digest_of(folder: Path) -> str:
    """Digest of the artifact in a folder: the name by which other models refer to it."""
    return describe("any", folder).digest


def architecture_of(settings: Mapping[str, object]) -> str:
    """Fingerprint of what makes two models' weights correspond to one another."""
    kept = {name: value for name, value in settings.items() if name not in UNIMPORTANT}
    return fingerprint("architecture", json.loads(json.dumps(kept, default=str)))


def save_model(model: "PreTrainedModel", folder: Path, facts: Facts) -> None:
    """Write a model as a Hugging Face folder with its facts."""
    _silence()
    model.save_pretrained(folder)
    (folder / FACTS).write_text(facts.model_dump_json(indent=1))


def _silence() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def facts_of(folder: Path) -> Facts:
    """The facts beside a stored model."""
    return Facts.model_validate_json((folder / FACTS).read_bytes())


def check_safetensors(folder: Path) -> None:
    """Refuse a folder without safetensors. Raises ValueError naming what is there."""
    if any(folder.glob("*.safetensors")):
        return
    others = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    raise ValueError(
        f"model folder {folder} has no *.safetensors (it has {', '.join(others) or 'no files'}): "
        "pickled weights can run code and are not read; convert them with save_pretrained"
    )


def load_model(folder: Path, device: str = "cpu") -> "PreTrainedModel":
    """The model of a folder in float32, in evaluation mode. Raises ValueError for pickled weights."""
    import torch
    from transformers import AutoModelForCausalLM

    check_safetensors(folder)
    _silence()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return model.to(device).eval()


def load_weights(folder: Path) -> dict[str, "torch.Tensor"]:
    """All tensors of a model folder by name; tied ones stand once."""
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        weights |= load_file(path)
    return weights


class Difference(NamedTuple):
    """A fact in which two models differ."""

    what: str
    one: object
    other: object


def check_mergeable(members: Mapping[str, Facts]) -> None:
    """Refuse members that do not agree.

    Args:
        members: facts by the name that people know the model by.

    Raises:
        MergeError: naming the first pair that differs and all facts in which it does.
    """
    names = list(members)
    for name in names[1:]:
        found = differences(members[names[0]], members[name])
        if found:
            what = "; ".join(f"{d.what}: {d.one} and {d.other}" for d in found)
            raise MergeError(
                f"models {names[0]!r} and {name!r} cannot be averaged, they differ in {what}. "
                "Train both from one base model, with one tokenizer and equal steps"
            )


def differences(one: Facts, other: Facts) -> list[Difference]:
    """The facts in which two models differ, shortened for people."""
    labels = {"architecture": "architecture", "tokenizer": "tokenizer", "base": "base model"}
    labels["steps"] = "number of steps"

    def shown(value: object) -> object:
        return value[:10] if isinstance(value, str) else value

    pairs = ((label, getattr(one, f), getattr(other, f)) for f, label in labels.items())
    return [Difference(label, shown(a), shown(b)) for label, a, b in pairs if a != b]


def weighted_sum(
    tensors: Iterable["torch.Tensor"], parts: Iterable[int], dtype: "torch.dtype"
) -> "torch.Tensor":
    """Sum of ``parts[i] * tensors[i]`` over sum of ``parts``, added in the given order in ``dtype``.

    One arithmetic for every merge, so that a mixture has one bit pattern (in float64 the sum's order
    does not show after rounding to float32; see the tests).
    """
    import torch

    parts = list(parts)
    total: torch.Tensor | None = None
    for tensor, part in zip(tensors, parts, strict=True):
        if total is None:
            total = tensor.to(dtype) * part
        else:
            total.add_(tensor.to(dtype), alpha=part)
    assert total is not None, "a mixture has members"
    return total.div_(sum(parts)).to(torch.float32)


def average_weights(
    members: Mapping[str, Mapping[str, "torch.Tensor"]],
    parts: Mapping[str, int],
    dtype: "torch.dtype | None" = None,
) -> dict[str, "torch.Tensor"]:
    """Weighted average of models, tensor by tensor, members in the order of their names.

    Args:
        members: tensors by name (tied ones once) for each member.
        parts: positive integers by member.
        dtype: float64 (default) or float32: in which the sum is kept.

    Returns:
        float32 tensors; integer tensors are copied.

    Raises:
        MergeError: members have other tensors, other shapes, or unequal integer tensors.
    """
    import torch

    names = sorted(parts)
    first = members[names[0]]
    for name in names[1:]:
        check_same_tensors(names[0], first, name, members[name])
    merged = {}
    for key, tensor in first.items():
        if tensor.is_floating_point():
            column = [members[name][key] for name in names]
            counts = [parts[name] for name in names]
            merged[key] = weighted_sum(column, counts, dtype or torch.float64)
        else:
            merged[key] = tensor.clone()
    return merged


def check_same_tensors(
    one: str,
    first: Mapping[str, "torch.Tensor"],
    other: str,
    second: Mapping[str, "torch.Tensor"],
) -> None:
    """Refuse models whose tensors do not correspond. Raises MergeError naming the tensor."""
    odd = sorted({*first} ^ {*second})
    if odd:
        raise MergeError(
            f"models {one!r} and {other!r}: only one of them has the tensor {odd[0]!r}"
        )
    for key, tensor in first.items():
        if tensor.shape != second[key].shape:
            raise MergeError(
                f"models {one!r} and {other!r} differ in the shape of {key!r}: "
                f"{tuple(tensor.shape)} and {tuple(second[key].shape)}"
            )
        if not tensor.is_floating_point() and not bool((tensor == second[key]).all()):
            raise MergeError(
                f"models {one!r} and {other!r} differ in the integer tensor {key!r}, "
                "which cannot be averaged"
            )


INITIALISE = Step("initialise", 1, "model", InitialiseConfig, build_initial)
IMPORT_MODEL = Step("import-model", 1, "model", ImportConfig, build_import)
