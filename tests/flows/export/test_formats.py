"""Weights are written as trainers read them, and what is written sums to exactly 1."""

import json
import re
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.export.export import read_paths, sampling_of
from flows.export.formats import FORMATS, Sampling, render
from tasks.mixtures.mixture import Mixture
from tests.flows.export.test_export import NAMES, PARTS, run_of

UNEVEN = {"C++-0": 1, "C-0": 1, "x-0": 1, "R + D-0": 10**7}


def written(format_name: str, sampling: Sampling) -> tuple[list[str], list[str]]:
    """Sources and weights as text, as somebody would pick them out of the file."""
    text = render(format_name, sampling)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    if format_name == "megatron":
        pairs = [line.partition(" ") for line in lines]
        return [path for _, _, path in pairs], [weight for weight, _, _ in pairs]
    if format_name == "huggingface":
        tree = json.loads(text, parse_float=str)
        return tree["paths"], tree["probabilities"]
    tree = yaml.load("\n".join(lines), Loader=yaml.BaseLoader)
    if format_name == "yaml":
        found = tree[{"domain": "domains", "partition": "weights"}[sampling.unit]]
        return list(found), list(found.values())
    if format_name == "olmo-core":
        sources = tree["sources"]
        return [s["paths"][0] for s in sources], [s["target_ratio"] for s in sources]
    dataset = tree["data_stages"][0]["data"]["dataset"]
    return dataset["dataset_folder"], dataset["dataset_weights"]


@pytest.mark.parametrize("format_name", FORMATS)
@settings(max_examples=25)
@given(parts=st.one_of(PARTS, st.just(UNEVEN)), unit=st.sampled_from(["partition", "domain"]))
def test_what_is_written_sums_to_one(format_name: str, parts: dict[str, int], unit: Any) -> None:
    mixture = Mixture.of(parts)
    names = [name.rpartition("-")[0] if unit == "domain" else name for name in mixture.members]
    places = [f"{name}=/data/{number}" for number, name in enumerate(names)]
    found = sampling_of(run_of(NAMES), mixture, unit, places)
    sources, weights = written(format_name, found)
    assert sum(map(Decimal, weights)) == 1
    exact = dict(zip(names, mixture.weights.values(), strict=True))
    by_place = {f"/data/{number}": exact[name] for number, name in enumerate(names)} | exact
    for source, weight in zip(sources, weights, strict=True):
        assert 0 < Fraction(Decimal(weight)) == pytest.approx(by_place[source], abs=1e-9)
    assert len(sources) == len(set(sources)) == mixture.size


def test_domains_weigh_what_their_partitions_weigh() -> None:
    run = run_of(("a-0", "a-1", "b-0"))
    mixture = Mixture.uniform(["a-0", "a-1", "b-0"])
    by_domain = sampling_of(run, mixture)
    assert [(s.name, str(s.weight)) for s in by_domain.shares] == [
        ("a", "0.666666667"),
        ("b", "0.333333333"),
    ]
    by_partition = sampling_of(run, mixture, "partition")
    assert [share.name for share in by_partition.shares] == ["a-0", "a-1", "b-0"]


def test_paths_are_taken_from_options_and_files(tmp_path: Path) -> None:
    file = tmp_path / "paths.yaml"
    file.write_text("a: /a/*.npy\nb: [/b/1.npy, /b/2.npy]\n")
    found = read_paths([str(file), "a=/more", "c=d=/e=f"], ["a", "b", "c=d", "c"])
    assert found == {
        "a": ("/a/*.npy", "/more"),
        "b": ("/b/1.npy", "/b/2.npy"),
        "c=d": ("/e=f",),
    }


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (
            "z=/data",
            "'z' with ['/data'] gives no path of a source; the sources of this run are a, b",
        ),
        ("a=", "'a' with [''] gives no path"),
        ("nowhere.yaml", "give NAME=PATH, or a YAML file"),
        ("FILE", "the file maps no names to paths"),
    ],
)
def test_paths_that_say_nothing_are_refused(tmp_path: Path, option: str, told: str) -> None:
    (tmp_path / "list.yaml").write_text("[a, b]")
    option = option.replace("FILE", str(tmp_path / "list.yaml"))
    with pytest.raises(ValueError, match=re.escape(told)):
        read_paths([option], ["a", "b"])


def test_several_paths_are_for_olmo_core() -> None:
    run, mixture = run_of(("a-0", "b-0")), Mixture.uniform(["a-0", "b-0"])
    several = sampling_of(run, mixture, paths=["a=/1", "a=/2", "b=/3"])
    tree = yaml.safe_load(render("olmo-core", several))
    assert tree["sources"] == [
        {"source_name": "a", "target_ratio": 0.5, "paths": ["/1", "/2"]},
        {"source_name": "b", "target_ratio": 0.5, "paths": ["/3"]},
    ]
    for format_name in ("huggingface", "megatron", "nanotron"):
        with pytest.raises(ValueError, match="'a' has 2 paths"):
            render(format_name, several)


def test_a_name_in_the_place_of_a_path_is_said_to_be_one() -> None:
    run, mixture = run_of(("a-0", "b-0")), Mixture.uniform(["a-0", "b-0"])
    half = sampling_of(run, mixture, paths=["a=/1"])
    for format_name in ("olmo-core", "nanotron"):
        head = [line for line in render(format_name, half).splitlines() if line.startswith("# No")]
        assert len(head) == 1
        assert head[0].endswith("(--paths NAME=PATH): b")
    assert json.loads(render("huggingface", half))["notes"][-1].endswith(": b")
    whole = sampling_of(run, mixture, paths=["a=/1", "b=/2"])
    assert not any("No path" in render(format_name, whole) for format_name in FORMATS)


def test_comments_break_no_yaml_and_turn_no_text() -> None:
    name = "a\x1b\u202e\x00-0"
    sampling = sampling_of(run_of((name,)), Mixture.uniform([name]))
    for format_name, read in (("olmo-core", "sources"), ("nanotron", "data_stages")):
        text = render(format_name, sampling)
        assert yaml.safe_load(text)[read]
        comments = [line for line in text.splitlines() if line.startswith("#")]
        assert all(line.isprintable() for line in comments)
        assert r"\x1b\u202e\x00-0 of run" in comments[0]


def test_white_space_ends_a_prefix_of_megatron() -> None:
    run, mixture = run_of(NAMES), Mixture.uniform(["computer science-0"])
    with pytest.raises(ValueError, match="give another by --paths 'computer science'=PREFIX"):
        render("megatron", sampling_of(run, mixture))
    placed = sampling_of(run, mixture, paths=["computer science=/cs_text_document"])
    assert render("megatron", placed) == "1.0 /cs_text_document\n"


def test_hugging_face_samples_in_these_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    run = run_of(("a-0", "b-0", "c-0"))
    mixture = Mixture.of({"a-0": 6, "b-0": 3, "c-0": 1})
    for name in "abc":
        (tmp_path / name).mkdir()
        frame = pd.DataFrame({"text": [name] * 4000})
        frame.to_parquet(tmp_path / name / "train.parquet")
    found = sampling_of(run, mixture, paths=[f"{name}={tmp_path / name}" for name in "abc"])
    tree = json.loads(render("huggingface", found))
    assert (tree["names"], tree["probabilities"]) == (["a", "b", "c"], [0.6, 0.3, 0.1])
    made: dict[str, Any] = {}
    exec("\n".join(tree["python"]), made)
    drawn = Counter(made["mixed"]["text"])
    assert drawn.total() > 6000
    for name, share in zip(tree["names"], tree["probabilities"], strict=True):
        assert drawn[name] / drawn.total() == pytest.approx(share, abs=0.02)
