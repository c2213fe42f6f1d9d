"""Tables of other people: every fault gets one clear answer, and a good table gives good weights."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.mixtures.constraints import ConstraintsConfig
from tasks.search import loss_table as loss_table_module
from tasks.search.loss_table import LossTable, loss_table, read_frame
from tasks.search.objective import ObjectiveConfig
from tasks.search.table_search import propose_from_table

OPTIMUM = np.array([0.5, 0.3, 0.2])
NAMES = ["web", "books", "code"]
TAKEN = "Weights: web, books, code; targets: qa, law; row sums from 1 to 1, each row scaled to 1."
EVEN = ObjectiveConfig()


def table(rows: int = 40, seed: int = 0) -> pd.DataFrame:
    weights = np.random.default_rng(seed).dirichlet(np.ones(3), rows)
    frame = pd.DataFrame(weights, columns=NAMES)
    frame["qa"] = 1 + ((weights - OPTIMUM) ** 2).sum(axis=1)
    frame["law"] = 2 + 2 * ((weights - OPTIMUM) ** 2).sum(axis=1)
    return frame


def read_table(path: str, targets: list[str], weights: list[str] | None = None) -> LossTable:
    return loss_table(read_frame(path), path, targets, weights)


def read(folder: Path, frame: pd.DataFrame, weights: list[str] | None = None) -> LossTable:
    path = folder / "losses.csv"
    frame.to_csv(path, index=False)
    return read_table(str(path), ["qa", "law"], weights)


def test_csv_parquet_and_urls_say_the_same(tmp_path: Path) -> None:
    frame = table().assign(run=[f"run {n}" for n in range(40)])
    frame.to_parquet(tmp_path / "losses.parquet")
    one = read(tmp_path, frame)
    other = read_table(f"file://{tmp_path}/losses.parquet", ["qa", "law"])
    for found in (one, other):
        assert (found.names, found.targets, found.notes) == (tuple(NAMES), ("qa", "law"), [TAKEN])
        assert found.weights == pytest.approx(frame[NAMES].to_numpy())
        assert found.losses == pytest.approx(frame[["qa", "law"]].to_numpy())
        assert found.rows == tuple(range(1, 41))


def test_weights_of_any_sum_are_scaled(tmp_path: Path) -> None:
    frame = table()
    frame[NAMES] = frame[NAMES].mul(np.arange(1, 41), axis=0)
    found = read(tmp_path, frame, NAMES)
    assert found.weights == pytest.approx(table()[NAMES].to_numpy())
    assert found.notes == [TAKEN.replace("1 to 1,", "1 to 40,")]


def test_a_column_that_nobody_called_a_weight_is_refused_where_sums_show_it(tmp_path: Path) -> None:
    frame = table().assign(step=100.0 + np.arange(40))
    columns = r"\(weights: web, books, code, step; targets: qa, law\)"
    message = f"{columns} sum to 101 in one and 140 in another: .* name .* with --weights"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, frame)
    assert read(tmp_path, frame, NAMES).names == tuple(NAMES)
    percent = table()
    percent.loc[0, NAMES] *= 1.009  # as percentages that were rounded
    assert "row sums from 1 to 1.009," in read(tmp_path, percent).notes[0]


def test_rows_without_a_number_are_left_out_with_a_note(tmp_path: Path) -> None:
    frame = table()
    frame.loc[3, "qa"] = np.nan
    frame.loc[7, "code"] = np.inf
    found = read(tmp_path, frame)
    assert found.notes == [
        TAKEN,
        "2 of 40 rows were left out, since a weight or a target in them is not finite: the first is "
        "row 4, in column 'qa'.",
    ]
    assert len(found.weights) == 38
    assert found.rows[2:4] == (3, 5)


def test_repeated_weights_are_averaged_with_a_note(tmp_path: Path) -> None:
    frame = table()
    frame.loc[9, NAMES] = frame.loc[5, NAMES]
    losses = frame["qa"].to_numpy()
    frame.loc[9, "qa"] = losses[5] + 0.2
    found = read(tmp_path, frame)
    assert found.notes == [
        TAKEN,
        "1 rows repeat the weights of another row (the first is row 10): their losses were averaged.",
    ]
    assert found.losses[5, 0] == pytest.approx(losses[5] + 0.1)
    assert len(found.losses) == 39


def test_a_constant_weight_is_left_out_with_a_note(tmp_path: Path) -> None:
    frame = table()
    frame[NAMES] *= 0.8
    found = read(tmp_path, frame.assign(news=0.2))
    assert found.names == tuple(NAMES)
    assert "the same in every row in column 'news'" in found.notes[1]
    assert found.weights == pytest.approx(table()[NAMES].to_numpy())


def test_what_cannot_be_used_is_refused_by_name_and_number(tmp_path: Path) -> None:
    good = table()
    columns = r"\(weights: web, books, code; targets: qa, law\)"
    refused = {
        rf"target 'qa' of .*{columns} is 1 in every row": good.assign(qa=1.0),
        rf"row 3 of .*{columns} has the weight -0.1 in column 'books'": good.assign(
            books=good["books"].where(good.index != 2, -0.1)
        ),
        rf"row 2 of .*{columns} has only weights of 0": good.assign(
            **{name: good[name].where(good.index != 1, 0.0) for name in NAMES}
        ),
        rf"{columns} has 4 usable rows with different weights: 5 are needed": good[:4],
        r"losses\.csv has no rows": good[:0],
        r"has 0 usable rows .* 40 of 40 rows were left out": good.assign(qa=np.nan),
        r"weights: none; targets: qa, law\): name at least one": good[["qa", "law"]],
        "'law', which is unknown": good.drop(columns="law"),
    }
    for message, frame in refused.items():
        with pytest.raises(ValueError, match=message):
            read(tmp_path, frame)
    with pytest.raises(ValueError, match=r"'run' of .*weights: run; .* holds str"):
        read(tmp_path, good.assign(run="first"), ["run"])
    with pytest.raises(ValueError, match="each column once"):
        read(tmp_path, good, ["web", "qa"])


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give a \.csv, \.parquet or \.pq file"):
        read_table(str(tmp_path / "losses.xlsx"), ["qa"])
    with pytest.raises(ValueError, match=r"none\.csv cannot be read"):
        read_table(str(tmp_path / "none.csv"), ["qa"])
    for name in ("broken.parquet", "empty.csv"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"{name} cannot be read as a table"):
            read_table(str(tmp_path / name), ["qa"])


def test_a_good_table_gives_good_weights(tmp_path: Path) -> None:
    found = propose_from_table(read(tmp_path, table()), EVEN, ConstraintsConfig(), count=5)
    assert found.surrogates["share"].unique().tolist() == [0.5]
    assert found.surrogates["chosen"].sum() == 2
    assert found.surrogates["rows"].unique().tolist() == [32]
    assert len(found.held_out) == 16
    assert found.held_out["predicted"].to_numpy() == pytest.approx(
        found.held_out["loss"].to_numpy(), abs=0.05
    )
    rows = table().loc[found.held_out["row"] - 1]
    assert np.where(found.held_out["target"] == "qa", rows["qa"], rows["law"]) == pytest.approx(
        found.held_out["loss"].to_numpy()
    )
    best = found.proposals.iloc[0]
    weights = [best[f"weight of {name}"] for name in NAMES]
    assert weights == pytest.approx(OPTIMUM, abs=0.05)
    assert best["predicted"] == pytest.approx((best["predicted qa"] + best["predicted law"]) / 2)
    assert len(found.proposals) == found.proposals["mixture"].nunique() == 5
    assert "On 8 held-out rows" in found.notes[-1]


def test_constraints_name_columns_and_hold(tmp_path: Path) -> None:
    read_once = read(tmp_path, table())
    config = ConstraintsConfig(bounds={"web": (0.0, 0.25)}, sums=[], most_partitions=2)
    law = ObjectiveConfig(weights={"law": 1})
    found = propose_from_table(read_once, law, config, ["quadratic"], 6, held_out=0)
    weights = found.proposals[[f"weight of {name}" for name in NAMES]].to_numpy()
    assert len(weights) == 6
    assert (weights[:, 0] <= 0.25).all()
    assert ((weights > 0).sum(axis=1) <= 2).all()
    assert found.held_out.empty
    assert "Fewer than 2 rows are held out" in found.notes[-1]
    with pytest.raises(ValueError, match=r"'news', which is unknown"):
        propose_from_table(read_once, EVEN, ConstraintsConfig(bounds={"news": (0, 1)}))
    repetition = ConstraintsConfig.model_validate({"repetition": {"tokens": 1000}})
    with pytest.raises(ValueError, match="repetition needs the number of tokens"):
        propose_from_table(read_once, EVEN, repetition)
    tokens = {"web": 100, "books": 50, "code": 1000}
    held = propose_from_table(read_once, EVEN, repetition, ["linear"], 4, tokens=tokens).proposals
    assert (held["weight of web"] <= 0.4).all()
    assert (held["weight of books"] <= 0.2).all()


def test_a_pull_goes_to_the_prior_and_caps_are_refused(tmp_path: Path) -> None:
    prior = {"web": 2.0, "books": 2.0, "code": 6.0}
    pulled = ObjectiveConfig(pull=100.0, prior=prior)
    read_once = read(tmp_path, table())
    found = propose_from_table(read_once, pulled, ConstraintsConfig(), ["quadratic"], 1)
    best = found.proposals.iloc[0]
    assert [best[f"weight of {name}"] for name in NAMES] == pytest.approx(
        [0.2, 0.2, 0.6], abs=0.011
    )
    with pytest.raises(ValueError, match="the objective has caps"):
        propose_from_table(read_once, ObjectiveConfig(caps={"qa": 1}), ConstraintsConfig())


def test_a_table_of_five_rows_and_more_columns_is_answered_with_its_limits(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    names = [f"w{n}" for n in range(8)]
    frame = pd.DataFrame(generator.dirichlet(np.ones(8), 5), columns=names)
    frame["qa"], frame["law"] = frame["w0"], 1 - frame["w0"]
    found = propose_from_table(
        read(tmp_path, frame), ObjectiveConfig(weights={"qa": 1}), ConstraintsConfig(), count=3
    )
    assert len(found.proposals) == 3
    with pytest.raises(ValueError, match=r"share of held-out rows is 0\.9"):
        propose_from_table(read(tmp_path, frame), EVEN, ConstraintsConfig(), held_out=0.9)


def test_a_table_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_table_module, "MOST_WEIGHTS", 2)
    with pytest.raises(
        ValueError, match="has 3 columns of weights, and 2 can be searched at most: name"
    ):
        read(tmp_path, table())
    assert read(tmp_path, table(), ["web", "books"]).names == ("web", "books")
    monkeypatch.setattr(loss_table_module, "MOST_BYTES", 100)
    with pytest.raises(
        ValueError, match=r"losses.csv cannot be read as a table: it has [\d,]+ bytes, and 100"
    ):
        read(tmp_path, table())


def test_a_surrogate_of_too_many_terms_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.surrogates.linear.MOST_NUMBERS", 100)
    found = propose_from_table(
        read(tmp_path, table()), EVEN, ConstraintsConfig(), names=["linear", "quadratic"]
    )
    assert {*found.surrogates["surrogate"]} == {"linear"}
    assert "since it failed: 3 weights have 6 products in each of" in " ".join(found.notes)
