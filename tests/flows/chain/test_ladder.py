"""A ladder: the same mixtures on rungs that share steps, which orders hold, and which flip."""

from pathlib import Path

import pytest

from flows.chain.ladder import FIRST, rungs_of
from flows.chain.recipe_file import RecipeError
from flows.run.folder import read_report
from flows.run.pictures import write_folder
from flows.run.stored import find_run
from storage.garbage import collect
from storage.store import Store
from tasks.ranking.rank import MACRO_MEAN
from tests.conftest import TinyRecipe
from tests.flows.conftest import Place, mixpool, mixpool_json

RATE = "train.learning_rate=0.003"


def test_a_ladder_of_three_rungs(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    ladder = (
        "validation.ladder=[{train.learning_rate: 0.003, validation.references: 2}, "
        "{base.architecture.hidden_size: 16, base.train.steps: 4}]"
    )
    options = ["--store", place.store, "--set", "validation.references=3", "--set", ladder]
    planned = mixpool_json("plan", place.recipe, *options, "--references")
    found = mixpool_json("validate", place.recipe, *options)
    # Three references here; six partitions and two references; and another base model with six more.
    assert len(found["trained"]) == 3 + (6 + 2) + (1 + 6)
    assert len(planned["steps"]["train"]["build"]) == len(found["trained"])
    assert planned["losses_to_evaluate"] == found["losses_evaluated"]
    higher, smaller = (
        "train.learning_rate=0.003",
        "base.architecture.hidden_size=16, base.train.steps=4",
    )
    assert f"birds-0 ({higher})" in found["trained"]
    assert f"base ({smaller})" in found["trained"]
    macro = [row for row in found["ladder"] if row["evaluation_set"] == MACRO_MEAN]
    between = {(r["first_rung"], r["first"], r["second_rung"], r["second"]): r for r in macro}
    kinds = [(FIRST, "proxy"), (FIRST, "reference"), (higher, "proxy"), (higher, "reference")]
    columns = [*kinds, (smaller, "proxy")]
    assert len(between) == len(columns) * (len(columns) - 1) // 2
    proxies = between[FIRST, "proxy", smaller, "proxy"]
    assert (proxies["mixtures"], proxies["pairs"]) == (21, 15 + 105)
    assert between[FIRST, "reference", higher, "reference"]["mixtures"] == 2
    for row in found["ladder"]:
        assert row["held"] + row["flipped"] + row["unsure"] == row["pairs"]
    check_files(place, tmp_path)
    shown = " ".join(mixpool("validate", place.recipe, *options).stdout.split())
    assert f"From {FIRST} to {higher}, merged models: of 120 pairs" in shown
    again = mixpool_json("validate", place.recipe, *options)
    assert (again["trained"], again["losses_evaluated"]) == ([], 0)
    assert again["ladder"] == found["ladder"]
    # What the report says of partitions is of the recipe itself.
    store = Store(place.store)
    first = read_report(store, find_run(store, min(path.name for path in runs(place))))
    data = read_report(store, find_run(store, None))
    assert data.partitions["fingerprint"].tolist() == first.partitions["fingerprint"].tolist()
    assert not any(collect(store, None)[:-1]), "all rungs are kept"


def runs(place: Place) -> list[Path]:
    return [path for path in (Path(place.store) / "runs").iterdir() if (path / "run.json").exists()]


def check_files(place: Place, folder: Path) -> None:
    """The report that is read back has tables, words, a picture and a section."""
    store = Store(place.store)
    data = read_report(store, find_run(store, None))
    assert data.ladder is not None
    losses = data.ladder.losses
    assert len(losses) == 3 * 21 + 3 + 2
    of_size = losses[(losses["kind"] == "proxy") & (losses["k"] == 1) & (losses["rung"] == FIRST)]
    assert sorted(of_size["rank"]) == [1, 2, 3, 4, 5, 6]
    judged = data.rankings[MACRO_MEAN].set_index("mixture")["loss"]
    assert dict(zip(of_size["mixture"], of_size["loss"], strict=True)) == pytest.approx(
        judged[of_size["mixture"]].to_dict()
    )
    written = {path.name for path in write_folder(data, folder / "exported")}
    assert {
        "ladder.png",
        "ladder-orders.csv",
        "ladder-flips.parquet",
        "ladder-losses.csv",
    } <= written
    page = (folder / "exported" / "report.html").read_text()
    assert 'id="table-ladder-flips"' in page
    assert "Rank of each mixture among those of as many partitions" in page


@pytest.mark.parametrize(
    ("rung", "message"),
    [
        (
            "{corpus.name: other}",
            r"validation.ladder\[0\] changes corpus.name: the rungs of a ladder",
        ),
        ("{base.source: null}", "changes base.source"),
        ("{train.stepz: 3}", "train.stepz: is no field here"),
        ("{train.steps: 0}", "greater than or equal to 1"),
        ("{validation.references: 3}", r"validation\.ladder\[0\] trains the same as the recipe"),
    ],
)
def test_rungs_that_cannot_be_compared_are_refused(
    rung: str, message: str, tmp_path: Path, tiny_recipe: TinyRecipe
) -> None:
    recipe = tiny_recipe(tmp_path, f"validation.ladder=[{rung}]")
    with pytest.raises(RecipeError, match=message):
        rungs_of(recipe)


def test_the_option_names_rungs(tmp_path: Path, finished: Place) -> None:
    refused = mixpool(
        "validate", finished.recipe, "--store", tmp_path / "s", "--ladder", RATE, "--ladder", RATE
    )
    assert refused.exit_code == 2
    assert "validation.ladder[1] trains the same as train.learning_rate=0.003" in refused.stderr
    assert not [*(tmp_path / "s").glob("runs/*")]
