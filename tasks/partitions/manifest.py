"""The manifest: which documents are in which partition, chained and append-only.

``manifests/<chain>/<n>.json`` names everything that the n-th scan decided; the next scan starts
from it. A chain belongs to one set of rules (budget, fractions, document format, tokenizer): other
rules start another chain, another address of the corpus does not. The manifest pins the tokenizer,
the base documents and the evaluation sets, each from the scan that first made it.
"""

from collections.abc import Mapping
from typing import Any

from storage.artifact import Artifact, CorruptError, seal, slug, unseal
from storage.fingerprint import Config, fingerprint
from storage.step import Handle
from storage.store import Store


class PartitionEntry(Config):
    """One sealed (or, if ``sealed`` is false, still open) partition."""

    name: str
    """Domain and number."""
    domain: str
    """Value of the grouping key."""
    documents: Artifact
    """Its documents."""
    num_documents: int
    """Number of documents."""
    num_tokens: int
    """Tokens under the chain's tokenizer."""
    num_bytes: int
    """UTF-8 bytes of text."""
    sealed: bool = True
    """False for the open remainder of a domain."""


class DomainState(Config):
    """Where the assignment of one domain stands."""

    partitions: list[PartitionEntry] = []
    """Sealed partitions in order."""
    remainder: PartitionEntry | None = None
    """Documents that wait for the next partition to fill."""
    heldout: Artifact | None = None
    """Held-out documents that are, or will be, the domain's evaluation set."""
    num_heldout: int = 0
    """Number of documents in ``heldout``."""
    frozen: bool = False
    """Whether the evaluation set is fixed; true from the scan that seals the first partition."""


class SetEntry(Config):
    """One evaluation set, fixed when it was first read."""

    name: str
    """Name in the recipe, or the domain."""
    identity: str
    """Fingerprint of the set's configuration."""
    domain: str | None
    """The domain it was held out from; None for a set of its own."""
    documents: Artifact
    """Its documents."""
    num_documents: int
    """Number of documents."""
    removed: int = 0
    """Documents lost because training data already held them."""


class Manifest(Config):
    """Everything that the scans of one chain have decided so far."""

    chain: str
    """Name of the chain: corpus name and fingerprint of its rules."""
    number: int
    """Position in the chain, from 0."""
    rules: Any
    """The rules, in canonical JSON, for people."""
    tokenizer: Artifact
    """The tokenizer that counts tokens, pinned by the first scan."""
    base_documents: Artifact | None
    """Documents of tokenizer and base model, pinned by the first scan."""
    files: dict[str, str]
    """Stamp of every file that was read to its end, by path."""
    domains: dict[str, DomainState]
    """State of each domain."""
    sets: list[SetEntry]
    """Evaluation sets with a source of their own."""
    withdrawn: dict[str, str]
    """Withdrawn documents: digest, and where they were."""
    index: list[Artifact]
    """Digest, role and place of every document, one artifact for each scan that added some."""
    counts: dict[str, int]
    """Documents by what became of them, summed over all scans."""
    problems: list[str]
    """What the last scan could not read, in words."""
    unread: str = ""
    """For one run: which files it listed and did not read (``unread_digest``); never published."""

    def partitions(self, *, with_open: bool = False) -> list[PartitionEntry]:
        """All partitions in a fixed order; ``with_open`` adds the open remainders."""
        entries = []
        for domain in sorted(self.domains):
            state = self.domains[domain]
            entries += state.partitions
            if with_open and state.remainder is not None:
                entries.append(state.remainder)
        return entries

    def evaluation_sets(self) -> list[SetEntry]:
        """Held-out sets of the domains, then the sets with a source of their own."""
        heldout = [
            SetEntry(
                name=domain,
                identity=f"heldout:{domain}",
                domain=domain,
                documents=state.heldout,
                num_documents=state.num_heldout,
            )
            for domain, state in sorted(self.domains.items())
            if state.frozen and state.heldout is not None
        ]
        return [*heldout, *self.sets]

    def artifacts(self) -> list[Artifact]:
        """Everything that the next scan or a run may read."""
        states = self.domains.values()
        named = [self.tokenizer, self.base_documents, *(s.heldout for s in states), *self.index]
        named += [entry.documents for entry in self.partitions(with_open=True)]
        named += [entry.documents for entry in self.sets]
        return [artifact for artifact in named if artifact is not None]


def chain_name(corpus: str, rules: Mapping[str, object]) -> str:
    """The chain to which a corpus belongs under given rules."""
    return f"{slug(corpus)}.{fingerprint('chain', rules)[:16]}"


def latest(store: Store, chain: str) -> Manifest | None:
    """The newest manifest of a chain, or None. Raises CorruptError where it was changed."""
    paths = store.chain(f"manifests/{chain}")
    return read_manifest(store, paths[-1]) if paths else None


def read_manifest(store: Store, path: str) -> Manifest:
    """The manifest at ``path``. Raises CorruptError, with advice, where it is not what was written."""
    try:
        manifest = Manifest.model_validate(unseal(store.backend.read(path), path))
        if path_of(manifest) != path:
            raise CorruptError(f"{path} is number {manifest.number} of {manifest.chain}")
    except CorruptError as error:
        raise CorruptError(
            f"{error}. Restore it from a copy of the store, or move it away: the next run goes on from "
            "the manifest before it, reads later files again and finds what was made of them"
        ) from error
    return manifest


def path_of(manifest: Manifest) -> str:
    """Where a manifest lies in the store."""
    return f"manifests/{manifest.chain}/{manifest.number:06d}.json"


def publish(store: Store, manifest: Manifest) -> bool:
    """Write the manifest; False where another run has published that number first."""
    return store.backend.create(path_of(manifest), seal(manifest))


def handle(entry: PartitionEntry | SetEntry) -> Handle:
    """The documents of a partition or set, as an input of a step."""
    return Handle(entry.name, "documents", entry.documents)
