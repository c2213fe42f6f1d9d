"""All predictors stand side by side, with the figures of the validation."""

import pytest

from tasks.trust.agreement import POOLED, WITHIN
from tests.benchmarks.trust import predictors
from tests.tasks.trust.test_favoured import BETTER, MANY, WORSE, judged


@pytest.mark.bench
def test_every_predictor_has_a_row_with_its_figures() -> None:
    trust = judged(MANY, singles=WORSE, probability=BETTER, scaled=WORSE)
    heads, _, *rows = predictors(trust).split("\n\n")[0].splitlines()
    assert heads.split(" | ")[1:4] == ["within k", "pooled", "k = 2"]
    macro = trust.table[
        (trust.table["evaluation_set"] == "macro mean") & (trust.table["scope"] == "all")
    ]
    assert len(rows) == macro["predictor"].nunique() == 7
    (row,) = [row for row in rows if row.startswith("| mixture of probabilities |")]
    figures = macro[macro["predictor"] == "probability"].set_index("k")["pearson"].to_dict()
    for k, cell in zip((WITHIN, POOLED), row.split(" | ")[1:3], strict=True):
        assert cell.startswith(f"{float(figures[k]):.2f} (")
    assert predictors(trust).endswith("The references favour: none beyond doubt.")
