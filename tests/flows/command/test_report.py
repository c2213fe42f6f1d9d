"""A report made again from a run's folder is the one that the run left, and comes as files."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from flows.run.folder import read_report, texts_of, write_files
from flows.run.stored import RunContent, find_run
from storage.artifact import seal
from storage.store import Store
from tasks.ranking.race_result import Screening
from tasks.report.page import write_report
from tasks.report.specs import plot_specs
from tests.flows.conftest import Place, mixpool
from tests.tasks.reports import full_report

PICTURE = re.compile("data:image/svg[^\"']*")
"""A plot in a page; its gradients are numbered anew with every drawing."""


def words(path: Path) -> str:
    return PICTURE.sub("", path.read_text(encoding="utf-8"))


def latest(place: Place) -> Path:
    return max((Path(place.store) / "runs").iterdir())


def test_a_report_made_again_is_the_one_that_the_run_left(finished: Place, tmp_path: Path) -> None:
    store = Store(finished.store)
    data = read_report(store, find_run(store, None))
    write_report(tmp_path / "again.html", data)
    assert words(tmp_path / "again.html") == words(latest(finished) / "report.html")
    result = mixpool("report", "--store", finished.store, "--output", tmp_path / "out", "--dark")
    assert result.exit_code == 0, result.stderr
    out = tmp_path / "out"
    assert words(out / "report.html") == words(tmp_path / "again.html")
    check_pictures(out, list(plot_specs(data)))
    check_tables(out, latest(finished))


def check_pictures(out: Path, specs: list[str]) -> None:
    """One PNG per plot and theme; a set's plot says which."""
    found = {path.stem for path in (out / "plots").glob("*.png")}
    assert len(found) == 2 * len(specs)
    assert {"ranking", "ranking-dark", "heat-map", "ranking-1-birds", "effects-dark"} <= found
    for path in (out / "plots").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def check_tables(out: Path, run: Path) -> None:
    """Every table as Parquet and as CSV, with the same rows and columns."""
    names = {path.stem for path in (out / "tables").glob("*.parquet")}
    assert names >= {"ranking", "losses", "members", "partitions", "sets", "cost", "effects"}
    assert names >= {"sizes", "pareto", "complementarity", "near-duplicates"}
    for name in names:
        table = pd.read_parquet(out / "tables" / f"{name}.parquet")
        text = pd.read_csv(out / "tables" / f"{name}.csv")
        assert len(table) == len(text)
        assert set(table) - set(text) <= {"values"}
    for name in ("partitions", "effects", "complementarity"):
        ours = pd.read_parquet(out / "tables" / f"{name}.parquet")
        pd.testing.assert_frame_equal(ours, pd.read_parquet(run / "tables" / f"{name}.parquet"))
    ranking = pd.read_parquet(out / "tables" / "ranking.parquet")
    pd.testing.assert_frame_equal(ranking, pd.read_parquet(run / "ranking.parquet"))


@pytest.mark.parametrize("raced", [False, True])
def test_validation_search_and_race_come_back(tmp_path: Path, raced: bool) -> None:
    exits = pd.DataFrame({"mixture": ["a", "b"], "look": [1, None]}).astype({"look": "Int64"})
    race = Screening(["Some were dropped."], 64, exits) if raced else None
    data = full_report(race=race, cost_words=["As stated."])
    store = Store(str(tmp_path / "store"), create=True)
    files = write_files(store, "runs/full", data)
    texts = json.loads(json.dumps(texts_of(data)))
    again = read_report(store, RunContent("full", {"files": files, "report": texts}))
    for name, frame in data.frames().items():
        pd.testing.assert_frame_equal(again.frames()[name], frame.reset_index(drop=True), obj=name)
    assert texts_of(again) == texts
    write_report(tmp_path / "again.html", again)
    assert words(tmp_path / "again.html") == words(tmp_path / "store/runs/full/report.html")
    assert plot_specs(again) == plot_specs(data)


def test_all_files_of_a_run_are_sealed(finished: Place) -> None:
    run = latest(finished)
    files = json.loads((run / "run.json").read_text())["content"]["files"]
    there = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert there == {*files, "run.json"}


def test_the_front_is_of_the_sets_that_are_asked_for(finished: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command: list[str | Path] = ["report", "--store", finished.store, "--output", out, "--pareto"]
    result = mixpool(*command, "law", "sums")
    assert result.exit_code == 0, result.stderr
    assert not (out / "plots" / "ranking-dark.png").exists()
    front = pd.read_parquet(out / "tables" / "pareto.parquet")
    ranking = pd.read_parquet(out / "tables" / "ranking.parquet")
    law = ranking[ranking["objective"] == "law"]
    assert front["mixture"].iloc[0] == law["mixture"].iloc[0]
    assert front["first"].iloc[0] == pytest.approx(law["bits_per_byte"].min())
    assert "<b>law</b> and <b>sums</b>" in (out / "report.html").read_text(encoding="utf-8")

    result = mixpool(*command, "law", "sums")
    assert result.exit_code == 1
    assert "is not empty: give a new folder with --output" in result.stderr
    result = mixpool(*command[:4], tmp_path / "other", "--pareto", "law", "nothing")
    assert result.exit_code == 1
    assert "no evaluation set 'nothing'" in result.stderr


def test_runs_that_cannot_be_told_again_say_why(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    run = latest(place)
    content = json.loads((run / "run.json").read_text())["content"]
    (run / "members.parquet").write_bytes((run / "ranking.parquet").read_bytes())
    command: list[str | Path] = ["report", "--store", place.store, "--output", tmp_path / "out"]
    result = mixpool(*command)
    assert result.exit_code == 1
    assert "members.parquet is not what was written" in result.stderr
    del content["report"]
    (run / "run.json").write_bytes(seal(content))
    result = mixpool(*command)
    assert result.exit_code == 1
    assert "made by an earlier version" in result.stderr
    assert "run its recipe again" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("report", "--output"),
        ("export", "best", "--model"),
        ("export", "best", "--output"),
        ("export", "best", "--weights"),
        ("search", "--output"),
    ],
)
def test_an_address_is_no_folder_to_write_to(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mixpool(*command, "s3://key:hidden@bucket/out")
    assert result.exit_code == 2
    assert "it is an address" in result.stderr
    assert "hidden" not in result.stderr
    assert not [*tmp_path.iterdir()]
