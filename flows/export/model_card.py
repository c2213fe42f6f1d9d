"""The README.md of a merged model: its members, its losses in the run, and what it is not.

The front matter is for the Hugging Face hub. A licence follows from the corpus and the base model, which
mixpool knows nothing about: it is the user who names one.
"""

import importlib.metadata
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from flows.run.stored import RunContent, ranked_by
from storage.artifact import Record
from storage.fingerprint import short
from storage.store import Store
from tasks import readable
from tasks.evaluation.predicted import MERGE
from tasks.shown import markdown
from tasks.training.teacher import PREFIX, in_words

if TYPE_CHECKING:
    import pandas as pd

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

REPLAY = (
    "Replay is the share of these tokens that comes from the base model's documents, and not from the "
    "partition; of the control, which has no partition, it is 1."
)


UNKNOWN = "unknown"
"""What the hub calls a licence that nobody named."""


class Form(NamedTuple):
    """What a folder holds for programs: as the hub calls it, and how it is loaded."""

    library: str
    loading: str
    """Python."""
    licence: str = UNKNOWN
    length: int | None = None
    """Tokens of an input at most; None where the model's config names no limit."""


MODEL = Form(
    "transformers",
    """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")""",
)
ADAPTER = Form(
    "peft",
    """\
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/of/the/base/model")
model = PeftModel.from_pretrained(base, "path/of/this/folder")""",
)


def model_card(
    store: Store,
    run: RunContent,
    facts: Mapping[str, Any],
    trained: Mapping[str, Record],
    form: Form = MODEL,
) -> str:
    """The card of a mixture's merged model, as Markdown.

    Args:
        facts: of the mixture (``flows.export.sampling.weights_tree``).
        trained: how each member's model was made, by partition.
    """
    front = {
        "library_name": form.library,
        "license": form.licence,
        "tags": ["mixpool", "merge"],
    }
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {markdown(facts['mixture'])}",
        PROXY if len(trained) > 1 else SINGLE,
        "## What it is made of",
        _members(run, facts, trained),
        _table(("domain", "weight"), [(n, f"{w:f}") for n, w in facts["domains"].items()]),
        _origin(run, facts, trained, form),
        "## How good it was in that run",
        _losses(ranked(store, run, facts["mixture"]), ranked_by(run)),
        "## How to load it",
        f"```python\n{form.loading}\n```",
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
            f"{record.config.get('replay', 0):g}",
            short(record.output.digest),
        )
        for name, record in trained.items()
    ]
    table = _table(("partition", "domain", "weight", "tokens trained on", "replay", "model"), rows)
    return f"{table}\n\n{REPLAY}"


def _origin(
    run: RunContent, facts: Mapping[str, Any], trained: Mapping[str, Record], form: Form
) -> str:
    bases = sorted({record.inputs["model"] for record in trained.values()})
    taught = dict.fromkeys(_taught(record) for record in trained.values())
    return "\n".join(
        [
            f"- base model: {', '.join(bases)} (sha256 of its files)",
            *(f"- {words}" for words in taught if words),
            *_adapters(trained),
            *([] if form.length is None else [f"- input: {form.length:,} tokens at most"]),
            f"- recipe: {markdown(facts['recipe'])}",
            f"- run: {markdown(run.name)}, of {markdown(run.content['created'])}",
            f"- averaged by mixpool {importlib.metadata.version('mixpool')}; "
            "`mixpool-mixture.json` has the whole digests",
        ]
    )


def _taught(record: Record) -> str:
    if not (how := in_words(record.config, record.inputs)):
        return ""
    digests = [digest for name, digest in record.inputs.items() if name.startswith(PREFIX)]
    return f"teachers in training: {how}; {', '.join(sorted(digests))} (sha256 of their files)"


def _adapters(trained: Mapping[str, Record]) -> Iterator[str]:
    settings = [
        record.config["adapter"] for record in trained.values() if "adapter" in record.config
    ]
    if settings:
        words = ", ".join(
            f"{name} {value}" for name, value in settings[0].items() if value is not None
        )
        yield f"- trained by adapters of all linear layers (LoRA): {words}"


def _losses(rows: "pd.DataFrame", predictor: str) -> str:
    if rows.empty:
        return "The run did not evaluate this mixture."
    if predictor != MERGE and rows["k"].iloc[0] > 1:
        return f"The run ranked by {predictor}, which is no loss of this merged model, and has none of it."
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
    return "\n".join(f"| {' | '.join(map(markdown, line))} |" for line in lines)
