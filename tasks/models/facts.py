"""The facts that decide whether models may be averaged.

They are in ``mixpool.json``, beside the usual files of a model folder: architecture, tokenizer,
base model, number of steps. Models that differ in one of them are never averaged.
"""

from pathlib import Path

from storage.fingerprint import Config

FACTS = "mixpool.json"


class Facts(Config):
    """What a merge compares."""

    architecture: str
    """Fingerprint of config.json without what does not matter."""
    tokenizer: str
    """Digest of the tokenizer."""
    base: str | None
    """Digest of the model that training started from; None for a model from outside."""
    steps: int
    """Optimizer steps since the base model."""


def facts_of(folder: Path) -> Facts:
    """The facts beside a stored model."""
    return Facts.model_validate_json((folder / FACTS).read_bytes())


def fact_differences(one: Facts, other: Facts) -> list[str]:
    """The facts in which two models differ, in words, with both values shortened for people."""
    labels = {"base": "base model", "steps": "number of steps"}

    def shown(value: object) -> object:
        return value[:10] if isinstance(value, str) else value

    pairs = ((name, getattr(one, name), getattr(other, name)) for name in Facts.model_fields)
    return [f"{labels.get(n, n)}: {shown(a)} and {shown(b)}" for n, a, b in pairs if a != b]
