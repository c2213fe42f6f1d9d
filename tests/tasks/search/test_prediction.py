"""Predictions from a table of losses: their order, their doubt, and where the table does not reach."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from tasks.search.loss_table import LossTable, loss_table
from tasks.search.objective import ObjectiveConfig
from tasks.search.prediction import BEYOND, Prediction, predict_from_table

Floats = NDArray[np.float64]

NAMES = ["web", "books", "code"]
EVEN = ObjectiveConfig()
SMOOTH = ["linear", "quadratic", "root process"]


def losses(weights: Floats) -> Floats:
    """Two targets, each a power of the share of its own domain."""
    return np.stack([(weights[:, n] + 0.05) ** -0.4 for n in (0, 2)], axis=1)


def table(rows: int = 60, most: float = 1.0, **extra: float) -> LossTable:
    """Losses of mixtures with at most ``most`` of code."""
    drawn = np.random.default_rng(0).dirichlet(np.ones(3), 20 * rows)
    weights = drawn[drawn[:, 2] <= most][:rows]
    frame = pd.DataFrame(weights, columns=NAMES).assign(**extra)
    frame[["law", "qa"]] = losses(weights)
    return loss_table(frame, "runs.csv", ["law", "qa"], [*NAMES, *extra])


def predicted(known: LossTable, weights: Floats, names: list[str] = SMOOTH) -> Prediction:
    frame = pd.DataFrame(weights, columns=NAMES).assign(name="text is not read")
    return predict_from_table(known, frame, "rows.csv", EVEN, names)


def test_unseen_rows_are_ordered_and_mostly_within_two_standard_errors() -> None:
    unseen = np.random.default_rng(1).dirichlet(np.full(3, 3.0), 50)
    found = predicted(table(), unseen)
    rows, truth = found.predictions, losses(unseen)
    assert rows["row"].tolist() == [*range(1, 51)]
    for place, target in enumerate(("law", "qa")):
        assert rows[f"predicted {target}"].corr(pd.Series(truth[:, place]), "spearman") > 0.99
        error = (rows[f"predicted {target}"] - truth[:, place]).abs()
        assert (error <= 2 * rows[f"standard error {target}"] + 1e-3).mean() > 0.8
    both = rows[["predicted law", "predicted qa"]].mean(axis=1)
    assert rows["predicted"].to_numpy() == pytest.approx(both.to_numpy())
    doubt = rows[["standard error law", "standard error qa"]].mean(axis=1)
    assert rows["standard error"].to_numpy() == pytest.approx(doubt.to_numpy())
    assert (rows["outside"] == 0).mean() > 0.9
    assert ((rows["extrapolates"] == "") == (rows["outside"] <= BEYOND)).all()
    chosen = found.surrogates[found.surrogates["chosen"]]
    said = f"Spearman {chosen['spearman'].mean():.3f}, cross-validated on the table's 60 rows"
    assert any(said in note for note in found.notes)


def test_scale_and_order_of_columns_do_not_matter() -> None:
    weights = np.array([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]])
    first = predicted(table(), weights).predictions
    frame = pd.DataFrame(30 * weights, columns=NAMES)[["code", "books", "web"]]
    second = predict_from_table(table(), frame, "rows.csv", EVEN, SMOOTH).predictions
    pd.testing.assert_frame_equal(first, second)


def test_rows_beyond_the_table_say_so() -> None:
    known = table(most=0.5)
    corner = np.array([[0.05, 0.05, 0.9], [0.3, 0.4, 0.3]])
    found = predicted(known, corner)
    rows, high = found.predictions, known.weights[:, 2].max()
    assert rows["extrapolates"][0].startswith("'code' is 0.9, in the table 0.0")
    assert rows["extrapolates"][0].endswith(f"to {high:.3g}")
    # The nearest mixture of the rows has the most code that they have, and moves the rest to it.
    assert rows["outside"][0] == pytest.approx(0.9 - high, abs=0.03)
    assert (rows["outside"][1], rows["extrapolates"][1]) == (0, "")
    assert rows["standard error"][0] > 3 * rows["standard error"][1]
    assert found.notes[-1].startswith("1 of 2 rows lie outside of what the table holds")
    assert "(row 1: 'code' is 0.9" in found.notes[-1]


def test_a_row_within_all_ranges_may_be_no_mixture_of_the_rows() -> None:
    pairs = np.array([[1 - s, s, 0] for s in np.linspace(0, 1, 9)])
    frame = pd.DataFrame([*pairs.tolist(), [0, 0.2, 0.8]], columns=NAMES)
    frame["law"] = losses(frame.to_numpy(dtype=float))[:, 0]
    known = loss_table(frame, "runs.csv", ["law"], NAMES)
    rows = predicted(known, np.array([[0.4, 0.0, 0.6], [0.45, 0.15, 0.4]]), ["linear"]).predictions
    assert rows["extrapolates"][0].endswith(
        "of its weight lies beyond every mixture of the table's rows"
    )
    assert rows["outside"][0] > 0.1
    assert rows["outside"][1] == 0
    assert rows["standard error"].isna().all()


def test_a_weight_that_never_changes_is_left_out_and_may_not_change() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).dirichlet(np.ones(3), 30) * 0.9, columns=NAMES)
    frame["old"] = 0.1
    frame["law"] = losses(frame[NAMES].to_numpy())[:, 0]
    known = loss_table(frame, "runs.csv", ["law"], [*NAMES, "old"])
    assert known.constant == pytest.approx({"old": 0.1})
    given = frame[[*NAMES, "old"]].head(3)
    found = predict_from_table(known, given, "rows.csv", EVEN, ["log process"])
    assert found.predictions["predicted"].to_numpy() == pytest.approx(known.losses[:3, 0], abs=0.1)
    without = predict_from_table(known, given[NAMES], "rows.csv", EVEN, ["log process"])
    pd.testing.assert_frame_equal(found.predictions, without.predictions)
    changed = given.assign(old=[0.1, 0.9, 0.1])
    with pytest.raises(ValueError, match=r"row 2 of rows\.csv gives 0\.5 to 'old', which has 0\.1"):
        predict_from_table(known, changed, "rows.csv", EVEN, ["log process"])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"web": [1.0], "books": [0.0]}, "'code', which is unknown"),
        ({"web": ["a"], "books": [0.0], "code": [1.0]}, "'web' of rows.csv holds"),
        ({"web": [], "books": [], "code": []}, "rows.csv has no rows"),
        ({"web": [0.5, np.nan], "books": [0.5, 0], "code": [0, 1]}, "row 2 of rows.csv has no finite"),
        ({"web": [0.5], "books": [-0.5], "code": [1]}, "row 1 of rows.csv has the weight -0.5"),
        ({"web": [0.0], "books": [0], "code": [0]}, "row 1 of rows.csv has only weights of 0"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_predicted_are_refused(
    rows: dict[str, list[object]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        predict_from_table(table(), pd.DataFrame(rows), "rows.csv", EVEN, SMOOTH)
