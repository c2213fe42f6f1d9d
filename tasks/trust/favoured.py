"""Which predictor the references favour, of those that a ranking can go by.

Another predictor than merging is favoured where its Pearson correlation at fixed k is higher beyond
doubt: the paired interval of the difference (``tasks.trust.agreement.gains``) lies on its side. Of several
such the one with the highest correlation is. Merging is favoured where it is surely better than each of
them. Each interval is a 95 % one by itself: of many predictors on many sets one may seem better by chance.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tasks.evaluation.predicted import MERGE, PROBABILITY, SINGLES, scale_of
from tasks.ranking.rank import MACRO_MEAN
from tasks.readable import number
from tasks.trust.agreement import PROXY, WITHIN
from tasks.trust.predictors import in_words
from tasks.trust.sentences import FEWEST_REFERENCES, FiguresByRow, named_list

if TYPE_CHECKING:
    import pandas as pd


def favoured(rows: FiguresByRow, added: "pd.DataFrame") -> dict[str, str]:
    """The predictor that is favoured on each set, as ``evaluation.rank_by`` names it.

    Sets on which merging is neither surely better than all others nor surely worse than one are left out.

    Args:
        rows: of ``agreement``, see ``tasks.trust.sentences``.
        added: of ``gains``.
    """
    chosen: dict[str, str] = {}
    for name, of_set in added[added["references"] >= FEWEST_REFERENCES].groupby("evaluation_set"):
        lines = {str(row["baseline"]): row for row in of_set.to_dict("records")}
        lines = {by: row for by, row in lines.items() if _can_rank(by)}
        better = [by for by, row in lines.items() if row["high"] < 0]
        if better:
            chosen[str(name)] = max(better, key=lambda by: _pearson(rows, str(name), by))
        elif lines and all(row["low"] > 0 for row in lines.values()):
            chosen[str(name)] = MERGE
    return chosen


def _can_rank(name: str) -> bool:
    return name in {PROBABILITY, SINGLES} or scale_of(name) is not None


def _pearson(rows: FiguresByRow, name: str, predictor: str) -> float:
    return float(rows[name, "all", WITHIN, predictor]["pearson"])


def favour_words(rows: FiguresByRow, by_set: Mapping[str, str]) -> Iterator[str]:
    """What is favoured on the macro mean, and on each set."""
    fixed = rows[MACRO_MEAN, "all", WITHIN, PROXY]
    if fixed["references"] < FEWEST_REFERENCES:
        return
    figures = {
        by: row["pearson"]
        for (name, scope, k, by), row in rows.items()
        if (name, scope, k) == (MACRO_MEAN, "all", WITHIN) and _can_rank(by)
    }
    each = ", ".join(f"{in_words(by)} {number(2)(value)}" for by, value in figures.items())
    compared = f"Pearson at fixed k: merging {number(2)(fixed['pearson'])}, {each}"
    match by_set.get(MACRO_MEAN):
        case None:
            yield (
                f"Of the predictors that a ranking can go by, these references favour none on the "
                f"{MACRO_MEAN} beyond doubt ({compared})."
            )
        case "merge":
            yield f"On the {MACRO_MEAN} the references favour merging ({compared})."
        case name:
            yield (
                f"On the {MACRO_MEAN} plain merging loses: the references favour the {in_words(name)} "
                f"({compared}); evaluation.rank_by: {name} ranks by it."
            )
    sets: dict[str, list[str]] = {}
    for name, by in by_set.items():
        if name != MACRO_MEAN:
            sets.setdefault(by, []).append(name)
    if sets:
        words = [
            f"{'merging' if by == MERGE else f'the {in_words(by)}'} on {named_list(names)}"
            for by, names in sets.items()
        ]
        yield f"By evaluation set they favour {'; '.join(words)}."
