"""Parts of a set hold its windows and counts once each, grow, and do not depend on the data's order."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from storage.artifact import describe
from storage.step import Workspace
from tasks.evaluation.set_part import PartConfig, build, part_groups
from tasks.evaluation.window import load_windows

pytest_plugins = ["tests.tasks.tiny_models"]

SHARE = 1 / 16


@pytest.fixture(scope="session")
def part(new: Callable[[], Path], workspace: Callable[..., Workspace]) -> Callable[..., Path]:
    """One part of prepared windows."""

    def make(source: Path, number: int, fewest: int = 3) -> Path:
        output = new()
        config = PartConfig(number=number, share=SHARE, fewest=fewest)
        build(config, {"windows": source}, output, workspace())
        return output

    return make


@cases(st.integers(0, 1000), st.floats(1e-4, 1), st.integers(2, 40))
def test_parts_follow_one_another_and_double(groups: int, share: float, fewest: int) -> None:
    parts = [
        part_groups(PartConfig(number=number, share=share, fewest=fewest), groups)
        for number in range(20)
    ]
    assert list(itertools.chain.from_iterable(parts)) == list(range(groups))
    assert len(parts[0]) >= min(groups, fewest, 1000)
    assert len(parts[0]) >= share * groups - 1e-9
    for one, after in itertools.pairwise(parts):
        assert after.stop == min(groups, 2 * one.stop)


def test_parts_hold_every_window_once(
    windows: Callable[..., Path], part: Callable[..., Path], prose: Callable[..., list[str]]
) -> None:
    source = windows(prose(1, 30), format="paloma")
    whole = load_windows(source)
    parts = [load_windows(part(source, number)) for number in range(5)]
    for name in ("num_tokens", "num_bytes", "num_words"):
        joined = np.concatenate([getattr(one, name) for one in parts])
        assert joined.tolist() == getattr(whole, name).tolist()
    starts = np.cumsum([0, *(len(one.num_tokens) for one in parts)])
    for name in ("inputs", "targets", "first", "length"):
        joined = np.concatenate([getattr(one, name) for one in parts])
        assert (joined == getattr(whole, name)).all()  # windows lie in the order of their groups
    groups = np.concatenate([one.group + start for one, start in zip(parts, starts, strict=False)])
    assert groups.tolist() == whole.group.tolist()
    with pytest.raises(ValueError, match="the parts before it hold the whole set"):
        part(source, 5)


def test_facts_are_those_of_the_part(
    windows: Callable[..., Path], part: Callable[..., Path], prose: Callable[..., list[str]]
) -> None:
    folder = part(windows(prose(2, 30)), 1)
    found, facts = load_windows(folder), json.loads((folder / "windows.json").read_text())
    assert facts == {
        "num_windows": len(found.first),
        "num_groups": 3,
        "num_tokens": found.num_tokens.sum(),
        "num_bytes": found.num_bytes.sum(),
        "num_words": found.num_words.sum(),
        "forward_tokens": found.length.sum(),
    }


def test_order_of_documents_does_not_show(
    windows: Callable[..., Path], part: Callable[..., Path], prose: Callable[..., list[str]]
) -> None:
    texts = prose(3, 30)
    other = windows(random.Random(0).sample(texts, len(texts)))
    one, two = part(windows(texts), 1), part(other, 1)
    assert describe("windows", one) == describe("windows", two)


def test_groups_without_text_are_passed_over(
    windows: Callable[..., Path], part: Callable[..., Path]
) -> None:
    """Of 256 groups some have no document where 300 documents are spread over them by digest."""
    source = windows([f"document {number}" for number in range(300)], groups=256)
    assert (load_windows(source).num_tokens == 0).any()
    found = load_windows(part(source, 0, fewest=40))
    assert len(found.num_tokens) == 40
    assert (found.num_tokens > 0).all()
    assert sorted(set(found.group.tolist())) == list(range(40))
