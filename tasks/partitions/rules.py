"""The rules of a chain: what decides where a document goes, and which chain a corpus goes on with."""

from collections.abc import Iterator, Mapping
from typing import Any

from storage.fingerprint import ABSENT, Config, canonical, differences
from storage.store import Store
from tasks.corpus.source import Source
from tasks.partitions import manifest
from tasks.partitions.config import CorpusConfig
from tasks.partitions.manifest import LIMIT

_FIELDS = {"split": "corpus.split", "base": "base.source", "tokenizer": "tokenizer"}
"""Where the recipe has a rule; the others are in corpus.source."""


def rules_of(corpus: CorpusConfig, tokenizer: Config, base: Source | None) -> dict[str, Any]:
    """What a chain belongs to: every rule that decides where a document goes.

    The corpus's address is none of them, so it may move, nor is the limit on partitions, so it may be
    raised. The address of the base model's own documents is: they are pinned by the first scan, and
    others must not seem to have been used.
    """
    source = corpus.source
    return {
        # As in a chain without a limit, whose name stays what it was when the limit was a rule.
        "split": canonical(corpus.split.model_copy(update={LIMIT: None})),
        "format": canonical(source.format),
        "include_domains": source.include_domains and sorted(source.include_domains),
        "exclude_domains": sorted(source.exclude_domains),
        "tokenizer": canonical(tokenizer),
        "base": None if base is None else canonical(base),
    }


def chain_of(store: Store, corpus: CorpusConfig, rules: Mapping[str, Any]) -> str:
    """The chain that a corpus goes on with; a new name where the store has none.

    In older chains the limit on partitions is a rule: the one of this very limit is taken first.
    """
    name = manifest.chain_name(corpus.name, rules)
    former = _limited(rules, corpus.split.partitions_per_domain)
    for known in (manifest.chain_name(corpus.name, former), name):
        if store.chain(f"manifests/{known}"):
            return known
    found = manifest.newest(store, corpus.name)
    alike = {m.rules["split"][LIMIT]: m.chain for m in found if _limited(m.rules, None) == rules}
    return alike[max(alike)] if alike else name


def _limited(rules: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    return {**rules, "split": {**rules["split"], LIMIT: limit}}


def starts_anew(store: Store, name: str, rules: Mapping[str, Any]) -> Iterator[str]:
    """Why no chain of the corpus ``name`` can be gone on with: the rules that the nearest one lacks."""
    others = [_limited(found.rules, None) for found in manifest.newest(store, name)]
    changes = [list(differences(other, {**rules})) for other in others]
    if not changes:
        return
    words: dict[str, str] = {}
    for difference in min(changes, key=len):
        rule, _, rest = difference.path.partition(".")
        if rule == "tokenizer" and (rest == "digest" or ABSENT in difference):
            words["tokenizer"] = "another one"  # a digest tells nobody anything
        else:
            field = _FIELDS.get(rule, f"corpus.source.{rule}")
            words[f"{field}.{rest}".rstrip(".")] = difference.change
    listed = ", ".join(f"{field} {change}" for field, change in words.items())
    yield (
        f"corpus {name!r} starts anew, by another rule ({listed}): partitions are made anew, and all "
        "models are trained again"
    )
