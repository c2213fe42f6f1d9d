"""Documents taken out of a corpus: only the partition that holds one is made anew.

A withdrawn document keeps a row in the index, so it never comes back. What is pinned (the base model's
documents, evaluation sets of their own) cannot lose one without making everything anew, and says so.
"""

from typing import Any

from tasks import documents
from tasks.intake import Intake
from tasks.manifest import DomainState, PartitionEntry
from tasks.seen import Role, domain_of
from tasks.split import rewrite


def withdraw(job: Intake, domains: dict[str, DomainState]) -> dict[str, DomainState]:
    """Take out the documents that the recipe withdraws and the chain still holds."""
    known = {*job.state.withdrawn, *job.state.withdrawn.values()}
    for name in job.corpus.withdraw:
        if name in known:
            continue
        found = job.seen.find(name)
        if found is None:
            job.problems.file(name, "is to be withdrawn and was never seen; check the id")
            continue
        if found.role in {Role.BASE, Role.EVALUATION}:
            job.problems.file(
                name,
                f"is to be withdrawn and stays in {found.role} {found.place}, which is pinned: "
                "start a new chain (another corpus.name) to be rid of it",
            )
            continue
        job.withdrawn[found.digest] = found.origin
        domain = domain_of(found)
        job.seen.write(found._replace(role=Role.WITHDRAWN))
        if domain in domains:
            domains[domain] = _without(job, domains[domain], found.digest)
    return domains


def _without(job: Intake, state: DomainState, digest: str) -> DomainState:
    def remade(entry: PartitionEntry | None) -> PartitionEntry | None:
        if entry is None:
            return None
        folder = job.store.fetch(entry.documents)
        if not any(row["digest"] == digest for row in documents.read(folder, ["digest"])):
            return entry
        rest = (d for d in documents.read_all(folder) if d.digest != digest)
        return rewrite(entry, rest, job.folder(), job.deposit)

    partitions = [entry for entry in map(remade, state.partitions) if entry is not None]
    update: dict[str, Any] = {"partitions": partitions, "remainder": remade(state.remainder)}
    if state.heldout is not None:
        rest = documents.read_all(job.store.fetch(state.heldout))
        kept = [document for document in rest if document.digest != digest]
        if len(kept) < state.num_heldout:
            update |= job.store_heldout(kept[0].domain if kept else "", kept)
    return state.model_copy(update=update)
