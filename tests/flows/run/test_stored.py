"""What was not written as a run is refused by what it lacks; a validation is known by its pool."""

from pathlib import Path

import pytest

from flows.export.sampling import parse_mixture
from flows.run.stored import find_run, newest_validation
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


def test_the_newest_validation_of_a_pool_is_known_by_its_models(tmp_path: Path) -> None:
    """Whatever partitions are called; what is no predictor is passed over."""
    store = Store(str(tmp_path), create=True)
    runs = {
        "1-a": ({"macro mean": "singles"}, {"p": "d"}),
        "2-a": ({"macro mean": "probability", "x": "\x1b[31mx"}, {"p": "d"}),
        "3-a": ({"macro mean": "scaled 1.5"}, {"p": "d", "q": "e"}),
    }
    for name, (favoured, models) in runs.items():
        content = {"name": name, "models": models, "summary": {"favoured": favoured}}
        store.backend.create(f"runs/{name}/run.json", seal(content))
    plain = {"name": "4-a", "models": {"p": "d"}, "summary": {}}
    store.backend.create("runs/4-a/run.json", seal(plain))
    assert newest_validation(store, {"z": "d"}) == ("2-a", {"macro mean": "probability"})
    assert newest_validation(store, {"z": "e"}) is None
