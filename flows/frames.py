"""From the chain's results to the frames that rankings and reports are made of."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flows.runners import artifact_of
from storage.cache import Handle
from storage.store import Store
from tasks.losses import Row, to_frame
from tasks.window import load_windows

if TYPE_CHECKING:
    import pandas as pd


def losses_frame(
    store: Store, rows: Iterable[Row], windows: Mapping[str, Handle]
) -> "pd.DataFrame":
    """Rows with the counts of their sets (see ``tasks.losses.to_frame``)."""
    counts = {}
    for handle in windows.values():
        artifact = artifact_of(handle)
        counts[artifact.digest] = _counts(load_windows(store.fetch(artifact)))
    return to_frame(rows, counts)


def _counts(windows: Any) -> dict[str, Any]:
    return {
        "num_tokens": int(windows.num_tokens.sum()),
        "num_bytes": int(windows.num_bytes.sum()),
        "num_words": int(windows.num_words.sum()),
        "group_tokens": windows.num_tokens,
        "group_bytes": windows.num_bytes,
    }
