"""A race finds the best, counts what it evaluates, asks for nothing twice, and tells of everybody."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.evaluation.set_part import PartConfig, part_groups
from tasks.ranking.calibration import Groups
from tasks.ranking.race import FEW, RaceConfig, RaceSets, race
from tasks.ranking.race_result import RaceResult

Floats = NDArray[np.float64]

SETS, DOCUMENTS, PARTS = 3, 60, 3
RULES = RaceConfig(top=5, groups=16)


class World(NamedTuple):
    """Losses of all subsets of some models, as a race wants them."""

    text: RaceSets
    shares: Floats
    losses: Floats
    """Shape (mixtures, groups)."""
    members: Floats

    @property
    def best(self) -> list[int]:
        order = np.argsort(self.losses.sum(axis=1), kind="stable")
        return [int(place) for place in order]


def world(seed: int, models: int = 8, noise: float = 0.02) -> World:
    """Each model is good on some documents; a mixture beats its members' mean, and more so the more
    they differ; the rest is noise."""
    chance = np.random.default_rng(seed)
    sizes = list(range(1, models + 1))
    subsets = itertools.chain.from_iterable(itertools.combinations(range(models), k) for k in sizes)
    chosen = list(subsets)
    shares = np.zeros((len(chosen), models))
    for row, parts in enumerate(chosen):
        shares[row, list(parts)] = 1 / len(parts)
    stratum = np.repeat(np.arange(SETS), DOCUMENTS)
    tokens = chance.integers(50, 150, len(stratum)).astype(float)
    weight = tokens / np.bincount(stratum, tokens)[stratum] / SETS
    hard = 3 + chance.normal(0, 0.5, len(stratum))
    skill = chance.normal(0, 0.1, (models, SETS))[:, stratum]
    members = hard + skill + chance.normal(0, 0.1, (models, len(stratum)))
    gain = 0.1 * (shares.max(axis=1) < 1)[:, None] * (1 - shares.max(axis=1))[:, None]
    errors = noise * chance.normal(size=(len(chosen), len(stratum)))
    losses = shares @ members - gain + errors * (shares.max(axis=1) < 1)[:, None]
    part = np.full(len(stratum), -1)
    for number, place in itertools.product(range(PARTS), range(SETS)):
        groups = part_groups(PartConfig(number=number, share=0.03125, fewest=6), DOCUMENTS)
        part[place * DOCUMENTS :][groups.start : groups.stop] = number
    forward = [int((part == number).sum()) for number in range(PARTS)]
    text = RaceSets(Groups(stratum, weight), part, forward, len(stratum))
    return World(text, shares, losses * weight, members * weight)


class Stored:
    """Gives what is asked for and notes it; from question ``end`` on it knows nothing."""

    def __init__(self, of: World, end: int = 1000) -> None:
        self.world, self.end = of, end
        self.asked: Counter[tuple[int, int]] = Counter()
        self.tokens = self.questions = 0

    def _found(self, losses: Floats, tokens: int) -> Floats | None:
        self.questions += 1
        if self.questions > self.end:
            return None
        self.tokens += len(losses) * tokens
        return losses

    def opening(
        self, mixtures: Sequence[int], *, with_members: bool
    ) -> tuple[Floats, Floats] | None:
        members = self.world.members if with_members else self.world.members[:0]
        self.tokens += len(members) * self.world.text.tokens
        found = self.look(mixtures, 0)
        return None if found is None else (found, members)

    def look(self, mixtures: Sequence[int], number: int) -> Floats | None:
        self.asked.update((mixture, number) for mixture in mixtures)
        text = self.world.text
        places = np.flatnonzero(text.look == number)
        return self._found(self.world.losses[list(mixtures)][:, places], text.look_tokens[number])

    def whole(self, mixtures: Sequence[int]) -> Floats | None:
        self.asked.update((mixture, -1) for mixture in mixtures)
        return self._found(self.world.losses[mixtures], self.world.text.tokens)


def run(of: World, rules: RaceConfig = RULES) -> tuple[RaceResult, Stored]:
    stored = Stored(of)
    return race(rules, of.text, of.shares, stored), stored


@settings(max_examples=25)
@given(st.integers(0, 100_000), st.floats(0, 0.2))
def test_everybody_is_told_of_once_and_all_work_is_counted(seed: int, noise: float) -> None:
    here = world(seed, noise=noise)
    result, stored = run(here)
    assert result.is_complete
    out = [one.mixture for one in result.exits]
    assert sorted([*result.finalists, *out]) == list(range(len(here.shares)))
    assert max(stored.asked.values()) == 1
    assert result.evaluated_tokens == stored.tokens
    assert result.full_tokens == len(here.shares) * here.text.tokens
    known = {mixture for mixture, part in stored.asked if part == -1}
    alone = set(np.flatnonzero(here.shares.max(axis=1) == 1).tolist())
    assert known <= set(result.finalists) <= known | alone
    for one in result.exits:
        assert one.low > one.bound or one.low == one.estimate > one.bound
        assert one.low <= one.estimate <= one.high
        assert one.bound >= here.losses[here.best[RULES.top - 1]].sum() - 1e-12


@settings(max_examples=15)
@given(st.integers(0, 100_000))
def test_without_noise_the_best_are_found_at_once(seed: int) -> None:
    """Then what a mixture gains is the same on each document, and one look tells all."""
    here = world(seed, noise=0.0)
    result, _ = run(here)
    assert set(here.best[: RULES.top]) <= set(result.finalists)
    assert len(result.rounds) == 1
    assert result.evaluated_tokens < 0.3 * result.full_tokens


def test_the_best_are_kept_as_often_as_is_said() -> None:
    """Sixty worlds with noise that leaves many ties, at a confidence of 80 %."""
    rules = RULES.model_copy(update={"confidence": 0.8})
    lost, shares = 0, []
    for seed in range(60):
        here = world(seed, noise=0.05)
        result, _ = run(here, rules)
        lost += not set(here.best[: rules.top]) <= set(result.finalists)
        shares.append(result.evaluated_tokens / result.full_tokens)
    assert lost <= 12
    assert np.mean(shares) < 0.5


def test_more_confidence_drops_less() -> None:
    here = world(2, noise=0.05)
    kept = [
        set(run(here, RULES.model_copy(update={"confidence": confidence}))[0].finalists)
        for confidence in (0.5, 0.95, 0.9999)
    ]
    assert len(kept[0]) < len(kept[2])
    assert set(here.best[: RULES.top]) <= kept[1] | kept[2]


def test_few_mixtures_are_evaluated_in_full() -> None:
    here = world(3, models=3)
    rules = RULES.model_copy(update={"top": -(-7 // FEW)})
    result, stored = run(here, rules)
    assert (result.finalists, result.exits, result.rounds) == (list(range(7)), [], [])
    assert set(stored.asked) == {(mixture, -1) for mixture in range(7)}
    assert result.evaluated_tokens == result.full_tokens


def test_many_partitions_are_no_controls() -> None:
    """With 5 models and 31 mixtures the models would be a sixth of all that there is to evaluate."""
    here = world(4, models=5, noise=0.0)
    result, stored = run(here, RULES.model_copy(update={"top": 2}))
    assert {mixture for mixture, part in stored.asked if part == 0} == set(range(31))
    assert set(here.best[:2]) <= set(result.finalists)
    assert all(one.look is not None for one in result.exits)


def test_where_losses_are_not_known_the_race_ends() -> None:
    here = world(5, noise=0.05)
    whole, stored = run(here)
    for end in range(stored.questions):
        result = race(RULES, here.text, here.shares, Stored(here, end))
        assert not result.is_complete
        assert result.finalists == []
        assert result.exits == whole.exits[: len(result.exits)]
        assert result.rounds == whole.rounds[: len(result.rounds)]


def test_single_models_are_judged_by_what_is_known() -> None:
    """The best mixture is one model: it is a finalist although it was at no look."""
    here = world(6, noise=0.02)
    place = int(here.shares[:, 0].argmax())
    assert here.shares[place].max() == 1
    here.losses[place] -= 0.5 * here.text.groups.weight
    here.members[0] = here.losses[place]
    result, stored = run(here)
    assert here.best[0] == place in result.finalists
    assert not [asked for asked in stored.asked if asked[0] == place]


@pytest.mark.parametrize("field", [{"top": 0}, {"confidence": 1.0}, {"share": 0.5}, {"groups": 8}])
def test_rules_that_make_no_sense_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        RaceConfig.model_validate(field)
