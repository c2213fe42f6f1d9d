"""Read finished runs from a store: a run by its name, and its rankings."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage.lineage import run_folders
from storage.store import Store
from tasks.evaluation.predicted import MERGE, is_predictor

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunContent:
    """A finished run as it is kept in the store."""

    name: str
    content: dict[str, Any]

    @property
    def models(self) -> dict[str, str]:
        """Digest of each partition's model."""
        return dict(self.content["models"])


def find_run(store: Store, name: str | None) -> RunContent:
    """The run of that name, or the latest finished one.

    Raises:
        ValueError: there is none.
    """
    finished = {run: content for run, content in run_folders(store).items() if content}
    if name is None and finished:
        name = max(finished)
    if name is None or name not in finished:
        asked = "finished run" if name is None else f"finished run {name!r}"
        choices = ", ".join(finished) or "none; make one with `mixpool run`"
        raise ValueError(f"there is no {asked} in {store.url}; runs: {choices}")
    content = finished[name]
    assert content is not None
    return RunContent(name, _Fields(content))


def latest_of(store: Store, recipe: str) -> dict[str, Any]:
    """What ``run.json`` of the latest finished run of a recipe has. Raises ValueError without any."""
    runs = (content for _, content in sorted(run_folders(store).items()))
    found = [content for content in runs if content and content["recipe"] == recipe]
    if not found:
        raise ValueError(
            f"there is no finished run of the recipe {recipe!r} in {store.url} that says which mixture is "
            "best: make one with `mixpool run` or `mixpool search`"
        )
    return _Fields(found[-1])


class _Fields(dict[str, Any]):
    """The fields of a ``run.json``, which somebody else may have written."""

    def __missing__(self, field: str) -> Any:
        raise ValueError(
            f"run.json of run {self.get('name')!r} has no {field!r}: this version of mixpool did not "
            "write it; run the recipe again"
        )


def ranked_by(run: RunContent) -> str:
    """The predictor that a run's losses and rankings are of (``tasks.evaluation.predicted``)."""
    return str(run.content["summary"].get("ranked_by", MERGE))


def newest_validation(
    store: Store, models: Mapping[str, str | None]
) -> tuple[str, dict[str, str]] | None:
    """The newest run that has validated this very pool: its name, and what its references favour by set.

    Args:
        models: digest of each model of the pool, by any names.
    """
    for name, content in sorted(run_folders(store).items(), reverse=True):
        summary = (content or {}).get("summary", {})
        if (
            content
            and "favoured" in summary
            and {*content["models"].values()} == {*models.values()}
        ):
            told = summary["favoured"].items()
            return name, {str(s): str(by) for s, by in told if is_predictor(str(by))}
    return None


def ranking(
    store: Store, run: RunContent, objective: str, most: int | None = None
) -> "pd.DataFrame":
    """The ranking that a run left, for one objective (see ``tasks.ranking.rank.rank``).

    Args:
        most: rows of the best that are wanted; None is all of them.

    Raises:
        ValueError: the run has no such objective.
    """
    import pandas as pd
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(io.BytesIO(store.backend.read(f"runs/{run.name}/ranking.parquet")))
    chosen: list[pd.DataFrame] = []
    objectives: dict[str, None] = {}
    for number in range(file.num_row_groups):
        frame: pd.DataFrame = file.read_row_group(number).to_pandas()
        objectives |= dict.fromkeys(frame["objective"])
        chosen.append(frame[frame["objective"] == objective])
        if most is not None and sum(map(len, chosen)) >= most:
            break
    table = pd.concat(chosen, ignore_index=True)[:most]
    if table.empty:
        names = ", ".join(map(str, objectives))
        raise ValueError(f"run {run.name} has no objective {objective!r}; it has: {names}")
    return table.drop(columns="objective")
