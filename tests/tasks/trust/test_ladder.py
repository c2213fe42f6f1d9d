"""Which orders hold and which flip: counted pair by pair, with intervals by another formula."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from tasks.evaluation.losses import Losses
from tasks.ranking.rank import MACRO_MEAN
from tasks.trust.ladder import MOST, MOST_FLIPS, Column, judge_ladder

GROUPS, SETS = 12, ("x", "y")
SIZES = {f"m{number}": 1 + number % 3 for number in range(11)}


def made_up(seed: int, mixtures: list[str], spread: float = 0.05) -> Losses:
    """Losses with as much noise between documents as between mixtures."""
    rng = np.random.default_rng(seed)
    tokens = np.random.default_rng(0).integers(20, 60, (len(SETS), GROUPS))
    rows = []
    for label in mixtures:
        level = rng.normal(3, spread)
        for number, name in enumerate(SETS):
            nats = tokens[number] * (level + rng.normal(0, 0.08, GROUPS))
            total = int(tokens[number].sum())
            rows.append(
                (
                    label,
                    name,
                    nats.sum(),
                    nats,
                    total,
                    4 * total,
                    total,
                    tokens[number],
                    tokens[number],
                )
            )
    columns = ["mixture", "evaluation_set", "nll", "group_nll", "num_tokens", "num_bytes"]
    frame = pd.DataFrame(rows, columns=[*columns, "num_words", "group_tokens", "group_bytes"])
    return Losses.of(frame, mixtures)


def told(losses: Losses, first: str, second: str, sets: list[int]) -> int:
    """-1 or 1 where the interval of a difference leaves out 0, by residuals written out; else 0."""
    one, other = (losses.mixtures.index(label) for label in (first, second))
    difference = variance = 0.0
    for number in sets:
        tokens = losses.counts[number].group_tokens.astype(float)
        total = tokens.sum()
        residuals = np.zeros(GROUPS)
        for place, sign in ((one, 1), (other, -1)):
            nats = losses.sums.read(number, place, place + 1)[0]
            difference += sign * nats.sum() / total / len(sets)
            residuals += sign * (nats - nats.sum() / total * tokens) / total
        variance += GROUPS / (GROUPS - 1) * (residuals**2).sum() / len(sets) ** 2
    return (
        0
        if abs(difference) <= 1.959963984540054 * math.sqrt(variance)
        else int(np.sign(difference))
    )


@pytest.mark.parametrize("seed", range(4))
def test_orders_are_counted_pair_by_pair(seed: int) -> None:
    labels = [*SIZES]
    columns = [
        Column("a", "proxy", made_up(seed, labels)),
        Column("b", "proxy", made_up(seed + 100, labels[::-1])),
        Column("b", "reference", made_up(seed + 200, labels[2:9])),
    ]
    ladder = judge_ladder(columns, SIZES)
    assert len(ladder.orders) == 3 * 3
    assert len(ladder.words) == 1
    for (first, second), of_pair in zip(
        itertools.combinations(columns, 2), np.split(np.arange(9), 3), strict=True
    ):
        common = [label for label in labels if label in second.losses.mixtures]
        for row in ladder.orders.iloc[of_pair].to_dict("records"):
            names = (row["first_rung"], row["first"], row["second_rung"], row["second"])
            assert names == (first.rung, first.kind, second.rung, second.kind)
            sets = (
                [0, 1]
                if row["evaluation_set"] == MACRO_MEAN
                else [SETS.index(row["evaluation_set"])]
            )
            pairs = [p for p in itertools.combinations(common, 2) if SIZES[p[0]] == SIZES[p[1]]]
            products = [
                told(first.losses, *pair, sets) * told(second.losses, *pair, sets) for pair in pairs
            ]
            expected = (len(common), len(pairs), *map(products.count, (1, -1, 0)))
            assert (
                tuple(row[n] for n in ("mixtures", "pairs", "held", "flipped", "unsure"))
                == expected
            )
            if row["evaluation_set"] == MACRO_MEAN:
                flips = ladder.flips[matches(ladder.flips, row)]
                assert {frozenset(p) for p in flips[["better", "worse"]].to_numpy().tolist()} == {
                    frozenset(pair) for pair, p in zip(pairs, products, strict=True) if p < 0
                }
    flips = ladder.flips
    assert (flips["first_low"] > 0).all()
    assert (flips["second_high"] < 0).all()
    clear = np.minimum(flips["first_low"].to_numpy(), -flips["second_high"].to_numpy())
    assert (np.diff(clear) <= 0).all()


def matches(flips: pd.DataFrame, row: dict[Any, Any]) -> "pd.Series[bool]":
    names = ["first_rung", "first", "second_rung", "second"]
    return (flips[names] == [row[name] for name in names]).all(axis=1)


def test_spearman_is_scipys_where_all_are_of_one_size() -> None:
    labels = [f"m{number}" for number in range(9)]
    columns = [Column("a", "proxy", made_up(1, labels)), Column("b", "proxy", made_up(2, labels))]
    ladder = judge_ladder(columns, dict.fromkeys(labels, 2))
    means = [
        [
            np.mean([c.losses.nll[i, s] / c.losses.counts[s].num_tokens for s in (0, 1)])
            for i in range(9)
        ]
        for c in columns
    ]
    assert ladder.orders["spearman"].iloc[0] == pytest.approx(spearmanr(*means).statistic)
    assert ladder.losses["loss"].tolist() == pytest.approx([*means[0], *means[1]])
    assert ladder.losses["rank"][:9].tolist() == pd.Series(means[0]).rank().tolist()


def test_the_same_losses_hold_and_few_mixtures_tell_nothing() -> None:
    labels = [f"m{number}" for number in range(6)]
    losses = made_up(3, labels, spread=2.0)
    same = [Column("a", "proxy", losses), Column("b", "proxy", losses)]
    orders = judge_ladder(same, dict.fromkeys(labels, 1)).orders
    assert (orders["flipped"] == 0).all()
    assert orders["spearman"].tolist() == pytest.approx([1.0] * 3)
    two = [Column("a", "proxy", losses), Column("b", "reference", made_up(4, labels[:2]))]
    ladder = judge_ladder(two, dict.fromkeys(labels, 1))
    assert ladder.orders["spearman"].isna().all()
    assert (ladder.orders["pairs"] == 1).all()
    assert ladder.words == []


def test_of_many_mixtures_the_best_are_compared() -> None:
    labels = [f"m{number:04d}" for number in range(MOST + 5)]
    first, second = made_up(5, labels), made_up(6, labels)
    ladder = judge_ladder(
        [Column("a", "proxy", first), Column("b", "proxy", second)], dict.fromkeys(labels, 3)
    )
    assert set(ladder.orders["mixtures"]) == {MOST}
    assert len(ladder.flips) == MOST_FLIPS
    tokens = [counts.num_tokens for counts in first.counts]
    worst = np.array(labels)[np.argsort((first.nll / tokens).mean(axis=1))[MOST:]]
    assert {*ladder.flips["better"], *ladder.flips["worse"]}.isdisjoint(worst.tolist())
