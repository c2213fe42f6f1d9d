"""The ceiling is what the true losses correlate with noisy references; repeats are told by runs."""

import math

import numpy as np
import pandas as pd
import pytest

from tasks.ranking.rank import MACRO_MEAN
from tasks.trust.noise_floor import noise_floor, variance_within


def repeated(losses: dict[str, list[float]]) -> pd.DataFrame:
    """The mixture m under several seeds, by set."""
    rows = [
        {"mixture": "m", "seed": seed, "evaluation_set": name, "reference": loss}
        for name, of_seeds in losses.items()
        for seed, loss in enumerate(of_seeds)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(reference_bits=frame["reference"] / 2)


def references(losses: list[float], k: list[int], name: str = "x") -> pd.DataFrame:
    return pd.DataFrame({"evaluation_set": name, "k": k, "reference": losses})


def test_noise_by_hand() -> None:
    pairs = references([1.0, 3.0, 10.0, 14.0], [2, 2, 3, 3])
    assert variance_within(pairs) == pytest.approx((1 + 1 + 4 + 4) / 2)
    found = noise_floor(repeated({"x": [1.0, 2.0, 3.0]}), pairs).set_index("evaluation_set")
    line = found.loc["x"]
    assert (line["mixture"], line["runs"]) == ("m", 3)
    assert (line["sd"], line["sd_bits"]) == pytest.approx((1.0, 0.5))
    assert line["ceiling"] == pytest.approx(math.sqrt(1 - 1 / 5))


def test_macro_mean_is_made_where_it_lacks() -> None:
    repeats = repeated({"x": [1.0, 2.0], "y": [3.0, 8.0]})
    pairs = references([1.0, 2.0], [2, 2], MACRO_MEAN)
    found = noise_floor(repeats, pairs).set_index("evaluation_set")
    assert found.loc[MACRO_MEAN, "sd"] == pytest.approx(np.std([2.0, 5.0], ddof=1))
    assert found.loc[MACRO_MEAN, "ceiling"] == 0  # more noise than there is difference
    given = pd.concat([repeats, repeated({MACRO_MEAN: [2.0, 5.0]})])
    again = noise_floor(given, pairs).set_index("evaluation_set")
    pd.testing.assert_frame_equal(found, again)


def test_too_few_runs_or_references() -> None:
    pairs = references([1.0, 2.0, math.inf], [2, 3, 3])
    assert math.isnan(variance_within(pairs))
    lost = noise_floor(repeated({"x": [1.0, math.nan]}), pairs).set_index("evaluation_set")
    assert lost["runs"].to_dict() == {"x": 1, MACRO_MEAN: 1}
    assert lost[["sd", "sd_bits", "ceiling"]].isna().to_numpy().all()
    known = noise_floor(repeated({"x": [1.0, 2.0]}), pairs).set_index("evaluation_set")
    assert known["sd"].to_dict() == pytest.approx(dict.fromkeys(["x", MACRO_MEAN], math.sqrt(0.5)))
    assert known["ceiling"].isna().all()


def test_ceiling_is_what_the_truth_correlates_to() -> None:
    random = np.random.default_rng(0)
    truth, noise = random.normal(0, 1, 40_000), random.normal(0, 0.5, 40_000)
    repeats = repeated({"x": (3 + random.normal(0, 0.5, 2000)).tolist()})
    pairs = references((truth + noise).tolist(), [2] * 40_000)
    found = noise_floor(repeats, pairs).set_index("evaluation_set").loc["x", "ceiling"]
    assert found == pytest.approx(np.corrcoef(truth, truth + noise)[0, 1], abs=0.01)
