"""The manifest: which documents are in which partition, chained and append-only.

``manifests/<chain>/<n>.json`` names everything that the n-th scan decided; the next scan starts
from it. A chain belongs to one set of rules (budget, fractions, document format, tokenizer): other
rules start another chain, another address of the corpus does not. The manifest pins the tokenizer,
the base documents and the evaluation sets, each from the scan that first made it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from storage.artifact import Artifact, CorruptError, UnsignedError, first_fault, seal, slug, unseal
from storage.fingerprint import Config, fingerprint
from storage.lineage import second_part
from storage.records import StoreFormatError
from storage.step import Handle
from storage.store import Store
from tasks.corpus.reading import Joined
from tasks.partitions.stamps import read_stamps

LIMIT = "partitions_per_domain"
"""The limit on partitions; the first chains have it among their rules."""


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
    seen: str = ""
    """Digest of its files' paths and stamps when it was read; empty where nobody kept it."""


class Manifest(Config):
    """Everything that the scans of one chain have decided so far."""

    chain: str = Field(pattern=r"^[\w-]+(\.[\w-]+)*$")
    """Name of the chain: corpus name and fingerprint of its rules."""
    number: int = Field(ge=0)
    """Position in the chain, from 0."""
    created: str = ""
    """ISO 8601; empty in those from before."""
    rules: Any
    """The rules, in canonical JSON."""
    limit: int | None
    """Partitions of a domain beyond which documents are left out: the most that a scan was ever asked
    for. None is no limit."""
    tokenizer: Artifact
    """The tokenizer that counts tokens, pinned by the first scan."""
    base_documents: Artifact | None
    """Documents of tokenizer and base model, pinned by the first scan."""
    base_seen: str = ""
    """Digest of their own files' paths and stamps, as for a set."""
    files: dict[str, str]
    """Stamp of every file that was read to its end, by path; published in ``stamps`` alone."""
    stamps: list[Artifact] = []
    """The same in artifacts; empty in manifests from before, which hold them themselves."""
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
    """What the last scan could not read, in words; in a run also what its given inputs are."""
    joined: Joined = {}
    """Parts of the domains whose names are joined of several, so that no two get one name."""
    unread: str = ""
    """For one run: which files it listed and did not read (``unread_digest``); never published."""
    story: list[str] = []
    """For one run: which manifest it goes on from, in words; never published."""

    @model_validator(mode="before")
    @classmethod
    def _from_before(cls, data: dict[str, Any]) -> dict[str, Any]:
        # When it was a rule, it stood there alone.
        with contextlib.suppress(LookupError, TypeError):  # else it is no manifest
            return data if "limit" in data else {**data, "limit": data["rules"]["split"][LIMIT]}
        return data

    def partitions(
        self, *, with_open: bool = False, limit: int | None = None
    ) -> list[PartitionEntry]:
        """All partitions in a fixed order, or the first ``limit`` of each domain.

        Args:
            with_open: adds the open remainders.
        """
        entries = []
        for domain in sorted(self.domains):
            state = self.domains[domain]
            own = [*state.partitions]
            if with_open and state.remainder is not None:
                own.append(state.remainder)
            entries += own[:limit]
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
        named += self.stamps
        named += [entry.documents for entry in self.partitions(with_open=True)]
        named += [entry.documents for entry in self.sets]
        return [artifact for artifact in named if artifact is not None]


def chain_name(corpus: str, rules: Mapping[str, object]) -> str:
    """The chain to which a corpus belongs under given rules."""
    return f"{slug(corpus)}.{fingerprint('chain', rules)[:16]}"


def latest(store: Store, chain: str) -> Manifest | None:
    """The newest manifest of a chain, or None. Raises CorruptError where it was changed."""
    paths = store.chain(f"manifests/{chain}")
    if not paths:
        return None
    found = read_manifest(store, paths[-1])
    return found.model_copy(update={"files": found.files | read_stamps(store, found.stamps)})


def newest(store: Store, corpus: str) -> Iterator[Manifest]:
    """The newest manifest of each chain of a corpus, without stamps. Raises as ``latest``."""
    for name in sorted({second_part(path) for path in store.backend.list("manifests")}):
        paths = store.chain(f"manifests/{name}") if name.startswith(f"{slug(corpus)}.") else []
        if paths:  # a person may have moved them away
            yield read_manifest(store, paths[-1])


def read_manifest(store: Store, path: str) -> Manifest:
    """The manifest at ``path``. Raises CorruptError, with advice, where it is not what was written."""
    try:
        manifest = _parsed(path, unseal(store.backend.read(path), path))
    except UnsignedError:
        raise
    except CorruptError as error:
        raise CorruptError(
            f"{error}. Restore it from a copy of the store, or move it away: the next run goes on from "
            "the manifest before it, reads later files again and finds what was made of them; where "
            "`mixpool gc` has left none before it, the corpus starts anew"
        ) from error
    return manifest


def _parsed(path: str, content: Mapping[str, Any]) -> Manifest:
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        if error.errors()[0]["type"] == "extra_forbidden":
            raise StoreFormatError(
                f"{path} was written by a newer mixpool ({first_fault(error)}): upgrade mixpool"
            ) from error
        raise CorruptError(f"{path} is no manifest ({first_fault(error)})") from error
    if path_of(manifest) != path:
        raise CorruptError(f"{path} is number {manifest.number} of {manifest.chain}")
    return manifest


def path_of(manifest: Manifest) -> str:
    """Where a manifest lies in the store."""
    return f"manifests/{manifest.chain}/{manifest.number:06d}.json"


def publish(store: Store, manifest: Manifest) -> bool:
    """Write the manifest; False where another run has published that number first."""
    return store.backend.create(path_of(manifest), seal(manifest.model_copy(update={"files": {}})))


def handle(entry: PartitionEntry | SetEntry) -> Handle:
    """The documents of a partition or set, as an input of a step."""
    return Handle(entry.name, "documents", entry.documents)
