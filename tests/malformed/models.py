"""Damaged folders of tiny models with their tokenizers: each case is a sound folder with one thing wrong.

``cases`` is seeded, so that a case is found again by its name. Most must be refused in a sentence; some
harm nothing that is read.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 7, 10**7, -(2**70), 2**70, 1.5, 1e308, "", "x", "../x", "a/b", "é\ud800"),
    *([], {}, [[]], [None], [3, "x"], {"": None}, {"type": "x"}, {"a": {"b": [1]}}, "x" * 5000),
)
"""Values that stand where others belong."""

Files = dict[str, bytes]


class Case(NamedTuple):
    """A folder with one thing wrong."""

    name: str
    """What is wrong, with the file's name."""
    write: Callable[[Path], None]
    """Writes the folder's files into an empty folder."""


def cases(seed: int, count: int) -> Iterator[Case]:
    """Damaged folders, each a model and its tokenizer together; equal seeds give equal cases."""
    lots = random.Random(seed)
    for number in range(count):
        kind = lots.choice(sorted(sound()))
        files = sound()[kind]
        file = lots.choice(sorted(files))
        choices = [_cut, _flipped, _emptied, _gone, _folder, _link, _latin, *[_header] * 4]
        choices = [m for m in choices if m is not _header or file.endswith(".safetensors")]
        if file.endswith(".json"):
            choices += [*[_replaced] * 12, *[_lacking] * 4, _other, _nested]
        name, write = lots.choice(choices)(lots, files[file])
        yield Case(f"{number}: {kind}, {file} {name}", partial(_write, files, file, write))


Damage = Callable[[Path], None]


def _write(files: Files, damaged: str, write: Damage, folder: Path) -> None:
    for name, data in files.items():
        if name == damaged:
            write(folder / name)
        else:
            (folder / name).write_bytes(data)


def _bytes(data: bytes) -> Damage:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def _cut(lots: random.Random, data: bytes) -> tuple[str, Damage]:
    place = lots.randrange(len(data))
    return f"cut at {place}", _bytes(data[:place])


def _flipped(lots: random.Random, data: bytes) -> tuple[str, Damage]:
    changed = bytearray(data)
    places = [lots.randrange(min(len(data), 4000)) for _ in range(lots.randint(1, 8))]
    for place in places:
        changed[place] ^= 1 << lots.randrange(8)
    return f"flipped at {places}", _bytes(bytes(changed))


def _emptied(_lots: random.Random, _data: bytes) -> tuple[str, Damage]:
    return "emptied", _bytes(b"")


def _gone(_lots: random.Random, _data: bytes) -> tuple[str, Damage]:
    return "gone", lambda path: None


def _folder(_lots: random.Random, _data: bytes) -> tuple[str, Damage]:
    return "is a folder", Path.mkdir


def _link(lots: random.Random, _data: bytes) -> tuple[str, Damage]:
    target = lots.choice([".", "..", "nothing", "config.json", "/dev/null"])
    return f"links to {target}", lambda path: path.symlink_to(target)


def _latin(lots: random.Random, data: bytes) -> tuple[str, Damage]:
    head = lots.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xe9"])
    return f"begins with {head!r}", _bytes(head + data)


def _header(lots: random.Random, data: bytes) -> tuple[str, Damage]:
    """A header of safetensors that is JSON and says something else."""
    length = int.from_bytes(data[:8], "little")
    name, damage = _replaced(lots, data[8 : 8 + length], data[8 + length :])
    return f"header {name}", damage


def _replaced(lots: random.Random, data: bytes, body: bytes | None = None) -> tuple[str, Damage]:
    tree = json.loads(data)
    place, value = lots.choice(list(_places(tree, ()))), lots.choice(WRONG)
    _parent(tree, place)[place[-1]] = value
    text = json.dumps(tree).encode()
    whole = text if body is None else len(text).to_bytes(8, "little") + text + body
    return f"{'.'.join(map(str, place))} is {value!r:.40}", _bytes(whole)


def _lacking(lots: random.Random, data: bytes) -> tuple[str, Damage]:
    tree = json.loads(data)
    place = lots.choice(list(_places(tree, ())))
    del _parent(tree, place)[place[-1]]
    return f"lacks {'.'.join(map(str, place))}", _bytes(json.dumps(tree).encode())


def _other(lots: random.Random, _data: bytes) -> tuple[str, Damage]:
    value = lots.choice(WRONG)
    return f"is {value!r:.40}", _bytes(json.dumps(value).encode())


def _nested(_lots: random.Random, _data: bytes) -> tuple[str, Damage]:
    return "is nested", _bytes(b"[" * 200 + b"]" * 200)


def _places(tree: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Where values are in JSON, at most a dozen in a list or an object."""
    keys = (
        list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    )
    for key in list(keys)[:40]:
        yield (*place, key)
        yield from _places(tree[key], (*place, key))


def _parent(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        tree = tree[key]
    return tree


@lru_cache
def sound() -> dict[str, Files]:
    """Folders in order, by the kind of their model and tokenizer."""
    from tokenizers import models
    from transformers import GPT2Config, LlamaConfig, MixtralConfig

    gpt = GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    sizes = {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
    }
    return {
        "gpt2, bpe": _made(gpt, models.BPE()),
        "llama in shards, unigram": _made(LlamaConfig(**sizes), models.Unigram(), "8KB"),
        "mixtral, wordpiece": _made(
            MixtralConfig(**sizes, num_local_experts=2), models.WordPiece(unk_token="<unk>")
        ),
    }


def _made(config: Any, model: Any, shard: str = "1GB") -> Files:
    import torch
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    specials = ["<unk>", "</s>", "<s>"]
    trainer: Any = {
        "BPE": trainers.BpeTrainer,
        "Unigram": partial(trainers.UnigramTrainer, unk_token="<unk>"),
        "WordPiece": trainers.WordPieceTrainer,
    }[type(model).__name__]
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["some words of one text, and a few more of them"] * 9,
        trainer(vocab_size=60, special_tokens=specials, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    names = {"eos_token": "</s>", "unk_token": "<unk>"}
    folder = Path(tempfile.mkdtemp())
    try:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
        (folder / "special_tokens_map.json").write_text(json.dumps(names))
        AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size=shard)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    finally:
        shutil.rmtree(folder)
