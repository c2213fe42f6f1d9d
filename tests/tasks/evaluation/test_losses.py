"""Columns and scratch files give back what rows and frames had in them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation import group_sums
from tasks.evaluation.group_sums import GroupSums
from tasks.evaluation.losses import Counts, Losses, LossRows
from tasks.ranking.rank import MACRO_MEAN, rank, rank_all


def losses_of(num_mixtures: int, widths: list[int], seed: int = 0) -> Losses:
    """Random losses in which nearly equal mixtures have nearly equal sums."""
    random = np.random.default_rng(seed)
    kept, counts = GroupSums(num_mixtures), []
    nll = np.empty((num_mixtures, len(widths)))
    for number, width in enumerate(widths):
        tokens = random.integers(50, 90, width)
        hard, own = random.normal(3, 0.5, width), random.normal(0, 0.02, (num_mixtures, width))
        values = tokens.astype(float) * (hard + own + 0.001 * np.arange(num_mixtures)[:, None])
        kept.write(number, np.arange(num_mixtures), values)
        nll[:, number] = values.sum(axis=1)
        total = int(tokens.sum())
        counts.append(Counts(total, 4 * total, total // 2, tokens, 4 * tokens))
    names = [f"mixture {n:03d}" for n in random.permutation(num_mixtures)]
    return Losses(names, [f"set {n}" for n in range(len(widths))][::-1], nll, counts, kept)


def members_of(losses: Losses) -> pd.DataFrame:
    """Each mixture is a partition of its own."""
    return pd.DataFrame({"mixture": losses.mixtures, "partition": losses.mixtures, "weight": 1.0})


@given(st.permutations(range(9)), st.integers(1, 4), st.integers(1, 9))
def test_sums_come_back_however_they_were_written(order: list[int], width: int, cut: int) -> None:
    values = np.random.default_rng(0).random((2, 9, width))
    kept = GroupSums(9)
    for number in (1, 0):
        for part in (order[:cut], order[cut:]):
            mixtures = np.array(sorted(part), dtype=np.int64)
            kept.write(number, mixtures, values[number][mixtures])
    for number in (0, 1):
        assert kept.width(number) == width
        assert (kept.read(number, 2, 7) == values[number][2:7]).all()
        assert (kept.take(number, np.array(order)) == values[number][order]).all()


def test_blocks_are_all_mixtures_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_sums, "BLOCK", 4)
    values = np.arange(20.0).reshape(10, 2)
    kept = GroupSums(10)
    kept.write(0, np.arange(10), values)
    found = list(kept.blocks(0))
    assert [(rows.start, rows.stop) for rows, _ in found] == [(0, 4), (4, 8), (8, 10)]
    assert (np.concatenate([block for _, block in found]) == values).all()
    assert (kept.take(0, np.array([9, 0, 5, 9])) == values[[9, 0, 5, 9]]).all()


def test_rows_are_equal_where_each_row_is() -> None:
    def rows(label: str = "b", last: float = 4.0) -> LossRows:
        kept = GroupSums(2)
        kept.write(0, np.arange(2), np.array([[1.0, 2.0], [3.0, last]]))
        return LossRows(["x", "y"], ["a", label], {"s": "w"}, np.array([[3.0], [7.0]]), kept)

    assert rows() == rows()
    assert rows() != rows(last=5.0)
    assert rows() != rows("c")
    assert [row.group_nll for row in rows()] == [[1.0, 2.0], [3.0, 4.0]]


def test_a_written_table_is_read_as_the_same_losses(tmp_path: Path) -> None:
    losses = losses_of(7, [3, 5])
    losses.write(tmp_path / "losses.parquet")
    frame = pd.read_parquet(tmp_path / "losses.parquet")
    assert frame["mixture"].tolist() == [name for name in losses.mixtures for _ in range(2)]
    assert frame["evaluation_set"].tolist() == ["set 1", "set 0"] * 7
    assert [len(groups) for groups in frame["group_nll"]] == [3, 5] * 7
    assert [len(groups) for groups in frame["group_bytes"]] == [3, 5] * 7
    members = members_of(losses)
    for name, table in rank_all(losses, members).items():
        pd.testing.assert_frame_equal(rank(frame, members, name), table, check_exact=True)
    again = losses.frame(losses.mixtures[2:4])
    columns = ["mixture", "evaluation_set", "nll", "num_tokens"]
    assert again.to_dict("list") == frame.iloc[4:8][columns].to_dict("list")


@pytest.mark.parametrize("block", [8, 512])
def test_ranks_are_those_of_all_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of pairs against a comparison of every pair by the formula."""
    monkeypatch.setattr(group_sums, "BLOCK", block)
    monkeypatch.setattr(group_sums, "BLOCK", block)
    losses = losses_of(45, [30, 40])
    table = rank(losses, members_of(losses), MACRO_MEAN)
    points = []
    for number, counts in enumerate(losses.counts):
        groups = len(counts.group_tokens)
        loss = losses.nll[:, number] / counts.num_tokens
        residuals = losses.sums.read(number, 0, 45) - loss[:, None] * counts.group_tokens
        points.append(residuals * np.sqrt(groups / (groups - 1)) / counts.num_tokens)
    point = np.hstack(points) / 2
    loss = (losses.nll / [counts.num_tokens for counts in losses.counts]).mean(axis=1)
    ahead = loss[:, None] - loss
    error = 1.959963984540054 * np.sqrt(np.square(point[:, None] - point).sum(axis=2))
    ranks = 1 + ((ahead > 0) & (ahead > error)).sum(axis=1)
    places = [losses.mixtures.index(mixture) for mixture in table["mixture"]]
    assert table["rank"].tolist() == ranks[places].tolist()
    assert 3 < len(set(ranks.tolist())) < 45
