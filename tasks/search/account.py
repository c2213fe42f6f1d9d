"""The text and tables of a search's result: the answer first, then how far it can be trusted.

Every figure is of evaluated mixtures. The prediction of a surrogate stands beside the measured
value, so that a reader sees how good the predictions were.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks import readable
from tasks.mixtures.mixture import Mixture
from tasks.readable import number as shown
from tasks.search.proposals import FEWEST_ROWS
from tasks.search.result import SearchResult
from tasks.search.rounds import DESCENT, START, Search, num_possible
from tasks.surrogates.kinds import COLUMNS, cross_validate

if TYPE_CHECKING:
    import pandas as pd


BEST = 10
"""Mixtures that are listed as the best."""


def account(search: Search, landings: Sequence[Mixture] = (), price: float = 0.0) -> SearchResult:
    """The result of a search.

    Args:
        search: at its end; something was evaluated.
        landings: mixtures of units at which descents ended, evaluated before or not.
        price: what the descents cost, in evaluations of a mixture.

    Raises:
        ValueError: a loss is not finite.
    """
    trace, surrogates = _trace_of(search), _compared(search)
    words = [
        *_answer(search, trace),
        *_end(search),
        *_surrogates(search, surrogates, trace),
        *_limits(search, trace),
        *_descents(search, trace, landings, price),
        *search.notes,
    ]
    return SearchResult(words, surrogates, trace, _best_of(search, trace))


def _trace_of(search: Search) -> "pd.DataFrame":
    """Every evaluation in order, as in ``SearchResult.trace``."""
    import pandas as pd

    objective = search.objective.values(search.losses, search.weights)
    feasible = search.objective.holds(search.losses, search.base)
    best = np.minimum.accumulate(np.where(feasible, objective, np.inf))
    return pd.DataFrame(
        {
            "evaluation": np.arange(1, len(search.tried) + 1),
            "round": [tried.round for tried in search.tried],
            "mixture": [tried.judged.label for tried in search.tried],
            "proposed_by": [tried.proposed_by for tried in search.tried],
            "predicted": [tried.predicted for tried in search.tried],
            "objective": objective,
            "best": np.where(np.isfinite(best), best, np.nan),
            "feasible": feasible,
        }
    )


def _best_of(search: Search, trace: "pd.DataFrame") -> "pd.DataFrame":
    """The best evaluated mixtures that keep every cap, as in ``SearchResult.best``."""
    import pandas as pd

    bits = pd.DataFrame(search.losses, columns=list(search.objective.sets))
    table = pd.concat([trace[["mixture", "objective"]], bits, trace[["predicted"]]], axis=1)
    chosen = table[trace["feasible"].to_numpy()]
    return chosen.sort_values("objective", kind="stable").head(BEST).reset_index(drop=True)


def _compared(search: Search) -> "pd.DataFrame":
    """The surrogates cross-validated on all that was evaluated, as in ``SearchResult.surrogates``."""
    import pandas as pd

    if len(search.tried) < FEWEST_ROWS:
        return pd.DataFrame(columns=COLUMNS)
    sets, rules = search.objective.sets, search.rules
    losses = dict(zip(sets, search.losses.T, strict=True))
    shares = search.objective.shares_by_set
    validation = cross_validate(search.weights, losses, rules.surrogates, rules.seed, shares)
    search.notes += [note for note in validation.notes if note not in search.notes]
    return validation.table


def _answer(search: Search, trace: "pd.DataFrame") -> Iterator[str]:
    number, whole = len(search.tried), num_possible(search.feasible)
    is_bound = search.feasible.listed is None and bool(search.feasible.rules.limits)
    share = f" ({100 * number / whole:.3g} %)" if whole < 10**6 and not is_bound else ""
    most = "at most " if is_bound else ""
    yield f"{number:,} of {most}{readable.whole(whole)} possible mixtures were evaluated{share}."
    kept = trace[trace["feasible"]]
    if kept.empty:
        excess = search.objective.excess(search.losses, search.base)
        nearest = int(excess.argmin())
        yield (
            f"None of them keeps every cap. {trace['mixture'][nearest]} comes nearest, "
            f"{excess[nearest]:.4f} bits per byte above a cap: raise search.objective.caps, or allow "
            "more search.evaluations."
        )
        return
    best = trace.iloc[_lowest(kept)]
    base = ""
    if search.base is not None:
        base = f"; the base model has {float(search.base @ search.objective.shares):.4f}"
    named = {START: "the first design", DESCENT: "descent through the merged model"}
    source = named.get(best["proposed_by"], f"the surrogate {best['proposed_by']!r}")
    yield (
        f"The best of them is {best['mixture']}, {_value(search, best)}{base}. It "
        f"was evaluation {best['evaluation']} and came from {source}."
    )


def _end(search: Search) -> Iterator[str]:
    """Why the budget was not spent, where it was not."""
    if not search.left:
        return
    started = sum(tried.proposed_by == START for tried in search.tried)
    why = "no other mixture that the constraints allow was found"
    if len(search.tried) < FEWEST_ROWS and started == search.rules.start:
        why = f"surrogates need {FEWEST_ROWS} evaluated mixtures, so raise search.start"
    yield f"The search ended before its budget of {search.rules.evaluations:,} was spent: {why}."


def _value(search: Search, row: "pd.Series") -> str:
    """Bits per byte of a row of a trace, and what the pull makes of them."""
    mean = float(search.losses[int(row["evaluation"]) - 1] @ search.objective.shares)
    pulled = f" (objective with the pull: {row['objective']:.4f})"
    return f"{mean:.4f} bits per byte{pulled if search.objective.config.pull else ''}"


def _unit(search: Search) -> str:
    """Of differences of the objective."""
    pulled = " of the objective with the pull" if search.objective.config.pull else ""
    return f"bits per byte{pulled}"


def _lowest(rows: "pd.DataFrame") -> int:
    """Place of the best of some rows of a trace."""
    return int(rows.index.to_numpy()[rows["objective"].to_numpy().argmin()])


def _surrogates(search: Search, table: "pd.DataFrame", trace: "pd.DataFrame") -> Iterator[str]:
    if len(table):
        shares = search.objective.shares_by_set
        weighted = table.assign(part=table["spearman"] * table["target"].map(shares))
        means = weighted.groupby("surrogate", sort=False)["part"].sum()
        chosen = table.loc[table["chosen"], "surrogate"].iloc[0]
        others = means.drop(chosen).sort_values(ascending=False, kind="stable")
        listed = ", ".join(f"{name} {shown(3)(value)}" for name, value in others.items())
        yield (
            f"Among the surrogates, {chosen!r} orders mixtures that it has not seen best: Spearman "
            f"{shown(3)(means[chosen])} in the mean over the objective's sets, cross-validated on "
            f"{len(trace):,} mixtures{f' ({listed})' if listed else ''}."
        )
    expected = trace[trace["predicted"].notna()]
    if len(expected):
        errors = expected["predicted"] - expected["objective"]
        error = float(errors.mean())
        yield (
            f"The objective of the {len(expected):,} mixtures that surrogates proposed was expected "
            f"to within {math.sqrt((errors**2).mean()):.4f} {_unit(search)} (root mean square); it was "
            f"{abs(error):.4f} {'better' if error > 0 else 'worse'} in the mean than expected."
        )


def _limits(search: Search, trace: "pd.DataFrame") -> Iterator[str]:
    kept = trace[trace["feasible"]]
    if search.objective.has_caps:
        excess = search.objective.excess(search.losses, search.base)
        broken = len(trace) - len(kept)
        room = (
            f"; the best one stays {-excess[_lowest(kept)]:.4f} bits per byte below its nearest cap"
            if len(kept)
            else ""
        )
        yield f"{broken:,} of the evaluated mixtures break a cap{room}."
        free = trace.iloc[_lowest(trace)]
        if len(kept) and not free["feasible"]:
            yield (
                f"The caps cost {kept['objective'].min() - free['objective']:.4f} {_unit(search)}: "
                f"without them {free['mixture']} would be the best."
            )
    if len(kept) and (bound := list(_binding(search, _lowest(kept)))):
        yield f"In the best mixture these constraints bind: {', '.join(bound)}."


def _binding(search: Search, number: int) -> Iterator[str]:
    """The limits at which an evaluated mixture stands, one more part of which would break them."""
    config, weights = search.feasible.config, search.weights[number]
    if config.most_partitions == int((weights > 0).sum()) < len(weights):
        yield f"at most {config.most_partitions} member{'s' if config.most_partitions > 1 else ''}"
    step = 1 / (weights > 0).sum() if config.even else 1 / config.resolution
    matrix, least, most = search.feasible.rows
    for row, low, high in zip(matrix, least, most, strict=True):
        names = " + ".join(np.array(search.feasible.names)[row > 0].tolist())
        if low > 0 and row @ weights - step < low - 1e-9:
            yield f"at least {low:g} of {names}"
        if high < 1 and row @ weights + step > high + 1e-9:
            yield f"at most {high:g} of {names}"


def _descents(
    search: Search, trace: "pd.DataFrame", landings: Sequence[Mixture], price: float
) -> Iterator[str]:
    rows = {tried.mixture: number for number, tried in enumerate(search.tried)}
    landed_rows = [rows[mixture] for mixture in landings if mixture in rows]
    if not landed_rows:
        return
    landed = trace.iloc[_lowest(trace.iloc[landed_rows])]
    others = trace.drop(index=landed_rows)
    yield (
        f"Descent through the merged model landed on {len(landed_rows)} different "
        f"mixture{'s' if len(landed_rows) > 1 else ''}; the best is {landed['mixture']}, "
        f"{_value(search, landed)}{'' if landed['feasible'] else ' (it breaks a cap)'}, "
        f"number {1 + int((trace['objective'] < landed['objective']).sum())} of {len(trace):,}. "
        f"It cost as much as {price:,.0f} evaluations."
    )
    if len(others):
        ahead = landed["objective"] - others["objective"].min()
        yield (
            f"That is {abs(ahead):.4f} {_unit(search)} {'above' if ahead > 0 else 'below'} the best "
            "mixture that was found without it."
        )
