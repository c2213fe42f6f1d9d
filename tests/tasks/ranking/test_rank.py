"""The ranking against a plain paired bootstrap, sums done by hand, and what must not matter."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluation import group_sums
from tasks.ranking import rank as ranking
from tasks.ranking.effects import best_changes, best_uniform, marginal_effects
from tasks.ranking.rank import MACRO_MEAN, best_by_size, rank

Groups = dict[str, dict[str, list[float]]]
"""Nats per group, by evaluation set and mixture."""


def losses_of(groups: Groups, tokens: dict[str, list[int]]) -> pd.DataFrame:
    """The losses table of ``groups``: four bytes to a token, two tokens to a word."""
    rows = []
    for name, by_mixture in groups.items():
        count = np.array(tokens[name])
        for mixture, nats in by_mixture.items():
            rows.append(
                {
                    "mixture": mixture,
                    "evaluation_set": name,
                    "nll": float(np.sum(nats)),
                    "num_tokens": int(count.sum()),
                    "num_bytes": int(4 * count.sum()),
                    "num_words": int(count.sum() // 2),
                    "group_nll": np.array(nats, dtype=float),
                    "group_tokens": count,
                    "group_bytes": 4 * count,
                }
            )
    return pd.DataFrame(rows)


def members_of(mixtures: list[str]) -> pd.DataFrame:
    """Uniform members read from labels such as ``a + b``."""
    parts = {mixture: mixture.split(" + ") for mixture in mixtures}
    rows = [(name, part, 1 / len(parts[name])) for name in mixtures for part in parts[name]]
    return pd.DataFrame(rows, columns=["mixture", "partition", "weight"])


def by_hand() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two sets of ten tokens in two groups each; ``a`` is best on both."""
    groups = {
        "s": {"a": [10.0, 10.0], "b": [11.0, 13.0]},
        "t": {"a": [10.0, 20.0], "b": [10.0, 21.0]},
    }
    return losses_of(groups, {"s": [5, 5], "t": [5, 5]}), members_of(["a", "b"])


def noisy(seed: int, mixtures: list[str], sets: int = 2, size: int = 60) -> pd.DataFrame:
    """Hard and easy groups shared by all mixtures, and a little noise of each mixture's own."""
    rng = np.random.default_rng(seed)
    tokens = {f"set {index}": rng.integers(50, 400, size) for index in range(sets)}
    groups: Groups = {}
    for name, count in tokens.items():
        hard = 3 + rng.normal(0, 0.5, size)
        groups[name] = {
            mixture: list(count * (hard + 0.004 * place + rng.normal(0, 0.03, size)))
            for place, mixture in enumerate(mixtures)
        }
    return losses_of(groups, {name: list(count) for name, count in tokens.items()})


def test_one_set_by_hand() -> None:
    losses, members = by_hand()
    best, other = rank(losses, members, "s").to_dict("records")
    assert (best["mixture"], best["rank"], best["k"], best["tied"]) == ("a", 1, 1, True)
    assert best["loss"] == 2.0
    assert best["perplexity"] == pytest.approx(math.exp(2))
    assert best["bits_per_byte"] == pytest.approx(2 / 4 / math.log(2))
    assert best["word_perplexity"] == pytest.approx(math.exp(4))
    assert best["difference"] == best["low"] == best["high"] == 0
    # Residuals: a (0, 0); b (11 - 2.4 * 5, 13 - 2.4 * 5) = (-1, 1); 2 / (2 - 1) * 2 / 10^2 = 0.04.
    assert other["difference"] == pytest.approx(0.4)
    assert other["low"] == pytest.approx(0.4 - 1.959964 * 0.2)
    assert other["high"] == pytest.approx(0.4 + 1.959964 * 0.2)
    assert (other["rank"], other["tied"]) == (2, False)


def test_macro_mean_by_hand() -> None:
    losses, members = by_hand()
    best, other = rank(losses, members, MACRO_MEAN).to_dict("records")
    assert best["loss"] == pytest.approx((2 + 3) / 2)
    assert best["perplexity"] == pytest.approx(math.sqrt(math.exp(2) * math.exp(3)))
    assert best["bits_per_byte"] == pytest.approx(2.5 / 4 / math.log(2))
    assert best["word_perplexity"] == pytest.approx(math.exp(5))
    assert other["difference"] == pytest.approx((0.4 + 0.1) / 2)
    # On t the residuals differ by (-0.5, 0.5): 2 * 0.5 / 10^2 = 0.01.
    assert other["high"] - other["difference"] == pytest.approx(
        1.959964 * math.sqrt((0.04 + 0.01) / 2**2)
    )


@pytest.mark.parametrize("objective", ["set 0", MACRO_MEAN])
def test_interval_agrees_with_a_paired_bootstrap(objective: str) -> None:
    losses = noisy(3, ["a", "b"], size=150)
    table = rank(losses, members_of(["a", "b"]), objective)
    best, other = map(str, table["mixture"])
    rng = np.random.default_rng(0)
    draws = []
    for name, frame in losses.groupby("evaluation_set"):
        if objective in (name, MACRO_MEAN):
            nats = frame.set_index("mixture")["group_nll"]
            tokens = frame["group_tokens"].iloc[0]
            drawn = rng.integers(0, 150, (4000, 150))
            draws.append(
                (nats[other][drawn] - nats[best][drawn]).sum(axis=1) / tokens[drawn].sum(axis=1)
            )
    low, high = np.percentile(np.mean(draws, axis=0), [2.5, 97.5])
    width = high - low
    assert table["low"].iloc[1] == pytest.approx(low, abs=0.06 * width)
    assert table["high"].iloc[1] == pytest.approx(high, abs=0.06 * width)


def test_ranks_count_the_mixtures_that_are_better_beyond_the_noise() -> None:
    mixtures = ["a", "b", "c", "d", "a + b", "a + c"]
    losses = noisy(1, mixtures)
    table = rank(losses, members_of(mixtures), MACRO_MEAN)
    frames = [frame.set_index("mixture") for _, frame in losses.groupby("evaluation_set")]
    for mixture, shared in zip(table["mixture"], table["rank"], strict=True):
        better = 0
        for other in table["mixture"]:
            gaps, variance = [], 0.0
            for frame in frames:
                tokens, total = frame["group_tokens"].iloc[0], frame["num_tokens"].iloc[0]
                nats = frame["group_nll"][mixture] - frame["group_nll"][other]
                gaps.append(nats.sum() / total)
                residual = nats - gaps[-1] * tokens
                variance += 60 / 59 * (residual**2).sum() / total**2 / len(frames) ** 2
            better += np.mean(gaps) > 1.959964 * math.sqrt(variance)
        assert shared == 1 + better
    assert 1 < table["rank"].nunique() < len(table)


def test_equal_mixtures_share_a_rank_at_any_place() -> None:
    groups = {"s": {"a": [1.0, 2.0], "c": [4.0, 4.0], "b": [1.0, 2.0], "d": [3.0, 5.0]}}
    table = rank(losses_of(groups, {"s": [2, 2]}), members_of(["a", "b", "c", "d"]), "s")
    assert table["mixture"].tolist() == ["a", "b", "c", "d"]
    assert table["tied"].tolist()[:2] == [True, True]
    assert table["rank"].iloc[0] == table["rank"].iloc[1] == 1
    assert table["rank"].iloc[2] == table["rank"].iloc[3] == 3


def test_one_group_gives_no_interval_and_no_tie() -> None:
    one = {"a": [1.0], "b": [1.0]}
    groups = {"s": {**one, "c": [1.0 + 1e-12]}, "t": {**one, "c": [1.0]}}
    losses = losses_of(groups, {"s": [3], "t": [3]})
    for objective in ("s", MACRO_MEAN):
        table = rank(losses, members_of(["a", "b", "c"]), objective)
        assert table["low"].isna().all()
        assert table["high"].isna().all()
        assert table["tied"].tolist() == [True, True, False]
        assert table["rank"].tolist() == [1, 1, 3]


def test_past_the_compared_mixtures_ranks_are_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    mixtures = ["a", "b", "c", "d", "e", "f"]
    losses, members = noisy(5, mixtures), members_of(mixtures)
    everyone = rank(losses, members, MACRO_MEAN)
    monkeypatch.setattr(ranking, "MOST_COMPARED", 3)
    monkeypatch.setattr(ranking, "_ROWS", 2)
    monkeypatch.setattr(group_sums, "BLOCK", 2)
    monkeypatch.setattr(group_sums, "BLOCK", 2)
    table = rank(losses, members, MACRO_MEAN)
    assert table["rank"].tolist() == [*everyone["rank"][:3], 4, 5, 6]
    pd.testing.assert_frame_equal(table.drop(columns="rank"), everyone.drop(columns="rank"))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(12)))
def test_order_of_rows_does_not_matter(seed: int, order: list[int]) -> None:
    mixtures = ["a", "b", "c", "a + b", "a + c", "b + c"]
    losses, members = noisy(seed, mixtures, size=8), members_of(mixtures)
    shuffled, others = losses.iloc[order], members.iloc[::-1]
    for function in (rank, marginal_effects):
        pd.testing.assert_frame_equal(
            function(losses, members, MACRO_MEAN),
            function(shuffled, others, MACRO_MEAN),
            check_exact=True,
        )


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.5, 2.0, 4.0]))
def test_scaling_all_nats_scales_loss_and_interval_and_keeps_ranks(seed: int, scale: float) -> None:
    mixtures = ["a", "b", "c", "d"]
    losses, members = noisy(seed, mixtures, size=8), members_of(mixtures)
    scaled = losses.assign(nll=losses["nll"] * scale, group_nll=losses["group_nll"] * scale)
    before, after = rank(losses, members, MACRO_MEAN), rank(scaled, members, MACRO_MEAN)
    pd.testing.assert_frame_equal(before[["mixture", "rank"]], after[["mixture", "rank"]])
    numbers = ["loss", "bits_per_byte", "difference", "low", "high"]
    pd.testing.assert_frame_equal(before[numbers] * scale, after[numbers], rtol=1e-9)


def with_losses(values: dict[str, float]) -> pd.DataFrame:
    """One set of ten tokens in two even groups with these losses per token."""
    groups = {mixture: [5 * value, 5 * value] for mixture, value in values.items()}
    return losses_of({"s": groups}, {"s": [5, 5]})


EIGHT = {"a": 3.0, "b": 2.0, "c": 4.0, "a + b": 1.0, "a + c": 3.5, "b + c": 2.5, "a + b + c": 1.5}


def test_marginal_effects_by_hand() -> None:
    table = marginal_effects(with_losses(EIGHT), members_of(list(EIGHT)), "s").set_index(
        "partition"
    )
    # b: {a} 3 -> 1, {c} 4 -> 2.5, {a, c} 3.5 -> 1.5.
    assert table["values"]["b"] == pytest.approx([-2.0, -2.0, -1.5])
    assert table["mean"]["b"] == pytest.approx(-5.5 / 3)
    assert table["low"]["b"] == pytest.approx(-2)
    assert table["high"]["b"] == pytest.approx(-1.6)
    assert table["values"]["c"] == pytest.approx([0.5, 0.5, 0.5])
    assert table["count"].tolist() == [3, 3, 3]
    assert table.index.tolist() == ["b", "a", "c"]


def test_marginal_effects_leave_uneven_mixtures_out() -> None:
    losses = with_losses({"a": 3.0, "b": 2.0, "a + b": 1.0})
    members = members_of(["a", "b", "a + b"]).assign(weight=[1, 1, 0.75, 0.25])
    table = marginal_effects(losses, members, "s")
    assert table["count"].tolist() == [0, 0]
    assert table["mean"].isna().all()
    ranked = rank(losses, members, "s")
    assert ranked["mixture"].iloc[0] == "a + b"
    assert best_uniform(ranked, members) == "b"


@settings(max_examples=50)
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_additive_effects_are_found_exactly(effects: list[float]) -> None:
    names = "abcd"
    values = {
        " + ".join(chosen): 5 + sum(effects[names.index(name)] for name in chosen) / 4
        for size in (1, 2, 3, 4)
        for chosen in itertools.combinations(names, size)
    }
    table = marginal_effects(with_losses(values), members_of(list(values)), "s")
    table = table.set_index("partition")
    for name, effect in zip(names, effects, strict=True):
        assert table["count"][name] == 7
        assert table["values"][name] == pytest.approx([effect / 4] * 7, abs=1e-12)


def test_best_changes_and_sizes_by_hand() -> None:
    members = members_of(list(EIGHT))
    table = rank(with_losses(EIGHT), members, "s")
    changes = best_changes(table.sample(frac=1, random_state=0), members)
    assert changes.to_dict("split")["data"] == [
        ["add", "c", "a + b + c", pytest.approx(0.5)],
        ["remove", "a", "b", pytest.approx(1.0)],
        ["remove", "b", "a", pytest.approx(2.0)],
    ]
    sizes = best_by_size(table.sample(frac=1, random_state=0))
    assert sizes["k"].tolist() == [1, 2, 3]
    assert sizes["mixture"].tolist() == ["b", "a + b", "a + b + c"]


def test_no_uniform_mixture_means_no_changes() -> None:
    members = members_of(["a + b"]).assign(weight=[0.75, 0.25])
    table = rank(with_losses({"a + b": 1.0}), members, "s")
    assert best_uniform(table, members) is None
    assert best_changes(table, members).empty


def bad(case: str) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    losses, members = by_hand()
    match case:
        case "missing":
            return losses.iloc[[0, 1, 2]], members, MACRO_MEAN
        case "unknown":
            return losses, members, "u"
        case "twice":
            return pd.concat([losses, losses.iloc[[1]]]), members, "s"
        case "infinite":
            return losses.assign(nll=[math.nan, 1.0, 1.0, 1.0]), members, "s"
        case "other text":
            return losses.assign(num_tokens=[10, 11, 10, 10]), members, "s"
    return losses, members[members["mixture"] == "a"], "s"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "mixture 'b' .1 in all. has no loss on the evaluation set 't'"),
        ("unknown", "no losses for the objective 'u': give 'macro mean' or one of 's', 't'"),
        ("twice", "mixture 'b' has two losses on 's'"),
        ("infinite", "the loss of mixture 'a' on 's' is not finite"),
        ("other text", "different text.* set 's': 10 to 11 tokens in 2 to 2 groups"),
        ("members", "mixture 'b' has losses but no partition"),
    ],
)
def test_bad_tables_are_refused_by_name(case: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank(*bad(case))
