"""Stamps of the files that were read, in artifacts that the manifests name.

Each scan that read files adds one, so that a manifest does not repeat all files of all scans before
it. One that is no larger than the next few is joined with it: their number stays small. Without
stamps files are read again, and found to hold nothing new.
"""

import gzip
import json
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from storage.artifact import Artifact, CorruptError
from storage.store import Store

if TYPE_CHECKING:
    from tasks.partitions.job import ScanJob

LOG = logging.getLogger("mixpool.scan")

FILE = "stamps.json.gz"


def read_stamps(store: Store, artifacts: Iterable[Artifact]) -> dict[str, str]:
    """Stamps by path, later ones for earlier ones; what is damaged is passed over."""
    stamps: dict[str, str] = {}
    for artifact in artifacts:
        try:
            data = (store.fetch(artifact) / FILE).read_bytes()
        except CorruptError as error:
            LOG.warning("%s; its files are read again", error)
        else:
            stamps |= json.loads(gzip.decompress(data))
    return stamps


def save_stamps(job: "ScanJob", kept: list[Artifact]) -> list[Artifact]:
    """Deposit the stamps that none of ``kept`` has; the artifacts of all."""
    known = read_stamps(job.store, kept)
    new = {path: stamp for path, stamp in job.state.files.items() if known.get(path) != stamp}
    if not new:
        return kept
    kept = [*kept]
    while (data := _packed(new)) and kept and kept[-1].num_bytes <= 2 * len(data):
        new = read_stamps(job.store, [kept.pop()]) | new
    folder = job.folder()
    (folder / FILE).write_bytes(data)
    return [*kept, job.deposit("stamps", job.state.chain, folder, {"num_files": len(new)})]


def _packed(stamps: dict[str, str]) -> bytes:
    return gzip.compress(json.dumps(stamps, sort_keys=True).encode(), compresslevel=3, mtime=0)
