"""Whether a given model's files are data alone, all there, and of the sizes that its config says.

Only JSON and headers of safetensors are read here, before any library makes a model by their word.
Fields that would load code or fetch something are left out of what is taken over, or refused where
the model is another one without them.
"""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.readable import listed
from tasks.shown import line
from tasks.tokens.folder import FolderError, read_json

LEFT_OUT = {
    "config.json": re.compile(
        "auto_map|trust_remote_code|custom_(code|pipelines|generate)|fusion_config|use_kernels|kernel_config|"
        "use_pretrained_backbone|_(attn|experts)_implementation_internal"
    ),
    "tokenizer_config.json": re.compile(".*_file|trust_remote_code|tokenizer_object"),
}
"""Fields, at any depth, that choose code or files and say nothing about the model or tokenizer."""

KERNELS = re.compile("_?(attn|experts)_implementation")
OWN_KERNELS = (None, "eager", "sdpa")
"""Implementations of attention that are torch's own; others come from packages or from the hub."""

REFUSED = {
    "quantization_config": "its weights are quantized, and what is averaged is plain ones: give the "
    "model dequantized",
    "configuration_files": "it names other config files: give the one that counts as config.json",
    "transformers_weights": "it names another file of weights: give that as model.safetensors",
    "fast_tokenizer_files": "it names other files: give the one that counts as tokenizer.json",
}
"""Fields with which a folder would be read differently, and what to do."""

GENERATION = re.compile(
    "_from_model_config|bad_words_ids|begin_suppress_tokens|bos_token_id|"
    "cache_implementation|decoder_start_token_id|do_sample|early_stopping|"
    "encoder_no_repeat_ngram_size|encoder_repetition_penalty|eos_token_id|epsilon_cutoff|"
    "eta_cutoff|exponential_decay_length_penalty|forced_bos_token_id|forced_eos_token_id|"
    "guidance_scale|length_penalty|max_length|max_new_tokens|max_time|min_length|"
    "min_new_tokens|min_p|no_repeat_ngram_size|num_beams|num_return_sequences|"
    "output_attentions|output_hidden_states|output_logits|output_scores|pad_token_id|"
    "remove_invalid_values|renormalize_logits|repetition_penalty|return_dict_in_generate|"
    "sequence_bias|stop_strings|suppress_tokens|temperature|token_healing|top_h|top_k|top_p|"
    "transformers_version|typical_p|use_cache"
)
"""Fields of generation_config.json that are numbers and names; others lead to code, or to nothing."""

COUNTS = re.compile(".*layers.*|.*(layer|blocks?|depth|labels)")
"""Integers of a config for each of which something is made one by one."""
COUNT = 256
"""Such a count that is plausible whatever the folder holds."""
MOST = 100_000
"""Such a count that is plausible in no folder."""
SLACK = 1 << 26
"""Elements that a model may have beside its weights, such as masks."""


def as_data(name: str, tree: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The content of a JSON file without fields that load code or fetch files; a sentence names these.

    Raises:
        FolderError: without such a field it is another model.
    """
    gone: set[str] = set()
    kept: dict[str, Any] = _kept(name, tree, gone)
    if name == "generation_config.json":
        gone = {field for field in tree if not GENERATION.fullmatch(field)}
        kept = {field: value for field, value in tree.items() if field not in gone}
    if name == "tokenizer.json":
        _check_ids(tree.get("model"))
    names = [f"{line(field):.80}" for field in sorted(gone)]
    if not names:
        return kept, None
    return kept, (
        f"{name} is taken over without its {listed(names)}: code, kernels and other files are "
        "never loaded by its word"
    )


def _check_ids(model: Any) -> None:
    entries = model.get("vocab") if isinstance(model, dict) else None
    ids = Counter(map(repr, entries.values())) if isinstance(entries, dict) else Counter()
    # Seen with tokenizers 0.23: it panics at some vocabularies in which they do.
    if shared := [number for number, times in ids.items() if times > 1]:
        raise FolderError(
            f"tokenizer.json has several entries with the id {shared[0]:.40}: fetch the file again"
        )


def _kept(name: str, tree: Any, gone: set[str]) -> Any:
    if isinstance(tree, list):
        return [_kept(name, value, gone) for value in tree]
    if name not in LEFT_OUT or not isinstance(tree, dict):
        return tree
    kept = {}
    for field, value in tree.items():
        if value and field in REFUSED:
            raise FolderError(f"{name} has {field}: {REFUSED[field]}")
        is_kernel = KERNELS.fullmatch(field) and value not in OWN_KERNELS
        # What is null or false asks for nothing.
        if value and (is_kernel or LEFT_OUT[name].fullmatch(field)):
            gone.add(field)
        else:
            kept[field] = _kept(name, value, gone)
    return kept


def check_model(files: Mapping[str, Path]) -> None:
    """Refuse a model whose weights are not all there, or whose config counts more than they hold.

    Args:
        files: of its folder, by name.

    Raises:
        FolderError: says which file is wrong.
    """
    shapes = [shape for name in weight_files(files) for shape in _shapes(name, files[name])]
    there = f"the safetensors hold {len(shapes)} tensors: give the config that belongs to them"
    check_counts(files, max(len(shapes), COUNT), there)


def check_counts(
    files: Mapping[str, Path],
    limit: int = MOST,
    there: str = f"no model has more than {MOST}: fetch that file again",
) -> None:
    """Refuse a config.json that is not there, or by which more than ``limit`` things are made one by one.

    Args:
        files: of the model's folder, by name.
        there: why there are no more, and what to do.

    Raises:
        FolderError: says which field is wrong.
    """
    if "config.json" not in files:
        raise FolderError("has no config.json: fetch that file too")
    for place, count in _counts(read_json("config.json", files["config.json"]), ""):
        if count > limit:
            raise FolderError(f"config.json has {place} {count}, and {there}")


def _counts(tree: Any, place: str) -> Iterator[tuple[str, int]]:
    for field, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, int) and COUNTS.fullmatch(field):
            yield place + field, value
        yield from _counts(value, f"{place}{field}.")


def weight_files(files: Mapping[str, Path]) -> list[str]:
    """Names of the safetensors that transformers reads: one file, or the shards of an index.

    Raises:
        FolderError: the index and the shards beside it are not the same.
    """
    if "model.safetensors" in files:
        return ["model.safetensors"]
    index = "model.safetensors.index.json"
    if index not in files:
        raise FolderError(f"has shards and no {index}: fetch that file too")
    names = read_json(index, files[index]).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise FolderError(f"{index} has no weight_map of tensors to files: fetch the file again")
    shards = sorted({name if isinstance(name, str) else repr(name) for name in names.values()})
    there = {name for name in files if name.endswith(".safetensors")}
    if lacking := [name for name in shards if name not in there]:
        raise FolderError(
            f"{index} names {lacking[0]!r:.200}, which is no model*.safetensors in the folder: fetch that "
            "file too, or correct the index"
        )
    if odd := sorted(name for name in there if "-of-" in name and name not in shards):
        raise FolderError(
            f"{odd[0]} is a shard that {index} does not name: remove it, or correct the index"
        )
    return shards


def _shapes(name: str, path: Path) -> list[list[int]]:
    """Shapes of the tensors of a safetensors file, by its header."""
    from safetensors import safe_open

    try:
        with safe_open(path, "np") as file:
            return [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    except Exception as error:
        said = textwrap.shorten(str(error), 200)
        raise FolderError(
            f"{name} is no sound safetensors file ({said}): fetch the file again"
        ) from error


def check_size(folder: Path) -> None:
    """Refuse a config by which a model is much larger than its safetensors; nothing is allocated.

    Raises:
        FolderError: says both sizes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import meta_device_safe_creation_ops

    files = {path.name: path for path in folder.iterdir()}
    shapes = [shape for name in weight_files(files) for shape in _shapes(name, files[name])]
    held = sum(map(math.prod, shapes))
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"), meta_device_safe_creation_ops():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    wanted = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if wanted > 2 * held + SLACK:
        raise FolderError(
            f"config.json describes a model of {wanted:,} numbers, and the safetensors hold {held:,}: give "
            "the config that belongs to them"
        )
