"""The grounds of a verdict, in sentences.

Each function yields the sentences on one subject, or none. Where nothing else is said, they are
about mixtures of the same number of partitions k and about the macro mean. The rules are constants
with their reasons; ``standing`` applies them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tasks.ranking.calibration import student_quantile
from tasks.ranking.rank import MACRO_MEAN
from tasks.readable import number
from tasks.trust.agreement import POOLED, SCOPES, WITHIN
from tasks.trust.measures import FEWEST_PAIRS, SURE, margin
from tasks.trust.predictors import in_words

if TYPE_CHECKING:
    import pandas as pd

ENOUGH_RIGHT = 0.8
"""Share of pairs that a trusted ranking orders right. DataDecide found about 80 % for rankings by small
models that were really trained on the data: merging should do no worse."""
FEWEST_REFERENCES = 6
"""Of five points, a correlation below 0.88 is not told from chance at 5 %."""
FEWEST_RUNS = 3
"""Of two runs the standard deviation says next to nothing of the largest correlation possible."""
HIGHEST_CEILING = 0.995
"""A ceiling that reads as 1.00 is none."""
MOST_NAMED = 6
"""More names than this are counted, not listed."""

Standing: TypeAlias = Literal["trusted", "wrong", "unknown"]
Figures: TypeAlias = Mapping[Any, float]
"""A row of an ``agreement`` table, by column."""
FiguresByRow: TypeAlias = Mapping[tuple[str, str, str, str], Figures]
"""Rows of an ``agreement`` table by evaluation set, scope, k and predictor."""

_FITTED = {"regression", "stacked"}
"""Predictors that are fitted to references."""

FIXED = ("all", WITHIN, "proxy")
"""Scope, k and predictor of the row that a set is judged by."""


def standing(figures: Figures) -> Standing:
    """Whether a row of an ``agreement`` table makes its predictor trusted.

    "trusted": enough pairs are ordered right, and the interval of the Pearson correlation is above 0.
    "wrong": the interval is above 0 and too few pairs are, or surely too few are. "unknown": there are
    too few references, or the interval of the correlation includes 0.
    """
    if figures["references"] < FEWEST_REFERENCES or math.isnan(figures["pearson"]):
        return "unknown"
    if figures["pearson_low"] > 0:
        return "trusted" if figures["pairs_right"] >= ENOUGH_RIGHT else "wrong"
    return "wrong" if figures["pairs_right_high"] < ENOUGH_RIGHT else "unknown"


def why(figures: Figures) -> str:
    """Why the standing is "unknown"."""
    count = int(figures["references"])
    if count < FEWEST_REFERENCES:
        return f"not enough references ({count}; {FEWEST_REFERENCES} are the least)"
    if math.isnan(figures["pearson"]):
        return f"the proxies or the references of all {count} mixtures have the same loss"
    return (
        f"not enough references (with {count} the interval of the Pearson correlation, "
        f"{_span(figures, 'pearson')}, includes 0)"
    )


def fixed_and_pooled(rows: FiguresByRow, sizes: Sequence[str]) -> Iterator[str]:
    """The macro mean at fixed k, at each k, and pooled."""
    fixed, pooled = rows[MACRO_MEAN, *FIXED], rows[MACRO_MEAN, "all", POOLED, "proxy"]
    if math.isnan(fixed["pearson"]):
        return
    yield (
        f"{MACRO_MEAN.capitalize()} at fixed k, {fixed['references']} references: Pearson "
        f"{_n(fixed['pearson'])} (95 % interval {_span(fixed, 'pearson')}), Spearman "
        f"{_n(fixed['spearman'])}, {percent(fixed['pairs_right'])} of pairs ordered right. Taking the "
        f"proxies' first costs {number(4)(fixed['regret_1'])} bits per byte against the best that was "
        f"trained, the best of their first three {number(4)(fixed['regret_3'])}."
    )
    if len(sizes) == 1:
        yield f"All references have k = {sizes[0]}: mixtures of other sizes were not tested."
        return
    yield _by_size({k: rows[MACRO_MEAN, "all", k, "proxy"] for k in sizes})
    if fixed["references"] < FEWEST_REFERENCES:
        return
    inflated = pooled["pearson"] > fixed["pearson"]
    yield (
        f"Pooled over all k the Pearson correlation of the {MACRO_MEAN} is {_n(pooled['pearson'])}, at "
        f"fixed k {_n(fixed['pearson'])}: "
        + (
            "the first is inflated by k itself."
            if inflated
            else "here k itself does not inflate it."
        )
    )


_OF_SIZES: Mapping[Standing, str] = {
    "trusted": "it can be trusted",
    "wrong": "it cannot be trusted",
    "unknown": "this validation cannot tell",
}


def _by_size(figures: Mapping[str, Figures]) -> str:
    """What holds at each k alone, then the figures of each."""
    at: dict[Standing, list[str]] = {name: [] for name in _OF_SIZES}
    for k, of_size in figures.items():
        at[standing(of_size)].append(k)
    said = [f"at k = {named_list(sizes)} {_OF_SIZES[name]}" for name, sizes in at.items() if sizes]
    each = [
        f"k = {k}: {row['references']} references"
        + (
            ""
            if math.isnan(row["pairs_right"])
            else f", {percent(row['pairs_right'])} of pairs right"
        )
        for k, row in figures.items()
    ]
    return f"By number of partitions: {'; '.join(said)}. In figures: {'; '.join(each)}."


def apart(rows: FiguresByRow) -> Iterator[str]:
    """Mixtures with a set's own domain and without it."""
    names = dict.fromkeys(name for name, scope, _, _ in rows if scope != "all")
    by_set = [values for name in names if (values := _by_scope(rows, name))]
    if not names:
        return
    if not by_set:
        yield (
            "Mixtures with and without the domain of an evaluation set cannot be judged apart: none has "
            f"{FEWEST_REFERENCES} references of both kinds."
        )
        return
    together, inside, outside = (sum(values) / len(by_set) for values in zip(*by_set, strict=True))
    inflated = together > max(inside, outside)
    yield (
        f"Over the evaluation sets whose domain is in the pool ({len(by_set)}) the mean Pearson "
        f"correlation at fixed k is {_n(inside)} among mixtures with that domain, {_n(outside)} among "
        f"those without it, and {_n(together)} among all"
        + (": the last is inflated by whether the domain is in the mixture." if inflated else ".")
    )


def _by_scope(rows: FiguresByRow, name: str) -> list[float]:
    """Pearson within k over all, in-domain and out-of-domain mixtures; empty where there are too few."""
    by_scope = [rows.get((name, scope, WITHIN, "proxy"), {}) for scope in SCOPES]
    enough = all(figures.get("references", 0) >= FEWEST_REFERENCES for figures in by_scope)
    values = [figures["pearson"] for figures in by_scope] if enough else []
    return [] if any(map(math.isnan, values)) else values


def sure_differences(pairs: "pd.DataFrame", rows: FiguresByRow) -> Iterator[str]:
    """How large a difference of proxies must be to name the better mixture correctly."""
    if rows[MACRO_MEAN, *FIXED]["references"] < FEWEST_REFERENCES:
        return
    of_set = {
        str(name): margin(rows_of_set)
        for name, rows_of_set in pairs.groupby("evaluation_set", sort=True)
    }
    if (macro := of_set.pop(MACRO_MEAN)) is None:
        yield (
            f"No difference of proxies on the {MACRO_MEAN} is large enough to be sure of: even of the "
            f"pairs that differ most, fewer than {percent(SURE)} were ordered right, or there are fewer "
            f"than {FEWEST_PAIRS}."
        )
    else:
        yield (
            f"On the {MACRO_MEAN}, of two mixtures of the same k whose proxies differ by "
            f"{number(5)(macro.difference)} bits per byte or more, the better one was told in "
            f"{macro.right} of {macro.pairs} pairs; closer ones should be taken as equal."
        )
    trusted = {
        name: sure
        for name, sure in of_set.items()
        if sure and standing(rows[name, *FIXED]) == "trusted"
    }
    if trusted and len(of_set) > 1:
        each = [
            f"{name} {number(5)(sure.difference)} ({sure.right} of {sure.pairs})"
            for name, sure in trusted.items()
        ]
        yield f"The same difference on the evaluation sets that can be trusted: {named_list(each)}."


def gained(rows: FiguresByRow, added: "pd.DataFrame") -> Iterator[str]:
    """What merging adds on the macro mean over each other predictor."""
    if (count := int(rows[MACRO_MEAN, *FIXED]["references"])) < FEWEST_REFERENCES:
        yield (
            "Whether merging orders better than other predictors cannot be told yet: not "
            f"enough references ({count}; {FEWEST_REFERENCES} are the least)."
        )
        return
    lines = added[added["evaluation_set"] == MACRO_MEAN].set_index("baseline").to_dict("index")
    for baseline, line in lines.items():
        name = f"the {in_words(str(baseline))}"
        if baseline in _FITTED:
            name = f"a{name[3:]}, which is fitted to references and so costs them"
        other = rows[MACRO_MEAN, "all", WITHIN, str(baseline)]["pearson"]
        by = f"{_n(line['difference'])}, 95 % interval {_n(line['low'])} to {_n(line['high'])}"
        if math.isnan(other):
            yield f"Nothing can be said of {name}: at fixed k it is the same for all, or not known."
        elif (count := int(line["references"])) < FEWEST_REFERENCES:
            yield f"Nothing can be said of {name} yet: it is known for {count} references only."
        elif line["low"] > 0:
            yield f"Merging orders better than {name} (Pearson {_n(other)} at fixed k; difference {by})."
        elif line["high"] < 0:
            yield f"Merging orders worse than {name} (Pearson {_n(other)} at fixed k; difference {by})."
        else:
            yield (
                f"Merging adds nothing that these references can show over {name} (Pearson {_n(other)} "
                f"at fixed k; difference {by})."
            )


def repeated(noise: "pd.DataFrame | None") -> Iterator[str]:
    """How well repeated references agree; with enough runs, also the largest correlation possible."""
    repeats = (
        () if noise is None else noise[noise["evaluation_set"] == MACRO_MEAN].to_dict("records")
    )
    repeats = [row for row in repeats if row["runs"] > 1]
    if not repeats:
        yield "No reference was trained twice, so how far references agree with themselves is not known."
    for row in repeats:
        # Of a few runs the standard deviation itself is uncertain: hence Student's t.
        least = student_quantile(0.975, row["runs"] - 1) * math.sqrt(2) * row["sd_bits"]
        has_ceiling = row["runs"] >= FEWEST_RUNS and row["ceiling"] < HIGHEST_CEILING
        yield (
            f"Trained with {row['runs']} seeds, {row['mixture']} has a standard deviation of "
            f"{number(4)(row['sd_bits'])} bits per byte on the {MACRO_MEAN}. Two references that differ "
            f"by less than {number(4)(least)} may be in either order"
            + (
                ", and no predictor can be expected to pass a Pearson correlation of "
                f"{_n(row['ceiling'])} at fixed k."
                if has_ceiling
                else "."
            )
        )


def lost_references(pairs: "pd.DataFrame") -> Iterator[str]:
    macro = pairs[pairs["evaluation_set"] == MACRO_MEAN]
    finite = np.isfinite(macro[["proxy", "reference"]].to_numpy(dtype=float)).all(axis=1)
    if lost := [str(label) for label in macro["mixture"].to_numpy()[~finite]]:
        yield (
            f"Left out are {len(lost)} of {len(macro)} references, as their own loss or their proxies' is "
            f"not finite: {named_list(lost)}."
        )


def broken_pairs(barriers: "pd.DataFrame") -> Iterator[str]:
    """Whether pairs of partition models can be averaged."""
    count = len(barriers[["first", "second"]].drop_duplicates())
    worst = barriers[barriers["broken"].astype(bool)].sort_values("barrier", ascending=False)
    worst = worst.drop_duplicates(["first", "second"])
    if worst.empty:
        yield (
            f"None of the {count} pairs of partition models that were looked at has a barrier: no "
            "midpoint is worse than both models and than the base model."
            if count
            else "No midpoint of two partition models was looked at, so barriers are not known."
        )
        return
    named = [
        f"{row['first']} with {row['second']} ({number(3)(row['barrier'])} nats per token above the worse "
        f"of them on {row['evaluation_set']})"
        for row in worst.to_dict("records")
    ]
    yield (
        f"Warning: averaging breaks for {len(worst)} of {count} pairs of partition models, whose midpoint "
        f"is worse than both and than the base model: {named_list(named)}. The learning rate is too large "
        "or the training too long for merging: lower train.learning_rate or train.steps."
    )


_n = number(2)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _span(figures: Figures, name: str) -> str:
    return f"{_n(figures[f'{name}_low'])} to {_n(figures[f'{name}_high'])}"


def named_list(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; many are counted, and the macro mean gets its article."""
    names = [f"the {name}" if name == MACRO_MEAN else name for name in names]
    if len(names) > MOST_NAMED:
        names = [*names[:MOST_NAMED], f"{len(names) - MOST_NAMED} more"]
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
