"""File formats for sampling weights: one writer for each trainer.

A weight is written as a decimal, and the decimals of a file sum to exactly 1: they are rounded together, by
largest remainder. Trainers that pack text into sequences of one length get shares of tokens, and loaders that
draw rows shares of rows (``flows.export.rows``). A format is offered where the trainer's documentation or
source says what the numbers mean; each writer names that source.
"""

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import yaml

from flows.export import rows
from flows.export.sampling import Sampling, Share
from tasks import shown


def render(format_name: str, sampling: Sampling) -> str:
    """The text of a file, in one of ``FORMATS``. ValueError: the format cannot hold these paths."""
    return FORMATS[format_name](sampling)


def unknown_format(format_name: str) -> str:
    """The message for an unknown format; on Axolotl see axolotl-ai-cloud/axolotl, pull request 3690."""
    return (
        f"there is no format {format_name!r}; there are {', '.join(FORMATS)}. Axolotl is not one: "
        "its weight of a dataset is the share of that dataset's rows that is kept, not a share of "
        "the mixture"
    )


def _ours(sampling: Sampling) -> str:
    paths = {share.name: list(share.paths) for share in sampling.shares if share.paths}
    tree = {**sampling.facts, "sources": sampling.sources}
    return to_yaml({**tree, "paths": paths} if paths else tree)


def _llama_factory(sampling: Sampling) -> str:
    """``DataArguments`` and dataset_info.json (hiyouga/LLaMA-Factory at ff6d4d12, src/llamafactory/data)."""
    if odd := [
        share.name
        for share in sampling.shares
        if share.name != share.name.strip() or "," in share.name
    ]:
        raise ValueError(
            f"a comma or blank ends a name of LLaMA-Factory, and {odd[0]!r} has one: rename the domain"
        )
    files = {
        share.name: {"file_name": rows.placed(share, "llama-factory")[0]}
        for share in sampling.shares
    }
    settings = {
        "dataset": ",".join(files),
        "mix_strategy": "interleave_over",
        "interleave_probs": ",".join(_decimal(share.row) for share in sampling.shares),
        "streaming": True,
    }
    note = (
        f"Part of the arguments of LLaMA-Factory (ff6d4d12), which draws rows ({sampling.rows}). In "
        f"dataset_info.json of dataset_dir: {json.dumps(files, ensure_ascii=False)}"
    )
    return _comments(sampling, note) + to_yaml(settings)


def _olmo_core(sampling: Sampling) -> str:
    """For ``SourceMixtureList.from_yaml`` (allenai/OLMo-core, src/olmo_core/data/source_mixture.py).

    Files of that form are in its src/olmo_core/data/source_mixtures. Paths are those of token files,
    and may hold ``*``.
    """
    sources = [
        {
            "source_name": share.name,
            "target_ratio": share.weight,
            "paths": _paths(share),
            **(
                {}
                if share.epochs is None
                else {"max_repetition_ratio": max(1, math.ceil(share.epochs))}
            ),
        }
        for share in sampling.shares
    ]
    note = (
        "For OLMo-core 3.0.0, which rounds to whole sequences in each file: give few and large files."
        + " A source is used once at most: max_repetition_ratio above 1 allows more."
        * (sampling.repetition is None)
    )
    return _comments(sampling, note) + to_yaml({"sources": sources})


def _megatron(sampling: Sampling) -> str:
    """Weights and prefixes in turn, for ``--data-args-path FILE`` or ``--data-path $(cat FILE)``.

    NVIDIA/Megatron-LM, megatron/training/arguments.py and ``get_blend_from_list`` in
    megatron/core/datasets/utils.py. The file is split at white space and has no comments.
    """
    lines = []
    for share in sampling.shares:
        path = share.path("megatron")
        if not path or path.split() != [path]:
            raise ValueError(
                f"{path!r} stands where Megatron's prefix of {share.name!r} belongs, and white space "
                f"ends a prefix: give another by --paths {share.name!r}=PREFIX"
            )
        lines.append(f"{_decimal(share.weight)} {path}\n")
    return "".join(lines)


def _nanotron(sampling: Sampling) -> str:
    """``NanosetDatasetsArgs`` (huggingface/nanotron, src/nanotron/config/config.py, docs/nanoset.md).

    It makes one index of as many samples as all sources have together, and repeats that.
    """
    dataset = {
        "dataset_folder": [share.path("nanotron") for share in sampling.shares],
        "dataset_weights": [share.weight for share in sampling.shares],
    }
    stage = {
        "name": sampling.facts["mixture"],
        "start_training_step": 1,
        "data": {"dataset": dataset, "num_loading_workers": 1, "seed": 0},
    }
    note = (
        "Part of a config of nanotron's main branch (2411b022); release 0.4 has no dataset_weights."
    )
    return _comments(sampling, note) + to_yaml({"data_stages": [stage]})


def _gpt_neox(sampling: Sampling) -> str:
    """``NeoXArgsTraining`` (EleutherAI/gpt-neox at ea7aefd8, megatron/neox_arguments/neox_args.py)."""
    settings = {
        "train_data_paths": [share.path("gpt-neox") for share in sampling.shares],
        "train_data_weights": [share.weight for share in sampling.shares],
        "weight_by_num_documents": False,
    }
    note = "Part of a config of GPT-NeoX (ea7aefd8): paths are prefixes; train_epochs goes with no weights."
    return _comments(sampling, note) + to_yaml(settings)


def _levanter(sampling: Sampling) -> str:
    """``LMMixtureDatasetConfig`` (stanford-crfm/levanter at 9263f81e, src/levanter/data/text.py).

    In each block of a mixture, of less than 2 ** 16 sequences, weights are cut down to whole sequences.
    """
    least = min(sampling.shares, key=lambda share: share.weight)
    block = min(max(2048, math.ceil(10 / least.weight)), 2**16 - 1)
    if least.weight * block < 1:
        raise ValueError(
            f"{least.name!r} has {_decimal(least.weight)}, and levanter draws none of less than 1 in "
            f"{block:,} sequences: leave it out of the mixture"
        )
    data = {
        "configs": {share.name: {"train_urls": _paths(share)} for share in sampling.shares},
        "train_weights": {share.name: share.weight for share in sampling.shares},
        "stop_strategy": "restart",
        "mixture_block_size": block,
    }
    return _comments(sampling, "Part of a config of levanter (git 9263f81e).") + to_yaml(
        {"data": data}
    )


FORMATS: dict[str, Callable[[Sampling], str]] = {
    "yaml": _ours,
    **rows.FORMATS,
    "llama-factory": _llama_factory,
    "olmo-core": _olmo_core,
    "megatron": _megatron,
    "nanotron": _nanotron,
    "gpt-neox": _gpt_neox,
    "levanter": _levanter,
}
"""Writers by name of the format."""
WITHOUT_NOTES = {"megatron", "maxtext"}
"""Formats whose files have no place for anything but weights and paths."""


def to_yaml(tree: Mapping[str, Any]) -> str:
    """YAML with decimals as they are, never as ``1e-06``, which some readers take for text."""
    return yaml.dump(dict(tree), Dumper=_DecimalDumper, sort_keys=False, allow_unicode=True)


class _DecimalDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _decimal(weight: Decimal) -> str:
    text = f"{weight:f}"
    return text if "." in text else f"{text}.0"


_DecimalDumper.add_representer(
    Decimal, lambda dumper, data: dumper.represent_scalar("tag:yaml.org,2002:float", _decimal(data))
)


def _paths(share: Share) -> list[str]:
    return list(share.paths) or [share.name]


def _comments(sampling: Sampling, note: str) -> str:
    facts = sampling.facts
    lines = [
        f"Mixture {facts['mixture']} of run {facts['run']} (recipe {facts['recipe']}), by mixpool.",
        f"By {sampling.unit}. {note}",
        *notes(sampling),
    ]
    return "".join(f"# {shown.line(' '.join(text.split()))}\n" for text in lines)


def notes(sampling: Sampling) -> list[str]:
    """What each source's share means, and what is to be known of it, in lines."""
    shares = []
    for name, tree in sampling.sources.items():
        seen = f", {tree.pop('epochs'):.4g} epochs" if "epochs" in tree else ""
        held = ", ".join(f"{_decimal(share)} of {what}" for what, share in tree.items())
        shares.append(f"{name}: {held}{seen}")
    return ["Shares of a training's text:", *shares, *sampling.notes]
