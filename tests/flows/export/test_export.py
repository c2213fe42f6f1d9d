"""What is taken out of the store: the model that was judged, and weights that trainers can read."""

import json
import math
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows.export.sampling import parse_mixture, weights_tree
from flows.run.stored import RunContent
from storage.store import Store
from tasks.mixtures.mixture import Mixture
from tests.flows.conftest import Place, mixpool, mixpool_json

NAMES = ("C++-0", "C-0", "R + D-0", "computer science-0", "3 x-0", "x-0", "日本-1")


def run_of(names: tuple[str, ...], best: tuple[str, ...] = ("x-0",)) -> RunContent:
    return RunContent(
        "run",
        {
            "recipe": "names",
            "models": {name: f"digest of {name}" for name in names},
            "domains": {name: name.rpartition("-")[0] for name in names},
            "best": dict.fromkeys(best, 1),
        },
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x-0", {"x-0": 1}),
        ("C++-0 + C-0", {"C++-0": 1, "C-0": 1}),
        ("C++-0+C-0", {"C++-0": 1, "C-0": 1}),
        ("2 C-0 + 3 * C++-0 + 5x computer science-0", {"C-0": 2, "C++-0": 3, "computer science-0": 5}),
        ("R + D-0 + x-0", {"R + D-0": 1, "x-0": 1}),
        ("3 x-0", {"3 x-0": 1}),
        ("4 x-0 + 日本-1", {"x-0": 4, "日本-1": 1}),
        ("x-0 + x-0 + C-0", {"x-0": 2, "C-0": 1}),
        (" best ", {"C-0": 1, "R + D-0": 1}),
        ("0.7 C-0 + .2 C++-0 + 0.10 x-0", {"C-0": 7, "C++-0": 2, "x-0": 1}),
        ("0.5 C-0 + 0.25*C-0 + 0.25 x-0 + 0.0 C++-0", {"C-0": 3, "x-0": 1}),
    ],
)  # fmt: skip
def test_mixtures_as_people_write_them(text: str, parts: dict[str, int]) -> None:
    assert parse_mixture(text, run_of(NAMES, ("C-0", "R + D-0"))) == Mixture.of(parts)


@pytest.mark.parametrize("text", ["y-0", "x-0 + y-0", "x-0 +", "", "+", "x-0 C-0", "-1 x-0"])
def test_what_is_no_mixture_is_refused_with_the_partitions(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no partition of run run; .*computer science-0"):
        parse_mixture(text, run_of(NAMES))


def test_parts_of_zero_leave_no_mixture() -> None:
    with pytest.raises(ValueError, match="no members"):
        parse_mixture("0 x-0", run_of(NAMES))


PARTS = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 50), min_size=1)


@given(parts=PARTS)
def test_labels_are_read_back_as_the_mixture(parts: dict[str, int]) -> None:
    names = tuple(name for name in NAMES if name != "3 x-0")  # "3 x-0" may be either of two
    mixture = Mixture.of(
        {name: part for name, part in parts.items() if name in names} or {"x-0": 1}
    )
    assert parse_mixture(mixture.label, run_of(names)) == mixture


@given(parts=PARTS)
def test_weights_sum_to_one_by_partition_and_by_domain(parts: dict[str, int]) -> None:
    run = run_of(("a-0", "a-1", *NAMES))
    mixture = Mixture.of({"a-0": 1, "a-1": 3, **parts})
    tree = weights_tree(run, mixture)
    assert sum(tree["weights"].values()) == sum(tree["domains"].values()) == Decimal(1)
    for name, exact in mixture.weights.items():
        assert abs(Fraction(tree["weights"][name]) - exact) < Fraction(1, 10**9)
    assert abs(Fraction(tree["domains"]["a"]) - Fraction(4, mixture.total)) < Fraction(1, 10**9)


# The command ------------------------------------------------------------------------------------


def test_weights_are_printed_or_written(finished: Place, tmp_path: Path) -> None:
    words = ("export", "3 birds-0 + law-0", "--store", finished.store)
    printed = mixpool(*words, "--format", "megatron", "--paths", "law=/data/law")
    assert printed.exit_code == 0, printed.stderr
    assert printed.stdout == "0.75 birds\n0.25 /data/law\n"
    assert "names stand where a path belongs (--paths NAME=PATH): birds" in printed.stderr

    file = tmp_path / "new" / "mix.yaml"
    result = mixpool(
        *words, "--format", "olmo-core", "--unit", "partition", "--output", file,
        "--weights", tmp_path / "ours.yaml", "--paths", "law-0=/l", "--paths", "birds-0=/b",
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"sampling weights of 3 birds-0 + 1 law-0: {file}",
        f"sampling weights of 3 birds-0 + 1 law-0: {tmp_path / 'ours.yaml'}",
    ]
    assert [s["target_ratio"] for s in yaml.safe_load(file.read_text())["sources"]] == [0.75, 0.25]
    ours = yaml.safe_load((tmp_path / "ours.yaml").read_text())
    assert ours["domains"] == {"birds": 0.75, "law": 0.25}


def test_a_format_that_there_is_not(finished: Place) -> None:
    result = mixpool("export", "best", "--store", finished.store, "--format", "axolotl")
    assert result.exit_code == 2
    assert "; there are yaml, huggingface, " in result.stderr
    assert ", gpt-neox, levanter. Axolotl is" in result.stderr


def partition(place: Place, name: str) -> dict[str, Any]:
    (row,) = (
        r
        for r in mixpool_json("show", "partitions", "--store", place.store)
        if r["partition"] == name
    )
    return dict(row)


def test_rows_and_epochs_follow_from_what_partitions_hold(finished: Place) -> None:
    words = ("export", "0.75 birds-0 + 0.25 law-0", "--store", finished.store, "--tokens", 10_000)
    birds, law = (partition(finished, name) for name in ("birds-0", "law-0"))
    documents = [
        0.75 * birds["documents"] / birds["tokens"],
        0.25 * law["documents"] / law["tokens"],
    ]
    tree = json.loads(mixpool(*words, "--format", "grain").stdout)
    assert tree["probabilities"] == pytest.approx([x / sum(documents) for x in documents], abs=1e-9)
    epochs = {name: source["epochs"] for name, source in tree["sources"].items()}
    assert epochs == pytest.approx(
        {"birds": 7500 / birds["tokens"], "law": 2500 / law["tokens"]}, abs=1e-4
    )
    blocks = json.loads(mixpool(*words, "--format", "grain", "--rows", "blocks").stdout)
    assert blocks["probabilities"] == [0.75, 0.25]
    assert blocks["sources"] == tree["sources"]
    found = mixpool(*words, "--format", "megatron")
    assert f"birds: 0.75 of tokens, {tree['sources']['birds']['bytes']} of bytes, " in found.stderr


def test_the_recipes_limit_on_repetition_is_the_exports(finished: Place, tmp_path: Path) -> None:
    place = finished.copy(tmp_path)
    (recipe,) = Path(place.store).glob("runs/*/recipe.yaml")
    tree = yaml.safe_load(recipe.read_text())
    tree["search"]["constraints"]["repetition"] = {"tokens": 20_000, "most": 1.5}
    recipe.write_text(yaml.safe_dump(tree))
    words = (
        "export",
        "law-0",
        "--store",
        place.store,
        "--format",
        "olmo-core",
        "--paths",
        "law=/l",
    )
    assert "Seen more than 1.5 times" in mixpool(*words).stderr
    assert "Seen more than" not in mixpool(*words, "--tokens", 100).stderr
    ratio = yaml.safe_load(mixpool(*words).stdout)["sources"][0]["max_repetition_ratio"]
    assert ratio == math.ceil(20_000 / partition(place, "law-0")["tokens"])


def test_shares_of_another_tokenizer_are_counted_on_the_documents(
    finished: Place, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Tokenizer(WordLevel({"[UNK]": 0}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    command = ("export", "birds-0 + law-0", "--store", finished.store, "--format", "megatron")
    rates = []
    for name in ("birds-0", "law-0"):
        (record,) = (r for r in Store(finished.store).records("partition") if r.label == name)
        frame = pd.read_parquet(Path(finished.store) / record.output.prefix / "documents.parquet")
        counted = sum(len(re.findall(r"\w+|[^\w\s]+", text)) + 1 for text in frame["text"])
        rates.append(counted / frame["num_tokens"].sum())
    for tokenizer in (tmp_path, tmp_path / "tokenizer.json"):
        found = mixpool(*command, "--tokenizer", tokenizer)
        shares = [float(line.split()[0]) for line in found.stdout.splitlines()]
        assert shares == pytest.approx([rate / sum(rates) for rate in rates], abs=1e-6)
    refused = mixpool(*command, "--tokenizer", tmp_path / "gpt2")
    assert refused.exit_code == 1
    assert "gpt2 is no folder here: give one that has a tokenizer.json" in refused.stderr


def test_a_member_that_was_trained_in_full_has_no_adapter(finished: Place, tmp_path: Path) -> None:
    words = ("export", "law-0", "--store", finished.store, "--adapter", tmp_path / "adapter")
    found = mixpool(*words)
    assert found.exit_code == 1
    assert "law-0 was trained in full, so there is no adapter to write" in found.stderr
    assert not [*tmp_path.iterdir()]


# The exported model ----------------------------------------------------------------------------


def losses_of(place: Place, mixture: str) -> pd.DataFrame:
    *_, run = mixpool_json("show", "runs", "--store", place.store)
    frame = pd.read_parquet(Path(place.store) / "runs" / run["run"] / "losses.parquet")
    return frame[frame["mixture"] == mixture].set_index("evaluation_set")


def documents_of(place: Place, evaluation_set: str) -> list[str]:
    (record,) = (r for r in Store(place.store).records("window") if r.label == evaluation_set)
    folder = Path(place.store) / "artifacts" / "documents" / record.inputs["documents"]
    return [
        str(text) for file in folder.glob("*.parquet") for text in pd.read_parquet(file)["text"]
    ]


def nats(model: Any, tokenizer: Any, texts: list[str], context: int) -> float:
    """Sum of negative log-likelihoods, computed the long way: a document and a window at a time."""
    import torch

    total = 0.0
    for text in texts:
        ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        for start in range(0, len(ids) - 1, context):
            window = torch.tensor([ids[start : start + context + 1]])
            with torch.no_grad():
                logits = model(window[:, :-1]).logits.double()
            found = logits.log_softmax(-1).gather(-1, window[:, 1:, None])
            total -= found.sum().item()
    return total


def test_the_exported_model_has_the_perplexity_that_was_ranked(
    finished: Place, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = tmp_path / "new" / "model", tmp_path / "weights.yaml"
    result = mixpool(
        "export", "best", "--store", finished.store, "--model", folder, "--weights", file,
        "--license", "apache-2.0",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    best = mixpool_json("show", "ranking", "--store", finished.store)[0]["mixture"]
    assert f"merged model of {best}: {folder}" in result.stdout

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    losses = losses_of(finished, best)
    for name in ("law", "birds"):
        ours = nats(model, tokenizer, documents_of(finished, name), context=32)
        assert ours == pytest.approx(losses.loc[name, "nll"], rel=1e-6)

    weights = yaml.safe_load(file.read_text())
    assert weights["mixture"] == best
    assert sum(weights["weights"].values()) == pytest.approx(1)
    assert sum(weights["domains"].values()) == pytest.approx(1)

    front, card = (folder / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    tree = {"library_name": "transformers", "license": "apache-2.0", "tags": ["mixpool", "merge"]}
    assert yaml.safe_load(front) == tree
    assert "- input: 32 tokens at most" in card
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 32
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    modes = {path.stat().st_mode for path in (*folder.iterdir(), file)}
    assert modes == {ordinary.stat().st_mode}
    assert ModelCard.load(folder / "README.md").data.tags == ["mixpool", "merge"]
    assert card.startswith(f"\n# {best}\n")
    for name, weight in weights["weights"].items():
        assert re.search(rf"\| {name} \| {name[:-2]} \| {weight} \| 640 \|", card)
    (base,) = (r for r in Store(finished.store).records("train") if r.label == "base")
    assert f"- base model: {base.output.digest}" in card
    for evaluation_set, row in losses.iterrows():
        perplexity = math.exp(row["nll"] / row["num_tokens"])
        assert f"| {evaluation_set} | {perplexity:,.3f} |" in card
    assert not [path.name for path in folder.parent.iterdir() if path != folder]


def test_weighted_mixtures_and_untied_embeddings(finished: Place, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    place = finished.copy(tmp_path)
    changes = ["base.architecture.tie_embeddings=false", "corpus.name=untied", "train.steps=2"]
    changes += ["corpus.source.include_domains=[birds, law]", "mixtures.spaces.0.sizes=[1]"]
    words = [word for change in changes for word in ("--set", change)]
    words += ["--runtime", "energy=codecarbon"]
    found = mixpool_json("run", place.recipe, "--store", place.store, *words)
    assert found["trained"] == ["base", "birds-0", "law-0"]
    spent = {row["item"]: row["estimator"] for row in found["cost"] if "now" in row["item"]}
    assert spent.keys() == {"training, now", "other steps, now", "evaluating, now"}
    assert all(estimator.startswith("codecarbon ") for estimator in spent.values())
    for mixture, name in (("birds-0", "a"), ("law-0", "b"), ("3 birds-0 + law-0", "mixed")):
        result = mixpool("export", mixture, "--store", place.store, "--model", tmp_path / name)
        assert result.exit_code == 0, result.stderr
    facts = json.loads((tmp_path / "mixed" / "mixpool-mixture.json").read_text())
    assert facts["parts"] == {"birds-0": 3, "law-0": 1}
    assert facts["weights"] == {"birds-0": 0.75, "law-0": 0.25}
    a, b, mixed = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "b", "mixed"))
    assert "lm_head.weight" in mixed
    assert a.keys() == b.keys() == mixed.keys()
    for key, tensor in mixed.items():
        expected = (0.75 * a[key].double() + 0.25 * b[key].double()).float()
        assert torch.equal(tensor, expected)
