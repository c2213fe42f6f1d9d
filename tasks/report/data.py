"""The data of a report: the tables that it is given, and those that follow from them.

``tasks.report.specs`` draws plots of them, ``tasks.report.page`` makes the page of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tasks.evaluation.losses import Losses
from tasks.ranking.choice import best_of_sizes, most_conflicting, pareto
from tasks.ranking.complement import all_complementarity, duplicate_words, near_duplicates
from tasks.ranking.effects import marginal_effects
from tasks.ranking.race_result import Screening
from tasks.ranking.rank import MACRO_MEAN
from tasks.search.result import SearchResult

if TYPE_CHECKING:
    import pandas as pd

    from tasks.trust.verdict import Trust


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that a report tells.

    ``losses`` and ``members`` are as for ``tasks.ranking.rank.rank``, and ``rankings`` are what
    ``tasks.ranking.rank.rank_all`` makes of them; ``created`` is ISO 8601 text;
    ``partitions`` has partition, domain, num_documents, num_tokens, repeats (times its tokens are
    seen in training), seconds, fingerprint, status; ``sets`` has evaluation_set, domain (None where
    never trained on), num_documents, num_tokens, num_bytes, removed (documents lost to
    deduplication); ``cost`` has item, seconds, tokens, flops, joules, estimator; ``validation`` is
    there where references were trained, ``search`` where mixtures were sought; ``lineage`` is
    preformatted text; ``race`` is there where only some mixtures were evaluated in full, and then
    ``losses`` and ``members`` are theirs; ``pareto_sets`` are the two sets of the Pareto front, None
    for those that conflict most; ``cost_words`` are sentences on what the cost holds.
    """

    title: str
    created: str
    losses: Losses
    members: "pd.DataFrame"
    rankings: "dict[str, pd.DataFrame]"
    partitions: "pd.DataFrame"
    sets: "pd.DataFrame"
    cost: "pd.DataFrame"
    validation: "Trust | None"
    notes: list[str]
    lineage: str
    provenance: Mapping[str, object]
    race: Screening | None = None
    search: SearchResult | None = None
    pareto_sets: tuple[str, str] | None = None
    cost_words: Sequence[str] = ()

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
        """What a reader must know of the partitions before believing their effects."""
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
        if self.validation is not None:
            frames |= {"validation": self.validation.table, "references": self.validation.pairs}
            frames["validation-barriers"] = self.validation.barriers
            if self.validation.noise is not None:
                frames["validation-noise"] = self.validation.noise
        if self.search is not None:
            frames |= {f"search-{name}": getattr(self.search, name) for name in SEARCH_TABLES}
        return frames


SEARCH_TABLES = ("surrogates", "trace", "best")
"""Tables of a ``SearchResult``."""
