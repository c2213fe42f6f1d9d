"""A given folder is data: what is damaged, leads elsewhere or asks for code is refused or left out."""

import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import GenerationConfig, LlamaConfig
from transformers.utils import logging as their_logging

from storage.step import Workspace
from storage.store import Store
from tasks.models.check import GENERATION, check_size
from tasks.models.fit import check_fit
from tasks.models.folder import load_model
from tasks.models.given import (
    GivenModel,
    ImportConfig,
    address,
    build_import,
    given_model,
    given_tokenizer,
)
from tasks.tokens.folder import FolderError, loading, named
from tasks.tokens.tokenizer import GivenTokenizer, copy_files
from tests.malformed.models import cases
from tests.tiny_types import tiny_config

pytest_plugins = ["tests.tasks.tiny_models"]

SIZES = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}

CONTEXTS = {"train.context_length": 16, "evaluation.windows.context_length": 32}

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def published(given: Callable[..., Path], tokenizer: Path) -> Path:
    """A Llama with its tokenizer, in one file of weights."""
    folder = given(LlamaConfig(**SIZES))
    copy_files(tokenizer, folder)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(published, tmp_path / "given")


@pytest.fixture
def sharded(given: Callable[..., Path], tmp_path: Path) -> Path:
    """The same in shards with an index."""
    return shutil.copytree(given(LlamaConfig(**SIZES), max_shard_size="8KB"), tmp_path / "shards")


@pytest.fixture
def taken(
    memory_store: Store, tmp_path: Path, workspace: Callable[..., Workspace]
) -> Callable[[Path], Path]:
    """A folder's tokenizer and model taken over, as a run does it."""

    def take(source: Path) -> Path:
        tokenizer, _ = given_tokenizer(memory_store, GivenTokenizer(path=str(source)))
        config = GivenModel(path=str(source))
        check_fit(config, CONTEXTS, memory_store.fetch(tokenizer))
        handle = given_model(memory_store, config)
        inputs = {
            "source": memory_store.fetch(handle.built),
            "tokenizer": memory_store.fetch(tokenizer),
        }
        output = tmp_path / "output"
        output.mkdir()
        with named(address(config)):
            build_import(ImportConfig(), inputs, output, workspace())
        return output

    return take


def change(folder: Path, file: str, **fields: object) -> None:
    """Other fields in a JSON file, which may not be there yet."""
    path = folder / file
    tree = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**tree, **fields}))


def refusal(store: Store, folder: Path) -> str:
    """Why a model's folder is not taken into the store."""
    with pytest.raises(ValueError, match=rf"^base\.path '{re.escape(str(folder))}': ") as error:
        given_model(store, GivenModel(path=str(folder)))
    return str(error.value).partition("': ")[2]


def test_damaged_folders_end_in_a_sentence(
    taken: Callable[[Path], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Most damage is refused, and some changes nothing that is read."""
    refused = 0
    for case in cases(seed=5, count=80):
        folder = tmp_path / "given"
        folder.mkdir()
        case.write(folder)
        try:
            taken(folder)
        except ValueError as error:
            refused += 1
            said = str(error)
            assert re.match(rf"(base|tokenizer)\.path '{folder}': .*: \w", said), (case.name, said)
            assert "\n" not in said, case.name
            assert len(said) < 1000, case.name
        for name in ("given", "output"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
    assert 40 < refused < 80
    assert "LOAD REPORT" not in (read := capfd.readouterr()).out + read.err


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", 7])
def test_an_index_names_files_of_its_folder(
    name: object, sharded: Path, memory_store: Store
) -> None:
    names = json.loads((sharded / INDEX).read_text())["weight_map"]
    change(sharded, INDEX, weight_map={**names, min(names): name})
    message = refusal(memory_store, sharded)
    assert message.startswith(f"{INDEX} names {str(name)!r}, which is no model*.safetensors in the")


def test_an_index_and_its_shards_are_the_same(sharded: Path, memory_store: Store) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    whole = given_model(memory_store, GivenModel(path=str(sharded)))
    assert whole.artifact is not None
    assert {*whole.artifact.files} >= {path.name for path in shards}
    odd = sharded / "model-00009-of-00009.safetensors"
    shutil.copy(shards[0], odd)
    assert f"{odd.name} is a shard that {INDEX} does not name" in refusal(memory_store, sharded)
    odd.unlink()
    shards[0].rename(tmp := sharded / "elsewhere")
    assert f"{INDEX} names '{shards[0].name}', which is no" in refusal(memory_store, sharded)
    tmp.rename(shards[0])
    (sharded / INDEX).unlink()
    assert refusal(memory_store, sharded) == f"has shards and no {INDEX}: fetch that file too"


def test_links_stay_in_the_folder_or_the_hubs_cache(
    published: Path, folder: Path, tmp_path: Path, memory_store: Store
) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / "0123"
    (blobs := snapshot.parents[1] / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(published.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    expected = given_model(memory_store, GivenModel(path=str(published)))
    assert given_model(memory_store, GivenModel(path=str(snapshot))).digest == expected.digest
    other = (folder / "config.json").rename(folder / "other")
    (folder / "config.json").symlink_to(other.name)
    assert given_model(memory_store, GivenModel(path=str(folder))).digest == expected.digest
    for target in (published / "config.json", tmp_path, "/dev/null", blobs / "0"):
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(target)
        assert f"is a link out of the folder, to {target}" in refusal(memory_store, folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    assert "config.json is a link to nothing" in refusal(memory_store, folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")  # who opens it waits for ever
    assert refusal(memory_store, folder).startswith("config.json is no file: ")


def test_fields_that_load_code_are_left_out(
    folder: Path,
    published: Path,
    taken: Callable[[Path], Path],
    memory_store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = given_model(memory_store, GivenModel(path=str(published))).digest
    fields = {
        "auto_map": {"AutoModelForCausalLM": "someone/some-model--own.Model"},
        "attn_implementation": "someone/some-kernel:attention",
        "_attn_implementation": "flash_attention_2",
        "_attn_implementation_internal": "someone/some-kernel",
        "experts_implementation": {"": "someone/some-kernel"},
        "custom_code": True,
        "trust_remote_code": True,
        "fusion_config": {"patch_embeddings": True},
    }
    change(folder, "config.json", **fields)
    change(folder, "generation_config.json", custom_generate="someone/x", penalty_alpha=0.6)
    change(folder, "tokenizer_config.json", vocab_file="/etc/passwd", gguf_file="../x.gguf")
    with caplog.at_level(logging.WARNING, "mixpool.models"):
        output = taken(folder)
    assert [*json.loads((output / "config.json").read_text())] == [
        *json.loads((published / "config.json").read_text())
    ]
    assert given_model(memory_store, GivenModel(path=str(folder))).digest == plain
    said = "\n".join(caplog.messages)
    assert re.search("config.json is taken over without its _attn_implementation, .*auto_map", said)
    assert "generation_config.json is taken over without its custom_generate, penalty_alpha" in said
    _, notes = given_tokenizer(memory_store, GivenTokenizer(path=str(folder)))
    assert notes[-1].startswith(
        "tokenizer_config.json is taken over without its gguf_file, vocab_file: code, kernels"
    )


def test_nothing_is_fetched(
    folder: Path, taken: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a folder names: the libraries load it with the hub switched off."""
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda *place: asked.append(place))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *place, **_: asked.append(place))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}')
    change(folder, "config.json", _name_or_path="someone/model", backbone="someone/backbone")
    change(
        folder, "tokenizer_config.json", name_or_path="someone/x", tokenizer_class="OwnTokenizer"
    )
    assert load_model(taken(folder)).config.vocab_size == 300
    assert asked == []


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        (
            "config.json",
            "quantization_config",
            {"quant_method": "awq"},
            "its weights are quantized",
        ),
        ("config.json", "configuration_files", ["config.4.0.json"], "it names other config files"),
        ("config.json", "transformers_weights", "../w.safetensors", "it names another file of"),
    ],
)
def test_fields_that_make_it_another_model_are_refused(
    file: str, field: str, value: object, message: str, folder: Path, memory_store: Store
) -> None:
    change(folder, file, **{field: value})
    assert refusal(memory_store, folder).startswith(f"{file} has {field}: {message}")
    change(folder, file, **{field: None, "text_config": {field: value}})
    assert refusal(memory_store, folder).startswith(f"{file} has {field}: {message}")
    change(folder, file, **{field: None, "text_config": {}})
    given_model(memory_store, GivenModel(path=str(folder)))


def test_a_tokenizer_that_names_other_files(folder: Path, memory_store: Store) -> None:
    change(folder, "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])
    with pytest.raises(
        ValueError, match=r"^tokenizer\.path '.*': tokenizer_config\.json has fast_tok"
    ):
        given_tokenizer(memory_store, GivenTokenizer(path=str(folder)))


def test_known_fields_of_generation_are_those_of_transformers() -> None:
    fields = {*vars(GenerationConfig())}
    kept = {field for field in fields if GENERATION.fullmatch(field)}
    assert len(kept) == GENERATION.pattern.count("|") + 1
    assert not kept & {"cache_config", "compile_config", "penalty_alpha", "watermarking_config"}


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_labels"])
def test_a_count_that_the_files_cannot_hold(field: str, folder: Path, memory_store: Store) -> None:
    tensors = 2 * 9 + 3
    change(folder, "config.json", **{field: 10**6})
    assert refusal(memory_store, folder) == (
        f"config.json has {field} 1000000, and the safetensors hold {tensors} tensors: give the config "
        "that belongs to them"
    )


@pytest.mark.parametrize("field", ["hidden_size", "vocab_size", "intermediate_size"])
def test_a_size_that_the_files_cannot_hold(
    field: str, folder: Path, taken: Callable[[Path], Path]
) -> None:
    """No tensor of it is made: one alone would take 600 GB."""
    change(folder, "config.json", **{field: 10**10})
    pattern = r"^base\.path '.*': config\.json describes a model of [\d,]{13,} numbers, and the saf"
    with pytest.raises(ValueError, match=pattern):
        taken(folder)


def test_masks_count_too(given: Callable[..., Path], tmp_path: Path) -> None:
    """They go with the square of the longest context, and no file holds them."""
    source = shutil.copytree(given(tiny_config("gpt_neo")), tmp_path / "gpt_neo")
    check_size(source)
    change(source, "config.json", max_position_embeddings=10**6)
    with pytest.raises(FolderError, match="describes a model of"):
        check_size(source)


def test_weights_of_another_shape_are_named(
    folder: Path, taken: Callable[[Path], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    change(folder, "config.json", intermediate_size=24)
    message = (
        r"^base\.path '.*': its weight model\.layers\.0\.mlp\.down_proj\.weight has the shape \(16, 16\), "
        r"and by config\.json it has \(16, 24\): give the config that belongs to the weights$"
    )
    with pytest.raises(ValueError, match=message):
        taken(folder)
    assert (read := capfd.readouterr()).out + read.err == ""


def test_their_log_is_as_it_was(folder: Path, taken: Callable[[Path], Path]) -> None:
    before = their_logging.get_verbosity()
    taken(folder)
    assert their_logging.get_verbosity() == before


def test_two_entries_with_one_id(folder: Path, memory_store: Store) -> None:
    path = folder / "tokenizer.json"
    tree: Any = json.loads(path.read_text())
    tree["model"]["vocab"]["far"] = 7
    path.write_text(json.dumps(tree))
    with pytest.raises(
        ValueError, match=r"'.*': tokenizer\.json has several entries with the id 7: "
    ):
        given_tokenizer(memory_store, GivenTokenizer(path=str(folder)))


def test_what_no_terminal_prints(
    folder: Path, taken: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    change(folder, "generation_config.json", **{"\ud800\n": 1})
    change(folder, "config.json", hidden_act="\ud800\n")
    with pytest.raises(ValueError, match=r"^base\.path .* cannot load .*\\ud800") as error:
        taken(folder)
    assert "\n" not in str(error.value)
    for said in (str(error.value), *caplog.messages):
        said.encode()


def test_a_vocabulary_that_is_too_large(
    folder: Path, memory_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "tokenizer.json"
    tree: Any = json.loads(path.read_text())
    tree["model"]["vocab"]["far"] = 2_000_000
    path.write_text(json.dumps(tree))
    with pytest.raises(
        ValueError, match=r"'.*': its largest token id is 2,000,000, and a .* at most"
    ):
        given_tokenizer(memory_store, GivenTokenizer(path=str(folder)))
    monkeypatch.setattr("tasks.tokens.folder.JSON_BYTES", 1000)
    with pytest.raises(
        ValueError, match=r"tokenizer\.json has [\d,]+ bytes, more than the 1,000 that"
    ):
        given_tokenizer(memory_store, GivenTokenizer(path=str(folder)))


def test_a_tokenizer_of_a_model_that_is_refused(folder: Path, memory_store: Store) -> None:
    """Of its config.json only the type counts beside a tokenizer."""
    plain, _ = given_tokenizer(memory_store, GivenTokenizer(path=str(folder)))
    change(folder, "config.json", quantization_config={"quant_method": "awq"}, num_labels=10**9)
    artifact, notes = given_tokenizer(memory_store, GivenTokenizer(path=str(folder)))
    assert artifact.digest == plain.digest
    assert len(notes) == 1


def test_a_plan_refuses_before_anything_is_made(
    sharded: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the small files of a name on the hub, too, of which no weights are there yet."""
    config = GivenModel(path=str(sharded))
    check_fit(config, CONTEXTS, tokenizer)
    change(sharded, "config.json", num_labels=10**9)
    with pytest.raises(
        ValueError, match=r"^base\.path '.*': .*10{9}, and the safetensors hold 21 "
    ):
        check_fit(config, CONTEXTS, tokenizer)
    for path in sharded.glob("*safetensors*"):
        path.unlink()
    monkeypatch.setattr("tasks.models.fit.folder_of", lambda *_: sharded)
    with pytest.raises(ValueError, match=r"^base\.path 'a/b': .*10{9}, and no model has more than"):
        check_fit(GivenModel(path="a/b"), CONTEXTS, tokenizer)
    change(sharded, "config.json", num_labels=2, auto_map={"AutoConfig": "own.Config"})
    assert check_fit(GivenModel(path="a/b"), CONTEXTS, None) == []
    (sharded / "config.json").unlink()
    (sharded / "config.json").symlink_to(tokenizer / "tokenizer_config.json")
    with pytest.raises(ValueError, match=r"^base\.path 'a/b': config\.json is a link out of"):
        check_fit(GivenModel(path="a/b"), CONTEXTS, tokenizer)


def test_blocks_in_two_threads_put_things_back() -> None:
    """Whichever ends first: the log and the hub are as they were behind the last one."""
    before = their_logging.get_verbosity(), constants.HF_HUB_OFFLINE
    one, other = (loading(Path(), "", "") for _ in range(2))
    with ThreadPoolExecutor(2) as threads:
        for act in (one.__enter__, other.__enter__, partial(one.__exit__, None, None, None)):
            threads.submit(act).result()
            assert (their_logging.get_verbosity(), constants.HF_HUB_OFFLINE) == (
                logging.CRITICAL,
                True,
            )
        threads.submit(other.__exit__, None, None, None).result()
    assert (their_logging.get_verbosity(), constants.HF_HUB_OFFLINE) == before


def test_a_full_disk_is_no_fault_of_a_folder() -> None:
    """As safetensors says it, which raises no OSError."""
    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(SafetensorError, match="os error 28"), loading(Path(), "", ""):
        raise SafetensorError(words)
    with pytest.raises(FolderError, match="is damaged"), loading(Path(), "is damaged", ""):
        raise SafetensorError("Error while deserializing header")
