"""Draw from one real loader what an export says, in the environment of ``exports-requirements.txt``.

`python exports_loaders.py FOLDER FORMAT MOST` prints tokens drawn of each source as JSON. Nothing of mixpool
is imported. A row, or a token, tells by a number which source it is from. Where a loader reads a form of its
own, the sources are written in it first.
"""

import importlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

SEQUENCE = 128
"""Tokens of a sequence of those that pack."""
BATCH = 8 * SEQUENCE


def lengths(folder: Path, name: str) -> list[int]:
    """Tokens of each document of a source."""
    found: list[int] = json.loads((folder / "lengths.json").read_text())[name]
    return found


def rows(folder: Path, name: str) -> Iterator[dict[str, int]]:
    """The documents of a source as rows."""
    names = list(json.loads((folder / "lengths.json").read_text()))
    return ({"source": names.index(name), "length": n} for n in lengths(folder, name))


def made(folder: Path, format_name: str, **more: Any) -> Any:
    """What the exported Python makes."""
    found: dict[str, Any] = dict(more)
    exec("\n".join(json.loads((folder / format_name).read_text())["python"]), found)
    return found["mixed"]


def counted(drawn: Iterable[dict[str, Any]], most: int) -> Counter[int]:
    """Tokens by source of the first ``most`` rows."""
    tokens: Counter[int] = Counter()
    for row in itertools.islice(drawn, most):
        tokens[int(row["source"])] += int(row["length"])
    return tokens


def huggingface(folder: Path, most: int) -> Counter[int]:
    return counted(made(folder, "huggingface"), most)


def torchdata(folder: Path, most: int) -> Counter[int]:
    from torchdata.nodes import Loader

    return counted(Loader(made(folder, "torchdata")), most)


def grain(folder: Path, most: int) -> Counter[int]:
    mixed = made(folder, "grain")
    return counted((mixed[number] for number in range(most)), most)


def litdata(folder: Path, most: int) -> Counter[int]:
    import litdata as package

    for name in json.loads((folder / "lengths.json").read_text()):
        output = str(folder / "litdata-data" / name)
        package.optimize(dict, list(rows(folder, name)), output, chunk_size=10_000, num_workers=1)
    return counted(made(folder, "litdata"), most)


def streaming(folder: Path, most: int) -> Counter[int]:
    import streaming as package

    columns = {"source": "int", "length": "int"}
    for name in json.loads((folder / "lengths.json").read_text()):
        out = str(folder / "streaming-data" / name)
        with package.MDSWriter(out=out, columns=columns) as writer:
            for row in rows(folder, name):
                writer.write(row)
    return counted(made(folder, "streaming"), most)


def megatron(folder: Path, most: int) -> Counter[int]:
    import numpy as np
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from megatron.core.datasets.utils import get_blend_from_list

    class Tokenizer:
        """As much of one as a dataset asks for."""

        vocab_size, eod, pad = 10, 9, 8
        unique_identifiers = {"class": "none"}

    for name in json.loads((folder / "lengths.json").read_text()):
        prefix = str(folder / "megatron-data" / name)
        Path(prefix).parent.mkdir(exist_ok=True)
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        for row in rows(folder, name):
            builder.add_document(torch.full((row["length"],), row["source"]), [row["length"]])
        builder.finalize(f"{prefix}.idx")
    config = GPTDatasetConfig(
        random_seed=0, sequence_length=SEQUENCE, split="1,0,0", tokenizer=Tokenizer(),
        blend=get_blend_from_list((folder / "megatron").read_text().split()),
        path_to_cache=str(folder / "megatron-cache"), reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False,
    )  # fmt: skip
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=0, world_size=1
    )
    count = most // SEQUENCE
    made_of = BlendedMegatronDatasetBuilder(GPTDataset, [count, 0, 0], lambda: True, config)
    train = made_of.build()[0]
    tokens: Counter[int] = Counter()
    for number in range(count):
        tokens.update(train[number]["tokens"].tolist())
    return tokens


def olmo_core(folder: Path, most: int) -> Counter[int]:
    import numpy as np
    from olmo_core.data.source_mixture import SourceMixtureDatasetConfig, SourceMixtureList
    from olmo_core.data.types import NumpyDatasetDType

    names = list(json.loads((folder / "lengths.json").read_text()))
    (folder / "olmo-core-data").mkdir()
    for name in names:
        tokens = np.full(sum(lengths(folder, name)), names.index(name), np.uint16)
        tokens.tofile(folder / "olmo-core-data" / f"{name}.npy")
    mixture = SourceMixtureDatasetConfig(
        source_list=SourceMixtureList.from_yaml(str(folder / "olmo-core")),
        requested_tokens=most, global_batch_size=BATCH, render_tables=False, quiet=True,
    ).build(npdtype=NumpyDatasetDType.uint16.as_np_dtype(), sequence_length=SEQUENCE)  # fmt: skip
    return Counter(
        {names.index(Path(path).stem): tokens for (path, _), tokens in mixture.to_index().items()}
    )


LOADERS: dict[str, tuple[str, Callable[[Path, int], Counter[int]]]] = {
    "huggingface": ("datasets", huggingface),
    "torchdata": ("torchdata.nodes", torchdata),
    "grain": ("grain", grain),
    "litdata": ("litdata", litdata),
    "streaming": ("streaming", streaming),
    "megatron": ("megatron.core", megatron),
    "olmo-core": ("olmo_core.data", olmo_core),
}
"""Formats, what each imports, and how it is drawn from."""


def main(folder: str, format_name: str, most: str) -> None:
    """Print tokens by source, or why the loader cannot be imported."""
    package, draw = LOADERS[format_name]
    try:
        importlib.import_module(package)
    except Exception as error:
        print(json.dumps({"left out": f"{package} cannot be imported here ({error})"}))
    else:
        print(json.dumps(dict(sorted(draw(Path(folder), int(most)).items()))))


if __name__ == "__main__":
    main(*sys.argv[1:])
