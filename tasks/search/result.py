"""The result of a search, in the form in which a report shows it and a file keeps it.

Losses here are bits per byte, as objectives are. A mixture's label is that of its evaluated model,
so every number but ``predicted`` was measured.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class SearchResult(NamedTuple):
    """The result of a search, as a report shows it."""

    words: list[str]
    """The answer and how far to trust it, in sentences."""
    surrogates: "pd.DataFrame"
    """Cross-validated: ``surrogate``, ``target``, ``spearman``, ``pearson``, ``rmse``, ``rows`` (mixtures
    that it was fitted to), ``chosen`` (bool), ``share`` (weight of the target in the objective)."""
    trace: "pd.DataFrame"
    """Every evaluation in order: ``evaluation``, counted from 1; ``round``; ``mixture``; ``proposed_by``
    ("start", the name of a surrogate, "descent", "random"); ``predicted``; ``objective``; ``best`` so far
    among the feasible; ``feasible`` (bool)."""
    best: "pd.DataFrame"
    """The best evaluated feasible mixtures: ``mixture``, ``objective``, one column for each evaluation
    set in bits per byte, ``predicted``."""
