"""What mixpool does with each model type of transformers, as Markdown, by doing it.

Of every type of transformers' mapping of causal language models a tiny random model is taken over, probed,
varied into two members, merged and evaluated by the steps and classes of a run. The reference is plain
transformers: float64 averages of state dicts, one window of one document at a time. ``docs/models.md`` is
what ``python -m`` of this module prints; it takes some minutes.
"""

import math
import random
import shutil
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from storage.artifact import describe
from storage.checkpoint import Checkpoints
from storage.step import Runtime, Workspace
from storage.store import Store
from tasks.corpus.documents import DocumentWriter, StoredDocument
from tasks.evaluation import window
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.evaluation.sweep import Job, PreparedSet, Sweeper
from tasks.evaluation.window import WindowConfig
from tasks.machine.meter import Meter
from tasks.mixtures.mixture import Mixture
from tasks.models import probe
from tasks.models.facts import FACTS, facts_of
from tasks.models.folder import load_model, load_weights
from tasks.models.given import ImportConfig, build_import
from tasks.models.probe import ProbeConfig
from tasks.tokens.tokenizer import Encoder, TrainTokenizer, build_trained
from tests.tiny_types import VARIANTS, tiny_config

CONTEXT = 32
PARTS = {"a": 3, "b": 1}
TOLERANCE = 1e-5
"""Largest relative difference from the reference, of a document and of the set."""

HEAD = """# Model types

This page is made by `python -m tests.model_table > docs/models.md`; do not edit it.

A given base model (`base.kind: given`) is any that `AutoModelForCausalLM` of transformers loads. Each type
that it knows was tried as a tiny random model on a CPU: taken over, probed, merged from two members and
evaluated. *right*: the losses of the merged model are those of plain transformers on a float64 average of
the weights, one document at a time, to a relative 1e-5, of every document. *refused*: `mixpool run` ends
before anything is trained, with a sentence that begins as the one here. *not tried*: no tiny random model
of it was made, for the reason that is named.

Made with transformers {version}. {counts}.

| type | result | what is said |
|---|---|---|
"""


class Row(NamedTuple):
    """What became of one type."""

    result: str
    """``right``, ``refused``, ``not tried``, or what is wrong."""
    said: Sequence[str]
    """Notes, or the refusal."""


class Ground:
    """A tokenizer and an evaluation set below a folder, for any number of types."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._workspace = Workspace(
            Runtime(device="cpu", threads=1),
            Checkpoints(Store(str(folder / "store")).backend, "work/x"),
            Meter("cpu"),
            lambda done, total, unit: None,
        )
        chance = random.Random(0)
        words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(1, 6))) for _ in range(80)]
        self.texts = [" ".join(chance.choices(words, k=k)) for k in (1, 3, 6, 9, 12, 12, 30, 45)]
        documents = self._stored("documents", [" ".join(words[i:] + words[:i]) for i in range(20)])
        self.tokenizer = self._new("tokenizer")
        build_trained(
            TrainTokenizer(vocab_size=300),
            {"documents": documents},
            self.tokenizer,
            self._workspace,
        )
        inputs = {"documents": self._stored("set", self.texts), "tokenizer": self.tokenizer}
        self._windows = self._new("windows")
        window.build(WindowConfig(context_length=CONTEXT), inputs, self._windows, self._workspace)

    def _new(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def _stored(self, name: str, texts: list[str]) -> Path:
        folder = self._new(name)
        with DocumentWriter(folder) as writer:
            for number, text in enumerate(texts):
                writer.add(StoredDocument(f"{number:064x}", "domain", str(number), 0, text))
        return folder

    def row(self, kind: str, fields: dict[str, Any]) -> Row:
        """Take a type through all of it. Whatever is raised before a training is a refusal."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            try:
                source = random_model(kind, fields, folder / "source")
            # Whatever transformers says at a type that it has no such model of.
            except Exception as error:
                return Row("not tried", [f"{type(error).__name__}: {error}"])
            try:
                base, notes = self.taken_over(source, folder)
            except ValueError as error:
                return Row("refused", [str(error).replace(str(source), "FOLDER")])
            found = self._losses({part: member(base, folder / part) for part in PARTS})
            expected = reference(source, [folder / part for part in PARTS], self._documents())
            worst = max(
                abs(f - e) / e for f, e in zip(sorted(found), sorted(expected), strict=True)
            )
            result = "right" if worst <= TOLERANCE else f"**differs by {worst:.0e}**"
            return Row(result, notes)

    def taken_over(self, source: Path, folder: Path) -> tuple[Path, Sequence[str]]:
        """A given model as base model, and the notes on it. Raises ValueError with the refusal."""
        (base := folder / "base").mkdir()
        (probed := folder / "probe").mkdir()
        inputs = {"source": source, "tokenizer": self.tokenizer}
        build_import(ImportConfig(), inputs, base, self._workspace)
        inputs = {"model": base, "tokenizer": self.tokenizer}
        config = ProbeConfig(train=CONTEXT, windows=CONTEXT)
        details: Any = probe.build(config, inputs, probed, self._workspace)
        return base, details["notes"]

    def _losses(self, members: dict[str, Path]) -> list[float]:
        sets = [PreparedSet("set", "0" * 64, self._windows)]
        sweeper = Sweeper(members, sets, EvaluateConfig(), self._workspace.runtime)
        mixture = Mixture.of(PARTS)
        with Meter("cpu") as meter:
            (row,) = sweeper.evaluate(
                [Job(mixture, mixture.label, ("set",))], meter, lambda *_: None
            )
        return row.group_nll

    def _documents(self) -> Iterator[list[int]]:
        encoder = Encoder(self.tokenizer)
        for ids in encoder.encode(self.texts):
            yield [encoder.end_of_text, *ids[:-1].tolist()]


def random_model(kind: str, fields: dict[str, Any], folder: Path) -> Path:
    """A tiny model as people give it; noise makes each weight, and what is derived of zeros, count."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **fields)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def member(base: Path, folder: Path) -> Path:
    """The base model, moved at random as by a training of two steps."""
    import torch
    from safetensors.torch import save_file

    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(len(folder.name) + ord(folder.name[0]))
    weights = load_weights(base)
    named = dict(load_model(base).named_parameters(remove_duplicate=False))
    for name in sorted(named.keys() & weights.keys()):
        weights[name] += 0.02 * torch.randn(weights[name].shape, generator=generator)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    trained = {"base": describe("model", base).digest, "steps": 2}
    (folder / FACTS).write_text(facts_of(base).model_copy(update=trained).model_dump_json())
    return folder


def reference(source: Path, members: Sequence[Path], documents: Iterator[list[int]]) -> list[float]:
    """Nats of each document by the average, computed by plain transformers."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    weights = [load_weights(folder) for folder in members]
    whole = sum(PARTS.values())
    averaged = {
        name: sum(p * w[name].double() for p, w in zip(PARTS.values(), weights, strict=True))
        / whole
        for name, tensor in weights[0].items()
        if tensor.is_floating_point()
    }
    assert not model.load_state_dict(averaged, strict=False).unexpected_keys
    losses = []
    for tokens in documents:
        nats = []
        for start, first, end in window.spans(len(tokens) - 1, CONTEXT, "paloma"):
            ids = torch.tensor([tokens[start:end]])
            targets = torch.tensor(tokens[start + first + 1 : end + 1])
            with torch.inference_mode():
                logits = model(input_ids=ids, use_cache=False).logits[0, first:]
            nats.append(F.cross_entropy(logits.double(), targets, reduction="sum").item())
        losses.append(math.fsum(nats))
    return losses


def kinds() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every type, and the variants, by name: the type and its further fields."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    types = {config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    return {**{kind: (kind, {}) for kind in sorted(types)}, **VARIANTS}


def line(name: str, row: Row) -> str:
    """A row of the page."""
    said = "; ".join(textwrap.shorten(each, 160, placeholder=" ...") for each in row.said)
    return f"| {name} | {row.result} | {said.replace('|', '/')} |"


def table() -> str:
    """The whole page."""
    from transformers import __version__
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        for name, (kind, fields) in kinds().items():
            rows[name] = ground.row(kind, fields)
            print(line(name, rows[name]), file=sys.stderr, flush=True)
    tally = Counter(row.result for row in rows.values())
    counts = ", ".join(f"{count} {result}" for result, count in tally.most_common())
    lines = [line(name, row) for name, row in rows.items()]
    return "\n".join([HEAD.format(version=__version__, counts=counts).rstrip(), *lines]) + "\n"


if __name__ == "__main__":
    print(table(), end="")
