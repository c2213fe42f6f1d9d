"""The README.md of a merged model: its members, its losses in the run, and what it is not.

The front matter is for the Hugging Face hub. It names no licence: that follows from the corpus and the
base model, which mixpool knows nothing about.
"""

import importlib.metadata
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from flows.run.stored import RunContent
from storage.artifact import Record
from storage.fingerprint import short
from storage.store import Store
from tasks import readable

if TYPE_CHECKING:
    import pandas as pd

FRONT = {"library_name": "transformers", "tags": ["mixpool", "merge"]}

PROXY = (
    "This model is an average of weights: each model that it is made of was trained on one partition "
    "of a corpus, all from one base model. It stands for a model trained on these partitions "
    "together: a proxy, by which mixtures are compared. It was not trained on the mixture itself, and "
    "its losses are not those of a model that is."
)
SINGLE = (
    "This model was trained on one partition of a corpus, from the base model below. Such models are "
    "averaged to proxies, by which mixtures are compared."
)

LOADING = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
```"""


def model_card(
    store: Store, run: RunContent, facts: Mapping[str, Any], trained: Mapping[str, Record]
) -> str:
    """The card of a mixture's merged model, as Markdown.

    Args:
        facts: of the mixture (``flows.export.export.weights_tree``).
        trained: how each member's model was made, by partition.
    """
    sections = [
        f"---\n{yaml.safe_dump(FRONT, sort_keys=False)}---",
        f"# {_cell(facts['mixture'])}",
        PROXY if len(trained) > 1 else SINGLE,
        "## What it is made of",
        _members(run, facts, trained),
        _table(("domain", "weight"), [(n, f"{w:f}") for n, w in facts["domains"].items()]),
        _origin(run, facts, trained),
        "## How good it was in that run",
        _losses(ranked(store, run, facts["mixture"])),
        "## How to load it",
        LOADING,
    ]
    return "\n\n".join(sections) + "\n"


def ranked(store: Store, run: RunContent, mixture: str) -> "pd.DataFrame":
    """The mixture's row in each ranking of a run (see ``tasks.ranking.rank``); none where it has none."""
    import pandas as pd

    ranking = io.BytesIO(store.backend.read(f"runs/{run.name}/ranking.parquet"))
    return pd.read_parquet(ranking, filters=[("mixture", "==", mixture)])


def _members(run: RunContent, facts: Mapping[str, Any], trained: Mapping[str, Record]) -> str:
    rows = [
        (
            name,
            run.content["domains"][name],
            f"{facts['weights'][name]:f}",
            f"{record.details['num_tokens']:,}",
            short(record.output.digest),
        )
        for name, record in trained.items()
    ]
    return _table(("partition", "domain", "weight", "tokens trained on", "model"), rows)


def _origin(run: RunContent, facts: Mapping[str, Any], trained: Mapping[str, Record]) -> str:
    bases = sorted({record.inputs["model"] for record in trained.values()})
    return "\n".join(
        [
            f"- base model: {', '.join(bases)} (sha256 of its files)",
            f"- recipe: {_cell(facts['recipe'])}",
            f"- run: {run.name}, of {run.content['created']}",
            f"- averaged by mixpool {importlib.metadata.version('mixpool')}; "
            "`mixpool-mixture.json` has the whole digests",
        ]
    )


def _losses(rows: "pd.DataFrame") -> str:
    if rows.empty:
        return "The run did not evaluate this mixture."
    shown = [
        (
            row["objective"],
            readable.number(3)(row["perplexity"]),
            readable.number(4)(row["bits_per_byte"]),
        )
        for row in rows.to_dict("records")
    ]
    return _table(("evaluation set", "perplexity", "bits per byte"), shown)


def _table(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[*heads], ["---" for _ in heads], *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text from data on one line, in which no bar ends a cell."""
    return " ".join(text.split()).replace("|", "\\|")
