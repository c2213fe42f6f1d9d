"""Weights are written as trainers read them, and what is written sums to exactly 1."""

import itertools
import json
import re
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flows.export import rows
from flows.export.formats import FORMATS, notes, render
from flows.export.sampling import Sampling, read_paths
from flows.export.sampling import sampling_of as sampling_by_size
from flows.export.sizes import Size
from flows.run.stored import RunContent
from tasks.mixtures.limits import Repetition
from tasks.mixtures.mixture import Mixture
from tests.flows.export.test_export import NAMES, PARTS, run_of

UNEVEN = {"C++-0": 1, "C-0": 1, "x-0": 1, "R + D-0": 10**7}


def sizes(run: RunContent, mean: int = 10) -> dict[str, Size]:
    """Partitions of equal sizes, whose documents are ``mean`` tokens long."""
    return {name: Size(1000 * mean, 1000, 4000 * mean, 1000 * mean) for name in run.models}


def sampling_of(run: RunContent, mixture: Mixture, *words: Any, **more: Any) -> Sampling:
    return sampling_by_size(run, mixture, sizes(run), *words, **more)


def written(format_name: str, sampling: Sampling) -> tuple[list[str], list[str]]:
    """Sources and weights as text, as somebody would pick them out of the file."""
    text = render(format_name, sampling)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    if format_name == "megatron":
        pairs = [line.partition(" ") for line in lines]
        return [path for _, _, path in pairs], [weight for weight, _, _ in pairs]
    if format_name in rows.FORMATS:
        tree = json.loads(text, parse_float=str)
        if format_name == "maxtext":
            return [s["path"] for s in tree.values()], [s["weight"] for s in tree.values()]
        return tree["paths"], tree["probabilities"]
    tree = yaml.load("\n".join(lines), Loader=yaml.BaseLoader)
    if format_name == "yaml":
        found = tree[{"domain": "domains", "partition": "weights"}[sampling.unit]]
        return list(found), list(found.values())
    if format_name == "olmo-core":
        sources = tree["sources"]
        return [s["paths"][0] for s in sources], [s["target_ratio"] for s in sources]
    if format_name == "gpt-neox":
        return tree["train_data_paths"], tree["train_data_weights"]
    if format_name == "levanter":
        urls = [source["train_urls"][0] for source in tree["data"]["configs"].values()]
        assert [*tree["data"]["configs"]] == [*tree["data"]["train_weights"]]
        return urls, list(tree["data"]["train_weights"].values())
    if format_name == "llama-factory":
        info = json.loads(text[text.index('{"') : text.index("}}") + 2])
        assert tree["dataset"].split(",") == [*info]
        return [s["file_name"] for s in info.values()], tree["interleave_probs"].split(",")
    dataset = tree["data_stages"][0]["data"]["dataset"]
    return dataset["dataset_folder"], dataset["dataset_weights"]


@pytest.mark.parametrize("format_name", FORMATS)
@settings(max_examples=25)
@given(parts=st.one_of(PARTS, st.just(UNEVEN)), unit=st.sampled_from(["partition", "domain"]))
def test_what_is_written_sums_to_one(format_name: str, parts: dict[str, int], unit: Any) -> None:
    assume(format_name != "levanter" or parts != UNEVEN)  # it cannot draw these: see below
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
    taking = {"yaml", "olmo-core", "levanter", "huggingface", "torchdata", "grain"}
    for format_name in FORMATS.keys() - taking:
        with pytest.raises(ValueError, match="'a' has 2 paths"):
            render(format_name, several)


def test_a_name_in_the_place_of_a_path_is_said_to_be_one() -> None:
    run, mixture = run_of(("a-0", "b-0")), Mixture.uniform(["a-0", "b-0"])
    half = sampling_of(run, mixture, paths=["a=/1"])
    for format_name in ("olmo-core", "nanotron", "gpt-neox", "levanter", "llama-factory"):
        head = [line for line in render(format_name, half).splitlines() if line.startswith("# No")]
        assert len(head) == 1
        assert head[0].endswith("(--paths NAME=PATH): b")
    assert json.loads(render("huggingface", half))["notes"][-1].endswith(": b")
    whole = sampling_of(run, mixture, paths=["a=/1", "b=/2"])
    assert not any("No path" in render(format_name, whole) for format_name in FORMATS)
    assert not any("No path" in line for line in notes(whole))
    assert notes(half)[-1].endswith(": b")


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


# What loaders draw ------------------------------------------------------------------------------

MEANS = {"a": 100, "b": 40, "c": 10}
"""Tokens of a document of each source."""
UNLIKE = {f"{name}-0": Size(120_000, 120_000 // mean, 4, 120_000) for name, mean in MEANS.items()}
ASKED = Mixture.of({"a-0": 6, "b-0": 3, "c-0": 1})


@given(
    parts=st.lists(st.integers(1, 1000), min_size=1, max_size=8),
    data=st.data(),
)
def test_rows_of_these_shares_have_the_tokens_that_were_asked_for(
    parts: list[int], data: st.DataObject
) -> None:
    counts = st.tuples(st.integers(1, 10**6), st.integers(1, 5000), st.integers(1, 9))
    held = [data.draw(counts) for _ in parts]
    names = [f"{number}-0" for number in range(len(parts))]
    by_name = {
        name: Size(documents * mean, documents, documents * mean * width, documents * mean)
        for name, (documents, mean, width) in zip(names, held, strict=True)
    }
    found = sampling_by_size(
        run_of(tuple(names)), Mixture.of(dict(zip(names, parts, strict=True))), by_name
    )
    drawn = [float(s.row) * mean for s, (_, mean, _) in zip(found.shares, held, strict=True)]
    for share, tokens, part in zip(found.shares, drawn, parts, strict=True):
        assert tokens / sum(drawn) == pytest.approx(part / sum(parts), rel=1e-3, abs=1e-6)
        assert float(share.weight) == pytest.approx(part / sum(parts), abs=1e-9)
    assert sum(s.row for s in found.shares) == sum(s.num_bytes for s in found.shares) == 1


def test_row_weights_are_token_weights_over_mean_lengths() -> None:
    run = run_of(tuple(UNLIKE))
    over = {name: float(ASKED.weights[f"{name}-0"]) / mean for name, mean in MEANS.items()}
    for format_name in (*rows.FORMATS, "llama-factory"):
        for kind, wanted in (("documents", over), ("blocks", {"a": 0.6, "b": 0.3, "c": 0.1})):
            found = sampling_by_size(run, ASKED, UNLIKE, rows=kind)  # type: ignore[arg-type]
            _, weights = written(format_name, found)
            expected = [share / sum(wanted.values()) for share in wanted.values()]
            assert [float(weight) for weight in weights] == pytest.approx(expected, abs=1e-9)
    for format_name in ("yaml", "olmo-core", "megatron", "nanotron", "gpt-neox", "levanter"):
        _, weights = written(format_name, sampling_by_size(run, ASKED, UNLIKE))
        assert weights == ["0.6", "0.3", "0.1"]


def test_another_tokenizer_changes_shares_of_tokens_and_no_share_of_rows() -> None:
    run = run_of(tuple(UNLIKE))
    twice = {**UNLIKE, "b-0": UNLIKE["b-0"]._replace(trained=240_000)}
    ours, theirs = (sampling_by_size(run, ASKED, held) for held in (UNLIKE, twice))
    assert [s.row for s in theirs.shares] == [s.row for s in ours.shares]
    # 6 + 2 * 3 + 1 parts
    assert [float(s.weight) for s in theirs.shares] == pytest.approx(
        [6 / 13, 6 / 13, 1 / 13], abs=1e-9
    )


def test_a_domain_holds_all_its_partitions_of_the_run() -> None:
    run = run_of(("a-0", "a-1", "b-0"))
    held = {
        "a-0": Size(100, 10, 1, 100),
        "a-1": Size(300, 10, 1, 300),
        "b-0": Size(100, 10, 1, 100),
    }
    found = sampling_by_size(
        run, Mixture.uniform(["a-0", "b-0"]), held, repetition=Repetition(tokens=1000)
    )
    assert [(s.name, s.epochs) for s in found.shares] == [("a", Fraction(5, 4)), ("b", 5)]
    assert [float(s.row) for s in found.shares] == pytest.approx([1 / 3, 2 / 3])
    assert found.sources["b"]["epochs"] == 5
    assert (
        notes(found)[1]
        == "a: 0.5 of tokens, 0.333333333 of bytes, 0.333333333 of documents, 1.25 epochs"
    )
    assert any(
        line.startswith("Seen more than 4 times, in silence with most trainers: b (5.0).")
        for line in notes(found)
    )
    tree = yaml.safe_load(render("olmo-core", found))
    assert [source["max_repetition_ratio"] for source in tree["sources"]] == [2, 5]


@pytest.mark.parametrize(
    ("paths", "arguments"),
    [
        (["a=/data/a"], {"path": "/data/a"}),
        (["a=/data/a/*.jsonl.zst"], {"path": "json", "data_files": ["/data/a/*.jsonl.zst"]}),
        (
            ["a=/1.parquet", "a=/2.parquet"],
            {"path": "parquet", "data_files": ["/1.parquet", "/2.parquet"]},
        ),
        (["a=s3://bucket/a.csv"], {"path": "csv", "data_files": ["s3://bucket/a.csv"]}),
        (["a=wikipedia"], {"path": f"{Path.cwd()}/wikipedia"}),
        ([], {"path": f"{Path.cwd()}/a"}),
    ],
)
def test_no_name_is_left_for_a_hub(paths: list[str], arguments: dict[str, Any]) -> None:
    found = sampling_of(run_of(("a-0",)), Mixture.uniform(["a-0"]), paths=paths)
    code = json.loads(render("huggingface", found))["python"]
    assert f"arguments = {[arguments]!r}" in code


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (["a=/1.parquet", "a=/2.jsonl"], "'a' has paths of several kinds (/1.parquet, /2.jsonl)"),
        (["a=/data/*"], "'/data/*', where 'a' lies, does not say what its files are"),
    ],
)
def test_files_that_datasets_cannot_tell_are_refused(paths: list[str], told: str) -> None:
    found = sampling_of(run_of(("a-0",)), Mixture.uniform(["a-0"]), paths=paths)
    with pytest.raises(ValueError, match=re.escape(told)):
        render("huggingface", found)


def test_a_name_with_a_comma_is_none_of_llama_factory() -> None:
    found = sampling_of(run_of(("a,b-0",)), Mixture.uniform(["a,b-0"]))
    with pytest.raises(ValueError, match="'a,b' has one: rename the domain"):
        render("llama-factory", found)


def test_what_levanter_would_never_draw_is_refused() -> None:
    run, rare = run_of(("a-0", "b-0")), Mixture.of({"a-0": 1, "b-0": 1000})
    tree = yaml.safe_load(render("levanter", sampling_of(run, rare)))
    assert tree["data"]["mixture_block_size"] * min(tree["data"]["train_weights"].values()) >= 10
    never = Mixture.of({"a-0": 1, "b-0": 2**16})
    with pytest.raises(ValueError, match=r"'a' has 0\.000015259, and levanter draws none"):
        render("levanter", sampling_of(run, never))


def test_hugging_face_draws_tokens_in_these_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    generator = np.random.default_rng(0)
    held = {}
    for name, mean in MEANS.items():
        (tmp_path / name).mkdir()
        lengths = generator.integers(1, 2 * mean, 60_000 // mean)
        frame = pd.DataFrame({"source": name, "length": lengths})
        frame.to_parquet(tmp_path / name / "train.parquet")
        held[f"{name}-0"] = Size(int(lengths.sum()), len(lengths), 1, int(lengths.sum()))
    places = {"a": "", "b": "/*.parquet", "c": "/train.parquet"}
    paths = [f"{name}={tmp_path / name}{place}" for name, place in places.items()]
    found = sampling_by_size(run_of(tuple(held)), ASKED, held, paths=paths)
    made: dict[str, Any] = {}
    exec("\n".join(json.loads(render("huggingface", found))["python"]), made)
    drawn: Counter[str] = Counter()
    for row in itertools.islice(made["mixed"], 6_000):
        drawn[row["source"]] += row["length"]
    for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert drawn[name] / drawn.total() == pytest.approx(share, abs=0.02)
