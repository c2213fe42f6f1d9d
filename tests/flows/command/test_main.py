"""The command line as a person or a program uses it: codes, messages, one document on stdout."""

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

from flows.command.main import app
from flows.command.options import faults
from flows.command.store import What
from storage.artifact import FORMAT, seal
from storage.fingerprint import KEY
from storage.store import Store
from tests.flows.conftest import Place, mixpool, mixpool_json

NewPlace = Callable[[Path], Place]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
HEAVY = {"torch", "transformers", "prefect", "datasets"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_and_its_options_do(name: str) -> None:
    result = mixpool(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: mixpool {name}" in result.stdout
    assert COMMANDS[name].help.partition(" ")[0] in result.stdout
    assert [p.name for p in COMMANDS[name].params if not (p.help or "").endswith(".")] == []


def test_without_a_command_help_is_shown() -> None:
    assert "validate" in mixpool().output


def test_help_tells_the_exit_codes() -> None:
    assert "Exit codes: 0 done" in " ".join(mixpool("--help").stdout.split())


# Wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("run NOTHING --store NEW", 2, ["there is no recipe at", "nothing.yaml"]),
        ("run RECIPE --store NEW --set train.lr=1", 2, ["train.lr: is no field", "learning_rate"]),
        ("run RECIPE --store NEW --set train.schedule=x", 2, ["train.schedule", "'cosine'"]),
        ("run RECIPE --store NEW --set train", 2, ["field.path=value"]),
        ("run RECIPE --store NEW --set train.steps=[", 2, ["--set train.steps"]),
        ("run RECIPE --store NEW --runtime foo=1", 2, ["--runtime foo", "batch_tokens"]),
        ("run RECIPE --store NEW --runtime threads=x", 2, ["--runtime threads", "integer"]),
        ("run RECIPE --store NEW --runtime scratch=NONE", 2, ["--runtime scratch", "'NONE'"]),
        ("run RECIPE --store NEW --runtime device=abacus", 1, ["abacus"]),
        ("plan NOTHING --store NEW", 2, ["there is no recipe at"]),
        ("explain NOTHING --store NEW", 2, ["there is no recipe at"]),
        ("validate RECIPE --store NEW --references 1", 2, ["validation.references", "2"]),
        ("validate RECIPE --store NEW --references 99", 1, ["validation.references", "15"]),
        (
            "run RECIPE --store NEW --set corpus.source.urls=[nowhere/*.jsonl]",
            1,
            ["nowhere/*.jsonl matches no file"],
        ),
        (
            "run RECIPE --store NEW --set mixtures.spaces.0.only=[brids]",
            1,
            ["mixtures.spaces[0].only names 'brids'", "birds"],
        ),
        (
            "run RECIPE --store NEW --set corpus.split.tokens_per_partition=900000",
            1,
            ["tokens_per_partition"],
        ),
        ("show --store NEW", 1, ["there is no store at", "mixpool run"]),
        ("verify --store NEW", 1, ["there is no store at"]),
        ("gc --store NEW --keep-all", 1, ["there is no store at"]),
        ("export best --store NEW --weights w.yaml", 1, ["there is no store at"]),
        ("show --store FOLDER", 1, ["there is no store at"]),
        ("show --store RECIPE", 1, ["recipe.yaml"]),
        ("run RECIPE --store nosuch://x", 1, ["nosuch://x", "Protocol not known"]),
        ("show ranking --store STORE --run x", 1, ["no finished run 'x'", "-tiny"]),
        ("show lineage --store STORE --run x", 1, ["no finished run 'x'"]),
        ("show models --store STORE --run x", 2, ["show models lists all of a store", "--run 'x'"]),
        ("show ranking --store STORE --objective x", 1, ["no objective 'x'", "macro mean, birds"]),
        ("show everything --store STORE", 2, ["lineage"]),
        (
            "export birds-9 --store STORE --weights w.yaml",
            1,
            ["'birds-9' is no partition", "law-0"],
        ),
        ("export best --store STORE", 2, ["--model FOLDER"]),
        ("export best --store STORE --model FOLDER", 1, ["is not empty"]),
        ("gc --store STORE", 2, ["--keep-all"]),
        ("gc --store STORE --keep x", 1, ["no finished run 'x'"]),
        ("validate RECIPE --store NEW --mixture a=3,b=4,a=3", 2, ["has 'a' twice"]),
        ("frobnicate", 2, ["No such command"]),
        ("run", 2, ["Missing argument"]),
        ("run RECIPE --bogus", 2, ["No such option"]),
    ],
)
def test_wrong_input_is_one_message_and_a_code(
    finished: Place, tmp_path: Path, words: str, code: int, said: list[str]
) -> None:
    places = {
        "RECIPE": finished.recipe,
        "STORE": finished.store,
        "NEW": str(tmp_path / "new"),
        "FOLDER": str(finished.corpus),
        "NOTHING": str(tmp_path / "nothing.yaml"),
    }
    result = mixpool(*(places.get(word, word) for word in words.split()))
    message = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == code, message
    assert [text for text in said if text not in message] == []
    assert result.stdout == ""
    assert "Traceback" not in message


def test_a_key_that_can_be_guessed_is_wrong_input(
    finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "short")
    result = mixpool("show", "--store", finished.store)
    assert result.exit_code == 2
    assert f"error: the key in {KEY} is too short" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        "run RECIPE --store s3://me:hunter2@bucket/x",
        "show --store s3://me:hunter2@bucket/x",
        "show --store s3://bucket/x?X-Amz-Signature=hunter2",
        "run RECIPE --prefect --store https://127.0.0.1:1/x?sig=hunter2",
        "run https://127.0.0.1:1/recipe.yaml?a=1&token=hunter2",
        "run https://me:hunter2@127.0.0.1:1/recipe.yaml",
        "run RECIPE --store NEW --set corpus.source.urls=[s3://me:hunter2@bucket/x]",
        "run RECIPE --store NEW --set corpus.password=hunter2",
        "run RECIPE --store NEW --runtime password=hunter2",
        "run RECIPE --store NEW --set base={kind:given,path:'https://me:hunter2@host/m'}",
    ],
)
def test_credentials_are_refused_and_not_repeated(
    finished: Place, tmp_path: Path, words: str
) -> None:
    places = {"RECIPE": finished.recipe, "NEW": str(tmp_path / "new")}
    result = mixpool(*(places.get(word, word) for word in words.split()))
    assert result.exit_code in {1, 2}
    assert "hunter2" not in result.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", None])
def test_object_stores_that_cannot_be_reached(
    finished: Place, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    for variable in [v for v in os.environ if v.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MIXPOOL_PATIENCE_SECONDS", "5")
    if name is not None:
        monkeypatch.setenv(name, "AKIA")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    result = mixpool("run", finished.recipe, "--store", "s3://bucket/store")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert ("connect" if name else "credentials") in result.stderr
    assert "hunter2" not in result.output


def test_a_model_with_pickled_weights_only_is_refused(finished: Place, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    given = f"base={{kind: given, tokenizer: any, path: '{folder}'}}"
    result = mixpool("run", finished.recipe, "--store", tmp_path / "store", "--set", given)
    assert result.exit_code == 1
    assert "pytorch_model.bin" in result.stderr
    assert "pickled weights can run code" in result.stderr


def test_a_store_of_a_newer_format_is_refused(finished: Place, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_bytes(seal({"format": FORMAT + 1}))
    for words in (["show"], ["verify"], ["run", finished.recipe], ["plan", finished.recipe]):
        result = mixpool(*words, "--store", tmp_path)
        assert result.exit_code == 1
        assert f"has format {FORMAT + 1}" in result.stderr
        assert "upgrade mixpool" in result.stderr


# Run, plan, explain --------------------------------------------------------------------------


def test_a_run_trains_once_and_its_repetition_nothing(new_place: NewPlace, tmp_path: Path) -> None:
    place = new_place(tmp_path)
    planned = mixpool_json("plan", place.recipe, "--store", place.store)
    assert not Path(place.store).exists()
    assert {name: len(step["build"]) for name, step in planned["steps"].items()} == {
        "tokenizer": 1, "initialise": 1, "tokenize": 7, "train": 7, "window": 6,
    }  # fmt: skip
    assert (planned["partitions"], planned["mixtures"]) == (6, 21)
    assert (planned["losses_to_evaluate"], planned["seconds"]) == (126, None)
    assert planned["training_tokens"] == (8 + 6 * 5) * 4 * 32

    found = mixpool_json("run", place.recipe, "--store", place.store)
    assert len(found["trained"]) == 7
    assert (found["losses_evaluated"], found["losses_from_store"]) == (126, 0)
    again = mixpool_json("run", place.recipe, "--store", place.store)
    assert again["trained"] == []
    assert sorted(again["trainings_from_store"]) == sorted(found["trained"])
    assert (again["losses_evaluated"], again["losses_from_store"]) == (0, 126)
    assert again["best"] == found["best"]

    planned = mixpool_json("plan", place.recipe, "--store", place.store)
    assert [step["build"] for step in planned["steps"].values()] == [[]] * 4
    assert (planned["losses_to_evaluate"], planned["seconds"]) == (0, 0.0)
    assert not planned["upper_bound"]

    text = (place.corpus / "birds.jsonl").read_text().replace("b", "o")
    (place.corpus / "owls.jsonl").write_text(text)
    planned = mixpool_json("plan", place.recipe, "--store", place.store)
    assert planned["steps"]["train"]["build"] == ["owls-0"]
    assert (planned["partitions"], planned["mixtures"]) == (7, 28)
    assert planned["losses_to_evaluate"] == 28 * 7 - 126
    assert planned["training_tokens"] == 5 * 4 * 32
    assert planned["seconds"] > 0
    found = mixpool_json("run", place.recipe, "--store", place.store)
    assert found["trained"] == ["owls-0"]
    assert found["losses_evaluated"] == 28 * 7 - 126


def test_a_plan_says_what_the_run_will_say(new_place: NewPlace, tmp_path: Path) -> None:
    place = new_place(tmp_path)
    with (place.corpus / "birds.jsonl").open("a") as file:
        file.write("no JSON\n")
    planned = mixpool_json("plan", place.recipe, "--store", place.store)
    (note,) = [note for note in planned["notes"] if "birds" in note]
    assert "1 skipped, first birds.jsonl:40, which is not JSON" in note
    plain = mixpool("plan", place.recipe, "--store", place.store)
    assert f"note: {note}" in plain.stdout.splitlines()
    assert note in mixpool_json("run", place.recipe, "--store", place.store)["problems"]


def test_a_plan_says_what_a_run_on_this_machine_would_end_with(finished: Place) -> None:
    words = ("plan", finished.recipe, "--store", finished.store, "--runtime")
    for setting, said in [
        ("device=abacus", "device 'abacus' is none that torch knows"),
        ("device=cuda:99", "device 'cuda:99' is asked for, and torch"),
    ]:
        notes = mixpool_json(*words, setting)["notes"]
        assert any(f"a run on this machine would end with: {said}" in note for note in notes), notes
    assert not any("this machine" in n for n in mixpool_json(*words, "device=cpu")["notes"])


def test_plan_and_explain_change_nothing(finished: Place) -> None:
    before = contents(finished.store)
    mixpool_json("plan", finished.recipe, "--store", finished.store, "--set", "train.steps=3")
    mixpool_json("explain", finished.recipe, "--store", finished.store, "--set", "train.steps=3")
    assert contents(finished.store) == before


def contents(folder: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_plan_counts_a_validation_without_counting_twice(finished: Place, tmp_path: Path) -> None:
    fresh = mixpool_json("plan", finished.recipe, "--store", tmp_path / "new", "--references")
    assert fresh["mixtures"] == 21
    assert len(fresh["steps"]["train"]["build"]) == 7 + 2
    # Two references and the base model; partitions alone and midpoints are among the 21.
    assert fresh["losses_to_evaluate"] == 126 + (2 + 1) * 6
    pairs_only = ["--set", "mixtures.spaces.0.sizes=[2]"]
    planned = mixpool_json(
        "plan", finished.recipe, "--store", tmp_path, "--references", *pairs_only
    )
    assert planned["losses_to_evaluate"] == 15 * 6 + 6 * 6 + (2 + 1) * 6


def test_plan_for_a_person(finished: Place) -> None:
    result = mixpool("plan", finished.recipe, "--store", finished.store, "--set", "train.steps=9")
    assert "6 partitions, 21 mixtures; 6 trainings of 6,912 tokens" in result.stdout
    assert "126 losses; about" in result.stdout
    assert "birds-0, cooking-0" in result.stdout


def test_explain_names_the_field_that_differs(finished: Place) -> None:
    change = ["--set", "train.learning_rate=5e-4"]
    words = ["explain", finished.recipe, "--store", finished.store, *change]
    said = mixpool(*words).stdout
    assert said.count("config.learning_rate: 0.001 -> 0.0005") == 6
    assert "train birds-0: differs from birds-0" in said
    assert "losses: 126 are not in the table, for 6 models are not built" in said
    found = mixpool_json(*words)
    assert {step["step"] for step in found["steps"]} == {"train"}
    assert found["losses_to_evaluate"] == 126
    assert found["steps"][0]["differences"] == [
        {"path": "config.learning_rate", "old": 0.001, "new": 0.0005}
    ]


def test_explain_says_what_is_not_built(finished: Place) -> None:
    change = ["--set", "base.train.learning_rate=5e-4"]
    found = mixpool_json("explain", finished.recipe, "--store", finished.store, *change)
    changes = {step["label"]: step["differences"] for step in found["steps"]}
    assert [d["path"] for d in changes.pop("base")] == ["config.learning_rate"]
    assert {(d["path"], d["new"]) for of in changes.values() for d in of} == {
        ("inputs.model", "not built")
    }


def test_explain_where_nothing_is_to_do(finished: Place) -> None:
    said = mixpool("explain", finished.recipe, "--store", finished.store).stdout
    goes_on, left_out, *rest = said.splitlines()
    assert goes_on.startswith("corpus 'tiny' goes on from its manifest 0 of ")
    assert left_out.endswith("documents left out by corpus.split.partitions_per_domain")
    assert rest == ["everything is in the store"]


def test_a_limit_that_is_raised_trains_what_it_adds(finished: Place) -> None:
    change = ["--set", "corpus.split.partitions_per_domain=2"]
    planned = mixpool_json("plan", finished.recipe, "--store", finished.store, *change)
    added = planned["steps"]["train"]["build"]
    assert added
    assert {name.rpartition("-")[2] for name in added} == {"1"}
    said = mixpool("explain", finished.recipe, "--store", finished.store, *change).stdout
    assert f"train {added[0]}: new" in said.splitlines()


def test_explain_names_the_rule_by_which_a_corpus_starts_anew(finished: Place) -> None:
    change = ["--set", "corpus.split.heldout_fraction=0.3"]
    said = mixpool("explain", finished.recipe, "--store", finished.store, *change).stdout
    note = said.splitlines()[1]
    assert note.startswith("note: corpus 'tiny' starts anew, by another rule (corpus.split.heldout")
    assert not re.search("[0-9a-f]{64}", said)


# Withdraw ------------------------------------------------------------------------------------


def test_withdraw_says_what_it_finds_and_adds_it_to_the_recipe(
    finished: Place, tmp_path: Path
) -> None:
    place = finished.copy(tmp_path)
    words = ["withdraw", place.recipe, "--store", place.store]
    assert "0 documents are in no file of the corpus any more" in mixpool(*words).stdout
    text = json.loads((finished.corpus / "birds.jsonl").read_text().splitlines()[3])["text"]
    names = ["--id", "birds.jsonl:5", "--text", text, "--id", "birds.jsonl:99999"]
    said = mixpool(*words, *names)
    assert "note: birds.jsonl:99999 is nothing that the corpus holds" in said.stderr
    found = mixpool_json(*words, *names, "--write")
    assert {entry["origin"] for entry in found["documents"]} == {"birds.jsonl:3", "birds.jsonl:5"}
    assert place.load().corpus.withdraw == found["withdraw"]
    assert hashlib.sha256(text.encode()).hexdigest() in found["withdraw"]
    whole = mixpool_json(*words, "--file", "birds.jsonl")
    assert whole["found"] == {"birds.jsonl": 40}


# Show, verify, gc ----------------------------------------------------------------------------


@pytest.mark.parametrize("what", get_args(What))
def test_show_as_json_and_as_text(finished: Place, what: str) -> None:
    rows = mixpool_json("show", what, "--store", finished.store)
    result = mixpool("show", what, "--store", finished.store)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    expected = {"runs": 1, "partitions": 6, "models": 7, "ranking": 20, "losses": 1}
    if what == "lineage":
        assert rows == lines
        assert lines[0].startswith("train birds-0  model ")
        assert sum(line.startswith("train ") for line in lines) == 6
    else:
        assert len(rows) == expected[what]
        # A row that fits is one line: head, rows and frame.
        assert sum(line.startswith("│") for line in lines) == expected[what]
        assert max(len(line) for line in lines if line.startswith(("┃", "│"))) <= 120


def test_folders_that_show_names_hold_what_they_say(finished: Place) -> None:
    from safetensors import safe_open

    for row in mixpool_json("show", "models", "--store", finished.store):
        file = Path(finished.store) / row["folder"] / "model.safetensors"
        with safe_open(file, "pt") as tensors:
            assert "model.embed_tokens.weight" in tensors.keys()  # noqa: SIM118
    for row in mixpool_json("show", "partitions", "--store", finished.store):
        assert (Path(finished.store) / row["folder"]).is_dir()


def test_show_ends_with_whole_paths_that_can_be_copied(finished: Place) -> None:
    for what in ("partitions", "models", "losses"):
        rows = mixpool_json("show", what, "--store", finished.store)
        lines = mixpool("show", what, "--store", f"{finished.store}/").stdout.splitlines()
        named = dict(line.split(": ") for line in lines[-len(rows) :])
        assert {*named.values()} == {f"{finished.store}/{row['folder']}" for row in rows}
        assert all(Path(folder).is_dir() for folder in named.values())
    page, report = mixpool("show", "--store", finished.store).stdout.splitlines()[-2:]
    assert Path(page.partition(": ")[2]).is_file()
    (row,) = mixpool_json("show", "--store", finished.store)
    assert Path(report.partition(": ")[2].replace("RUN", row["run"])).is_file()
    assert row["folder"] == f"runs/{row['run']}"


def test_ranking_of_one_set(finished: Place) -> None:
    options = ["--store", finished.store, "--objective", "law", "--most", "3"]
    rows = mixpool_json("show", "ranking", *options)
    assert len(rows) == 3
    assert rows[0]["mixture"] == "law-0"
    assert [row["loss"] for row in rows] == sorted(row["loss"] for row in rows)


def test_verify_finds_damage_and_repair_has_it_made_anew(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    found = mixpool_json("verify", "--store", place.store)
    assert (found["faults"], found["set_aside"], found["signed"]) == ([], [], [])
    assert "not for who that was" in found["promise"]
    row = mixpool_json("show", "models", "--store", place.store)[1]
    file = Path(place.store) / row["folder"] / "model.safetensors"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")

    result = mixpool("verify", "--store", place.store, "--json")
    assert result.exit_code == 1
    (fault,) = json.loads(result.stdout)["faults"]
    assert "model.safetensors" in fault["what"]
    result = mixpool("verify", "--store", place.store)
    assert result.exit_code == 1
    assert "--repair" in result.stdout

    assert mixpool("verify", "--repair", "--store", place.store).exit_code == 1
    found = mixpool_json("run", place.recipe, "--store", place.store)
    assert found["trained"] == [row["model"]]
    assert found["losses_evaluated"] == 0
    assert mixpool("verify", "--store", place.store).exit_code == 0


def test_a_group_adopts_a_store_and_believes_nothing_else(
    finished: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place, key = finished.copy(tmp_path), "1f" * 32
    words = ["--store", place.store]
    assert mixpool("verify", "--sign", *words).exit_code == 2
    monkeypatch.setenv(KEY, key)
    for command in (["run", place.recipe], ["show"], ["verify"]):
        refused = mixpool(*command, *words)
        assert refused.exit_code == 1
        assert f"store.json is not signed with the key in {KEY}" in refused.stderr
        assert "`mixpool verify --sign`" in refused.stderr
    (Path(place.store) / "records" / "train" / f"x.{'0' * 64}.json").write_text("damaged")
    signed = mixpool("verify", "--sign", "--repair", *words)
    assert signed.exit_code == 1
    assert "1 faults" in signed.stdout
    assert "signed: store.json" in signed.stdout
    assert "is out of date" not in caplog.text
    assert "by someone who has the key" in " ".join(signed.stdout.split())
    again = mixpool("run", place.recipe, *words)
    assert "trained now: 0" in again.stdout
    assert mixpool_json("verify", *words)["faults"] == []
    planted = next(Path(finished.store, "runs").iterdir())
    shutil.copytree(planted, Path(place.store) / "runs" / "planted")
    refused = mixpool("gc", "--keep-all", *words)
    assert "runs/planted/run.json is not signed" in refused.stderr
    shutil.rmtree(Path(place.store) / "runs" / "planted")
    told = [result.output + result.stderr for result in (refused, signed, again)]
    assert not [text for text in told if key in text]
    assert not [path for path, data in contents(place.store).items() if key.encode() in data]
    monkeypatch.delenv(KEY)
    assert (
        f"set {KEY}, or run into a store of your own" in mixpool("run", place.recipe, *words).stderr
    )
    assert mixpool("show", "runs", *words).exit_code == 0


@pytest.fixture
def read_only(finished: Place, tmp_path: Path) -> Iterator[Place]:
    """The finished place with a store on a file system that is mounted to be read."""
    place, libc = finished.copy(tmp_path), ctypes.CDLL(None, use_errno=True)
    store, bind, remount = os.fsencode(place.store), 4096, 32 | 4096 | 1
    if libc.mount(store, store, None, bind, None) or libc.mount(None, store, None, remount, None):
        pytest.skip(f"nothing can be mounted here: {os.strerror(ctypes.get_errno())}")
    yield place
    assert libc.umount2(store, 2) == 0


def test_a_store_that_may_only_be_read_shows_its_results(
    read_only: Place, finished: Place, tmp_path: Path
) -> None:
    words, before = ["--store", read_only.store], contents(read_only.store)
    result = mixpool("run", read_only.recipe, *words)
    assert result.exit_code == 0, result.stderr
    assert "trained now: 0" in result.stdout
    assert "report:" not in result.stdout
    assert f"the store at {read_only.store} cannot be written" in result.stderr
    shown = mixpool_json("run", read_only.recipe, *words)
    assert shown["run"] is None
    (tmp_path / "other").mkdir()
    other = finished.copy(tmp_path / "other")
    assert shown["best"] == mixpool_json("run", other.recipe, "--store", other.store)["best"]
    refused = mixpool("run", read_only.recipe, *words, "--set", "train.steps=3")
    assert refused.exit_code == 1
    assert "cannot be written, and a result of 'train' that this run needs is not" in refused.stderr
    assert mixpool("verify", *words).exit_code == 0
    assert mixpool("gc", "--keep-all", *words).exit_code == 0
    deleted = mixpool("gc", "--keep-all", "--delete", *words)
    assert deleted.exit_code == 1
    assert f"error: the store at {read_only.store} cannot be written: " in deleted.stderr
    assert contents(read_only.store) == before
    nowhere = mixpool("run", read_only.recipe, "--store", f"{read_only.store}/new")
    assert "Read-only file system" in nowhere.stderr


def test_gc_deletes_only_when_told_and_only_what_no_kept_run_needs(
    finished: Place, tmp_path: Path
) -> None:
    place = finished.copy(tmp_path)
    mixpool(
        "run", place.recipe, "--store", place.store, "--set", "train.steps=3", "--set", "name=b"
    )
    first, second = (row["run"] for row in mixpool_json("show", "runs", "--store", place.store))
    assert mixpool_json("gc", "--keep-all", "--store", place.store)["artifacts"] == []
    before = contents(place.store)
    found = mixpool_json("gc", "--keep", first, "--store", place.store)
    assert not found["deleted"]
    assert contents(place.store) == before
    assert len([path for path in found["artifacts"] if "/model/" in path]) == 6

    assert mixpool_json("gc", "--keep", first, "--delete", "--store", place.store)["deleted"]
    assert mixpool("verify", "--store", place.store).exit_code == 0
    assert [row["run"] for row in mixpool_json("show", "runs", "--store", place.store)] == [first]
    assert second != first
    again = mixpool_json("run", place.recipe, "--store", place.store)
    assert (again["trained"], again["losses_evaluated"]) == ([], 0)


# As a process --------------------------------------------------------------------------------

MAIN = """
import sys
from flows.command.main import main
sys.argv[0] = "mixpool"
try:
    main()
finally:
    print("modules:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def process(*words: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own, on pipes; stderr ends with its modules."""
    root = Path(__file__).parents[3]
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
    )


def modules(done: "subprocess.CompletedProcess[str]") -> set[str]:
    return set(done.stderr.splitlines()[-1].split()[1:])


def test_a_run_that_finds_everything_imports_nothing_heavy(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    done = process("run", place.recipe, "--store", place.store, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trained"] == []
    assert modules(done) & HEAVY == set()


def test_of_a_long_message_beginning_and_end_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), faults():
        raise ValueError(f"first\nnothing is at {'x' * 10**6}: leave it out\nlast")
    first, middle, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("error: first", "  last")
    assert middle.startswith("  nothing is at x")
    assert middle.endswith("x: leave it out")
    assert len(middle) < 2100


def test_an_interrupt_says_what_becomes_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), faults():
        raise KeyboardInterrupt
    said = "interrupted: what was done stays, and the same command goes on from there"
    assert " ".join(capsys.readouterr().err.split()) == said


@pytest.mark.parametrize("words", ["--help", "run --help", "show runs", "show models", "verify"])
def test_looking_imports_nothing_heavy(finished: Place, words: str) -> None:
    done = process(*words.split(), MIXPOOL_STORE=finished.store)
    assert done.returncode == 0, done.stderr
    assert modules(done) & (HEAVY | {"pandas", "pyarrow"}) == set()


def test_on_pipes_there_are_no_control_characters_and_no_secrets(
    new_place: NewPlace, tmp_path: Path
) -> None:
    place = new_place(tmp_path)
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "hunter2secretkey",
        "AWS_SESSION_TOKEN": "hunter2token",
        "HF_TOKEN": "hunter2hub",
        "PREFECT_API_KEY": "hunter2prefect",
    }
    name = "name=tiny password=hunter2 s3://me:hunter2@bucket"
    words = ["validate", place.recipe, "--store", place.store]
    refused = process(*words, "--set", name, **secrets)
    assert refused.returncode == 2
    done = process(*words, "--runtime", "threads=1", **secrets)
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, done.stderr, refused.stdout, refused.stderr):
        assert "hunter2" not in text
        assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text) is None
    assert [path for path, data in contents(place.store).items() if b"hunter2" in data] == []
    command = next(iter(Store(place.store).records("train"))).provenance["command"]
    assert command == ["mixpool", *words, "--runtime", "threads=1"]


def test_a_reader_that_stops_reading_is_no_fault(finished: Place) -> None:
    words = [sys.executable, "-c", MAIN, "show", "lineage", "--store", finished.store]
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as shown:
        assert shown.stdout is not None
        assert shown.stderr is not None
        shown.stdout.close()
        said = shown.stderr.read()
    assert "error:" not in said
    assert "Traceback" not in said


def test_the_recipe_of_a_run_can_be_run_again(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    (row,) = mixpool_json("show", "runs", "--store", place.store)
    stored = Path(place.store) / "runs" / row["run"] / "recipe.yaml"
    shutil.copyfile(stored, tmp_path / "again.yaml")
    assert yaml.safe_load(stored.read_text())["name"] == "tiny"
    found = mixpool_json("run", tmp_path / "again.yaml", "--store", place.store)
    assert (found["trained"], found["losses_evaluated"]) == ([], 0)
