"""What comes from outside is named by its content, and what cannot be had says what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config

from storage.step import Runtime
from storage.store import Store
from tasks.machine.device import choose_device, devices_of
from tasks.models.folder import load_weights
from tasks.models.given import GivenModel, given_model, given_tokenizer
from tasks.tokens.tokenizer import Encoder, GivenTokenizer, copy_files

pytest_plugins = ["tests.tasks.tiny_models"]


@pytest.fixture(scope="session")
def published(given: Callable[..., Path], tokenizer: Path) -> Path:
    """A model's folder as people publish it, with its tokenizer and with other files."""
    folder = given(GPT2Config(vocab_size=300, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    copy_files(tokenizer, folder)
    (folder / "README.md").write_text("about this model")
    torch.save({}, folder / "pytorch_model.bin")
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    return folder


def test_model_is_named_by_what_matters(
    published: Path, new: Callable[[], Path], memory_store: Store
) -> None:
    handle = given_model(memory_store, GivenModel(path=str(published)))
    assert handle.artifact is not None
    assert {*handle.artifact.files} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    elsewhere = new() / "other name"
    shutil.copytree(published, elsewhere)
    (elsewhere / "README.md").write_text("changed")
    assert given_model(memory_store, GivenModel(path=str(elsewhere))).digest == handle.digest
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps({**config, "n_head": 4}))
    assert given_model(memory_store, GivenModel(path=str(elsewhere))).digest != handle.digest
    fetched = load_weights(memory_store.fetch(handle.artifact))
    assert {*fetched} == {*load_weights(published)}


def test_tokenizer_is_taken_from_a_models_folder(published: Path, memory_store: Store) -> None:
    artifact, _ = given_tokenizer(memory_store, GivenTokenizer(path=str(published)))
    encoder = Encoder(memory_store.fetch(artifact))
    assert encoder.tokenizer.decode(encoder.encode(["some text"])[0].tolist()) == "some text"
    again, _ = given_tokenizer(memory_store, GivenTokenizer(path=str(published), end_of_text=None))
    assert again.digest == artifact.digest


def test_model_without_safetensors(
    published: Path, new: Callable[[], Path], memory_store: Store
) -> None:
    folder = new()
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(published / name, folder)
    with pytest.raises(ValueError, match=r"no model\*\.safetensors .*pytorch_model\.bin"):
        given_model(memory_store, GivenModel(path=str(folder)))
    assert not list(memory_store.records())


@pytest.mark.parametrize("name", ["someone/some-model", "no such folder", "/no/such/folder"])
def test_no_folder_and_no_network(
    name: str, memory_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = (
        f"{name}' is no folder here and cannot be had .*give a local folder, or check the name"
    )
    with pytest.raises(ValueError, match=f"^base.path '{message}"):
        given_model(memory_store, GivenModel(path=name))
    with pytest.raises(ValueError, match=f"^tokenizer.path '{message}"):
        given_tokenizer(memory_store, GivenTokenizer(path=name))


@pytest.mark.parametrize("config", [GivenModel, GivenTokenizer])
def test_path_is_not_empty(config: type[GivenModel] | type[GivenTokenizer]) -> None:
    """The empty path is the present folder."""
    with pytest.raises(ValidationError, match="path"):
        config(path="")


def test_device() -> None:
    assert choose_device(Runtime(device="cpu", threads=1)) == "cpu"
    assert torch.get_num_threads() == 1
    auto = choose_device(Runtime(device="auto"))
    assert auto == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert devices_of(Runtime(device="auto"))[0] == auto
    several = Runtime(device="cpu, cpu:0,cpu")
    assert devices_of(several) == ["cpu", "cpu:0", "cpu"]
    assert choose_device(several) == "cpu"
    with pytest.raises(ValueError, match=r"device '' is none that torch knows"):
        devices_of(Runtime(device="cpu,"))
    with pytest.raises(ValueError, match=r"device 'gpu' is none that torch knows: use 'auto'"):
        choose_device(Runtime(device="gpu"))
    with pytest.raises(ValueError, match=r"device 'cuda:97' is asked for, and torch .* sees"):
        choose_device(Runtime(device="cuda:97"))
