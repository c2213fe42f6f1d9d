"""Fronts, the best of each size and pairs of partitions, against references of a line or two."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluation.losses import Losses
from tasks.ranking import choice
from tasks.ranking.choice import best_of_sizes, most_conflicting, pareto, plane
from tasks.ranking.complement import complementarity, duplicate_words, near_duplicates
from tasks.ranking.effects import marginal_effects
from tasks.ranking.rank import MACRO_MEAN, rank_all
from tests.tasks.reports import averaged

COPIES = {"copy": "law"}


def table_of(bits: dict[str, list[float]]) -> tuple[Losses, pd.DataFrame]:
    """Mixtures m0, m1 ... of one partition each, with these bits per byte, in one group."""
    rows = [
        (f"m{n}", name, value * math.log(2) * 10, 4, 10, 2, [value * math.log(2) * 10], [4], [10])
        for name, values in bits.items()
        for n, value in enumerate(values)
    ]
    names = "mixture evaluation_set nll num_tokens num_bytes num_words"
    groups = ["group_nll", "group_tokens", "group_bytes"]
    losses = Losses.of(pd.DataFrame(rows, columns=[*names.split(), *groups]))
    members = pd.DataFrame(
        {"mixture": losses.mixtures, "partition": losses.mixtures, "weight": 1.0}
    )
    return losses, members


POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12)


@given(points=POINTS)
def test_the_front_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    first, second = ([float(point[axis]) for point in points] for axis in (0, 1))
    losses, members = table_of({"s": first, "t": second})
    expected = {
        f"m{n}"
        for n, (x, y) in enumerate(points)
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    }
    found = pareto(losses, members, "s", "t")
    assert set(found["mixture"]) == expected
    assert found["first"].is_monotonic_increasing
    assert found["second"].is_monotonic_decreasing
    every = plane(losses, members, "s", "t")
    assert set(every["mixture"][every["front"]]) == expected
    assert every[["first", "second"]].to_numpy()[0] == pytest.approx(points[0])  # m0 is first


def test_sets_of_a_front_must_be_there_and_differ() -> None:
    losses, members = table_of({"s": [1.0], "t": [2.0]})
    with pytest.raises(ValueError, match="no evaluation set 'u'; there are 's', 't'"):
        pareto(losses, members, "s", "u")
    with pytest.raises(ValueError, match="both are 's'"):
        pareto(losses, members, "s", "s")


def test_the_sets_that_conflict_most_order_mixtures_least_alike() -> None:
    rows = {"a": [1.0, 2, 3, 4], "b": [1.0, 2, 4, 3], "c": [2.0, 9, 4, 1], "d": [5.0, 5, 5, 5]}
    assert most_conflicting(table_of(rows)[0]) == ("a", "c")
    frame = pd.DataFrame(rows).corr("spearman")
    alike = {pair: frame.to_numpy()[pair] for pair in itertools.combinations(range(3), 2)}
    assert min(alike, key=lambda pair: alike[pair]) == (0, 2)
    assert most_conflicting(table_of({"a": [1.0, 2.0]})[0]) is None
    assert most_conflicting(table_of({"a": [1.0], "b": [1.0]})[0]) == ("a", "b")


def test_the_best_of_each_size_comes_with_its_ties() -> None:
    losses, members = averaged(["a", "b", "c", "d"], ["a", "b"], {"d": "c"})
    rankings = rank_all(losses, members)
    found = best_of_sizes(losses, rankings)
    assert list(dict.fromkeys(found["objective"])) == [MACRO_MEAN, "a", "b"]
    for name, ranking in rankings.items():
        of_objective = found[found["objective"] == name]
        assert of_objective["k"].tolist() == [1, 2, 3, 4]
        for row in rows_of(of_objective):
            same = ranking[ranking["k"] == row["k"]]
            assert row["loss"] == same["loss"].min()
            assert row["of_size"] == math.comb(4, row["k"])
            # Among one size alone, "tied" of a ranking is the tie with the best of that size.
            kept = [losses.mixtures.index(label) for label in same["mixture"]]
            alone = Losses.of(frame_of(losses, kept))
            again = rank_all(alone, members)[name]
            assert row["tied_at_size"] == again["tied"].sum() - 1
    # A copy is tied with its original, exactly.
    assert (found["tied_at_size"] > 0).any()


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def frame_of(losses: Losses, kept: list[int]) -> pd.DataFrame:
    """Some mixtures as a frame that ``Losses.of`` reads."""
    rows = []
    for place, (name, counts) in enumerate(zip(losses.sets, losses.counts, strict=True)):
        for number in kept:
            groups = losses.sums.read(place, number, number + 1)[0]
            totals = (losses.nll[number, place], *counts[:3])
            rows.append((losses.mixtures[number], name, *totals, groups, *counts[3:]))
    names = "mixture evaluation_set nll num_tokens num_bytes num_words"
    return pd.DataFrame(rows, columns=[*names.split(), "group_nll", "group_tokens", "group_bytes"])


def test_only_the_nearest_of_a_size_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, members = table_of({"s": [1.0] * 5})
    rankings = rank_all(losses, members)
    assert best_of_sizes(losses, rankings)["tied_at_size"].tolist() == [4, 4]
    monkeypatch.setattr(choice, "CLOSEST", 2)
    assert best_of_sizes(losses, rankings)["tied_at_size"].tolist() == [2, 2]


# Pairs --------------------------------------------------------------------------------------------


def test_complementarity_is_the_better_part_less_the_merge() -> None:
    losses, members = averaged(["code", "law", "news"], ["code", "law"], {})
    loss = {
        name: rank.set_index("mixture")["loss"] for name, rank in rank_all(losses, members).items()
    }
    for objective in (MACRO_MEAN, "code", "law"):
        found = complementarity(losses, members, objective)
        assert len(found) == 3
        assert found["complementarity"].is_monotonic_decreasing
        of = loss[objective]
        for row in rows_of(found):
            parts = of[row["first"]], of[row["second"]]
            gain = min(parts) - of[f"{row['first']} + {row['second']}"]
            assert row["complementarity"] == pytest.approx(gain, abs=1e-12)
            assert row["low"] < row["complementarity"] < row["high"]
    with pytest.raises(ValueError, match="no evaluation set 'x'"):
        complementarity(losses, members, "x")


def test_the_interval_is_that_of_the_paired_groups() -> None:
    losses, members = averaged(["code", "law"], ["code"], {})
    place = {name: number for number, name in enumerate(losses.mixtures)}
    nats = losses.sums.take(0, np.arange(3))
    tokens = losses.counts[0].group_tokens
    better = min(("code", "law"), key=lambda name: losses.nll[place[name], 0])
    rate = (nats[place[better]] - nats[place["code + law"]]).sum() / tokens.sum()
    residual = nats[place[better]] - nats[place["code + law"]] - rate * tokens
    deviation = math.sqrt(len(tokens) / (len(tokens) - 1) * (residual**2).sum()) / tokens.sum()
    [row] = rows_of(complementarity(losses, members, "code"))
    assert row["complementarity"] == pytest.approx(rate)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(1.959964 * deviation, rel=1e-6)


def test_a_copy_is_a_near_duplicate_with_the_same_effect_and_no_complementarity() -> None:
    names, sets = ["code", "copy", "law", "news"], ["code", "law", "news", "web"]
    losses, members = averaged(names, sets, COPIES)
    for objective in (MACRO_MEAN, *sets):
        found = complementarity(losses, members, objective).set_index(["first", "second"])
        assert found.loc[("copy", "law"), "complementarity"] == 0
    [row] = rows_of(near_duplicates(losses, members, {}))
    assert (row["first"], row["second"], row["drop"], row["distance"]) == ("copy", "law", "law", 0)
    assert near_duplicates(losses, members, {"copy": "legal", "law": "legal"}).empty
    effects = marginal_effects(losses, members, MACRO_MEAN)
    mean = effects.set_index("partition")["mean"]
    assert mean["copy"] == pytest.approx(mean["law"], abs=1e-12)
    [words] = duplicate_words(near_duplicates(losses, members, {}), effects)
    assert "copy and law are near-duplicates" in words
    assert f"({mean['law']:+.4f} and {mean['law']:+.4f}) are shared" in words
    assert "merging them gains 0.0000" in words
    assert words.endswith("If one is to go, drop law.")


@pytest.mark.parametrize("seed", range(5))
def test_different_partitions_are_no_near_duplicates(seed: int) -> None:
    losses, members = averaged(["code", "law", "news"], [*"abcd"], {}, seed)
    assert near_duplicates(losses, members, {}).empty


@given(st.integers(0, 50), st.integers(2, 6), st.floats(0, 0.2), st.booleans())
@settings(max_examples=30)
def test_distances_are_those_of_groups(seed: int, count: int, noise: float, has_inf: bool) -> None:
    """What one model loses on some documents it does not win back on others."""
    random = np.random.default_rng(seed)
    names, sets = [f"p{n}" for n in range(count)], [*"wxyz"]
    per_group = {(m, s): random.normal(3, 1, 6) for m in names for s in sets}
    for s in sets:  # the last is a copy of the one before, or nearly
        per_group[names[-1], s] = per_group[names[-2], s] + random.normal(0, noise, 6)
    if has_inf:
        per_group["p0", "w"][0] = math.inf
    losses, members = grouped(per_group)
    found = {
        (row["first"], row["second"]): row["distance"]
        for row in rows_of(near_duplicates(losses, members, {}))
    }
    distances = {
        (a, b): math.sqrt(
            np.mean([np.square(per_group[a, s] - per_group[b, s]).mean() for s in sets])
        )
        for a, b in itertools.combinations(names[has_inf:], 2)
    }
    limit = 0.1 * np.median([*distances.values()]) if len(distances) > 2 else -1
    assert found == {pair: pytest.approx(d) for pair, d in distances.items() if d <= limit}


def grouped(per_group: dict[tuple[str, str], Any]) -> tuple[Losses, pd.DataFrame]:
    """Mixtures of one partition each, by nats per token of groups of ten tokens."""
    rows = [
        (mixture, name, 10 * sum(loss), *(n * len(loss) for n in (10, 40, 5)), 10 * loss, *counts)
        for (mixture, name), loss in per_group.items()
        for counts in [([10] * len(loss), [40] * len(loss))]
    ]
    names = "mixture evaluation_set nll num_tokens num_bytes num_words"
    groups = ["group_nll", "group_tokens", "group_bytes"]
    losses = Losses.of(pd.DataFrame(rows, columns=[*names.split(), *groups]))
    members = pd.DataFrame(
        {"mixture": losses.mixtures, "partition": losses.mixtures, "weight": 1.0}
    )
    return losses, members


def test_models_of_one_loss_that_err_on_other_documents_are_no_near_duplicates() -> None:
    one, other = np.array([2.0, 4.0, 2.0, 4.0]), np.array([4.0, 2.0, 4.0, 2.0])
    models = {"birds": one, "copy": one + 0.01, "letters": other, "law": one + 1, "sums": other + 2}
    losses, members = grouped({(m, s): loss for m, loss in models.items() for s in "wxyz"})
    assert losses.nll[0].tolist() == losses.nll[losses.mixtures.index("letters")].tolist()
    [row] = rows_of(near_duplicates(losses, members, {}))
    assert (row["first"], row["second"]) == ("birds", "copy")
    assert row["distance"] == pytest.approx(0.01)
    few, members = grouped({(m, s): loss for m, loss in models.items() for s in "wxy"})
    assert near_duplicates(few, members, {}).empty


@pytest.mark.parametrize(("others", "found"), [(1, 0), (4, 6)])
def test_near_copies_that_are_the_rule_do_not_stand_out(others: int, found: int) -> None:
    random = np.random.default_rng(0)
    copies = dict.fromkeys("abcd", random.normal(3, 1, 24))
    models = copies | {f"other {n}": random.normal(3, 1, 24) for n in range(others)}
    losses, members = grouped(
        {(m, s): loss + random.normal(0, 0.01, 24) for m, loss in models.items() for s in "wxyz"}
    )
    pairs = near_duplicates(losses, members, {})
    assert len(pairs) == found
    assert {*pairs["first"], *pairs["second"]} <= {*copies}


def test_two_partitions_alone_cannot_be_called_near_duplicates() -> None:
    losses, members = averaged(["copy", "law"], ["law"], COPIES)
    assert near_duplicates(losses, members, {}).empty
    assert complementarity(losses, members, MACRO_MEAN)["complementarity"].tolist() == [0]


def test_without_merges_losses_alone_decide() -> None:
    names = ["code", "copy", "law", "news"]
    losses, members = averaged(names, ["code", "law", "news", "web"], COPIES)
    kept = [number for number, name in enumerate(losses.mixtures) if name in names]
    alone = Losses.of(frame_of(losses, kept))
    assert complementarity(alone, members, "law").empty
    [row] = rows_of(near_duplicates(alone, members, {}))
    assert (row["first"], row["second"]) == ("copy", "law")
    assert math.isnan(row["complementarity"])
    effects = marginal_effects(alone, members, MACRO_MEAN)
    [words] = duplicate_words(near_duplicates(alone, members, {}), effects)
    assert "(not known and not known)" in words
    assert "merging them gains" not in words


def test_weighted_merges_are_no_pairs() -> None:
    losses, members = averaged(["code", "law"], ["law"], {})
    heavy = (members["mixture"] == "code + law") & (members["partition"] == "law")
    members.loc[heavy, "weight"] = 0.6
    assert complementarity(losses, members, "law").empty
