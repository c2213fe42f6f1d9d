"""What is said of a race is what happened in it."""

import pandas as pd

from tasks.ranking.race_result import Exit, RaceLook, RaceResult, exits_frame, in_words

RESULT = RaceResult(
    mixtures=1000,
    finalists=[3, 4, 8],
    exits=[
        Exit(7, 1, 5.2, 5.1, 5.3, 5.0),
        Exit(2, None, 5.5, 5.5, 5.5, 5.0),
        Exit(5, 0, 6.0, 5.7, 6.3, 5.1),
    ],
    rounds=[RaceLook(0, 0.04, 1234, 900, 334), RaceLook(1, 0.08, 99, 60, 40)],
    evaluated_tokens=2_000_000,
    full_tokens=16_000_000,
    is_complete=True,
)


def test_words_tell_how_many_after_what_at_what_cost_and_how_sure() -> None:
    dropped, work, sure = in_words(RESULT, 10, 0.95)
    assert dropped == (
        "3 of 1,000 mixtures were screened out and have no place in the ranking: 900 of 1,234 after "
        "4 % of the documents, 60 of 99 after 8 % of the documents, 1 of a single partition by their "
        "exact losses. The other 3 were evaluated in full."
    )
    assert "2.00 M token evaluations, 12 % of the 16.0 M" in work
    assert "confidence of 95 % none of the best 10" in sure


def test_without_rounds_it_says_that_all_were_evaluated() -> None:
    (said,) = in_words(RaceResult(7, finalists=list(range(7))), 10, 0.95)
    assert said.startswith("All 7 mixtures were evaluated in full")


def test_frame_has_a_row_for_each_that_was_dropped() -> None:
    frame = exits_frame(RESULT, [f"m{number}" for number in range(9)])
    assert frame["mixture"].tolist() == ["m2", "m5", "m7"]
    assert frame["look"].tolist() == [pd.NA, 1, 2]
    assert frame["share"].tolist() == [1.0, 0.04, 0.08]
    assert frame.iloc[1][["estimate", "low", "high", "bound"]].tolist() == [6.0, 5.7, 6.3, 5.1]


def test_frame_of_nothing_has_its_columns() -> None:
    frame = exits_frame(RaceResult(2, finalists=[0, 1]), ["a", "b"])
    assert frame.empty
    assert [str(kind) for kind in frame.dtypes][1] == "Int64"
