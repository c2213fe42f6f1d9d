"""Mixtures have one exact identity each; spaces hold what their formulas say, and nothing twice."""

import math
from fractions import Fraction
from itertools import combinations, product
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.fingerprint import canonical
from tasks.mixtures.mixture import Mixture
from tasks.mixtures.spaces import (
    AddOneIn,
    Dirichlet,
    Explicit,
    Grid,
    LeaveOneOut,
    MixturesConfig,
    MixtureSpace,
    Subsets,
    enumerate_mixtures,
)
from tasks.mixtures.units import by_domain, spread

CORPUS = {"code-0": "code", "code-1": "code", "law-0": "law", "prose-0": "prose"}
names = st.text("abcdef", min_size=1, max_size=3)
parts = st.dictionaries(names, st.integers(1, 50), min_size=1, max_size=6)
corpora = st.dictionaries(names, st.sampled_from(["X", "Y", "Z"]), min_size=1, max_size=6)
weights = st.dictionaries(names, st.floats(0, 1e6), min_size=1, max_size=8).filter(
    lambda found: any(found.values())
)


def listed(*spaces: MixtureSpace, corpus: dict[str, str] = CORPUS) -> list[Mixture]:
    return enumerate_mixtures(MixturesConfig(spaces=list(spaces)), corpus)


def labels(*spaces: MixtureSpace) -> list[str]:
    return [mixture.label for mixture in listed(*spaces)]


@given(parts, st.integers(1, 1000))
def test_common_factors_and_order_bear_no_identity(found: dict[str, int], factor: int) -> None:
    scaled = {name: found[name] * factor for name in reversed(found)}
    assert Mixture.of(scaled) == Mixture.of(found)
    assert hash(Mixture.of(scaled)) == hash(Mixture.of(found))
    assert math.gcd(*(part for _, part in Mixture.of(scaled).parts)) == 1


@given(parts)
def test_weights_are_exact_fractions_of_the_parts(found: dict[str, int]) -> None:
    whole = sum(found.values())
    assert Mixture.of(found).weights == {n: Fraction(part, whole) for n, part in found.items()}


@given(weights, st.integers(1, 500))
def test_weights_round_to_the_resolution(found: dict[str, float], resolution: int) -> None:
    mixture = Mixture.from_weights(found, resolution)
    assert resolution % mixture.total == 0
    whole = sum(map(Fraction, found.values()))
    for name, weight in found.items():
        error = mixture.weights.get(name, Fraction(0)) - Fraction(weight) / whole
        assert abs(error) < Fraction(1, resolution)


def test_largest_remainders_get_the_rest_and_ties_go_by_name() -> None:
    assert Mixture.from_weights({"c": 1, "b": 1, "a": 1}, 100).parts == (
        ("a", 34),
        ("b", 33),
        ("c", 33),
    )
    assert Mixture.from_weights({"a": 0.5, "b": 0.26, "c": 0.24}, 10).parts == (
        ("a", 5),
        ("b", 3),
        ("c", 2),
    )
    assert Mixture.from_weights({"a": 0.999, "b": 0.001}, 10).parts == (("a", 1),)


@given(parts, st.dictionaries(names, st.sampled_from("xyz")))
def test_members_that_get_the_same_name_add_up(found: dict[str, int], some: dict[str, str]) -> None:
    mapping = {name: some.get(name, "other") for name in found}
    mixture = Mixture.of(found)
    assert mixture.renamed(mapping).weights == {
        new: sum(w for old, w in mixture.weights.items() if mapping[old] == new)
        for new in mapping.values()
    }


def test_views_of_a_mixture() -> None:
    uneven, even = Mixture.of({"prose": 2, "code": 6, "law": 0}), Mixture.uniform(["prose", "code"])
    assert (uneven.label, even.label) == ("3 code + 1 prose", "code + prose")
    assert (uneven.is_uniform, even.is_uniform) == (False, True)
    assert (uneven.size, uneven.total, uneven.members) == (2, 4, ("code", "prose"))
    assert canonical(uneven.config()) == [["code", 3], ["prose", 1]]
    assert sorted([uneven, even]) == [even, uneven]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Mixture.of({}), "no members"),
        (lambda: Mixture.of({"a": 0}), "no members"),
        (lambda: Mixture.of({"a": -1}), "'a' is -1"),
        (lambda: Mixture.of(cast(dict[str, int], {"a": 0.5})), "'a' is 0.5"),
        (lambda: Mixture.of({"a": True}), "'a' is True"),
        (lambda: Mixture((("a", 1), ("a", 2))), r"\['a'\] more than once"),
        (lambda: Mixture.uniform(["a", "b", "a"]), r"\['a'\] more than once"),
        (lambda: Mixture.from_weights({"a": math.nan}, 10), "'a' is nan"),
        (lambda: Mixture.from_weights({"a": -0.5}, 10), "'a' is -0.5"),
        (lambda: Mixture.from_weights({"a": 0.0}, 10), "sum to zero"),
        (lambda: Mixture.from_weights({"a": 1.0}, 0), "resolution is 0"),
        (lambda: Mixture.uniform("ab").renamed({"a": "x"}), r"\['b'\]"),
    ],
)
def test_what_is_no_mixture_is_refused(act: object, message: str) -> None:
    assert callable(act)
    with pytest.raises(ValueError, match=message):
        act()


@given(corpora)
def test_macro_weighs_domains_alike_and_micro_partitions(corpus: dict[str, str]) -> None:
    sizes = {domain: list(corpus.values()).count(domain) for domain in corpus.values()}
    units = by_domain(corpus)
    assert spread(dict.fromkeys(units, 1), units).weights == {
        name: Fraction(1, len(sizes) * sizes[domain]) for name, domain in corpus.items()
    }
    assert spread(dict.fromkeys(units, 1), units, "micro") == Mixture.uniform(corpus)


@given(corpora, st.sampled_from(["micro", "macro"]), st.sampled_from(["partition", "domain"]))
def test_subsets_are_all_there(corpus: dict[str, str], merge: str, unit: str) -> None:
    space = Subsets.model_validate({"merge": merge, "unit": unit})
    units = corpus if unit == "partition" else set(corpus.values())
    assert len(listed(space, corpus=corpus)) == 2 ** len(units) - 1


@given(corpora, st.integers(1, 5), st.sampled_from(["micro", "macro"]))
def test_grid_holds_stars_and_bars(corpus: dict[str, str], steps: int, merge: str) -> None:
    mixtures = listed(Grid.model_validate({"steps": steps, "merge": merge}), corpus=corpus)
    points = product(range(steps + 1), repeat=len(corpus))
    reference = {
        Mixture.of(dict(zip(corpus, point, strict=True))) for point in points if sum(point) == steps
    }
    assert len(mixtures) == math.comb(len(corpus) + steps - 1, steps)
    assert set(mixtures) == reference


@given(corpora, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_counts_agree_with_the_lists(corpus: dict[str, str], a: int, b: int, c: int) -> None:
    first = min(corpus)
    spaces: list[MixtureSpace] = [
        Subsets(sizes=[a, b], always=[first]),
        Subsets(sizes=[a, a, c], unit="domain", merge="macro"),
        Grid(steps=a, unit="domain", merge="micro", fewest=min(b, c), most=max(b, c)),
        LeaveOneOut(around=[first, corpus[first]]),
        AddOneIn(around=[corpus[first]], unit="domain"),
    ]
    for space in spaces:
        found = _listed_or_none(space, corpus)
        if found:
            assert _listed_or_none(space, corpus, limit=len(found)) == found
        if len(found) > 1:
            with pytest.raises(ValueError, match=f"hold {len(found)} mixtures, more than limit"):
                _listed_or_none(space, corpus, limit=len(found) - 1)


def _listed_or_none(
    space: MixtureSpace, corpus: dict[str, str], limit: int = 20_000
) -> list[Mixture]:
    try:
        return enumerate_mixtures(MixturesConfig(spaces=[space], limit=limit), corpus)
    except ValueError as error:
        if "hold no mixture" in str(error):
            return []
        raise


@given(corpora, names, st.sampled_from(["X", "Z", "new"]))
def test_a_new_partition_leaves_the_old_mixtures(
    corpus: dict[str, str], name: str, domain: str
) -> None:
    spaces: list[MixtureSpace] = [
        Subsets(),
        Subsets(merge="macro"),
        Grid(steps=3),
        AddOneIn(around=[min(corpus)]),
    ]
    grown = {name: domain, **corpus}
    for space in spaces:
        assert {*listed(space, corpus=corpus)} <= {*listed(space, corpus=grown)}


def test_mixtures_come_in_a_stable_order_each_once() -> None:
    spaces: list[MixtureSpace] = [Grid(steps=2), Subsets(), Explicit(mixtures=[{"law-0": 7}])]
    found = listed(*spaces)
    assert found == listed(*reversed(spaces), corpus=dict(reversed(CORPUS.items())))
    assert len(found) == len(set(found)) == 15
    assert [mixture.size for mixture in found] == sorted(mixture.size for mixture in found)
    assert found[:2] == [Mixture.uniform(["code-0"]), Mixture.uniform(["code-1"])]


def test_subsets_take_sizes_always_and_only() -> None:
    assert labels(Subsets(sizes=[2, 9], always=["law"])) == [
        "code-0 + law-0",
        "code-1 + law-0",
        "law-0 + prose-0",
    ]
    assert labels(Subsets(only=["law", "code-0"])) == ["code-0", "law-0", "code-0 + law-0"]
    assert labels(Subsets(unit="domain", only=["code", "law"], merge="macro")) == [
        "law-0",
        "code-0 + code-1",
        "1 code-0 + 1 code-1 + 2 law-0",
    ]
    assert labels(Subsets(sizes=[3], only=["code", "law"], merge="macro")) == [
        "1 code-0 + 1 code-1 + 2 law-0"
    ]


def test_grid_bounds_the_number_of_units() -> None:
    pairs = listed(Grid(steps=4, fewest=2, most=2))
    assert {mixture.size for mixture in pairs} == {2}
    assert len(pairs) == 6 * 3


def test_weights_of_a_domain_are_of_all_of_it_or_of_each_partition() -> None:
    shared = Grid(steps=3, unit="domain", only=["code", "law"], fewest=2)
    assert labels(shared) == [
        "code-0 + code-1 + law-0",
        "1 code-0 + 1 code-1 + 4 law-0",
    ]
    each = Grid(steps=3, unit="domain", only=["code", "law"], fewest=2, merge="micro")
    assert labels(each) == ["1 code-0 + 1 code-1 + 2 law-0", "2 code-0 + 2 code-1 + 1 law-0"]


def test_a_sample_is_the_same_whenever_it_is_drawn() -> None:
    space = Dirichlet(count=3, seed=7, resolution=20, only=["code", "law"])
    assert labels(space) == [
        "17 code-1 + 3 law-0",
        "4 code-0 + 1 code-1 + 15 law-0",
        "6 code-0 + 9 code-1 + 5 law-0",
    ]
    assert listed(space, corpus=dict(reversed(CORPUS.items()))) == listed(space)
    assert {*listed(space)} <= {*listed(space.model_copy(update={"count": 9}))}
    assert {*listed(space)} != {*listed(space.model_copy(update={"seed": 8}))}


def test_a_sample_of_domains_shares_their_weight() -> None:
    for mixture in listed(Dirichlet(count=20, unit="domain")):
        assert mixture.weights.get("code-0") == mixture.weights.get("code-1")


def test_explicit_mixtures_are_exact_where_they_are_whole() -> None:
    found = listed(
        Explicit(mixtures=[{"code": 2, "law-0": 1}, {"code": 0.5, "code-0": 0.25, "law": 0.25}])
    )
    assert [mixture.label for mixture in found] == [
        "code-0 + code-1 + law-0",
        "2 code-0 + 1 code-1 + 1 law-0",
    ]
    huge = 10**15
    assert listed(Explicit(mixtures=[{"law": huge, "prose": 1}]))[0].total == huge + 1


def test_leaving_one_out_and_adding_one_in() -> None:
    assert labels(LeaveOneOut(around=["law", "code"])) == [
        "code-0 + code-1",
        "code-0 + law-0",
        "code-1 + law-0",
        "code-0 + code-1 + law-0",
    ]
    assert labels(LeaveOneOut(around=["law", "code"], unit="domain")) == [
        "law-0",
        "code-0 + code-1",
        "code-0 + code-1 + law-0",
    ]
    assert labels(LeaveOneOut(around=["law"])) == ["law-0"]
    assert labels(AddOneIn(around=["law"], unit="domain")) == [
        "law-0",
        "law-0 + prose-0",
        "code-0 + code-1 + law-0",
    ]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Subsets(only=["prosa"]), r"spaces\[0\].only names 'prosa'.*'prose'"),
        (Subsets(always=["cde-0"]), r"spaces\[0\].always names 'cde-0'.*'code-0'"),
        (Subsets(always=["code-0"], unit="domain"), r"always names 'code-0'.*whole units"),
        (Subsets(always=["law"], only=["code"]), r"always names 'law'.*whole units"),
        (LeaveOneOut(around=["low"]), r"around names 'low'.*'law'"),
        (Explicit(mixtures=[{"law": 1}, {"loaw-0": 1}]), r"mixtures\[1\] names 'loaw-0'.*'law-0'"),
        (Subsets(sizes=[5]), "hold no mixture of 4 partitions"),
        (Dirichlet(count=5, only=[]), "hold no mixture"),
        (Grid(steps=10**6), "more than limit = 20,000"),
        (Dirichlet(count=20_001), "hold 20,001 mixtures"),
    ],
)
def test_what_cannot_be_enumerated_is_refused(space: MixtureSpace, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listed(space)


def test_a_name_of_both_kinds_is_a_domain_where_the_unit_is_one() -> None:
    corpus = {"law": "code", "tort": "law"}
    assert listed(Subsets(only=["law"]), corpus=corpus) == [Mixture.uniform(["law"])]
    by_domain = Subsets(only=["law"], unit="domain")
    assert listed(by_domain, corpus=corpus) == [Mixture.uniform(["tort"])]


def test_an_explicit_name_of_both_kinds_is_told_apart_or_refused() -> None:
    corpus = {"law-0": "law", "law-0-0": "law-0", "code": "code"}
    weights = [{"law-0": 1.0, "code": 1.0}]
    with pytest.raises(
        ValueError, match=r"mixtures\[0\] names 'law-0', which is a partition of 'law'"
    ):
        listed(Explicit(mixtures=weights), corpus=corpus)
    for unit, chosen in (("partition", "law-0"), ("domain", "law-0-0")):
        space = Explicit.model_validate({"mixtures": weights, "unit": unit})
        assert listed(space, corpus=corpus) == [Mixture.uniform(["code", chosen])]


def test_a_space_far_too_large_is_refused_at_once() -> None:
    corpus = {f"p{index}": "d" for index in range(2000)}
    with pytest.raises(ValueError, match=r"hold about 10\^602 mixtures"):
        listed(Subsets(), corpus=corpus)
    assert len(listed(Subsets(sizes=[1]), corpus=corpus)) == 2000


def test_spaces_are_told_apart_by_kind() -> None:
    config = MixturesConfig.model_validate(
        {"spaces": [{"kind": "grid", "steps": 2}, {"kind": "leave-one-out", "around": ["law"]}]}
    )
    assert config.spaces == [Grid(steps=2), LeaveOneOut(around=["law"])]
    assert MixturesConfig.model_validate_json(config.model_dump_json()) == config
    assert MixturesConfig().spaces == [Subsets()]


@pytest.mark.parametrize(
    "spaces",
    [
        [{"kind": "grdi", "steps": 2}],
        [{"kind": "subsets", "sizes": [0]}],
        [{"kind": "grid", "steps": 0}],
        [{"kind": "explicit", "mixtures": [{"a": 1}, {"b": 0}]}],
        [{"kind": "explicit", "mixtures": [{"a": -1}]}],
        [{"kind": "dirichlet", "count": 1, "concentration": 0}],
        [{"kind": "add-one-in", "around": []}],
    ],
)
def test_settings_without_meaning_are_refused(spaces: list[object]) -> None:
    with pytest.raises(ValidationError):
        MixturesConfig.model_validate({"spaces": spaces})


def test_every_setting_is_explained() -> None:
    for model in (MixturesConfig, Subsets, Grid, Dirichlet, Explicit, LeaveOneOut, AddOneIn):
        for name, field in model.model_fields.items():
            assert (field.description or "").endswith("."), f"{model.__name__}.{name}"


def test_subsets_of_two_match_a_list_of_pairs() -> None:
    pairs = {Mixture.uniform(pair) for pair in combinations(CORPUS, 2)}
    assert set(listed(Subsets(sizes=[2]))) == pairs
