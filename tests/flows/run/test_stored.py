"""What was not written as a run is refused by what it lacks."""

from pathlib import Path

import pytest

from flows.export.sampling import parse_mixture
from flows.run.stored import find_run
from storage.artifact import seal
from storage.store import Store


def test_a_run_without_its_fields_is_refused_by_the_field(tmp_path: Path) -> None:
    store = Store(str(tmp_path), create=True)
    store.backend.create("runs/x/run.json", seal({"name": "x"}))
    found = find_run(store, None)
    with pytest.raises(ValueError, match=r"run\.json of run 'x' has no 'best': .* run the recipe"):
        parse_mixture("best", found)
    with pytest.raises(ValueError, match="has no 'models'"):
        _ = found.models
