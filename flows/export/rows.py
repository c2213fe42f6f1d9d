"""Formats of loaders that draw rows: in Python, with each source's share of rows.

Where a row is a whole document, a source of long documents is drawn more seldom than its share of tokens
says. Paths are made absolute, for some of these loaders take a name for a repository of a hub.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.export.sampling import Sampling, Share

KINDS = {"parquet": "parquet", "jsonl": "json", "json": "json", "csv": "csv", "arrow": "arrow"}
"""What ``datasets`` calls the files of a suffix."""
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")

ONCE = "# One pass ends when each source has been seen once: longer trainings go on with {}"
OPENED = {
    "huggingface": (
        "from datasets import interleave_datasets, load_dataset",
        'sources = [load_dataset(**a, split="train", streaming=True).shuffle(seed=0) for a in arguments]',
        'mixed = interleave_datasets(sources, probabilities, seed=0, stopping_strategy="all_exhausted")',
        ONCE.format("mixed.set_epoch(n)"),
    ),
    "torchdata": (
        "from datasets import load_dataset",
        "from torchdata.nodes import IterableWrapper, MultiNodeWeightedSampler",
        'sources = [load_dataset(**a, split="train").shuffle(seed=0) for a in arguments]',
        "nodes = {name: IterableWrapper(source) for name, source in zip(names, sources)}",
        "mixed = MultiNodeWeightedSampler(nodes, dict(zip(names, probabilities)), seed=0)",
        ONCE.format("mixed.reset()"),
    ),
    "grain": (
        "import grain",
        "from datasets import load_dataset",
        'sources = [grain.MapDataset.source(load_dataset(**a, split="train")) for a in arguments]',
        "endless = [source.shuffle(seed=0).repeat() for source in sources]",
        "mixed = grain.MapDataset.mix(endless, probabilities)",
    ),
}
"""Loaders of whatever ``datasets.load_dataset`` reads.

huggingface/datasets 5.2, src/datasets/combine.py: streamed, for the table of a mixture would list all rows
until the rarest source has ended; without ``all_exhausted`` the mixture ends with the first source that ends.
meta-pytorch/data 0.11, torchdata/nodes/samplers: by default sources begin again until each has ended once.
google/grain 0.2, grain/_src/python/dataset: a mixture ends with its shortest source, so they are repeated.
"""

OWN = {
    "streaming": (
        "from streaming import Stream, StreamingDataset",
        "streams = [Stream(local=path, proportion=p) for path, p in zip(paths, probabilities)]",
        "mixed = StreamingDataset(streams=streams, shuffle=True, batch_size=1)",
    ),
    "litdata": (
        "from litdata import CombinedStreamingDataset, StreamingDataset",
        "sources = [StreamingDataset(path, shuffle=True) for path in paths]",
        "mixed = CombinedStreamingDataset(sources, weights=probabilities, iterate_over_all=False)",
    ),
}
"""Loaders of folders in a form of their own.

mosaicml/streaming 0.13, streaming/base/stream.py: sources are repeated within an epoch.
Lightning-AI/litData 0.2.76, src/litdata/streaming/combined.py: an epoch ends with the first source that ends;
with ``iterate_over_all`` it would end with all, and shares would be those of the sources' sizes.
"""


def placed(share: Share, format_name: str, several: bool = False) -> list[str]:
    """Its paths, absolute; the one that it has unless the format takes ``several``."""
    paths = share.paths if several and share.paths else (share.path(format_name),)
    return [path if "://" in path else os.path.abspath(Path(path).expanduser()) for path in paths]  # noqa: PTH100


def _python(format_name: str) -> Callable[[Sampling], str]:
    def write(sampling: Sampling) -> str:
        shares, is_opened = sampling.shares, format_name in OPENED
        names = [share.name for share in shares]
        paths = [placed(share, format_name, several=is_opened) for share in shares]
        probabilities = [float(share.row) for share in shares]
        told: dict[str, Any] = {"names": names} if format_name == "torchdata" else {}
        if is_opened:
            told["arguments"] = [
                _arguments(s, p, format_name) for s, p in zip(shares, paths, strict=True)
            ]
        else:
            told["paths"] = [path for (path,) in paths]
        given = [
            f"{name} = {value!r}"
            for name, value in {**told, "probabilities": probabilities}.items()
        ]
        code = (OPENED | OWN)[format_name]
        count = sum("import" in line for line in code)
        draws = (
            f"probabilities are shares of rows ({sampling.rows}); shares of tokens stand in sources"
        )
        tree = {
            **{name: sampling.facts[name] for name in ("mixture", "recipe", "run")},
            "names": names,
            "probabilities": probabilities,
            "paths": [path[0] if len(path) == 1 else path for path in paths],
            "rows": sampling.rows,
            "sources": sampling.sources,
            "python": [*code[:count], *given, *code[count:]],
            "notes": [draws, *sampling.notes],
        }
        return json.dumps(tree, indent=1, ensure_ascii=False, default=float) + "\n"

    return write


def _arguments(share: Share, paths: list[str], format_name: str) -> dict[str, Any]:
    """Arguments of ``load_dataset`` that name files or a folder, never a repository."""
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise ValueError(
            f"{share.name!r} has paths of several kinds ({', '.join(paths)}): give files of one suffix"
        )
    if kind := kinds.pop():
        return {"path": kind, "data_files": paths}
    if "*" in paths[0]:
        raise ValueError(
            f"{paths[0]!r}, where {share.name!r} lies, does not say what its files are: end it in one of "
            f"{', '.join(f'*.{suffix}' for suffix in KINDS)}"
        )
    return {"path": placed(share, format_name)[0]}


def _kind(path: str) -> str | None:
    """What ``datasets`` calls such a file; None for a folder."""
    name = path
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return None if Path(path).is_dir() else KINDS.get(name.rpartition(".")[2].lower())


def _maxtext(sampling: Sampling) -> str:
    """``grain_train_mixture_config_path`` (AI-Hypercomputer/maxtext, e591f30c): mixed before it is packed."""
    tree = {
        share.name: {"path": placed(share, "maxtext")[0], "weight": float(share.row)}
        for share in sampling.shares
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Sampling], str]] = {
    **{name: _python(name) for name in (*OPENED, *OWN)},
    "maxtext": _maxtext,
}
"""Writers by name of the format."""
