"""Whether a given model goes with a recipe's tokenizer and contexts, by its small files alone.

So a plan knows it, and a run before anything is read or built.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.models.check import check_counts, check_model
from tasks.models.folder import check_limit, check_safetensors
from tasks.models.given import (
    MODEL_FILES,
    OF_TYPE,
    TOKENIZER_FILES,
    GivenModel,
    address,
    check_vocabulary,
    folder_of,
    laid,
)
from tasks.tokens.folder import FolderError, files_of, loading, named
from tasks.tokens.published import UNUSABLE, difference, read_tokenizer
from tasks.tokens.tokenizer import Encoder
from tasks.tokens.vocabulary import plain

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_fit(model: GivenModel, contexts: Mapping[str, int], tokenizer: Path | None) -> list[str]:
    """Sentences on what could not be checked.

    Args:
        contexts: tokens of a sequence by the recipe's field.
        tokenizer: folder of the given tokenizer's artifact; None where one is trained.

    Raises:
        ValueError: it does not fit.
    """
    folder = folder_of(model.path, model.field, TOKENIZER_FILES)
    with named(address(model)):
        files = files_of(folder, MODEL_FILES)
        if Path(model.path).is_dir():
            check_safetensors(folder)
            check_model(files)
        else:  # weights are not fetched for this
            check_counts(files)
        settings = _settings(files["config.json"])
        for field, length in contexts.items():
            check_limit(settings, length, field)
        if tokenizer is None:
            return []
        check_vocabulary(settings.vocab_size, Encoder(tokenizer))
    return _compared(model, folder, tokenizer)


def _settings(path: Path) -> "PretrainedConfig":
    """What a config.json says of the model's text part."""
    from transformers import AutoConfig

    problem = "has no config.json of a model that transformers has"
    remedy = "give a causal language model's folder"
    with laid({"config.json": path}) as (folder, _), loading(folder, problem, remedy):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return config.get_text_config()


def _compared(model: GivenModel, folder: Path, tokenizer: Path) -> list[str]:
    """A sentence where the model's own tokenizer is not there, or another one is asked for."""
    encoder, is_base = Encoder(tokenizer), type(model) is GivenModel
    try:
        files = files_of(folder, TOKENIZER_FILES)
        with laid(files, OF_TYPE) as (source, _), loading(source, *UNUSABLE):
            own = plain(read_tokenizer(source))
            found = difference(encoder.tokenizer, own)
    except FolderError:
        whose = "the base model's folder" if is_base else f"the folder of {address(model)}"
        return [
            f"{whose} has no tokenizer that can be read: whether the recipe's is the "
            "one that the model learnt with is not known"
        ]
    given, end = encoder.tokenizer, json.loads((tokenizer / "tokenizer_config.json").read_text())
    special = {n for n, t in given.get_added_tokens_decoder().items() if t.special}
    tokens = {t: n for t, n in given.get_vocab().items() if t and n not in special}
    tokens[end["eos_token"]] = encoder.end_of_text
    if found:
        what = f"reads {found[0]!r} as {found[1]}, and that of {model.field} as {found[2]}"
    elif odd := next((t for t, n in tokens.items() if own.token_to_id(t) != n), None):
        what = f"has {odd!r} as {tokens[odd]}, and that of {model.field} as {own.token_to_id(odd)}"
    else:
        return []
    if model.tokenizer == "any":
        return [f"the tokenizer is not the base model's own, as base.tokenizer allows: it {what}"]
    remedy = ", or set base.tokenizer to any" if is_base else ", or leave this teacher out"
    raise ValueError(f"the tokenizer {what}: give the model's own in tokenizer.path{remedy}")
