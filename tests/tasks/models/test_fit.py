"""What config and tokenizer files alone tell of a given model is told before it is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from tasks.models.fit import check_fit
from tasks.models.given import GivenModel
from tasks.tokens.published import import_given
from tasks.tokens.tokenizer import GivenTokenizer, copy_files

pytest_plugins = ["tests.tasks.tiny_models"]

CONTEXTS = {"train.context_length": 16, "evaluation.windows.context_length": 32}


@pytest.fixture
def model(tmp_path: Path, tokenizer: Path) -> Path:
    """The small files of a model with its tokenizer; nothing in it can be loaded."""
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # no tensors
    copy_files(tokenizer, folder)
    return folder


def write(folder: Path, **changes: Any) -> None:
    """The model's config.json."""
    config = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 32, **changes}
    (folder / "config.json").write_text(json.dumps(config))


def check(model: Path, artifact: Path | None, **config: Any) -> list[str]:
    return check_fit(GivenModel(path=str(model), **config), CONTEXTS, artifact)


def changed(tokenizer: Path, folder: Path, change: Callable[[Tokenizer], object]) -> Path:
    """The artifact of a tokenizer that differs by ``change``."""
    source = folder / "source"
    shutil.copytree(tokenizer, source)
    other = Tokenizer.from_file(str(source / "tokenizer.json"))
    change(other)
    other.save(str(source / "tokenizer.json"))
    output = folder / "output"
    output.mkdir()
    import_given(GivenTokenizer(path=str(source)), source, output)
    return output


def swapped(tokenizer: Path, target: Path) -> Path:
    """The tokenizer with two words' ids exchanged: as large, and none of its texts the same."""
    shutil.copytree(tokenizer, target)
    file = target / "tokenizer.json"
    state = json.loads(file.read_text())
    vocab = state["model"]["vocab"]
    vocab["o"], vocab["u"] = vocab["u"], vocab["o"]
    file.write_text(json.dumps(state))
    return target


def test_a_model_and_its_own_tokenizer_fit(model: Path, tokenizer: Path) -> None:
    assert check(model, tokenizer) == []
    assert check(model, None) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_positions": 31}, "evaluation.windows.context_length 32 is more than the model's 31"),
        ({"n_positions": 15}, "train.context_length 16 is more than the model's 15"),
        ({"vocab_size": 299}, "299 embeddings and the tokenizer ids up to 299 in a text"),
        ({"model_type": "of nobody"}, "no config.json of a model that transformers has"),
    ],
)
def test_what_config_json_tells(
    changes: dict[str, Any], said: str, model: Path, tokenizer: Path
) -> None:
    write(model, **changes)
    with pytest.raises(ValueError, match=said):
        check(model, tokenizer)


def test_a_text_config_counts(model: Path, tokenizer: Path) -> None:
    """Models that also see keep what they know of text in a config of its own."""
    text = {"vocab_size": 300, "max_position_embeddings": 31}
    (model / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    with pytest.raises(ValueError, match="is more than the model's 31"):
        check(model, tokenizer)


def test_special_tokens_need_no_embeddings(model: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Gemma 3 of 1B has 262,144 embeddings, and a token for images behind them."""
    more = changed(tokenizer, tmp_path, lambda t: t.add_special_tokens(["<image_soft_token>"]))
    assert check(model, more) == []


def test_a_token_that_a_text_can_give_needs_one(
    model: Path, tokenizer: Path, tmp_path: Path
) -> None:
    added = AddedToken("<think>", special=False)
    with pytest.raises(ValueError, match="300 embeddings and the tokenizer ids up to 300"):
        check(model, changed(tokenizer, tmp_path, lambda t: t.add_tokens([added])))


def test_another_tokenizer_is_refused_or_allowed(
    model: Path, tokenizer: Path, tmp_path: Path
) -> None:
    other = swapped(tokenizer, tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"reads .* as \[.*\], and that of base.path as \["
    ) as caught:
        check(model, other)
    assert "give the model's own in tokenizer.path, or set base.tokenizer to any" in str(
        caught.value
    )
    (note,) = check(model, other, tokenizer="any")
    assert note.startswith(
        "the tokenizer is not the base model's own, as base.tokenizer allows: it"
    )


def test_words_that_no_probe_has_are_compared(model: Path, tokenizer: Path, tmp_path: Path) -> None:
    write(model, vocab_size=512)
    added = AddedToken("<think>", special=False)
    other = changed(tokenizer, tmp_path, lambda t: t.add_tokens([added]))
    with pytest.raises(ValueError, match=r"has '<think>' as 300, and that of base.path as None"):
        check(model, other)


def test_a_model_without_a_tokenizer_is_taken_with_a_note(model: Path, tokenizer: Path) -> None:
    for path in model.glob("*token*"):
        path.unlink()
    (note,) = check(model, tokenizer)
    assert note.startswith("the base model's folder has no tokenizer that can be read")


def test_pickled_weights_are_refused_at_once(model: Path, tokenizer: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\*\.safetensors .*pytorch_model\.bin"):
        check(model, tokenizer)
