"""Proposals keep the constraints, are new, and lead to the optimum in few evaluations."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.mixtures.constraints import ConstraintsConfig, Feasible
from tasks.mixtures.mixture import Mixture
from tasks.search.first_design import first_design
from tasks.search.objective import Objective, ObjectiveConfig
from tasks.search.proposals import Proposals, propose

Floats = NDArray[np.float64]
Judge = Callable[[Floats], Floats]
SETS = ["law", "qa"]


def units(count: int) -> dict[str, str]:
    return {f"p{n:02}": f"d{n % 3}" for n in range(count)}


def paired(count: int, seed: int) -> Judge:
    """Two sets' losses: linear terms, pairs that help or hinder one another, and noise.

    Each unit hinders itself, so that the best mixture has several members.
    """
    generator = np.random.default_rng(seed)
    linear = generator.normal(0, 0.1, (count, len(SETS)))
    pairs = generator.normal(0, 0.3, (len(SETS), count, count)) + np.eye(count)

    def judge(weights: Floats) -> Floats:
        noise = np.random.default_rng([seed, *np.rint(weights * 1e6).astype(int).ravel()])
        mixed = np.einsum("ni,sij,nj->ns", weights, pairs, weights)
        found: Floats = 1 + weights @ linear + mixed + noise.normal(0, 0.001, mixed.shape)
        return found

    return judge


def search(
    feasible: Feasible,
    objective: Objective,
    judge: Judge,
    budget: int,
    names: list[str],
    base: Floats | None = None,
) -> tuple[list[Mixture], Floats, list[Proposals]]:
    """Mixtures in the order of their evaluation, their losses, and the rounds."""
    generator, rounds = np.random.default_rng(0), []

    def losses_of(mixtures: list[Mixture]) -> Floats:
        return np.vstack([judge(feasible.weights_of([mixture])) for mixture in mixtures])

    done = first_design(feasible, min(budget, 2 * len(feasible.names) + 8), generator)
    losses = losses_of(done)
    while len(done) < budget:
        count = min(20, budget - len(done))
        weights = feasible.weights_of(done)
        made = propose(weights, losses, base, objective, feasible, count, generator, names)
        new = [proposal.mixture for proposal in made.proposals]
        done, losses = [*done, *new], np.vstack([losses, losses_of(new)])
        rounds.append(made)
    return done, losses, rounds


@pytest.mark.parametrize(
    ("seed", "by"),
    [
        (0, ["linear", "quadratic"]),
        (1, ["linear", "quadratic"]),
        pytest.param(2, ["gaussian process"], marks=pytest.mark.slow),
    ],
)
def test_the_best_of_4095_subsets_is_found_in_one_of_twenty(seed: int, by: list[str]) -> None:
    names, judge = units(12), paired(12, seed)
    feasible = Feasible(ConstraintsConfig(even=True), names)
    objective = Objective(ObjectiveConfig(), SETS, feasible.names)
    subsets = [Mixture.uniform(c) for k in range(1, 13) for c in combinations(names, k)]
    weights = feasible.weights_of(subsets)
    losses = np.vstack([judge(row[None]) for row in weights])
    best = subsets[int(np.argmin(objective.values(losses, weights)))]
    done, _, rounds = search(feasible, objective, judge, len(subsets) // 20, by)
    assert len(done) == len({*done}) == 204
    assert best.size > 1
    assert best in done[32:], "found by a surrogate, not by the first design"
    assert {p.proposed_by for made in rounds for p in made.proposals} <= {*by}


def test_an_optimum_among_weights_is_found_within_the_resolution() -> None:
    optimum = np.array([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    feasible = Feasible(ConstraintsConfig(), units(6))
    objective = Objective(ObjectiveConfig(), SETS, feasible.names)

    def judge(weights: Floats) -> Floats:
        distance = ((weights - optimum) ** 2).sum(axis=1)
        return np.stack([1 + distance, 2 + 2 * distance], axis=1)

    done, losses, rounds = search(feasible, objective, judge, 60, ["linear", "quadratic"])
    weights = feasible.weights_of(done)
    best = int(np.argmin(objective.values(losses, weights)))
    assert np.abs(weights[best] - optimum).max() <= 0.01 + 1e-12
    assert rounds[-1].chosen == "quadratic"
    assert all(feasible.allows(mixture) for mixture in done)


@pytest.mark.parametrize("names", [["lightgbm"], ["linear", "log-linear"]])
@pytest.mark.parametrize("even", [False, True])
def test_constraints_hold_and_nothing_is_repeated(names: list[str], even: bool) -> None:
    fields = {
        "even": even,
        "bounds": {"d0": (0.3, 0.6), "p01": (0.0, 0.4)},
        "most_partitions": 5,
        "repetition": {"tokens": 1000},
    }
    pool = units(22)  # too many subsets to list
    config = ConstraintsConfig.model_validate(fields)
    feasible = Feasible(config, pool, dict.fromkeys(pool, 25))
    objective = Objective(ObjectiveConfig(pull=0.01), SETS, feasible.names)
    assert (feasible.listed is None) or even
    done, losses, rounds = search(feasible, objective, paired(22, 1), 70, names)
    assert len({*done}) == len(done) == 70
    assert all(feasible.allows(mixture) for mixture in done)
    values = objective.values(losses, feasible.weights_of(done))
    assert np.median(values[52:]) < np.median(values[:52])
    for made in rounds:
        predicted = [p.predicted for p in made.proposals]
        weights = feasible.weights_of([p.mixture for p in made.proposals])
        stacked = np.array([p.losses for p in made.proposals])
        assert predicted == pytest.approx(objective.values(stacked, weights).tolist())
        assert made.surrogates.loc[made.surrogates["chosen"], "surrogate"].unique() == made.chosen


def test_a_search_ends_where_everything_is_evaluated() -> None:
    feasible = Feasible(ConstraintsConfig(even=True), units(3))
    objective = Objective(ObjectiveConfig(), SETS, feasible.names)
    everything = first_design(feasible, 100, np.random.default_rng(0))
    assert len(everything) == len({*everything}) == 7
    weights = feasible.weights_of(everything)
    generator, losses = np.random.default_rng(0), paired(3, 0)(weights)
    made = propose(weights[:6], losses[:6], None, objective, feasible, 9, generator, ["linear"])
    assert [p.mixture for p in made.proposals] == everything[6:]
    made = propose(weights, losses, None, objective, feasible, 9, generator, ["linear"])
    assert made.proposals == []


def test_caps_come_before_the_mean() -> None:
    feasible = Feasible(ConstraintsConfig(), units(3))
    objective = Objective(
        ObjectiveConfig(weights={"law": 1}, caps={"qa": 10}), SETS, feasible.names
    )

    def judge(weights: Floats) -> Floats:
        return np.stack([1 - weights[:, 0], 1 + weights[:, 0]], axis=1)

    base = np.array([1.0, 1.2])
    done, losses, _ = search(feasible, objective, judge, 24, ["linear"], base)
    weights = feasible.weights_of(done)
    allowed = objective.holds(losses, base)
    best = np.where(allowed, objective.values(losses, weights), np.inf).argmin()
    assert weights[best, 0] == pytest.approx(0.32)


@pytest.mark.parametrize(
    ("count", "fields"),
    [
        (9, {}),
        (9, {"even": True}),
        (30, {"most_partitions": 3}),
        (9, {"bounds": {"d0": (0.5, 0.7)}}),
    ],
)
def test_a_first_design_covers_every_unit(count: int, fields: dict[str, object]) -> None:
    feasible = Feasible(ConstraintsConfig.model_validate(fields), units(8))
    design = first_design(feasible, count, np.random.default_rng(0))
    weights = feasible.weights_of(design)
    assert len({*design}) == len(design) == count
    assert all(feasible.allows(mixture) for mixture in design)
    assert (weights.max(axis=0) >= 0.2).all()
    assert design == first_design(feasible, count, np.random.default_rng(0))


def test_a_first_design_of_subsets_is_balanced_over_their_sizes() -> None:
    feasible = Feasible(ConstraintsConfig(even=True), units(8))
    sizes = [mixture.size for mixture in first_design(feasible, 60, np.random.default_rng(0))]
    counts = [sizes.count(k) for k in range(1, 9)]
    assert (counts[0], counts[7]) == (8, 1)
    assert max(counts[1:7]) - min(counts[1:7]) <= 1


def test_what_cannot_be_learnt_from_is_refused() -> None:
    feasible = Feasible(ConstraintsConfig(), units(3))
    objective = Objective(ObjectiveConfig(), SETS, feasible.names)
    design = first_design(feasible, 6, np.random.default_rng(0))
    losses = paired(3, 0)(feasible.weights_of(design))

    def proposed(mixtures: list[Mixture], found: Floats) -> Proposals:
        weights, generator = feasible.weights_of(mixtures), np.random.default_rng(0)
        return propose(weights, found, None, objective, feasible, 2, generator)

    with pytest.raises(ValueError, match="4 evaluated mixtures are too few"):
        proposed(design[:4], losses[:4])
    with pytest.raises(ValueError, match=r"shape \(6, 1\) do not fit"):
        proposed(design, losses[:, :1])
    losses[2, 1] = np.inf
    with pytest.raises(ValueError, match="mixture 3 on 'qa' is inf"):
        proposed(design, losses)
