"""A search on known losses: its budget, its memory, and what is told of it."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.mixtures.constraints import ConstraintsConfig, Feasible
from tasks.mixtures.mixture import Mixture
from tasks.search.account import account
from tasks.search.objective import Objective, ObjectiveConfig
from tasks.search.rounds import Search, SearchConfig, Tried, num_possible

Floats = NDArray[np.float64]

UNITS = ("a", "b", "c", "d")
LOWEST = {"one": np.array([0.1, 0.2, 0.3, 0.4]), "two": np.array([0.7, 0.1, 0.1, 0.1])}


def losses(tried: list[Tried]) -> Floats:
    """Two bowls with their lowest points at ``LOWEST``; shape (n, 2)."""
    weights = np.array([[float(one.mixture.weights.get(u, 0)) for u in UNITS] for one in tried])
    found = [1 + ((weights - lowest) ** 2).sum(axis=1) for lowest in LOWEST.values()]
    return np.stack(found, axis=1)


def new(objective: dict[str, Any] | None = None, **fields: Any) -> Search:
    tree = {"evaluations": 40, "surrogates": ["linear", "quadratic"], "descent": None, **fields}
    rules = SearchConfig.model_validate({**tree, "objective": objective or {"weights": {"one": 1}}})
    feasible = Feasible(rules.constraints, {unit: unit for unit in UNITS})
    return Search(
        rules,
        feasible,
        Objective(rules.objective, [*LOWEST], UNITS),
        {unit: (f"{unit}-0", f"{unit}-1") for unit in UNITS},
    )


def carried_out(search: Search) -> Search:
    """The search at its end."""
    search.base = np.array([1.3, 1.3])
    tried = search.first()
    while tried:
        search.learn(tried, losses(tried))
        tried = search.next()
    return search


def test_the_lowest_point_is_found_and_told() -> None:
    search = carried_out(new())
    told = account(search)
    assert len(search.tried) == len({one.mixture for one in search.tried}) == 40
    best = told.best.iloc[0]
    assert best["objective"] == pytest.approx(1, abs=2e-4)
    assert (
        best["mixture"]
        == Mixture.of(
            {
                f"{unit}-{n}": part
                for unit, part in zip(UNITS, (10, 20, 30, 40), strict=True)
                for n in range(2)
            }
        ).label
    )
    assert (np.diff(told.trace["best"]) <= 0).all()
    assert told.trace["best"].iloc[-1] == told.trace["objective"].min() == best["objective"]
    assert told.surrogates["share"].tolist() == [1, 0] * 2
    assert set(told.surrogates.loc[told.surrogates["chosen"], "surrogate"]) == {"quadratic"}
    assert told.words[0] == "40 of 176,851 possible mixtures were evaluated (0.0226 %)."
    assert told.words[1].startswith(f"The best of them is {best['mixture']}, 1.0000 bits per byte")
    assert "the base model has 1.3000" in told.words[1]
    assert told.words[2].startswith("Among the surrogates, 'quadratic' orders mixtures")


def test_a_larger_budget_begins_like_a_smaller_and_another_seed_does_not() -> None:
    short, long, other = map(carried_out, (new(), new(evaluations=55), new(seed=1)))
    assert long.tried[:40] == short.tried
    assert len(long.tried) == 55
    assert [one.mixture for one in other.tried] != [one.mixture for one in short.tried]


def test_a_budget_below_the_first_design() -> None:
    search = carried_out(new(evaluations=3))
    assert [one.proposed_by for one in search.tried] == ["start"] * 3
    assert search.next() == []
    told = account(search)
    assert told.surrogates.empty
    assert "share" in told.surrogates
    assert "ended before" not in " ".join(told.words)
    assert told.words[0].startswith("3 of 176,851")


def test_it_ends_where_nothing_new_is_allowed() -> None:
    search = carried_out(new(constraints={"even": True, "most_partitions": 2}))
    assert len(search.tried) == 10
    words = account(search).words
    assert words[0] == "10 of 10 possible mixtures were evaluated (100 %)."
    assert words[2] == (
        "The search ended before its budget of 40 was spent: no other mixture that the constraints "
        "allow was found."
    )


def test_a_first_design_too_small_for_surrogates_is_told() -> None:
    words = account(carried_out(new(start=3))).words
    assert words[2].endswith(
        "was spent: surrogates need 5 evaluated mixtures, so raise search.start."
    )


def test_limits_make_the_number_of_possible_mixtures_an_upper_bound() -> None:
    limits = {"bounds": {"a": [0.0, 0.5]}, "most_partitions": 1, "resolution": 10}
    words = " ".join(account(carried_out(new(constraints=limits))).words)
    assert words.startswith("3 of at most 4 possible mixtures were evaluated. The best")
    assert "these constraints bind: at most 1 member." in words


def test_a_pull_is_told_apart_from_bits_per_byte() -> None:
    search = carried_out(new({"weights": {"one": 1}, "pull": 0.1}))
    told = account(search)
    best = told.best.iloc[0]
    assert best["objective"] > best["one"] + 1e-3
    value = f"{best['one']:.4f} bits per byte (objective with the pull: {best['objective']:.4f})"
    assert f", {value}; the base model has 1.3000." in told.words[1]
    assert "bits per byte of the objective with the pull (root mean square)" in told.words[3]


def test_landings_are_evaluated_once() -> None:
    search = new(constraints={"resolution": 10})
    first = search.first()
    search.learn(first, losses(first))
    known = search.weights[0]
    landings = search.landed([known, np.array([0.11, 0.19, 0.31, 0.39]), np.array([1, 2, 3, 4])])
    lowest = Mixture.of(dict(zip(UNITS, (1, 2, 3, 4), strict=True)))
    assert landings == [first[0].mixture, lowest]
    (tried,) = search.untried(landings)
    assert (tried.mixture, tried.proposed_by) == (lowest, "descent")
    search.base = np.ones(2)
    search.learn([tried], losses([tried]))
    words = " ".join(account(search, landings, 12.4).words)
    assert "landed on 2 different mixtures" in words
    assert "1.0000 bits per byte, number 1 of 17. It cost as much as 12 evaluations." in words
    assert "below the best mixture that was found without it" in words


def test_caps_are_kept_and_their_price_is_told() -> None:
    """Without the cap on the second set the lowest point of the first would be the best."""
    caps = {"weights": {"one": 1}, "caps": {"two": 0.0}}
    search = new(caps, evaluations=60)
    search.base = np.array([1.3, 1.2])
    tried = search.first()
    while tried:
        search.learn(tried, losses(tried))
        tried = search.next()
    told = account(search)
    assert (told.best["two"] <= 1.2).all()
    broken = told.trace[~told.trace["feasible"]]
    assert (losses(search.tried)[broken.index, 1] > 1.2).all()
    words = " ".join(told.words)
    assert f"{len(broken)} of the evaluated mixtures break a cap" in words
    assert told.best["objective"][0] > broken["objective"].min()
    assert "The caps cost " in words


def test_where_no_mixture_keeps_the_caps() -> None:
    search = new({"caps": {"*": -20.0}})
    search.base = np.ones(2)
    first = search.first()
    search.learn(first, losses(first))
    told = account(search)
    assert told.best.empty
    assert told.trace["best"].isna().all()
    assert told.words[1].startswith("None of them keeps every cap.")


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("most", [None, 2])
def test_possible_mixtures_are_counted(even: bool, most: int | None) -> None:
    config = ConstraintsConfig(even=even, resolution=6, most_partitions=most, fewest_partitions=2)
    feasible = Feasible(config, {unit: unit for unit in UNITS})
    listed = [np.array(p) for p in itertools.product(range(2 if even else 7), repeat=4) if sum(p)]
    assert num_possible(feasible) == int(feasible.holds(np.stack(listed)).sum())


def test_wrong_rules_are_refused() -> None:
    for names, message in ((["linaer"], "'linaer' is no surrogate"), (["linear"] * 2, "twice")):
        with pytest.raises(ValueError, match=message):
            SearchConfig(surrogates=names)
    with pytest.raises(ValueError, match="three"):
        new(ObjectiveConfig(weights={"three": 1}).model_dump())
