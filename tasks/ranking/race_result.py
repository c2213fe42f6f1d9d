"""The result of a race: which mixtures were dropped after which look, how surely, at what cost.

A reader must be able to judge what was *not* evaluated. So every dropped mixture is listed with the
estimate and the interval that decided. Sentences say what share of a full evaluation's work was
done, and what the confidence covers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tasks.readable import count

if TYPE_CHECKING:
    import pandas as pd


class Exit(NamedTuple):
    """A mixture that was dropped, and why."""

    mixture: int
    look: int | None
    """Number of the look after which it was dropped; None where it was evaluated in full."""
    estimate: float
    """Its macro mean as estimated then, in nats per token."""
    low: float
    """Lower end of the interval that decided; as wide as the confidence asks for."""
    high: float
    """Upper end."""
    bound: float
    """Known loss of the worst of the best ``top`` at that time, below ``low``."""


class RaceLook(NamedTuple):
    """What one look decided."""

    look: int
    share: float
    """Share of the groups of documents that had been seen then."""
    evaluated: int
    """Mixtures evaluated at it."""
    dropped: int
    left: int
    """Mixtures left, those evaluated in full included, single partition models not."""


@dataclass
class RaceResult:
    """The state of a race, and its result when it is complete."""

    mixtures: int
    """Number of mixtures at the start."""
    finalists: list[int] = field(default_factory=list)
    """Mixtures that were never dropped, in their order; all evaluated in full."""
    exits: list[Exit] = field(default_factory=list)
    rounds: list[RaceLook] = field(default_factory=list)
    evaluated_tokens: int = 0
    """Tokens that models were run on, or would have been without stored losses."""
    full_tokens: int = 0
    """The same for evaluating every mixture in full."""
    is_complete: bool = False
    """Whether it came to its end; False where a loss was not known."""


class Screening(NamedTuple):
    """A race as a report shows it."""

    words: list[str]
    """Sentences (see ``in_words``)."""
    mixtures: int
    """Number of mixtures at the start."""
    exits: "pd.DataFrame"
    """The mixtures that were dropped (see ``exits_frame``)."""


def in_words(result: RaceResult, top: int, confidence: float) -> Iterator[str]:
    """What a complete race did, in sentences."""
    finalists = len(result.finalists)
    if not result.rounds:
        yield (
            f"All {result.mixtures:,} mixtures were evaluated in full: there are too few of them, or "
            "too few documents, to find the best from a part of the documents."
        )
        return
    steps = [
        f"{look.dropped:,} of {look.evaluated:,} after {100 * look.share:.2g} % of the documents"
        for look in result.rounds
    ]
    exact = sum(out.look is None for out in result.exits)
    more = f", {exact:,} of a single partition by their exact losses" if exact else ""
    yield (
        f"{len(result.exits):,} of {result.mixtures:,} mixtures were screened out and have no place in "
        f"the ranking: {', '.join(steps)}{more}. The other {finalists:,} were evaluated in full."
    )
    yield (
        f"That took {count(result.evaluated_tokens)} token evaluations, "
        f"{100 * result.evaluated_tokens / result.full_tokens:.2g} % of the "
        f"{count(result.full_tokens)} of evaluating every mixture in full."
    )
    yield (
        f"With a confidence of {100 * confidence:g} % none of the best {top} for the macro mean was "
        "screened out (all mixtures and looks together; by the choice of documents alone). Past place "
        f"{top}, and for single evaluation sets, mixtures that were screened out may be better than "
        "finalists; ties are told of among finalists only."
    )


def exits_frame(result: RaceResult, labels: Sequence[str]) -> "pd.DataFrame":
    """The mixtures that were dropped, in the order of the mixtures.

    Args:
        labels: name of each mixture of the race.

    Returns:
        ``mixture``; ``look``, the number of the look after which it was dropped, counted from 1 (NA
        where its exact loss decided); ``share`` of the documents seen then; ``estimate`` of its macro
        mean in nats per token, with the ends ``low`` and ``high`` of the interval that decided, and
        the ``bound`` that ``low`` lies above: the known loss of the worst of the best at that time.
    """
    import pandas as pd

    shares = {look.look: look.share for look in result.rounds}
    rows = [
        {
            "mixture": labels[out.mixture],
            "look": None if out.look is None else out.look + 1,
            "share": 1.0 if out.look is None else shares[out.look],
            **{name: getattr(out, name) for name in ("estimate", "low", "high", "bound")},
        }
        for out in sorted(result.exits)
    ]
    columns = ["mixture", "look", "share", "estimate", "low", "high", "bound"]
    return pd.DataFrame(rows, columns=columns).astype({"look": "Int64"})
