"""File formats for sampling weights: one writer for each trainer.

A weight is a source's share of training tokens. It is written as a decimal, and the decimals of a file
sum to exactly 1: they are rounded together, by largest remainder. A format is offered where the
trainer's documentation or source says what the numbers mean; each writer names that source.
"""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import yaml

from tasks import shown
from tasks.mixtures.mixture import Mixture, Unit

DIGITS = 9
"""Decimals of a weight; more where parts are so uneven that one would be rounded to zero."""


class Share(NamedTuple):
    """One source of a mixture."""

    name: str
    """The partition or domain."""
    weight: Decimal
    """Share of training tokens; the shares of a mixture sum to exactly 1."""
    paths: tuple[str, ...] = ()
    """Where its data lies for the trainer, as the user says; empty where the user did not."""

    def path(self, format_name: str) -> str:
        """Its one path, or its name where there is none. ValueError where there are several."""
        if len(self.paths) > 1:
            raise ValueError(
                f"{self.name!r} has {len(self.paths)} paths ({', '.join(self.paths)}), and a weight "
                f"of {format_name} is that of one: give one path, or use olmo-core"
            )
        return self.paths[0] if self.paths else self.name


class Sampling(NamedTuple):
    """A mixture as sources to sample from."""

    facts: Mapping[str, Any]
    """The mixture, the run, its weights by partition and by domain (``weights_tree``)."""
    unit: Unit
    shares: list[Share]

    @property
    def unplaced(self) -> list[str]:
        """Names of those without a path."""
        return [share.name for share in self.shares if not share.paths]


def decimals(parts: Mapping[str, int]) -> dict[str, Decimal]:
    """Weights in proportion to ``parts``, by name; above 0 and exactly 1 together."""
    digits = max(DIGITS, len(str(sum(parts.values()))) + 1)
    rounded = Mixture.from_weights(parts, 10**digits)
    return {name: Decimal(w.numerator) / w.denominator for name, w in rounded.weights.items()}


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
    return to_yaml({**sampling.facts, "paths": paths} if paths else sampling.facts)


def _huggingface(sampling: Sampling) -> str:
    """For ``datasets.interleave_datasets`` (huggingface/datasets, src/datasets/combine.py).

    It draws rows, so its probabilities are shares of tokens where all rows are equally long.
    """
    names = [share.name for share in sampling.shares]
    paths = [share.path("huggingface") for share in sampling.shares]
    probabilities = [float(share.weight) for share in sampling.shares]
    python = [
        "from datasets import interleave_datasets, load_dataset",
        f"paths = {paths!r}",
        f"probabilities = {probabilities!r}",
        'sources = [load_dataset(path, split="train") for path in paths]',
        "mixed = interleave_datasets(sources, probabilities=probabilities, seed=0)",
    ]
    notes = ["probabilities are shares of tokens: rows must be equally long, as packed blocks are"]
    notes += [unplaced(sampling)] * bool(sampling.unplaced)
    tree = {
        **{name: sampling.facts[name] for name in ("mixture", "recipe", "run")},
        "names": names,
        "probabilities": probabilities,
        "paths": paths,
        "python": python,
        "notes": notes,
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def _olmo_core(sampling: Sampling) -> str:
    """For ``SourceMixtureList.from_yaml`` (allenai/OLMo-core, src/olmo_core/data/source_mixture.py).

    Files of that form are in its src/olmo_core/data/source_mixtures. Paths are those of token files,
    and may hold ``*``.
    """
    sources = [
        {
            "source_name": share.name,
            "target_ratio": share.weight,
            "paths": list(share.paths) or [share.name],
        }
        for share in sampling.shares
    ]
    note = "A source is used once at most: max_repetition_ratio above 1 allows more."
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
    """``NanosetDatasetsArgs`` (huggingface/nanotron, src/nanotron/config/config.py, docs/nanoset.md)."""
    dataset = {
        "dataset_folder": [share.path("nanotron") for share in sampling.shares],
        "dataset_weights": [share.weight for share in sampling.shares],
    }
    stage = {
        "name": sampling.facts["mixture"],
        "start_training_step": 1,
        "data": {"dataset": dataset, "num_loading_workers": 1, "seed": 0},
    }
    return _comments(sampling, "Part of a config.") + to_yaml({"data_stages": [stage]})


FORMATS: dict[str, Callable[[Sampling], str]] = {
    "yaml": _ours,
    "huggingface": _huggingface,
    "olmo-core": _olmo_core,
    "megatron": _megatron,
    "nanotron": _nanotron,
}
"""Writers by name of the format."""


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


def _comments(sampling: Sampling, note: str) -> str:
    facts = sampling.facts
    lines = [
        f"Mixture {facts['mixture']} of run {facts['run']} (recipe {facts['recipe']}), by mixpool.",
        f"Weights are shares of training tokens, by {sampling.unit}. {note}",
        *[unplaced(sampling)] * bool(sampling.unplaced),
    ]
    return "".join(f"# {shown.line(' '.join(text.split()))}\n" for text in lines)


def unplaced(sampling: Sampling) -> str:
    """The note for sources without a path."""
    return (
        "No path was given for these, and their names stand where a path belongs "
        f"(--paths NAME=PATH): {', '.join(sampling.unplaced)}"
    )
