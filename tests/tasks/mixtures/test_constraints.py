"""Constraints hold exactly, whatever they are; the nearest allowed point is the nearest there is."""

from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.mixtures.constraints import ConstraintsConfig, Feasible
from tasks.mixtures.draws import moves, sample
from tasks.mixtures.mixture import Mixture

DOMAINS = {"a": "X", "b": "X", "c": "Y", "d": "Z"}
TOKENS = {"a": 100, "b": 300, "c": 50, "d": 700}
shares = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(
    lambda pair: (min(pair) / 20, max(pair) / 20)
)
named = st.sampled_from([*DOMAINS, "X", "Y", "Z"])
sums = st.builds(
    lambda of, share: {"of": of, "least": share[0], "most": share[1]},
    st.lists(named, min_size=1, max_size=3),
    shares,
)
configs = st.fixed_dictionaries(
    {
        "even": st.booleans(),
        "resolution": st.sampled_from([1, 7, 10]),
        "bounds": st.dictionaries(named, shares, max_size=2),
        "sums": st.lists(sums, max_size=2),
        "fewest_partitions": st.integers(1, 3),
        "most_partitions": st.none() | st.integers(1, 4),
        "repetition": st.none()
        | st.builds(lambda n, r: {"tokens": n, "most": r}, st.integers(1, 3000), st.floats(0.1, 9)),
    }
)


def exact(number: float) -> Fraction:
    return Fraction(repr(number))


def keeps(mixture: Mixture, config: ConstraintsConfig) -> bool:
    """The constraints, said once more in fractions."""

    def share(names: list[str]) -> Fraction:
        held = mixture.weights.items()
        return sum((w for n, w in held if n in names or DOMAINS[n] in names), Fraction(0))

    def repeated(domain: str) -> Fraction:
        assert config.repetition
        held = sum(TOKENS[name] for name in DOMAINS if DOMAINS[name] == domain)
        return share([domain]) * config.repetition.tokens / held

    groups = [([name], *bounds) for name, bounds in config.bounds.items()]
    groups += [(group.of, group.least, group.most) for group in config.sums]
    return (
        all(exact(low) <= share(of) <= exact(high) for of, low, high in groups)
        and config.fewest_partitions <= mixture.size <= (config.most_partitions or 99)
        and (mixture.is_uniform if config.even else config.resolution % mixture.total == 0)
        and (
            config.repetition is None
            or all(repeated(domain) <= exact(config.repetition.most) for domain in "XYZ")
        )
    )


def everything(config: ConstraintsConfig) -> list[Mixture]:
    """All mixtures of four units, one by one."""
    if config.even:
        return [Mixture.uniform(c) for k in range(1, 5) for c in combinations(DOMAINS, k)]
    whole = config.resolution
    points = ((*p, whole - sum(p)) for p in product(range(whole + 1), repeat=3) if sum(p) <= whole)
    return [Mixture.of(dict(zip(DOMAINS, point, strict=True))) for point in points]


@settings(max_examples=40)
@given(configs, st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any))
def test_the_nearest_of_all_allowed_mixtures_is_found(
    fields: dict[str, Any], wanted: list[int]
) -> None:
    config = ConstraintsConfig.model_validate(fields)
    allowed = [mixture for mixture in everything(config) if keeps(mixture, config)]
    if not allowed:
        with pytest.raises(ValueError, match="no mixture keeps these constraints together"):
            Feasible(config, DOMAINS, TOKENS)
        return
    feasible = Feasible(config, DOMAINS, TOKENS)
    weights = np.array(wanted) / sum(wanted)
    found = feasible.round(weights)
    distances = np.abs(feasible.weights_of(allowed) - weights).sum(axis=1)
    assert keeps(feasible.mixture(found), config)
    assert np.abs(found / found.sum() - weights).sum() == pytest.approx(distances.min())
    assert {m for m in everything(config) if feasible.allows(m)} == set(allowed)
    listed = feasible.listed
    assert (listed is not None) == config.even
    if listed is not None:
        assert {feasible.mixture(row) for row in listed} == set(allowed)


@settings(max_examples=20)
@given(configs, st.integers(0, 99))
def test_whatever_is_drawn_keeps_the_constraints(fields: dict[str, Any], seed: int) -> None:
    config = ConstraintsConfig.model_validate(fields | {"resolution": 100})
    try:
        feasible = Feasible(config, DOMAINS, TOKENS)
    except ValueError:
        return
    drawn = sample(feasible, np.random.default_rng(seed), 12)
    moved = moves(feasible, drawn[0], np.random.default_rng(seed), 50)
    mixtures = [feasible.mixture(row) for row in [*drawn, *moved]]
    assert mixtures
    assert all(keeps(mixture, config) for mixture in mixtures)
    assert len({*mixtures[: len(drawn)]}) == len(drawn)
    assert feasible.mixture(drawn[0]) not in mixtures[len(drawn) :]
    assert (sample(feasible, np.random.default_rng(seed), 12) == drawn).all()


def test_samples_are_many_and_varied_also_where_few_points_are_allowed() -> None:
    narrow = ConstraintsConfig(sums=[{"of": ["X"], "least": 0.5, "most": 0.6}], most_partitions=3)  # type: ignore[list-item]
    for config in (ConstraintsConfig(), narrow):
        feasible = Feasible(config, DOMAINS)
        drawn = sample(feasible, np.random.default_rng(0), 300)
        assert len(drawn) == 300
        largest = feasible.weights(drawn).max(axis=1)
        assert (largest < 0.55).sum() > 20
        assert (largest > 0.45).sum() > 20


def test_large_even_pools_are_drawn_over_all_sizes() -> None:
    names = {f"p{n:02}": "even" if n % 2 else "odd" for n in range(40)}
    config = ConstraintsConfig(even=True, bounds={"p00": (0.1, 1), "odd": (0.5, 0.5)})
    feasible = Feasible(config, names)
    assert feasible.listed is None
    drawn = sample(feasible, np.random.default_rng(0), 60)
    assert len(drawn) == 60
    assert drawn[:, 0].all()
    assert set(drawn.sum(axis=1).tolist()) == {2, 4, 6, 8, 10}
    assert (drawn[:, ::2].sum(axis=1) * 2 == drawn.sum(axis=1)).all()


def test_optimisers_get_the_limits_as_numbers() -> None:
    config = ConstraintsConfig(bounds={"a": (0.1, 0.6), "X": (0.2, 0.9)})
    feasible = Feasible(config, DOMAINS)
    low, high = feasible.bounds
    assert (low.tolist(), high.tolist()) == ([0.1, 0, 0, 0], [0.6, 1, 1, 1])
    matrix, least, most = feasible.rows
    assert matrix.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert (least.tolist(), most.tolist()) == ([0.1, 0.2], [0.6, 0.9])


@pytest.mark.parametrize(
    ("fields", "named", "unnamed"),
    [
        ({"bounds": {"a": (0.6, 1), "c": (0.5, 1), "d": (0, 0.9)}}, ["'a'", "'c'"], ["'d'"]),
        (
            {"bounds": {"X": (0, 0.3)}, "sums": [{"name": "old", "of": ["c", "d"], "most": 0.6}]},
            ["bounds of 'X' (0 to 0.3)", "sum of 'old' (0 to 0.6)"],
            ["partitions"],
        ),
        (
            {"bounds": dict.fromkeys("abcd", (0, 0.3)), "most_partitions": 3},
            ["'a'", "at most 3 of 4 partitions"],
            ["at least"],
        ),
        ({"fewest_partitions": 5, "bounds": {"a": (0, 0.5)}}, ["at least 5 of 4"], ["'a'"]),
        ({"bounds": {"a": (0.333, 0.333)}}, ["'a'", "multiples of 1/100"], []),
        ({"bounds": {"a": (0.34, 0.49)}, "even": True}, ["'a'", "weigh alike"], ["partitions"]),
        (
            {"repetition": {"tokens": 10_000}, "bounds": {"d": (0, 0.9)}},
            ["repetition of 'X'", "'Y'", "'Z' (4 times 700 tokens)"],
            ["bounds"],
        ),
    ],
)
def test_constraints_that_contradict_are_named_and_no_others(
    fields: dict[str, Any], named: list[str], unnamed: list[str]
) -> None:
    with pytest.raises(ValueError, match="no mixture keeps") as caught:
        Feasible(ConstraintsConfig.model_validate(fields), DOMAINS, TOKENS)
    for text in named:
        assert text in str(caught.value)
    for text in unnamed:
        assert text not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bounds": {"e": (0, 1)}}, "'e', which is unknown"),
        ({"bounds": {"a": (0.5, 0.4)}}, "bounds of 'a' are 0.5 to 0.4"),
        ({"bounds": {"a": (0, 1.5)}}, "bounds of 'a' are 0 to 1.5"),
        ({"sums": [{"of": []}]}, "no members"),
        ({"sums": [{"of": ["a", "V"]}]}, "'V', which is unknown"),
        ({"resolution": 0}, "resolution is 0"),
        ({"most_partitions": 0}, "most_partitions is 0"),
        ({"repetition": {"tokens": 0}}, "in 0 tokens"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Feasible(ConstraintsConfig.model_validate(fields), DOMAINS, TOKENS)


def test_names_and_tokens_must_be_clear() -> None:
    with pytest.raises(ValueError, match=r"\['a', 'b', 'c', 'd'\] have none"):
        Feasible(ConstraintsConfig.model_validate({"repetition": {"tokens": 9}}), DOMAINS)
    bounds = ConstraintsConfig(bounds={"X": (0, 1)})
    with pytest.raises(ValueError, match="'X', which is a partition and also a domain"):
        Feasible(bounds, {"X": "Y", "b": "X"})
    assert Feasible(bounds, {"X": "X", "b": "Y"}).names == ("X", "b")
    feasible = Feasible(ConstraintsConfig(), DOMAINS)
    with pytest.raises(ValueError, match="'e', which is unknown"):
        feasible.allows(Mixture.uniform("ae"))
    with pytest.raises(ValueError, match="give 4 finite numbers"):
        feasible.round(np.array([1.0, -1.0, 0.0, 0.0]))


def test_a_repetition_bounds_the_weight_of_a_domain_by_its_tokens() -> None:
    config = ConstraintsConfig.model_validate({"repetition": {"tokens": 2000}})
    feasible = Feasible(config, DOMAINS, TOKENS)
    # Four times 400, 50 and 700 tokens in 2,000: at most 80 %, 10 % and all of it.
    assert feasible.allows(Mixture.of({"a": 8, "d": 2}))
    assert not feasible.allows(Mixture.of({"a": 50, "b": 31, "d": 19}))
    assert feasible.allows(Mixture.of({"c": 1, "d": 9}))
    assert not feasible.allows(Mixture.of({"c": 11, "d": 89}))
