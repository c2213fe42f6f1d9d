"""A larger sample of references keeps the smaller one, covers the ranking, and stays in its budget."""

import itertools
import math
from itertools import accumulate

import pytest
from hypothesis import given as cases
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.mixtures.mixture import Mixture
from tasks.trust.references import (
    Budget,
    ValidationConfig,
    affordable,
    choose_references,
    parse_budget,
)

NAMES = "abcdefg"
ALL = [
    Mixture.uniform(chosen)
    for size in range(1, 8)
    for chosen in itertools.combinations(NAMES, size)
]
LOSSES = {mixture.label: math.sin(number) for number, mixture in enumerate(ALL)}


@cases(
    st.integers(1, 40),
    st.integers(0, 5),
    st.sampled_from([(2, 3, 4), (4, 2), (3,)]),
    st.sampled_from([None, LOSSES]),
)
def test_more_references_keep_the_fewer(
    count: int, seed: int, sizes: tuple[int, ...], losses: dict[str, float] | None
) -> None:
    total = sum(math.comb(7, size) for size in sizes)
    chosen = choose_references(ALL, min(count, total), sizes, seed, losses)
    more = choose_references(ALL, min(count + 1, total), sizes, seed, losses)
    assert more[: len(chosen)] == chosen
    assert len({*chosen}) == len(chosen) == min(count, total)
    assert choose_references(reversed(ALL), len(chosen), sizes, seed, losses) == chosen
    shares = [sum(mixture.size == size for mixture in chosen) for size in sizes]
    full = [share == math.comb(7, size) for share, size in zip(shares, sizes, strict=True)]
    open_shares = [share for share, is_full in zip(shares, full, strict=True) if not is_full]
    assert not open_shares or max(open_shares) - min(open_shares) <= 1


def test_seeds_choose_others() -> None:
    for losses in (None, LOSSES):
        chosen = {tuple(choose_references(ALL, 6, (2, 3, 4), seed, losses)) for seed in range(5)}
        assert len(chosen) == 5


def test_what_other_predictors_hold_to_be_best_comes_next() -> None:
    """Where they disagree; the rest is as before, and a larger sample keeps the smaller one."""
    other = {label: -loss for label, loss in LOSSES.items()}
    third = {**LOSSES, "c + e": -2.0, "c + d + e": -2.0}
    plain = choose_references(ALL, 21, (2,), 0, LOSSES)
    found = choose_references(ALL, 21, (2,), 0, LOSSES, [LOSSES, other, third, other])
    worst = max((m for m in ALL if m.size == 2), key=lambda m: LOSSES[m.label])
    assert found[:3] == [plain[0], worst, Mixture.uniform("ce")]
    assert sorted(found) == sorted(plain)
    for count in range(1, 21):
        fewer = choose_references(ALL, count, (2,), 0, LOSSES, [LOSSES, other, third, other])
        assert fewer == found[:count]
    both = choose_references(ALL, 4, (2, 3), 0, LOSSES, [third])
    assert both[2:] == [Mixture.uniform("ce"), Mixture.uniform("cde")]
    assert choose_references(ALL, 9, (2, 3), 0, LOSSES, [LOSSES]) == choose_references(
        ALL, 9, (2, 3), 0, LOSSES
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [5, 9, 17, 35])
def test_the_best_comes_first_and_the_rest_covers_the_ranking(seed: int, count: int) -> None:
    ranked = sorted((m for m in ALL if m.size == 3), key=lambda m: LOSSES[m.label])
    chosen = choose_references(ALL, count, [3], seed, LOSSES)
    assert chosen[0] == ranked[0]
    places = sorted(ranked.index(mixture) for mixture in chosen)
    # A sequence of low discrepancy: no gap is much wider than that of even distances.
    ends = [-1, *places, len(ranked)]
    assert max(b - a for a, b in itertools.pairwise(ends)) <= 2 * len(ranked) / (count - 1) + 1


def test_mixtures_without_a_loss_come_last() -> None:
    known = {m.label: 1.0 for m in ALL if m.size == 2 and "a" in m.members}
    chosen = choose_references(ALL, 1, [2], 0, known)
    assert chosen[0].label in known


def test_other_mixtures_do_not_move_a_choice() -> None:
    """Nothing but uniform mixtures of the sizes counts, and each counts once."""
    odd = [Mixture.of({"a": 1, "b": 2}), Mixture.uniform("abcde"), *ALL]
    assert choose_references([*odd, *odd], 9, (2, 3), 0) == choose_references(ALL, 9, (2, 3), 0)


def test_a_single_partition_is_no_reference() -> None:
    """It would be its own proxy, trained again: a perfect pair that says nothing."""
    assert ValidationConfig(sizes=[2, 5]).sizes == [2, 5]
    with pytest.raises(
        ValidationError, match=r"sizes\.1\s+Input should be greater than or equal to 2"
    ):
        ValidationConfig(sizes=[2, 1])


def test_too_few_mixtures() -> None:
    assert len(choose_references(ALL, 56, (2, 3), 0)) == 21 + 35
    with pytest.raises(ValueError, match=r"asks for 57 mixtures, and the recipe has 56 .*\[2, 3\]"):
        choose_references(ALL, 57, (2, 3), 0)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("12", Budget(12, "trainings")),
        ("12 trainings", Budget(12, "trainings")),
        ("1 training", Budget(1, "trainings")),
        ("5e6 tokens", Budget(5e6, "tokens")),
        ("5 tokens", Budget(5, "tokens")),
        ("2.5 Mtokens", Budget(2.5e6, "tokens")),
        ("3 Ttokens", Budget(3e12, "tokens")),
        ("40 kJ", Budget(4e4, "joules")),
        ("40J", Budget(40, "joules")),
    ],
)
def test_budgets_are_read_as_people_write_them(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "many", "12 kg", "5k", "3 ktrainings", "1.2.3 tokens", "-4"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"the budget .* write 12 \(trainings\), 5e6 tokens"):
        parse_budget(text)


@cases(st.lists(st.floats(0, 10), max_size=8), st.floats(0, 30))
def test_a_budget_pays_for_the_first_ones(costs: list[float], amount: float) -> None:
    number = affordable(costs, Budget(amount, "tokens"))
    totals = [0.0, *accumulate(costs)]
    assert totals[number] <= amount
    assert number == len(costs) or totals[number + 1] > amount
