"""Step: one part of an evaluation set, for a race; the part is itself an evaluation set.

A race evaluates on part 0 of every set first, then on part 1, and so on. Each part is as large as
all before it together. The digests of a group's documents decide its place
(``tasks.evaluation.window``). So a part is a random sample of the set, the same for every mixture
and whatever order the data came in. Parts do not overlap: no mixture is evaluated twice on the same
text, and sums of parts are added.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import Field

from storage.fingerprint import Config
from storage.step import Step, Workspace
from tasks.evaluation.window import save_windows


class PartConfig(Config):
    """Which part of a set."""

    number: int = Field(ge=0)
    """Number of the part, counted from 0."""
    share: float = Field(gt=0, le=1)
    """Part 0 holds at least this share of the set's groups of documents."""
    fewest: int = Field(ge=2)
    """Part 0 holds at least so many groups of documents, where the set has as many."""


def part_groups(config: PartConfig, num_groups: int) -> range:
    """Which of a set's groups with text are in a part; none where earlier parts hold them all."""

    def end(parts: int) -> int:
        first = max(config.fewest, math.ceil(config.share * num_groups))
        return min(num_groups, first << (parts - 1)) if parts else 0

    return range(end(config.number), end(config.number + 1))


def build(
    config: PartConfig, inputs: Mapping[str, Path], output: Path, workspace: Workspace
) -> Mapping[str, object]:
    """Take the part out of ``inputs["windows"]``; its groups are counted from 0.

    Raises:
        ValueError: the parts before it hold the whole set.
    """
    from safetensors.numpy import load_file

    arrays = load_file(inputs["windows"] / "windows.safetensors")
    counts = arrays.pop("counts")
    with_text = np.flatnonzero(counts[:, 0])
    groups = with_text[part_groups(config, len(with_text))]
    if not len(groups):
        raise ValueError(
            f"part {config.number} of an evaluation set with {len(with_text)} groups of documents is "
            f"empty at a share of {config.share:g}: the parts before it hold the whole set"
        )
    kept = np.isin(arrays["group"], groups)
    part = {name: array[kept] for name, array in arrays.items()}
    part["group"] = np.searchsorted(groups, part["group"]).astype(np.int32)
    part["counts"] = counts[groups]
    return save_windows(part, output, workspace)


PART = Step("part", 1, "windows", PartConfig, build)
