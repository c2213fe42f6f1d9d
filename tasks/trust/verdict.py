"""The verdict of a validation: whether a ranking by proxies can be trusted, and on what grounds.

A table of correlations leaves the judgement to its reader; here stated rules make it. A set's
ranking is trusted where references of the same number of partitions k were ordered well enough, and
beyond doubt better than by chance. Where there are too few references to decide, the verdict says
so.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from tasks.ranking.rank import MACRO_MEAN
from tasks.trust import sentences
from tasks.trust.agreement import POOLED, WITHIN, agreement, gains
from tasks.trust.favoured import favour_words, favoured
from tasks.trust.noise_floor import noise_floor
from tasks.trust.sentences import ENOUGH_RIGHT, FEWEST_REFERENCES, FIXED, FiguresByRow, Standing

if TYPE_CHECKING:
    import pandas as pd


class Trust(NamedTuple):
    """How far a ranking can be trusted, as a report shows it."""

    words: list[str]
    """The verdict and its grounds, in sentences (see ``verdict``)."""
    table: "pd.DataFrame"
    """Figures (see ``tasks.trust.agreement.agreement``)."""
    pairs: "pd.DataFrame"
    """What they are made of (see ``tasks.trust.predictors.pair_up``)."""
    noise: "pd.DataFrame | None"
    """Repeated references (see ``tasks.trust.noise_floor.noise_floor``); None where there are none."""
    barriers: "pd.DataFrame"
    """Midpoints of pairs of partition models (see ``tasks.trust.barrier.barriers``)."""
    named: "pd.DataFrame | None" = None
    """Mixtures that were named and trained (see ``tasks.trust.named.beside_even``); None without any."""
    favoured: Mapping[str, str] = MappingProxyType({})
    """The predictor that is favoured, by evaluation set (see ``tasks.trust.favoured``)."""


def judge(
    pairs: "pd.DataFrame",
    members: Mapping[str, Sequence[str]],
    repeats: "pd.DataFrame | None",
    barriers: "pd.DataFrame",
    draws: int = 1000,
    seed: int = 0,
) -> Trust:
    """All figures of a validation, and the verdict.

    Args:
        pairs: as ``tasks.trust.predictors.pair_up`` gives them.
        members: partitions of each reference's mixture, by label.
        repeats: as for ``tasks.trust.noise_floor.noise_floor``; None where no reference was repeated.
        barriers: as ``tasks.trust.barrier.barriers`` gives them.
        draws: number of bootstrap draws over partitions, by ``seed``.
    """
    table = agreement(pairs, members, draws, seed)
    noise = None if repeats is None else noise_floor(repeats, pairs)
    added = gains(pairs, members, draws, seed)
    by_set = favoured(rows_of(table), added)
    words = verdict(table, pairs, noise, barriers, added, by_set)
    return Trust(words, table, pairs, noise, barriers, favoured=by_set)


def rows_of(table: "pd.DataFrame") -> FiguresByRow:
    """Rows of an ``agreement`` table by evaluation set, scope, k and predictor."""
    return {
        (row["evaluation_set"], row["scope"], row["k"], row["predictor"]): row
        for row in table.to_dict("records")
    }


def verdict(
    table: "pd.DataFrame",
    pairs: "pd.DataFrame",
    noise: "pd.DataFrame | None",
    barriers: "pd.DataFrame",
    added: "pd.DataFrame",
    by_set: Mapping[str, str],
) -> list[str]:
    """The verdict as the first sentence, a warning where merging breaks, then the grounds.

    ``added`` is of ``tasks.trust.agreement.gains``, ``by_set`` of ``favoured``, the rest as ``Trust``
    holds it. The verdict is about mixtures of the same number of partitions k: a reference of k partitions
    is trained k times as long as a part, and its loss compares with none of another k.
    """
    rows = rows_of(table)
    sizes = [k for k in dict.fromkeys(table["k"]) if k not in {WITHIN, POOLED}]
    broken = bool(barriers["broken"].any())
    return [
        *_first(rows, sizes),
        *(sentences.broken_pairs(barriers) if broken else ()),
        *sentences.fixed_and_pooled(rows, sizes),
        *sentences.apart(rows),
        *sentences.sure_differences(pairs, rows),
        *favour_words(rows, by_set),
        *sentences.gained(rows, added),
        *sentences.repeated(noise),
        *sentences.lost_references(pairs),
        *(() if broken else sentences.broken_pairs(barriers)),
    ]


def _first(rows: FiguresByRow, sizes: Sequence[str]) -> Iterator[str]:
    """The verdict, and what it leaves out."""
    fixed = {name: row for (name, scope, k, by), row in rows.items() if (scope, k, by) == FIXED}
    named: dict[Standing, list[str]] = {"trusted": [], "wrong": [], "unknown": []}
    for name in [MACRO_MEAN, *sorted(set(fixed) - {MACRO_MEAN})]:
        named[sentences.standing(fixed[name])].append(name)
    trusted, wrong, unknown = named.values()
    share = sentences.percent(ENOUGH_RIGHT)
    few = f"fewer than {share} of the pairs of mixtures of the same k are ordered right"
    if trusted:
        among = _among(rows, sizes)
        # At which k too few pairs are ordered right on the macro mean, if it is trusted over all.
        at = {k: sentences.standing(rows[MACRO_MEAN, "all", k, "proxy"]) for k in sizes}
        odd = [k for k in sizes if at[k] == "wrong" and MACRO_MEAN in trusted]
        yield _trusted(trusted, len(fixed), among, odd)
    elif wrong:
        yield f"Do not trust this ranking: {few} on {sentences.named_list(wrong)}."
    else:
        yield f"This validation cannot tell: {sentences.why(fixed[MACRO_MEAN])}."
    if trusted and wrong:
        yield f"On {sentences.named_list(wrong)} {few}."
    if unknown and (trusted or wrong):
        reason = sentences.why(fixed[unknown[0]])
        yield f"On {sentences.named_list(unknown)} this validation cannot tell: {reason}."


def _among(rows: FiguresByRow, sizes: Sequence[str]) -> str:
    """Which mixtures may be compared; where that rests on all k together, it is said."""
    if any(rows[MACRO_MEAN, "all", k, "proxy"]["references"] >= FEWEST_REFERENCES for k in sizes):
        return "among mixtures of the same k"
    return (
        f"among mixtures of the same k, over k = {', '.join(sizes)} together (no single k has "
        f"{FEWEST_REFERENCES} references)"
    )


def _trusted(names: Sequence[str], total: int, among: str, wrong_sizes: Sequence[str]) -> str:
    """The verdict where some of ``total`` sets, the macro mean among them, are trusted."""
    everything = f"the {MACRO_MEAN} and all evaluation sets ({total - 1})"
    what = everything if len(names) == total else sentences.named_list(names)
    if wrong_sizes:
        wrong = sentences.named_list(wrong_sizes)
        return f"Trust the ranking for {what} only, and not among mixtures of k = {wrong}."
    if len(names) < total:
        return f"Trust the ranking for {what} only, {among}."
    return f"The ranking can be trusted for {what}, {among}."
