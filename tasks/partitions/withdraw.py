"""Withdraw documents from a corpus: only the partitions that hold one are made anew.

A withdrawn document keeps a row in the index, so it never comes back. The base model's documents
and evaluation sets of their own are pinned: they cannot lose a document without making everything
anew, and the scan reports that.
"""

import hashlib
import itertools
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from storage.store import Store
from tasks.corpus import documents
from tasks.partitions.assign import store_heldout
from tasks.partitions.index import DocumentIndex, IndexEntry, Role
from tasks.partitions.job import ScanJob
from tasks.partitions.manifest import DomainState, Manifest, PartitionEntry
from tasks.partitions.split import place_of, rewrite

Gone = dict[tuple[str, str], set[str]]
"""Digests to take out, by role and place."""


def withdraw(job: ScanJob) -> dict[str, DomainState]:
    """Take out what the recipe withdraws and the chain holds; what is unknown stays pending."""
    gone: Gone = defaultdict(set)
    folders = [job.store.fetch(entry.documents) for entry in job.state.sets if job.pending]
    rows = itertools.chain.from_iterable(documents.read_columns(f, ["digest"]) for f in folders)
    in_sets = {row["digest"] for row in rows}
    for name in sorted(job.pending):
        entry = _movable(job, name, in_sets)
        if entry is not None and entry.role != Role.WITHDRAWN:
            gone[entry.role, entry.place].add(entry.digest)
            job.withdraw(entry)
    return {name: _without(job, name, state, gone) for name, state in job.state.domains.items()}


def _movable(job: ScanJob, name: str, in_sets: set[str]) -> IndexEntry | None:
    """The document of this name that can be taken out; where there is none, it is said why."""
    entries = job.index.find(name)
    free = [k for k in entries if k.role not in {Role.BASE, Role.EVALUATION}]
    if not entries:
        return None
    job.pending.discard(name)
    if len(free) > 1:
        digests = ", ".join(entry.digest for entry in free)
        job.problems.file(
            name, f"is to be withdrawn and named several documents: give of {digests}"
        )
    elif not free or free[0].digest in in_sets:
        held = "base documents" if entries[0].role == Role.BASE else "an evaluation set"
        job.problems.file(
            name,
            f"is to be withdrawn and stays in {held}, which is pinned: start a new chain (another "
            "corpus.name) to be rid of it",
        )
    else:
        return free[0]
    return None


def report_unknown(job: ScanJob) -> None:
    """Say which ids to withdraw were met nowhere, once everything has been read."""
    for name in sorted(job.pending):
        job.problems.file(
            name,
            "is to be withdrawn and was never seen; check the id (a text that stands in several "
            "places is known by the first; its digest always works)",
        )


def _without(job: ScanJob, name: str, state: DomainState, gone: Gone) -> DomainState:
    def rest(entry: PartitionEntry | None) -> PartitionEntry | None:
        if entry is None or not (digests := gone.get((Role.TRAIN, place_of(entry)))):
            return entry
        return rewrite(job, entry, without=digests)

    partitions = [left for entry in state.partitions if (left := rest(entry)) is not None]
    update: dict[str, object] = {"partitions": partitions, "remainder": rest(state.remainder)}
    if digests := gone.get((Role.HELDOUT, name)):
        writer = job.copied(state.heldout, without=digests)
        writer.close()
        if number := writer.num_documents:
            update |= {"heldout": store_heldout(job, name, writer), "num_heldout": number}
        else:
            update |= {"heldout": None, "num_heldout": 0, "frozen": False}
    return state.model_copy(update=update)


@contextmanager
def known_documents(store: Store, state: Manifest) -> Iterator[DocumentIndex]:
    """The index of a chain, to look things up in."""
    with (
        tempfile.TemporaryDirectory(prefix="mixpool-index-") as folder,
        closing(DocumentIndex(Path(folder))) as index,
    ):
        for artifact in state.index:
            index.load(store.fetch(artifact))
        yield index


def of_files(index: DocumentIndex, files: Collection[str]) -> dict[str, list[IndexEntry]]:
    """The documents that were first seen in files, by the file's path."""
    found: dict[str, list[IndexEntry]] = {path: [] for path in files}
    for entry in index.each():
        # A file that is one document is its origin; in others the row stands behind it.
        path = entry.origin if entry.origin in found else entry.origin.rpartition(":")[0]
        if path in found:
            found[path].append(entry)
    return found


def named(
    index: DocumentIndex, ids: Iterable[str], texts: Iterable[str]
) -> dict[str, list[IndexEntry]]:
    """The documents that an id (digest or origin) or a text names, by what named them."""
    digests = {text: hashlib.sha256(text.encode()).hexdigest() for text in texts}
    by_text = {f"text {text:.40}": index.find(digest) for text, digest in digests.items()}
    return {name: index.find(name) for name in ids} | by_text
