"""The verdict says what the figures allow, and where they allow nothing."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest

from tasks.ranking.rank import MACRO_MEAN
from tasks.trust.barrier import barriers
from tasks.trust.sentences import ENOUGH_RIGHT, FEWEST_REFERENCES, named_list, standing
from tasks.trust.verdict import Trust, judge

PARTITIONS = "abcdefgh"
OWN = {"x": "a", "y": "b", "z": None}
"""The partition that has a set's domain."""
Members = dict[str, tuple[str, ...]]


def sample(counts: dict[int, int]) -> Members:
    """So many mixtures of each number of partitions."""
    random = np.random.default_rng(5)
    found: Members = {}
    for k, count in counts.items():
        known = list(itertools.combinations(PARTITIONS, k))
        for number in random.choice(len(known), count, replace=False):
            found[" + ".join(known[number])] = known[number]
    return found


def losses(members: Members, noise: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """Losses of mixtures as means over partitions; proxies miss references by so much on each set."""
    random = np.random.default_rng(seed)
    rows = []
    for name, miss in noise.items():
        level = dict(zip(PARTITIONS, random.normal(3, 0.3, 8), strict=True))
        for label, parts in members.items():
            own = OWN.get(name)
            reference = np.mean([level[part] for part in parts]) - 0.1 * len(parts)
            rows.append(
                {
                    "mixture": label,
                    "k": len(parts),
                    "evaluation_set": name,
                    "own": None if own is None else "in" if own in parts else "out",
                    "proxy": reference + random.normal(0, miss),
                    "reference": reference,
                    "singles": random.normal(),
                    "tokens": -float(len(parts)),
                    "nearest": random.normal(),
                    "regression": random.normal(),
                }
            )
    frame = pd.DataFrame(rows)
    columns = [*frame.columns[4:]]
    macro = frame.groupby(["mixture", "k"], sort=False)[columns].mean().reset_index()
    frame = pd.concat([frame, macro.assign(evaluation_set=MACRO_MEAN, own=None)])
    bits = {f"{name}_bits": frame[name] / 4 for name in ("proxy", "reference")}
    return frame.assign(**bits).reset_index(drop=True)


def midpoints(worse: float) -> pd.DataFrame:
    """Three pairs; the midpoint of a and b is so much worse than both and than the base model."""
    singles = {name: {"x": 2.0} for name in "abc"}
    pairs = {("a", "b"): {"x": 3 + worse}, ("a", "c"): {"x": 1.9}, ("b", "c"): {"x": 1.9}}
    return barriers(singles, pairs, {"x": 3.0})


def judged(counts: dict[int, int], noise: dict[str, float], worse: float = -2) -> Trust:
    members = sample(counts)
    return judge(losses(members, noise), members, None, midpoints(worse), draws=200)


MANY = {2: 12, 3: 12, 4: 12}


def test_proxies_that_follow_are_trusted() -> None:
    found = judged(MANY, {"x": 0.01, "y": 0.01, "z": 0.01})
    text = " ".join(found.words)
    assert found.words[0] == (
        "The ranking can be trusted for the macro mean and all evaluation sets (3), among mixtures of "
        "the same k."
    )
    assert "Macro mean at fixed k, 36 references: Pearson 0.99 (95 % interval 0.9" in text
    assert re.search(
        r"By number of partitions: at k = 2, 3 and 4 it can be trusted\. In figures: k = 2: 12 "
        r"references, \d+ % of pairs right; k = 3",
        text,
    )
    assert re.search(
        r"Pooled over all k .* is 1\.00, at fixed k 0\.99: the first is inflated", text
    )
    assert "Over the evaluation sets whose domain is in the pool (2) the mean Pearson" in text
    assert re.search(
        r"differ by 0\.\d{5} bits per byte or more, the better one was told in \d+ of", text
    )
    assert "Merging orders better than the mean of single partitions (Pearson" in text
    assert "Merging orders better than a regression on mixture weights, which is fitted to" in text
    assert "Nothing can be said of the number of tokens: at fixed k it is the same for all" in text
    assert "No reference was trained twice" in text
    assert "None of the 3 pairs of partition models" in found.words[-1]
    assert not re.search(r"\bnan\b", text)


def test_a_set_that_does_not_follow_is_left_out() -> None:
    found = judged(MANY, {"x": 0.01, "y": 0.01, "z": 0.15})
    assert found.words[0].startswith("Trust the ranking for x and y only, among mixtures")
    assert any(
        re.match(r"On z this validation cannot tell: not enough references \(with 36", w)
        for w in found.words
    )
    each = next(words for words in found.words if words.startswith("The same difference"))
    assert "x 0.0" in each
    assert "z 0" not in each


def test_proxies_that_are_noise_are_not_trusted() -> None:
    found = judged(MANY, {"x": 9.0, "z": 9.0})
    assert found.words[0].startswith("Do not trust this ranking: fewer than 80 % of the pairs")
    assert any("nothing that these references can show over" in words for words in found.words)
    assert any(words.startswith("No difference of proxies") for words in found.words)


def test_few_references_cannot_tell() -> None:
    found = judged({2: 2, 3: 2}, {"x": 0.01, "y": 0.01})
    assert found.words[0] == (
        "This validation cannot tell: not enough references (4; 6 are the least)."
    )
    assert any("cannot be judged apart: none has 6 references" in words for words in found.words)
    assert (
        "Whether merging orders better than other predictors cannot be told yet: not enough "
        "references (4; 6 are the least)."
    ) in found.words
    claims = (
        "Merging orders",
        "Merging adds",
        "Pooled",
        "On the macro mean, of two",
        "The same diff",
    )
    assert not any(words.startswith(claims) for words in found.words)
    lone = judged({2: 1, 3: 1}, {"x": 0.01})
    assert lone.words[0].startswith("This validation cannot tell: not enough references (0;")


def test_trust_that_rests_on_all_sizes_together_says_so() -> None:
    found = judged({2: 4, 3: 4, 4: 4}, {"x": 0.001, "y": 0.001})
    assert found.words[0] == (
        "The ranking can be trusted for the macro mean and all evaluation sets (2), among mixtures of the "
        "same k, over k = 2, 3, 4 together (no single k has 6 references)."
    )
    assert any(
        "at k = 2, 3 and 4 this validation cannot tell. In" in words for words in found.words
    )
    one_has = judged({2: 6, 3: 4}, {"x": 0.001})
    assert one_has.words[0].endswith("among mixtures of the same k.")


def test_a_baseline_known_for_few_references_is_not_compared() -> None:
    members = sample(MANY)
    pairs = losses(members, {"x": 0.01})
    kept = list(members)[:4]
    pairs.loc[~pairs["mixture"].isin(kept), "regression"] = math.nan
    found = judge(pairs, members, None, midpoints(-2), draws=50)
    [words] = [words for words in found.words if "a regression on mixture weights" in words]
    assert words.startswith("Nothing can be said of a regression")
    assert words.endswith("yet: it is known for 4 references only.")


def test_one_size_is_told_as_such() -> None:
    found = judged({3: 12}, {"x": 0.01, "y": 0.01})
    assert "All references have k = 3: mixtures of other sizes were not tested." in found.words
    assert not any(words.startswith("Pooled") for words in found.words)


def test_a_size_that_fails_is_excepted() -> None:
    members = sample({2: 16, 3: 16, 4: 8})
    pairs = losses(members, {"x": 0.01, "y": 0.01})
    upside_down = pairs["k"] == 4
    pairs.loc[upside_down, ["proxy", "proxy_bits"]] *= -0.2
    found = judge(pairs, members, None, midpoints(-2), draws=200)
    assert "and not among mixtures of k = 4." in found.words[0]
    assert any(
        "at k = 2 and 3 it can be trusted; at k = 4 it cannot" in words for words in found.words
    )


def test_a_barrier_is_the_second_sentence() -> None:
    found = judged(MANY, {"x": 0.01, "y": 0.01}, worse=0.25)
    assert found.words[0].startswith("The ranking can be trusted")
    warning = found.words[1]
    assert warning.startswith("Warning: averaging breaks for 1 of 3 pairs of partition models")
    assert "a with b (1.250 nats per token above the worse of them on " in warning
    assert "lower train.learning_rate or train.steps" in warning
    assert not any("None of the" in words for words in found.words)
    members = sample(MANY)
    none = judge(losses(members, {"x": 1.0}), members, None, barriers({}, {}, {"x": 1.0}), draws=9)
    assert none.words[-1].startswith("No midpoint of two partition models was looked at")


def test_repeats_and_lost_references_are_told() -> None:
    members = sample(MANY)
    pairs, (label, lost, *_) = losses(members, {"x": 0.01}), members
    pairs.loc[pairs["mixture"] == lost, "reference"] = math.nan
    repeats = pd.DataFrame(
        {"mixture": label, "seed": [0, 1], "evaluation_set": "x", "reference": [3.0, 3.02]}
    )
    repeats["reference_bits"] = repeats["reference"] / 4
    found = judge(pairs, members, repeats, midpoints(-2), draws=50)
    text = " ".join(found.words)
    assert f"Trained with 2 seeds, {label} has a standard deviation of 0.0035 bits per byte" in text
    assert "differ by less than 0.0635 may be in either order." in text  # 12.706 of Student's t
    assert "expected to pass" not in text
    assert (
        f"Left out are 1 of 36 references, as their own loss or their proxies' is not finite: {lost}."
        in text
    )
    assert found.words[0].startswith("The ranking can be trusted")


@pytest.mark.parametrize(("spread", "has_stamp"), [(0.05, True), (0.001, False)])
def test_a_ceiling_is_told_where_three_runs_show_one(spread: float, has_stamp: bool) -> None:
    members = sample(MANY)
    pairs, label = losses(members, {"x": 0.01}), next(iter(members))
    seeds = {"seed": [0, 1, 2], "reference": [3.0, 3 + spread, 3 - spread]}
    repeats = pd.DataFrame({"mixture": label, "evaluation_set": "x", **seeds})
    repeats["reference_bits"] = repeats["reference"] / 4
    found = judge(pairs, members, repeats, midpoints(-2), draws=50)
    [words] = [words for words in found.words if words.startswith("Trained with 3 seeds")]
    assert f"by less than {4.302653 * math.sqrt(2) * spread / 4:.4f} may be in either" in words
    assert found.noise is not None
    ceiling = found.noise.set_index("evaluation_set")["ceiling"][MACRO_MEAN]
    end = f"expected to pass a Pearson correlation of {ceiling:.2f} at fixed k."
    assert words.endswith(end if has_stamp else "in either order.")


@pytest.mark.parametrize(
    ("references", "low", "right", "right_high", "expected"),
    [
        (FEWEST_REFERENCES, 0.1, ENOUGH_RIGHT, 1.0, "trusted"),
        (FEWEST_REFERENCES - 1, 0.1, 1.0, 1.0, "unknown"),
        (30, 0.1, ENOUGH_RIGHT - 0.01, 1.0, "wrong"),
        (30, -0.1, 0.9, 1.0, "unknown"),
        (30, -0.1, 0.6, ENOUGH_RIGHT - 0.01, "wrong"),
        (30, 0.0, 0.6, ENOUGH_RIGHT, "unknown"),
        (30, math.nan, 0.5, 0.5, "unknown"),
    ],
)
def test_standing(
    references: int, low: float, right: float, right_high: float, expected: str
) -> None:
    figures = {
        "references": references,
        "pearson": low + 0.2,
        "pearson_low": low,
        "pairs_right": right,
        "pairs_right_high": right_high,
    }
    assert standing(figures) == expected


def test_listed() -> None:
    assert named_list(["a"]) == "a"
    assert named_list(["a", "b"]) == "a and b"
    assert named_list(list("abcdef")) == "a, b, c, d, e and f"
    assert named_list(list("abcdefgh")) == "a, b, c, d, e, f and 2 more"
