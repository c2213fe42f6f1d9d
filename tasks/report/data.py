"""The data of a report: the tables that it is given, and those that follow from them.

``tasks.report.specs`` draws plots of them, ``tasks.report.page`` makes the page of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tasks.evaluation.losses import Losses
from tasks.evaluation.predicted import MERGE
from tasks.ranking.choice import best_of_sizes, most_conflicting, pareto
from tasks.ranking.complement import all_complementarity, duplicate_words, near_duplicates
from tasks.ranking.effects import marginal_effects
from tasks.ranking.race_result import Screening
from tasks.ranking.rank import MACRO_MEAN
from tasks.search.result import SearchResult

if TYPE_CHECKING:
    import pandas as pd

    from tasks.trust.ladder import Ladder
    from tasks.trust.verdict import Trust


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that a report shows."""

    title: str
    created: str
    """ISO 8601."""
    losses: Losses
    """Of all mixtures that were evaluated in full."""
    members: "pd.DataFrame"
    """Of the same mixtures, as for ``tasks.ranking.rank.rank``."""
    rankings: "dict[str, pd.DataFrame]"
    """By objective, from ``tasks.ranking.rank.rank_all``."""
    partitions: "pd.DataFrame"
    """partition, domain, num_documents, num_tokens, repeats (times its tokens are seen in training),
    seconds, fingerprint, status; where it was measured sharpness, and barrier beside it (the mean over the
    partition's pairs for the macro mean), both in nats per token."""
    sets: "pd.DataFrame"
    """evaluation_set, domain (None where never trained on), num_documents, num_tokens, num_bytes,
    removed (documents lost to deduplication)."""
    cost: "pd.DataFrame"
    """item, seconds, tokens, flops, joules, estimator."""
    validation: "Trust | None"
    """None where no references were trained."""
    notes: list[str]
    lineage: str
    """Preformatted text."""
    provenance: Mapping[str, object]
    ladder: "Ladder | None" = None
    """None where no ladder was climbed."""
    race: Screening | None = None
    """None where every mixture was evaluated in full."""
    search: SearchResult | None = None
    """None where no search was made."""
    pareto_sets: tuple[str, str] | None = None
    """The two sets of the Pareto front; None for those that conflict most."""
    forgetting: "pd.DataFrame | None" = None
    """``tasks.ranking.forgetting.learned_and_forgotten``; None where no adapters were trained."""
    cost_words: Sequence[str] = ()
    """Sentences on what the cost includes."""
    ranked_by: str = MERGE
    """The predictor that ``losses`` and ``rankings`` are of (``tasks.evaluation.predicted``)."""
    corpus_words: Sequence[str] = ()
    """How the corpus goes on from earlier runs, and what its limit leaves out."""

    @cached_property
    def effects(self) -> "pd.DataFrame":
        """``marginal_effects`` for the macro mean."""
        return marginal_effects(self.losses, self.members, MACRO_MEAN)

    @cached_property
    def sizes(self) -> "pd.DataFrame":
        """``best_of_sizes`` for every objective."""
        return best_of_sizes(self.losses, self.rankings)

    @cached_property
    def plane_sets(self) -> tuple[str, str] | None:
        """The two sets of the Pareto front; None where there is only one set."""
        return self.pareto_sets or most_conflicting(self.losses)

    @cached_property
    def complementarity(self) -> "pd.DataFrame":
        """``complementarity`` of pairs for the macro mean, then for the sets by name."""
        return all_complementarity(self.losses, self.members)

    @cached_property
    def duplicates(self) -> "pd.DataFrame":
        """``near_duplicates`` among the partitions of different domains."""
        with_domain = self.partitions.dropna(subset="domain")
        domains = dict(zip(with_domain["partition"], with_domain["domain"], strict=True))
        return near_duplicates(self.losses, self.members, domains)

    @cached_property
    def remarks(self) -> list[str]:
        """Sentences on near-duplicates, which a reader needs before believing marginal effects."""
        return [] if self.race else list(duplicate_words(self.duplicates, self.effects))

    def frames(self) -> "dict[str, pd.DataFrame]":
        """The tables by the name of their file, without ranking, losses and members.

        After a race those are missing that speak of all mixtures.
        """
        frames = {name: getattr(self, name) for name in ("partitions", "sets", "cost")}
        if self.race is None:
            frames |= {
                name: getattr(self, name) for name in ("effects", "sizes", "complementarity")
            }
            frames["near-duplicates"] = self.duplicates
            if self.plane_sets is not None:
                frames["pareto"] = pareto(self.losses, self.members, *self.plane_sets)
        else:
            frames["screened"] = self.race.exits
        if self.forgetting is not None:
            frames["forgetting"] = self.forgetting
        if self.validation is not None:
            frames |= {"validation": self.validation.table, "references": self.validation.pairs}
            frames["validation-barriers"] = self.validation.barriers
            further = {"noise": self.validation.noise, "named": self.validation.named}
            frames |= {f"validation-{n}": t for n, t in further.items() if t is not None}
        if self.ladder is not None:
            frames |= {f"ladder-{name}": getattr(self.ladder, name) for name in LADDER_TABLES}
        if self.search is not None:
            frames |= {f"search-{name}": getattr(self.search, name) for name in SEARCH_TABLES}
        return frames


LADDER_TABLES = ("orders", "flips", "losses")
"""Tables of a ``Ladder``."""
SEARCH_TABLES = ("surrogates", "trace", "best")
"""Tables of a ``SearchResult``."""
